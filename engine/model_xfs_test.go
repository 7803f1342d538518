package engine

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast/engine/disk"
)

// xfsDisk is a real XFS on an image file. A power loss is XFS's own shutdown,
// which loses what of the log was not written yet, and mounting again.
type xfsDisk struct {
	t     testing.TB
	image string
	root  string
	m     *mounted
	d     *trackFS
	mem   *disk.Mem // whose volatile part is the machine's memory
}

func newXFSDisk(t testing.TB) *xfsDisk {
	path, root, _ := formatted(t)
	x := &xfsDisk{t: t, image: path, root: root, mem: disk.NewMem(1 << 30)}
	x.mount()
	// What FormatFS is told by the model differs from what Format has written.
	if err := x.d.Remove(identityFile); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		x.d.closeAll()
		if err := x.m.release(); err != nil {
			t.Error(err)
		}
	})
	return x
}

func (x *xfsDisk) mount() {
	x.t.Helper()
	ctx := context.Background()
	t, err := look(ctx, x.image)
	if err != nil {
		x.t.Fatal(err)
	}
	defer t.close()
	id, _, _ := t.pool()
	dev, err := attach(ctx, x.image, true)
	if err != nil {
		x.t.Fatal(err)
	}
	// Processes with mounts of their own, such as "ip netns exec" in another test,
	// may have the last copy of this filesystem mounted for a moment after it was
	// unmounted here: XFS refuses one with the same UUID until then.
	for deadline := time.Now().Add(20 * time.Second); ; <-time.After(20 * time.Millisecond) {
		x.m, err = mountPool(dev, x.root, id)
		if !errors.Is(err, unix.EINVAL) || time.Now().After(deadline) {
			break
		}
	}
	if err != nil {
		x.t.Fatal(errors.Join(err, dev.detach()))
	}
	d, err := disk.OpenDir(x.m.dir)
	if err != nil {
		x.t.Fatal(err)
	}
	x.d = &trackFS{FS: d, open: map[*trackFile]bool{}}
}

func (x *xfsDisk) fs() disk.FS     { return x.d }
func (x *xfsDisk) memory() disk.FS { return x.mem.Volatile() }
func (x *xfsDisk) stop()           {}
func (x *xfsDisk) kill() {
	x.d.closeAll()
	x.mem.Kill()
}

// crash shuts the filesystem down: half of the time what the log has in memory
// is written first, as a device that lost its power a little later would have.
func (x *xfsDisk) crash(rng *rand.Rand) {
	x.t.Helper()
	x.shutdown(rng.Uint32N(2) + 1)
	x.d.closeAll()
	x.mem.Crash(rng)
	if err := x.m.release(); err != nil {
		x.t.Fatal(err)
	}
	x.mount()
}

func (x *xfsDisk) shutdown(flags uint32) {
	f, err := os.Open(x.m.dir)
	if err != nil {
		x.t.Fatal(err)
	}
	defer f.Close()
	const xfsIocGoingDown = 0x8004587d
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), xfsIocGoingDown, uintptr(unsafe.Pointer(&flags))); errno != 0 {
		x.t.Fatalf("shut down: %v", errno)
	}
}

// trackFS knows what is open, to close it as the end of a process would.
type trackFS struct {
	disk.FS
	mu   sync.Mutex
	open map[*trackFile]bool
}

type trackFile struct {
	disk.File
	fs   *trackFS
	maps []*trackMapping
}

type trackMapping struct {
	disk.Mapping
	closed bool
}

func (t *trackFS) Open(name string, flags disk.Flag) (disk.File, error) {
	f, err := t.FS.Open(name, flags)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	tf := &trackFile{File: f, fs: t}
	t.open[tf] = true
	return tf, nil
}

func (t *trackFS) closeAll() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for f := range t.open {
		for _, m := range f.maps {
			if !m.closed {
				_ = m.Mapping.Close()
			}
		}
		_ = f.File.Close()
	}
	clear(t.open)
}

func (f *trackFile) Close() error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	delete(f.fs.open, f)
	return f.File.Close()
}

func (f *trackFile) Map(n int64) (disk.Mapping, error) {
	m, err := f.File.Map(n)
	if err != nil {
		return nil, err
	}
	tm := &trackMapping{Mapping: m}
	f.maps = append(f.maps, tm)
	return tm, nil
}

func (m *trackMapping) Close() error {
	m.closed = true
	return m.Mapping.Close()
}

func (f *trackFile) CloneRange(from disk.File, off, n int64) error {
	if t, ok := from.(*trackFile); ok {
		from = t.File
	}
	return f.File.CloneRange(from, off, n)
}

func (f *trackFile) TransferAll(ts []disk.Transfer) bool {
	disk.TransferAll(f.File, ts)
	return true
}

// TestModelXFS is TestModel on real XFS.
func TestModelXFS(t *testing.T) {
	for seed := *modelSeed; seed < *modelSeed+*modelXFS; seed++ {
		ok := t.Run("", func(t *testing.T) {
			m := newModel(t, newXFSDisk(t), seed, 512)
			m.again = fmt.Sprintf("go test ./engine -run '^TestModelXFS$' -model.seed=%d -model.xfs=1", seed)
			m.run(5, 100)
		})
		if !ok {
			return
		}
	}
}
