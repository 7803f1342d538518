package devicetest

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
)

// mkfs makes a filesystem on the device and mounts it.
func (r *rig) mkfs(fsType string) string {
	r.Helper()
	args := map[string][]string{"xfs": {"-q"}, "ext4": {"-q", "-F"}}[fsType]
	run(r.T, "mkfs."+fsType, append(args, r.dev.Path())...)
	return mount(r.T, r.dev.Path(), fsType)
}

func mount(t *testing.T, path, fsType string) string {
	t.Helper()
	dir := t.TempDir()
	t.Cleanup(func() {
		for unix.Unmount(dir, unix.MNT_DETACH) == nil {
		}
	})
	run(t, "mount", "-t", fsType, path, dir)
	return dir
}

func fileName(i int) string { return fmt.Sprintf("d%d/f%d", i%7, i) }

func (s suite) testFilesystem(t *testing.T, fsType string) {
	r := s.device(t, options(512*mib))
	dir := r.mkfs(fsType)
	const files = 120
	for i := range files {
		name := filepath.Join(dir, fileName(i))
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, aligned(1+i*i*13, uint64(i)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "big"), aligned(100*mib, 99), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "umount", dir)
	if st := r.mem.Stats(); st.Flushes == 0 {
		t.Error("a filesystem was unmounted without a flush")
	}
	run(t, "mount", "-t", fsType, r.dev.Path(), dir)
	for i := range files {
		got, err := os.ReadFile(filepath.Join(dir, fileName(i)))
		if err != nil || !bytes.Equal(got, aligned(1+i*i*13, uint64(i))) {
			t.Fatalf("file %d is not as written after a remount: %v", i, err)
		}
	}
	used := r.mem.Used()
	if err := os.Remove(filepath.Join(dir, "big")); err != nil {
		t.Fatal(err)
	}
	run(t, "sync", "-f", dir)
	// XFS frees a removed file's space in the background.
	eventually(t, "fstrim frees most of the 100 MiB that were removed", func() bool {
		run(t, "fstrim", dir)
		return used-r.mem.Used() > 90*mib
	})
	run(t, "umount", dir)
	check := map[string][]string{"xfs": {"xfs_repair", "-n"}, "ext4": {"fsck.ext4", "-fn"}}[fsType]
	run(t, check[0], append(check[1:], r.dev.Path())...)
	r.closed()
}

func (s suite) testCloseMounted(t *testing.T) {
	r := s.device(t, options(320*mib))
	dir := r.mkfs("xfs")
	err := r.dev.Close(context.Background())
	wantKind(t, err, holdfast.InUse)
	if !strings.Contains(err.Error(), dir) {
		t.Errorf("the refusal does not name the mount point %s: %v", dir, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "still"), []byte("works"), 0o600); err != nil {
		t.Fatalf("the device does not work after a refused close: %v", err)
	}
	run(t, "umount", dir)
	run(t, "mount", "-t", "xfs", r.dev.Path(), dir) // still there after its last user left
	run(t, "umount", dir)
	r.closed()
}

func (s suite) testCloseOpen(t *testing.T) {
	r := s.device(t, options(8*mib))
	f := r.open(unix.O_DIRECT)
	err := r.dev.Close(context.Background())
	wantKind(t, err, holdfast.InUse)
	if want := fmt.Sprint(os.Getpid()); !strings.Contains(err.Error(), want) {
		t.Errorf("the refusal does not name the process %s: %v", want, err)
	}
	p := aligned(block, 8)
	r.write(f, p, 0)
	f.Close()
	// A published raw block volume is a bind mount of the node.
	node := filepath.Join(t.TempDir(), "node")
	if err := os.WriteFile(node, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "mount", "--bind", r.dev.Path(), node)
	t.Cleanup(func() { _ = unix.Unmount(node, unix.MNT_DETACH) })
	wantKind(t, r.dev.Close(context.Background()), holdfast.InUse)
	f = r.open(unix.O_DIRECT) // still there after its last user left
	r.wantSame("what was written after a refused close", r.read(f, 0, block), p)
	f.Close()
	run(t, "umount", node)
	r.closed()
}

func (s suite) testCloseTwice(t *testing.T) {
	fe := s.frontEnd(t, t.TempDir())
	o := options(8 * mib)
	r := openIn(t, fe, o)
	r.closed()
	if serves(r.dev.Path(), o.Volume) {
		t.Error("the device is still there after Close")
	}
	r.closed()
	if err := r.dev.Abort(); err != nil {
		t.Errorf("abort of a closed device: %v", err)
	}
	again := openIn(t, fe, o) // the same volume
	r.closed()                // the old handle must not touch the new device
	again.write(again.open(unix.O_DIRECT), aligned(block, 1), 0)
}

func (s suite) testTwentyAtOnce(t *testing.T) {
	fe := s.frontEnd(t, t.TempDir())
	const n = 20
	rigs := make([]*rig, n)
	done := make(chan int, n)
	opts := make([]error, n)
	for i := range n {
		o := options(8 * mib)
		r := &rig{T: t, fe: fe, mem: NewMemory(o.SizeBytes), opt: o}
		rigs[i] = r
		go func() {
			r.dev, opts[i] = fe.Open(context.Background(), o, r.mem)
			done <- i
		}()
	}
	for range n {
		<-done
	}
	t.Cleanup(func() {
		for _, r := range rigs {
			if r.dev != nil {
				_ = r.dev.Abort()
			}
		}
	})
	var paths []string
	for i, r := range rigs {
		if opts[i] != nil {
			t.Errorf("device %d: %v", i, opts[i])
			continue
		}
		paths = append(paths, r.dev.Path())
		f := r.open(unix.O_DIRECT)
		r.write(f, aligned(block, uint64(i)), 0)
		f.Close()
	}
	slices.Sort(paths)
	if len(slices.Compact(paths)) != n {
		t.Fatalf("devices share paths: %v", paths)
	}
	for i, r := range rigs {
		go func() {
			opts[i] = r.dev.Close(context.Background())
			done <- i
		}()
	}
	for range n {
		i := <-done
		if opts[i] != nil {
			t.Errorf("close of device %d: %v", i, opts[i])
		}
		r := rigs[i]
		if serves(r.dev.Path(), r.opt.Volume) {
			t.Errorf("%s is still there after Close", r.dev.Path())
		}
		r.wantSame("each volume's own data", r.mem.Live(0, block), aligned(block, uint64(i)))
	}
}
