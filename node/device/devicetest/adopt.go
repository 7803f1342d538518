package devicetest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/node/device"
)

// runSuccessor is the part of the contract for device.Successor.
func (s suite) runSuccessor(t *testing.T) {
	for _, c := range []struct {
		name string
		test func(*testing.T)
	}{
		{"AdoptNothing", s.testAdoptNothing},
		{"AdoptAfterKills", s.testAdoptAfterKills},
		{"AdoptMountedXFS", func(t *testing.T) { s.testAdoptMounted(t, "xfs") }},
		{"AdoptMountedExt4", func(t *testing.T) { s.testAdoptMounted(t, "ext4") }},
		{"AdoptAndGrow", s.testAdoptAndGrow},
		{"DiscardAdopted", s.testDiscardAdopted},
		{"Leave", s.testLeave},
	} {
		t.Run(c.name, func(t *testing.T) {
			leaks(t)
			c.test(t)
		})
	}
}

// adopted adopts what is in dir and expects those volumes.
func (s suite) adopted(t *testing.T, dir string, want ...holdfast.VolumeID) device.FrontEnd {
	t.Helper()
	fe := s.frontEnd(t, dir)
	vols, err := fe.(device.Successor).Adopt(context.Background())
	if err != nil || !slices.Equal(vols, want) {
		t.Fatalf("adopted %v, %v, wanted %v", vols, err, want)
	}
	return fe
}

func (s suite) testAdoptNothing(t *testing.T) {
	fe := s.adopted(t, t.TempDir())
	o := options(8 * mib)
	openIn(t, fe, o)
	if vols, err := fe.(device.Successor).Adopt(context.Background()); err != nil || len(vols) != 0 {
		t.Errorf("a device that is served was adopted: %v, %v", vols, err)
	}
	wantKind(t, fe.(device.Successor).Discard(o.Volume, true), holdfast.NotFound)
}

// testDiscardAdopted has a successor that does not want what it was left.
func (s suite) testDiscardAdopted(t *testing.T) {
	dir := t.TempDir()
	c := startChild(t, dir, 320*mib)
	run(t, "mkfs.xfs", "-q", c.path)
	at := mount(t, c.path, "xfs")
	c.kill()
	within(t, patience, "the killed server ends", func() { _ = c.cmd.Wait() })
	fe := s.adopted(t, dir, c.vol)
	if vols, err := fe.CleanOrphans(context.Background()); err != nil || len(vols) != 0 {
		t.Errorf("adopted devices were cleaned away: %v, %v", vols, err)
	}
	wantKind(t, fe.(device.Successor).Discard(c.vol, false), holdfast.InUse)
	if err := fe.(device.Successor).Discard(c.vol, true); err != nil {
		t.Error(err)
	}
	wantKind(t, fe.(device.Successor).Discard(c.vol, true), holdfast.NotFound)
	eventually(t, "the device is gone", func() bool { return !serves(c.path, c.vol) })
	if err := exec.Command("mountpoint", "-q", at).Run(); err == nil {
		t.Error("the filesystem of a discarded device is still mounted")
	}
}

// testLeave hands a device over between two front ends on purpose, with a write
// in flight that the first one must not answer any more.
func (s suite) testLeave(t *testing.T) {
	dir, mem, o := t.TempDir(), NewMemory(16*mib), options(16*mib)
	first, err := s.newFrontEnd(dir)
	if err != nil {
		t.Fatal(err)
	}
	d, err := first.Open(context.Background(), o, mem)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(d.Path(), os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	mem.Hang()
	p := aligned(64<<10, 1)
	result := make(chan error, 1)
	go func() { _, err := f.WriteAt(p, mib); result <- err }()
	eventually(t, "the write is in flight", func() bool { return mem.Held() > 0 })
	if left := first.(device.Successor).Leave(); !slices.Equal(left, []holdfast.VolumeID{o.Volume}) {
		t.Errorf("left are %v", left)
	}
	if c, ok := first.(io.Closer); ok {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	mem.Resume() // too late: nobody hears it
	now := NewMemory(16 * mib)
	fe := s.adopted(t, dir, o.Volume)
	r := &rig{T: t, fe: fe, mem: now, opt: o}
	if r.dev, err = fe.Open(context.Background(), o, now); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.dev.Abort() })
	if r.dev.Path() != d.Path() {
		t.Errorf("the path was %s and is %s", d.Path(), r.dev.Path())
	}
	if err := <-result; err != nil {
		t.Errorf("a write over a hand-over: %v", err)
	}
	r.wantSame("what was in flight, in the successor's backend", now.Live(mib, len(p)), p)
	f.Close()
	r.closed()
}

// kills is how often a server is killed in a test.
const kills = 6

// testAdoptAfterKills has a device under verifying writers whose server is
// killed again and again: no error, nothing lost, the same path.
func (s suite) testAdoptAfterKills(t *testing.T) {
	dir, file, vol := t.TempDir(), filepath.Join(t.TempDir(), "volume"), holdfast.NewVolumeID()
	const size, workers = 64 * mib, 8
	c := startServer(t, dir, vol, size, file)
	path := c.path
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var ios [workers]atomic.Int64
	quit := make(chan struct{})
	var all sync.WaitGroup
	for w := range workers {
		all.Add(1)
		go func() {
			defer all.Done()
			verifying(t, f, int64(w)*size/workers, size/workers, quit, &ios[w])
		}()
	}
	goOn := func(n int64) {
		var before [workers]int64
		for w := range ios {
			before[w] = ios[w].Load()
		}
		eventually(t, "all writers go on", func() bool {
			for w := range ios {
				if ios[w].Load() < before[w]+n {
					return false
				}
			}
			return true
		})
	}
	for range kills {
		goOn(4)
		began := time.Now()
		c.kill()
		c = startServer(t, dir, vol, size, file)
		there := time.Now()
		if c.path != path {
			t.Errorf("the successor has it as %s, it was %s", c.path, path)
		}
		goOn(1)
		t.Logf("the successor was there %v after the kill; everything in flight was done %v later", there.Sub(began).Round(time.Millisecond), time.Since(there).Round(time.Millisecond))
	}
	goOn(4)
	close(quit)
	all.Wait()
	f.Close()
	c.kill()
	s.cleaned(t, dir, c, func() {})
}

// verifying writes at random places of a range and reads back, until quit. Only
// it writes there.
func verifying(t *testing.T, f *os.File, from, size int64, quit chan struct{}, ios *atomic.Int64) {
	rnd := rand.New(rand.NewPCG(uint64(from), 1))
	model := make([]byte, size)
	for i := uint64(0); ; i++ {
		select {
		case <-quit:
			return
		default:
		}
		n := block * (1 + rnd.IntN(32))
		at := block * rnd.Int64N((size-int64(n))/block+1)
		p := aligned(n, i+uint64(from))
		if _, err := f.WriteAt(p, from+at); err != nil {
			t.Errorf("write at %d: %v", from+at, err)
			return
		}
		ios.Add(1)
		copy(model[at:], p)
		got := aligned(n, 0)
		at = block * rnd.Int64N((size-int64(n))/block+1)
		if _, err := f.ReadAt(got, from+at); err != nil {
			t.Errorf("read at %d: %v", from+at, err)
			return
		}
		if !bytes.Equal(got, model[at:at+int64(n)]) {
			t.Errorf("the %d bytes at %d are not as written", n, from+at)
			return
		}
		ios.Add(1)
	}
}

// testAdoptMounted has a filesystem in use while its server is killed.
func (s suite) testAdoptMounted(t *testing.T, fsType string) {
	dir, file, vol := t.TempDir(), filepath.Join(t.TempDir(), "volume"), holdfast.NewVolumeID()
	const size = 320 * mib
	c := startServer(t, dir, vol, size, file)
	args := map[string][]string{"xfs": {"-q"}, "ext4": {"-q", "-F"}}[fsType]
	run(t, "mkfs."+fsType, append(args, c.path)...)
	at := mount(t, c.path, fsType)
	var written atomic.Int64
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; ; i++ {
			select {
			case <-quit:
				return
			default:
			}
			if err := writeSynced(filepath.Join(at, fmt.Sprintf("file%d", i%40)), aligned(1+i*977%200000, uint64(i))); err != nil {
				t.Error(err)
				return
			}
			written.Add(1)
		}
	}()
	for range kills {
		before := written.Load()
		eventually(t, "files are written", func() bool { return written.Load() > before+2 })
		c.kill()
		c = startServer(t, dir, vol, size, file)
	}
	close(quit)
	<-done
	last := int(written.Load())
	for i := max(0, last-40); i < last; i++ {
		got, err := os.ReadFile(filepath.Join(at, fmt.Sprintf("file%d", i%40)))
		if err != nil || !bytes.Equal(got, aligned(1+i*977%200000, uint64(i))) {
			t.Errorf("file %d is not as written: %v", i, err)
		}
	}
	run(t, "umount", at)
	check := map[string][]string{"xfs": {"xfs_repair", "-n"}, "ext4": {"fsck.ext4", "-fn"}}[fsType]
	run(t, check[0], append(check[1:], c.path)...)
	c.kill()
	s.cleaned(t, dir, c, func() {})
}

func writeSynced(name string, p []byte) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(p); err != nil {
		return err
	}
	return f.Sync()
}

// testAdoptAndGrow has the volume grown while nobody served its device.
func (s suite) testAdoptAndGrow(t *testing.T) {
	dir, file, vol := t.TempDir(), filepath.Join(t.TempDir(), "volume"), holdfast.NewVolumeID()
	c := startServer(t, dir, vol, 16*mib, file)
	p := aligned(mib, 1)
	f, err := os.OpenFile(c.path, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(p, 15*mib); err != nil {
		t.Fatal(err)
	}
	c.kill()
	within(t, patience, "the killed server ends", func() { _ = c.cmd.Wait() })
	fe := s.adopted(t, dir, vol)
	backend, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer backend.Close()
	size := int64(16 * mib)
	if canGrow(fe) {
		size = 24 * mib
	}
	o := options(size)
	o.Volume = vol
	d, err := fe.Open(context.Background(), o, &onFile{f: backend})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := d.Abort(); err != nil {
			t.Error(err)
		}
	}()
	r := &rig{T: t, fe: fe, dev: d, opt: o}
	r.wantSame("what the predecessor took", r.read(f, 15*mib, mib), p)
	r.write(f, p, size-mib)
	r.wantSame("what was written to the end", r.read(f, size-mib, mib), p)
	f.Close()
	if err := d.Close(context.Background()); err != nil {
		t.Error(err)
	}
}
