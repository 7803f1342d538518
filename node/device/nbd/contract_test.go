//go:build vm

package nbd

import (
	"testing"

	"github.com/holdfast-storage/holdfast/node/device/devicetest"
)

// TestContract needs a kernel with the nbd module: make test-vm has one. The
// devices' connections are with a keeper.
func TestContract(t *testing.T) { devicetest.RunSuccessor(t, newFrontEnd) }

// TestTakeOver: without a keeper, the kernel alone holds the devices.
func TestTakeOver(t *testing.T) {
	t.Setenv(withoutKeeper, "1")
	devicetest.RunTakeOver(t, newFrontEnd)
}
