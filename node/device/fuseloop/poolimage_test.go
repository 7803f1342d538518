package fuseloop_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/engine"
	"github.com/holdfast-storage/holdfast/node/device/devicetest"
	"github.com/holdfast-storage/holdfast/node/device/fuseloop"
)

// TestAPoolOpensBesideADeviceThatNobodyServes: as in a daemon that is started
// again while its keeper holds its devices. The image has a second name.
func TestAPoolOpensBesideADeviceThatNobodyServes(t *testing.T) {
	image := filepath.Join(t.TempDir(), "pool.img")
	file, err := os.Create(image)
	if err != nil {
		t.Fatal(err)
	}
	if err := file.Truncate(1 << 30); err != nil {
		t.Fatal(err)
	}
	_ = file.Close()
	cluster, node := holdfast.NewClusterID(), holdfast.NodeID("n1")
	mounts := t.TempDir()
	if _, err := engine.Format(t.Context(), engine.FormatOptions{Device: image, Cluster: cluster, Node: node, MountRoot: mounts}); err != nil {
		t.Fatal(err)
	}
	root, k, vol := t.TempDir(), newShelf(t), holdfast.NewVolumeID()
	t.Cleanup(func() { // of a run that failed
		if _, err := fuseloop.CleanRoot(context.Background(), fuseloop.Config{Root: root}); err != nil {
			t.Log(err)
		}
	})
	f := successor(t, root, k)
	d := open(t, f, vol, adoptSize, devicetest.NewMemory(adoptSize))
	f.Leave()
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	waits := ioDone(t, d.Path(), writeAt(0), 'a')
	// Something that waits for that write, and meanwhile lets nobody open the device.
	blocker := exec.Command("losetup", "--direct-io=off", d.Path())
	if err := blocker.Start(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); !strings.Contains(stat(t, blocker.Process.Pid), ") D "); <-time.After(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Error("nothing keeps the device from being opened")
			break
		}
	}
	second := filepath.Join(filepath.Dir(image), "second.img")
	if err := os.Link(image, second); err != nil {
		t.Fatal(err)
	}
	pool := func(path string) chan error {
		done := make(chan error, 1)
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			p, err := engine.OpenPool(ctx, engine.OpenOptions{Device: path, Cluster: cluster, Node: node, MountRoot: mounts, MemoryRoot: mounts + "-memory", BootID: "b"})
			if err == nil {
				err = p.Close()
			}
			done <- err
		}()
		return done
	}
	for _, path := range []string{image, second} {
		wantDone(t, "opening the pool "+filepath.Base(path), pool(path))
	}
	f = successor(t, root, k)
	if _, err := f.Adopt(t.Context()); err != nil {
		t.Error(err)
	}
	mem := devicetest.NewMemory(adoptSize)
	d = open(t, f, vol, adoptSize, mem)
	wantDone(t, "the write", waits)
	_ = blocker.Wait() // whether it could is not the matter
	if err := d.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}

func stat(t *testing.T, pid int) string {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}
