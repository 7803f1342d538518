//go:build vm

package ublk_test

import (
	"log/slog"
	"os"
	"testing"

	"github.com/holdfast-storage/holdfast/node/device"
	"github.com/holdfast-storage/holdfast/node/device/devicetest"
	"github.com/holdfast-storage/holdfast/node/device/ublk"
)

func newFrontEnd(dir string) (device.FrontEnd, error) {
	return ublk.New(ublk.Config{Root: dir, Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))})
}

func TestMain(m *testing.M) {
	devicetest.Child(newFrontEnd)
	os.Exit(m.Run())
}

// TestContract needs a kernel with the ublk driver: make test-vm has one.
func TestContract(t *testing.T) { devicetest.RunSuccessor(t, newFrontEnd) }
