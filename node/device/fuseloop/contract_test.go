package fuseloop_test

import (
	"log/slog"
	"os"
	"testing"

	"github.com/holdfast-storage/holdfast/node/device"
	"github.com/holdfast-storage/holdfast/node/device/devicetest"
	"github.com/holdfast-storage/holdfast/node/device/fuseloop"
)

// inProcessEnv has front ends work without a helper, also in servers that a test
// starts.
const inProcessEnv = "HOLDFAST_FUSELOOP_IN_PROCESS"

func newFrontEnd(dir string) (device.FrontEnd, error) {
	c := fuseloop.Config{Root: dir, Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))}
	if os.Getenv(inProcessEnv) == "" {
		c.Helper = []string{"/proc/self/exe", fuseloop.HelperArg}
	}
	return fuseloop.New(c)
}

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == fuseloop.HelperArg {
		os.Exit(fuseloop.RunHelper(os.Stdin, os.Stdout))
	}
	stuckServer()
	devicetest.Child(newFrontEnd)
	os.Exit(m.Run())
}

func TestContract(t *testing.T) { devicetest.Run(t, newFrontEnd) }

// TestContractInProcess is the contract without helper processes.
func TestContractInProcess(t *testing.T) {
	t.Setenv(inProcessEnv, "1")
	devicetest.Run(t, newFrontEnd)
}
