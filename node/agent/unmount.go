package agent

import (
	"context"
	"os/exec"
	"slices"
	"time"

	"github.com/holdfast-storage/holdfast/node/device/blockdev"
)

// unmountWait bounds how long unmounting at the daemon's end may take.
const unmountWait = 5 * time.Second

// unmountIdle unmounts the filesystems on a device that nobody uses, and says whether
// none is left. It does not wait for a device that does not answer: what hangs then
// ends when the device is aborted.
func unmountIdle(ctx context.Context, path string) bool {
	ctx, cancel := context.WithTimeout(ctx, unmountWait)
	defer cancel()
	done := make(chan bool, 1)
	go func() { done <- unmountAll(ctx, path) }()
	select {
	case none := <-done:
		return none
	case <-ctx.Done():
		return false
	}
}

// unmountAll is unmountIdle, and may hang. The newest mount goes first. A process of
// its own does it, since the device that it waits for is served by this one.
func unmountAll(ctx context.Context, path string) bool {
	n := blockdev.Node{Path: path}
	if n.Ensure() != nil {
		return false
	}
	on, err := n.Mounts()
	for _, m := range slices.Backward(on) {
		// It may be in use: then it is seen below.
		_ = exec.CommandContext(ctx, "umount", "--internal-only", "--no-canonicalize", "--", m.Point).Run()
	}
	if err == nil {
		on, err = n.Mounts()
	}
	return err == nil && len(on) == 0
}
