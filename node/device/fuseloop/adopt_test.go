package fuseloop_test

import (
	"bytes"
	"errors"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/node/device"
	"github.com/holdfast-storage/holdfast/node/device/devicetest"
	"github.com/holdfast-storage/holdfast/node/device/fuseloop"
	"github.com/holdfast-storage/holdfast/node/keeper"
)

// shelf is a keeper in this process.
type shelf struct {
	mu   sync.Mutex
	held map[string]keeper.Held
	full bool
}

func newShelf(t *testing.T) *shelf {
	s := &shelf{held: map[string]keeper.Held{}}
	t.Cleanup(func() {
		for key := range s.held {
			_ = s.Drop(key)
		}
	})
	return s
}

func (s *shelf) Put(key string, note []byte, fd int) error {
	if s.full {
		return holdfast.E("put", holdfast.Unavailable, "the test's keeper is gone")
	}
	_ = s.Drop(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	fd, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	s.held[key] = keeper.Held{Key: key, Note: note, FD: fd}
	return err
}

func (s *shelf) Drop(key string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if h, ok := s.held[key]; ok {
		delete(s.held, key)
		return unix.Close(h.FD)
	}
	return nil
}

func (s *shelf) List() ([]keeper.Held, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []keeper.Held
	for _, h := range s.held {
		fd, err := unix.FcntlInt(uintptr(h.FD), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			return nil, err
		}
		all = append(all, keeper.Held{Key: h.Key, Note: h.Note, FD: fd})
	}
	return all, nil
}

const adoptSize = 8 << 20

func successor(t *testing.T, root string, k fuseloop.Keeper) *fuseloop.FrontEnd {
	t.Helper()
	f, err := fuseloop.New(fuseloop.Config{Root: root, Keeper: k, Helper: []string{"/proc/self/exe", fuseloop.HelperArg}})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func open(t *testing.T, f *fuseloop.FrontEnd, vol holdfast.VolumeID, size int64, b device.Backend) device.Device {
	t.Helper()
	d, err := f.Open(t.Context(), device.Options{Volume: vol, SizeBytes: size, LogicalBlk: 4096}, b)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// ioDone runs an I/O on the device node in a goroutine.
func ioDone(t *testing.T, path string, io func(fd int, p []byte) (int, error), fill byte) chan error {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
		if err != nil {
			done <- err
			return
		}
		defer unix.Close(fd)
		mem, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
		if err != nil {
			done <- err
			return
		}
		defer func() { _ = unix.Munmap(mem) }()
		copy(mem, bytes.Repeat([]byte{fill}, len(mem)))
		_, err = io(fd, mem)
		if err == nil && !bytes.Equal(mem, bytes.Repeat([]byte{fill}, len(mem))) {
			err = errors.New("other data was read")
		}
		done <- err
	}()
	return done
}

func wantDone(t *testing.T, what string, done chan error) {
	t.Helper()
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	case <-time.After(30 * time.Second):
		t.Fatalf("%s hangs", what)
	}
}

func writeAt(off int64) func(int, []byte) (int, error) {
	return func(fd int, p []byte) (int, error) { return unix.Pwrite(fd, p, off) }
}

// TestASuccessorServesTheSameDevice: what the predecessor had taken and not
// answered, and what came while nobody served, is answered by the successor, and
// the device is the same one.
func TestASuccessorServesTheSameDevice(t *testing.T) {
	root, k, mem := t.TempDir(), newShelf(t), devicetest.NewMemory(adoptSize)
	vol := holdfast.NewVolumeID()
	f := successor(t, root, k)
	d := open(t, f, vol, adoptSize, mem)
	path := d.Path()
	wantDone(t, "a write before", ioDone(t, path, writeAt(0), 'a'))
	for life := range 3 {
		mem.Hang()
		taken := ioDone(t, path, writeAt(4096), 'b')
		for mem.Held() == 0 {
			<-time.After(time.Millisecond)
		}
		if left := f.Leave(); len(left) != 1 || left[0] != vol {
			t.Fatalf("left are %v", left)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		meanwhile := ioDone(t, path, writeAt(8192), 'c')
		mem = mem.Copy()
		f = successor(t, root, k)
		if vols, err := f.Adopt(t.Context()); err != nil || len(vols) != 1 || vols[0] != vol {
			t.Fatalf("adopted %v, %v", vols, err)
		}
		if vols, err := f.CleanOrphans(t.Context()); err != nil || len(vols) != 0 {
			t.Fatalf("cleaned %v, %v", vols, err)
		}
		size := int64(adoptSize + (life+1)<<20) // the volume grew meanwhile
		mem.Grow(size)
		d = open(t, f, vol, size, mem)
		if d.Path() != path {
			t.Fatalf("the device was %s and is %s", path, d.Path())
		}
		wantDone(t, "a write that the predecessor had taken", taken)
		wantDone(t, "a write while nobody served", meanwhile)
		for off, fill := range map[int64]byte{0: 'a', 4096: 'b', 8192: 'c'} {
			wantDone(t, "a read", ioDone(t, path, func(fd int, p []byte) (int, error) { return unix.Pread(fd, p, off) }, fill))
		}
		wantDone(t, "a write to what has grown", ioDone(t, path, writeAt(size-4096), 'd'))
	}
	if err := d.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(k.held) != 0 {
		t.Errorf("the keeper still holds %v", k.held)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestWhatIsNotWantedAnyMoreIsRemoved: by Discard, by another kind of device, or
// because it is gone; and nothing hangs.
func TestWhatIsNotWantedAnyMoreIsRemoved(t *testing.T) {
	root, k := t.TempDir(), newShelf(t)
	f := successor(t, root, k)
	var vols [3]holdfast.VolumeID
	var paths [3]string
	for i := range vols {
		vols[i] = holdfast.NewVolumeID()
		paths[i] = open(t, f, vols[i], adoptSize, devicetest.NewMemory(adoptSize)).Path()
	}
	f.Leave()
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	hangs := ioDone(t, paths[0], writeAt(0), 'a')
	f = successor(t, root, k)
	if got, err := f.Adopt(t.Context()); err != nil || len(got) != 3 {
		t.Fatalf("adopted %v, %v", got, err)
	}
	if err := f.Discard(vols[0], false); err != nil {
		t.Fatal(err)
	}
	if err := <-hangs; err == nil {
		t.Error("a write to a device that was removed succeeded")
	}
	if err := f.Discard(vols[0], true); !errors.Is(err, holdfast.NotFound) {
		t.Errorf("the second time: %v", err)
	}
	hangs = ioDone(t, paths[1], writeAt(0), 'a')
	if _, err := f.Open(t.Context(), device.Options{Volume: vols[1], SizeBytes: adoptSize, LogicalBlk: 512}, devicetest.NewMemory(adoptSize)); !errors.Is(err, holdfast.Invalid) {
		t.Errorf("another block size: %v", err)
	}
	if err := <-hangs; err == nil {
		t.Error("a write to a device that could not be served succeeded")
	}
	if err := f.Close(); err != nil { // the third was never opened
		t.Fatal(err)
	}
	f = successor(t, root, newShelf(t)) // the keeper has forgotten it
	if got, err := f.Adopt(t.Context()); err != nil || len(got) != 0 {
		t.Errorf("adopted %v, %v from an empty keeper", got, err)
	}
	if got, err := f.CleanOrphans(t.Context()); err != nil || len(got) != 1 || got[0] != vols[2] {
		t.Errorf("cleaned %v, %v", got, err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	f = successor(t, root, k) // this one still holds the third, which is gone
	if got, err := f.Adopt(t.Context()); err == nil || len(got) != 0 || len(k.held) != 0 {
		t.Errorf("adopted %v, %v; held %v", got, err, k.held)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestADeviceWithoutAKeeperWorks and ends with its process.
func TestADeviceWithoutAKeeperWorks(t *testing.T) {
	root, k := t.TempDir(), newShelf(t)
	k.full = true
	f := successor(t, root, k)
	d := open(t, f, holdfast.NewVolumeID(), adoptSize, devicetest.NewMemory(adoptSize))
	wantDone(t, "a write", ioDone(t, d.Path(), writeAt(0), 'a'))
	if left := f.Leave(); len(left) != 0 {
		t.Errorf("left are %v", left)
	}
	if err := d.Abort(); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	_ = os.Remove(root)
}

var _ device.Successor = (*fuseloop.FrontEnd)(nil)
