package devicetest

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/node/device"
)

func (r *rig) grow(size int64) {
	r.Helper()
	r.mem.Grow(size)
	if err := r.dev.Grow(context.Background(), size); err != nil {
		r.Fatalf("grow to %d: %v", size, err)
	}
}

// size is what the kernel says, through a descriptor opened now.
func (r *rig) size() int64 {
	r.Helper()
	f, err := os.Open(r.dev.Path())
	if err != nil {
		r.Fatal(err)
	}
	defer f.Close()
	n, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_END)
	if err != nil {
		r.Fatal(err)
	}
	return n
}

// busyWriting writes to the same places until the returned function is called, which
// says how many writes there were.
func (r *rig) busyWriting(f *os.File, first, last int64) (stop func() int64) {
	var n atomic.Int64
	quit, done := make(chan struct{}), make(chan struct{})
	p := aligned(block, 4)
	go func() {
		defer close(done)
		for off := first; ; off += block {
			select {
			case <-quit:
				return
			default:
			}
			if off+block > last {
				off = first
			}
			if _, err := f.WriteAt(p, off); err != nil {
				r.Errorf("write at %d: %v", off, err)
				return
			}
			n.Add(1)
		}
	}()
	return func() int64 { close(quit); <-done; return n.Load() }
}

// canGrow says whether devices can grow here: a front end whose kernel cannot
// says so by a method CanGrow.
func canGrow(fe device.FrontEnd) bool {
	g, ok := fe.(interface{ CanGrow() bool })
	return !ok || g.CanGrow()
}

// growsExt4 says whether this process may grow an ext4 filesystem that is
// mounted: that needs CAP_SYS_RESOURCE, which a sandbox may lack.
func growsExt4(t *testing.T) bool {
	t.Helper()
	raw, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		if value, ok := strings.CutPrefix(line, "CapEff:"); ok {
			caps, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
			if err != nil {
				t.Fatal(err)
			}
			return caps&(1<<unix.CAP_SYS_RESOURCE) != 0
		}
	}
	return false
}

// testGrowRefused is what is left of growing where the kernel cannot.
func (s suite) testGrowRefused(t *testing.T) {
	r := s.device(t, options(16*mib))
	r.mem.Grow(32 * mib)
	wantKind(t, r.dev.Grow(context.Background(), 32*mib), holdfast.Unsupported)
	if err := r.dev.Grow(context.Background(), 16*mib); err != nil {
		t.Errorf("growing to the present size: %v", err)
	}
	wantKind(t, r.dev.Grow(context.Background(), 8*mib), holdfast.Invalid)
	if r.size() != 16*mib {
		t.Error("the size has changed all the same")
	}
	r.write(r.open(unix.O_DIRECT), aligned(block, 1), 0)
}

func (s suite) testGrow(t *testing.T) {
	r := s.device(t, options(16*mib))
	f := r.open(unix.O_DIRECT)
	p := aligned(mib, 5)
	r.write(f, p, 15*mib)
	stop := r.busyWriting(f, 0, 8*mib)
	for size := int64(17 * mib); size <= 48*mib; size += mib {
		r.grow(size)
		if got := r.size(); got != size {
			t.Fatalf("the kernel shows %d bytes after growing to %d", got, size)
		}
		// The new end can be used at once, also over an open descriptor.
		r.write(f, p, size-mib)
		r.wantSame("the new end", r.read(f, size-mib, mib), p)
	}
	if stop() == 0 {
		t.Error("nothing was written while the device grew")
	}
	r.wantSame("what was there before", r.read(f, 15*mib, mib), p)
	r.grow(48 * mib) // the present size is fine
	wantKind(t, r.dev.Grow(context.Background(), 47*mib), holdfast.Invalid)
	wantKind(t, r.dev.Grow(context.Background(), 48*mib+100), holdfast.Invalid)
	f.Close()
	r.closed()
	wantKind(t, r.dev.Grow(context.Background(), 64*mib), holdfast.NotFound)
}

func (s suite) testGrowMounted(t *testing.T, fsType string) {
	r := s.device(t, options(320*mib))
	dir := r.mkfs(fsType)
	f, err := os.OpenFile(filepath.Join(dir, "busy"), os.O_RDWR|os.O_CREATE|unix.O_DIRECT, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r.write(f, aligned(4*mib, 6), 0)
	stop := r.busyWriting(f, 0, 4*mib)
	r.grow(512 * mib)
	grow := map[string][]string{"xfs": {"xfs_growfs", dir}, "ext4": {"resize2fs", r.dev.Path()}}[fsType]
	run(t, grow[0], grow[1:]...)
	if stop() == 0 {
		t.Error("nothing was written while the filesystem grew")
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	if have := int64(st.Blocks) * st.Bsize; have < 400*mib {
		t.Errorf("the filesystem has %d MiB after growing to 512", have/mib)
	}
	if err := unix.Fallocate(int(f.Fd()), 0, 0, 340*mib); err != nil { // more than fitted before
		t.Fatal(err)
	}
	r.write(f, aligned(20*mib, 7), 320*mib)
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}
