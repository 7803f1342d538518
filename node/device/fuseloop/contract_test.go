package fuseloop_test

import (
	"log/slog"
	"os"
	"testing"

	"github.com/holdfast-storage/holdfast/node/device"
	"github.com/holdfast-storage/holdfast/node/device/devicetest"
	"github.com/holdfast-storage/holdfast/node/device/fuseloop"
)

func newFrontEnd(dir string) (device.FrontEnd, error) {
	return fuseloop.New(fuseloop.Config{Root: dir, Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))})
}

func TestMain(m *testing.M) {
	devicetest.Child(newFrontEnd)
	os.Exit(m.Run())
}

func TestContract(t *testing.T) { devicetest.Run(t, newFrontEnd) }
