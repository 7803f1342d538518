package devicetest

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
)

// abortLimit is how long an Abort may take, whatever hangs.
const abortLimit = time.Second

func (s suite) testAbortHung(t *testing.T) {
	r := s.device(t, options(64*mib))
	f := r.open(unix.O_DIRECT)
	r.mem.Hang()
	const writers = 16
	errs := make(chan error, writers+1)
	for i := range writers {
		go func() {
			_, err := f.WriteAt(aligned(mib, uint64(i)), int64(i)*mib)
			errs <- err
		}()
	}
	eventually(t, "requests hang", func() bool { return r.mem.Held() >= writers })
	go func() { errs <- f.Sync() }()
	within(t, abortLimit, "abort of a hung device", func() {
		if err := r.dev.Abort(); err != nil {
			t.Errorf("abort: %v", err)
		}
	})
	for range writers + 1 {
		if err := <-errs; err == nil {
			t.Error("I/O that never reached the backend's end succeeded")
		}
	}
	if _, err := f.ReadAt(aligned(block, 0), 0); err == nil {
		t.Error("an aborted device can be read")
	}
	r.mem.Resume() // answers nobody waits for any more
	f.Close()
	r.closed()
}

func (s suite) testAbortMounted(t *testing.T) {
	r := s.device(t, options(320*mib))
	dir := r.mkfs("xfs")
	f, err := os.Create(filepath.Join(dir, "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r.write(f, aligned(4*mib, 1), 0)
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	r.mem.Hang()
	r.write(f, aligned(4*mib, 2), 0)
	synced := make(chan error, 1)
	go func() { synced <- f.Sync() }()
	eventually(t, "requests hang", func() bool { return r.mem.Held() > 0 })
	within(t, abortLimit, "abort of a hung device with a filesystem in use", func() {
		if err := r.dev.Abort(); err != nil {
			t.Errorf("abort: %v", err)
		}
	})
	if err := <-synced; err == nil {
		t.Error("fsync succeeded on an aborted device")
	}
	if err := exec.Command("mountpoint", "-q", dir).Run(); err == nil {
		t.Error("the filesystem of an aborted device is still mounted")
	}
}

func (s suite) testAbortDuringGrow(t *testing.T) {
	r := s.device(t, options(16*mib))
	f := r.open(unix.O_DIRECT)
	r.mem.Hang()
	synced := make(chan error, 1)
	go func() { synced <- f.Sync() }()
	eventually(t, "the flush hangs", func() bool { return r.mem.Held() > 0 })
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	r.mem.Grow(32 * mib)
	refused := holdfast.Unavailable
	if !canGrow(r.fe) {
		refused = holdfast.Unsupported
	}
	within(t, time.Second, "a grow and a close with a deadline", func() {
		if err := r.dev.Grow(ctx, 32*mib); err != nil { // may be done at once
			wantKind(t, err, refused)
		}
		if err := r.dev.Close(ctx); err == nil {
			t.Error("a device in use was closed")
		}
	})
	within(t, 2*abortLimit, "abort of a device that is growing", func() {
		if err := r.dev.Abort(); err != nil {
			t.Errorf("abort: %v", err)
		}
	})
	if err := <-synced; err == nil {
		t.Error("fsync succeeded on an aborted device")
	}
}

// cleaned makes a successor in dir, which must remove the child's device; ended
// is what the test then does with its own use of it.
func (s suite) cleaned(t *testing.T, dir string, c *child, ended func()) {
	t.Helper()
	fe := s.frontEnd(t, dir)
	within(t, patience, "cleaning up", func() {
		vols, err := fe.CleanOrphans(context.Background())
		if err != nil {
			t.Errorf("clean up: %v", err)
		}
		if !slices.Contains(vols, c.vol) {
			t.Errorf("cleaned %v, wanted %s among them", vols, c.vol)
		}
	})
	ended()
	eventually(t, "the orphan is gone", func() bool { return !serves(c.path, c.vol) })
	vols, err := fe.CleanOrphans(context.Background())
	if err != nil || len(vols) != 0 {
		t.Errorf("a second cleaning found %v, %v", vols, err)
	}
	o := options(8 * mib)
	o.Volume = c.vol
	r := openIn(t, fe, o)
	r.write(r.open(unix.O_DIRECT), aligned(block, 1), 0)
}

func (s suite) testKilled(t *testing.T) {
	dir := t.TempDir()
	c := startChild(t, dir, 16*mib)
	f, err := os.OpenFile(c.path, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(aligned(mib, 1), 0); err != nil {
		t.Fatal(err)
	}
	c.tell("hang", "hanging")
	result := make(chan error, 1)
	go func() {
		_, err := f.WriteAt(aligned(mib, 2), 0)
		result <- err
	}()
	c.tell("held", "holding")
	c.kill()
	fails := func() {
		within(t, 5*time.Second, "I/O in flight when the server was killed", func() {
			if err := <-result; err == nil {
				t.Error("a write succeeded that the killed server never answered")
			}
		})
		if _, err := f.ReadAt(aligned(block, 0), 0); err == nil {
			t.Error("a device without a server can be read")
		}
		f.Close()
	}
	if s.outlives {
		select {
		case err := <-result:
			t.Errorf("a write ended though a successor could have done it: %v", err)
			result <- err
		case <-time.After(time.Second):
		}
		s.cleaned(t, dir, c, fails)
		return
	}
	fails()
	s.cleaned(t, dir, c, func() {})
}

func (s suite) testKilledMounted(t *testing.T) {
	dir := t.TempDir()
	c := startChild(t, dir, 320*mib)
	run(t, "mkfs.xfs", "-q", c.path)
	at := mount(t, c.path, "xfs")
	f, err := os.Create(filepath.Join(at, "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(aligned(8*mib, 3)); err != nil {
		t.Fatal(err)
	}
	c.kill()
	failed := make(chan struct{})
	go func() {
		defer close(failed)
		for { // the first one may have been quick enough
			_, err := f.Write(aligned(mib, 4))
			if err == nil {
				err = f.Sync()
			}
			if err != nil {
				return
			}
		}
	}()
	fails := func() {
		within(t, 10*time.Second, "fsync after the server was killed", func() { <-failed })
		f.Close()
	}
	if s.outlives {
		s.cleaned(t, dir, c, fails)
	} else {
		fails()
		s.cleaned(t, dir, c, func() {})
	}
	if err := exec.Command("mountpoint", "-q", at).Run(); err == nil {
		t.Error("the filesystem of a dead device is still mounted")
	}
}

// testKilledDuringGrow kills a server one of whose threads waits in the kernel
// for an answer of the server itself.
func (s suite) testKilledDuringGrow(t *testing.T) {
	dir := t.TempDir()
	c := startChild(t, dir, 16*mib)
	f, err := os.OpenFile(c.path, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	c.tell("hang", "hanging")
	synced := make(chan error, 1)
	go func() { synced <- f.Sync() }()
	c.tell("held", "holding")
	c.tell("grow", "growing")
	c.kill()
	fe := s.frontEnd(t, dir) // its predecessor may not be able to end by itself
	within(t, patience, "cleaning up", func() {
		if _, err := fe.CleanOrphans(context.Background()); err != nil {
			t.Errorf("clean up: %v", err)
		}
	})
	within(t, 5*time.Second, "the flush ends", func() {
		if err := <-synced; err == nil {
			t.Error("fsync succeeded without an answer")
		}
	})
	f.Close()
	eventually(t, "the orphan is gone", func() bool { return !serves(c.path, c.vol) })
}

// testNeighbours has two daemons on one machine, one of which cleans up.
func (s suite) testNeighbours(t *testing.T) {
	mine := s.device(t, options(8*mib))
	dir := t.TempDir()
	c := startChild(t, dir, 8*mib)
	other := s.frontEnd(t, t.TempDir())
	for _, fe := range []interface {
		CleanOrphans(context.Context) ([]holdfast.VolumeID, error)
	}{other, mine.fe} {
		if vols, err := fe.CleanOrphans(context.Background()); err != nil || len(vols) != 0 {
			t.Errorf("cleaned %v, %v: all of those are in use", vols, err)
		}
	}
	p := aligned(block, 1)
	mine.write(mine.open(unix.O_DIRECT), p, 0)
	f, err := os.OpenFile(c.path, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	mine.write(f, p, 0)
	f.Close()
	// The same volume may have moved here from a neighbour that died.
	c.kill()
	o := options(8 * mib)
	o.Volume = c.vol
	moved := openIn(t, other, o)
	g := moved.open(unix.O_DIRECT)
	moved.write(g, p, 0)
	g.Close()
	if moved.dev.Path() == c.path {
		t.Errorf("%s of a dead neighbour was taken over", c.path)
	}
	moved.closed()
	s.cleaned(t, dir, c, func() {})
}
