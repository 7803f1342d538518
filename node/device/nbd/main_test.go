package nbd

import (
	"fmt"
	"log/slog"
	"os"
	"testing"

	"github.com/holdfast-storage/holdfast/node/device"
	"github.com/holdfast-storage/holdfast/node/device/devicetest"
)

// withoutKeeper has front ends work without one, in servers as well.
const withoutKeeper = "HOLDFAST_NBD_TEST_WITHOUT_KEEPER"

func newFrontEnd(dir string) (device.FrontEnd, error) {
	c := Config{Root: dir, Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))}
	if os.Getenv(withoutKeeper) == "" {
		s, err := devicetest.OpenShelf()
		if err != nil {
			return nil, err
		}
		c.Keeper = s
	}
	return New(c)
}

func TestMain(m *testing.M) {
	serveHere()
	devicetest.Child(newFrontEnd)
	if _, err := devicetest.OpenShelf(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}
