package devicetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/node/device"
	"github.com/holdfast-storage/holdfast/replication"
)

// open opens the device node; flags are added to O_RDWR.
func (r *rig) open(flags int) *os.File {
	r.Helper()
	f, err := os.OpenFile(r.dev.Path(), os.O_RDWR|flags, 0)
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { f.Close() })
	return f
}

// aligned gives n bytes as O_DIRECT wants them, filled from the seed.
func aligned(n int, seed uint64) []byte {
	raw := make([]byte, n+block)
	skip := int(-uintptr(unsafe.Pointer(&raw[0])) & (block - 1))
	p := raw[skip : skip+n : skip+n]
	_, _ = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), 1}).Read(p)
	return p
}

func (r *rig) write(f *os.File, p []byte, off int64) {
	r.Helper()
	if _, err := f.WriteAt(p, off); err != nil {
		r.Fatalf("write of %d bytes at %d: %v", len(p), off, err)
	}
}

func (r *rig) read(f *os.File, off int64, n int) []byte {
	r.Helper()
	p := aligned(n, 0)
	if _, err := f.ReadAt(p, off); err != nil {
		r.Fatalf("read of %d bytes at %d: %v", n, off, err)
	}
	return p
}

func (r *rig) wantSame(what string, got, want []byte) {
	r.Helper()
	if !bytes.Equal(got, want) {
		at := 0
		for at < min(len(got), len(want)) && got[at] == want[at] {
			at++
		}
		r.Fatalf("%s: different from byte %d of %d", what, at, len(want))
	}
}

func (s suite) testOptions(t *testing.T) {
	fe := s.frontEnd(t, t.TempDir())
	if fe.Name() == "" {
		t.Error("the front end has no name")
	}
	good := options(8 * mib)
	for what, change := range map[string]func(*device.Options){
		"no volume":        func(o *device.Options) { o.Volume = "" },
		"a path as volume": func(o *device.Options) { o.Volume = "../../../../etc/passwd-0123456789" },
		"no size":          func(o *device.Options) { o.SizeBytes = 0 },
		"negative size":    func(o *device.Options) { o.SizeBytes = -4096 },
		"unaligned size":   func(o *device.Options) { o.SizeBytes += 512 },
		"odd block size":   func(o *device.Options) { o.LogicalBlk = 1000 },
	} {
		o := good
		change(&o)
		d, err := fe.Open(context.Background(), o, NewMemory(8*mib))
		if err == nil {
			_ = d.Abort()
			t.Errorf("%s was accepted", what)
			continue
		}
		wantKind(t, err, holdfast.Invalid)
	}
	r := openIn(t, fe, good)
	_, err := fe.Open(context.Background(), good, r.mem)
	wantKind(t, err, holdfast.Exists)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err = fe.Open(ctx, options(8*mib), NewMemory(8*mib))
	wantKind(t, err, holdfast.Unavailable)
}

func (s suite) testDirect(t *testing.T) {
	const size = 64 * mib
	r := s.device(t, options(size))
	f := r.open(unix.O_DIRECT)
	model := make([]byte, size)
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range 200 {
		n := block * (1 + rnd.IntN([]int{1, 4, 40, 700}[i%4]))
		off := block * rnd.Int64N((size-int64(n))/block+1)
		p := aligned(n, uint64(i))
		r.write(f, p, off)
		copy(model[off:], p)
	}
	// The very ends of the device.
	for _, off := range []int64{0, size - block} {
		p := aligned(block, uint64(1000+off))
		r.write(f, p, off)
		copy(model[off:], p)
	}
	r.wantSame("what the backend holds", r.mem.Live(0, size), model)
	for off := 0; off < size; off += 4 * mib {
		r.wantSame("what is read back", r.read(f, int64(off), 4*mib), model[off:off+4*mib])
	}
	if n, err := f.ReadAt(aligned(block, 0), size); n != 0 || err == nil {
		t.Errorf("reading behind the end gave %d bytes, %v", n, err)
	}
	if _, err := f.WriteAt(aligned(block, 0), size); err == nil {
		t.Error("writing behind the end worked")
	}
}

func (s suite) testBuffered(t *testing.T) {
	const size = 16 * mib
	r := s.device(t, options(size))
	f := r.open(0)
	model := make([]byte, size)
	rnd := rand.New(rand.NewPCG(3, 4))
	for i := range 300 {
		n := 1 + rnd.IntN([]int{1, 100, 5000, 300000}[i%4])
		off := rnd.Int64N(int64(size - n))
		p := aligned(n, uint64(i))
		r.write(f, p, off)
		copy(model[off:], p)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	r.wantSame("what the backend holds", r.mem.Live(0, size), model)
	r.wantSame("what a power cut leaves after fsync", r.mem.Durable(0, size), model)
	if err := unix.IoctlSetInt(int(f.Fd()), unix.BLKFLSBUF, 0); err != nil {
		t.Fatal(err)
	}
	r.wantSame("what is read back", r.read(f, 0, size), model)
}

func (s suite) testSmallBlocks(t *testing.T) {
	o := options(8 * mib)
	o.LogicalBlk = 512
	r := s.device(t, o)
	f := r.open(unix.O_DIRECT)
	model := make([]byte, o.SizeBytes)
	rnd := rand.New(rand.NewPCG(5, 6))
	for i := range 200 {
		n := 512 * (1 + rnd.IntN(20))
		off := 512 * rnd.Int64N((o.SizeBytes-int64(n))/512)
		p := aligned(n, uint64(i))
		r.write(f, p, off)
		copy(model[off:], p)
	}
	r.wantSame("what the backend holds", r.mem.Live(0, int(o.SizeBytes)), model)
	r.wantSame("what is read back", r.read(f, 512*3, 512*7), model[512*3:512*10])
	if n, err := unix.IoctlGetInt(int(f.Fd()), unix.BLKSSZGET); err != nil || n != 512 {
		t.Errorf("the logical block size is %d, %v", n, err)
	}
}

func (s suite) testFlush(t *testing.T) {
	r := s.device(t, options(8*mib))
	f := r.open(unix.O_DIRECT)
	p := aligned(64<<10, 7)
	r.write(f, p, mib)
	before := r.mem.Stats().Flushes
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	if after := r.mem.Stats().Flushes; after <= before {
		t.Fatalf("fsync sent no flush (%d before, %d after)", before, after)
	}
	r.wantSame("what a power cut leaves after fsync", r.mem.Durable(mib, len(p)), p)
	r.mem.SetFail(func(q *replication.Request) error {
		if q.Op == replication.OpFlush {
			return holdfast.E("flush", holdfast.Other, "told to fail")
		}
		return nil
	})
	r.write(f, p, 2*mib)
	if err := f.Sync(); err == nil {
		t.Error("fsync succeeded though the flush failed")
	}
	r.mem.SetFail(nil)
}

func (s suite) testFUA(t *testing.T) {
	r := s.device(t, options(8*mib))
	f := r.open(unix.O_DIRECT | unix.O_DSYNC)
	for i := range 5 {
		p := aligned(block*(i+1), uint64(i))
		off := int64(i) * mib
		r.write(f, p, off)
		r.wantSame("what a power cut leaves after a synchronous write", r.mem.Durable(off, len(p)), p)
	}
}

func (s suite) testDiscard(t *testing.T) {
	const size = 32 * mib
	r := s.device(t, options(size))
	f := r.open(unix.O_DIRECT)
	model := aligned(size, 9)
	r.write(f, model, 0)
	const off, n = 5*mib + 3*block, 9*mib + block
	rng := [2]uint64{off, n}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.BLKDISCARD, uintptr(unsafe.Pointer(&rng))); errno != 0 {
		t.Fatalf("BLKDISCARD: %v", errno)
	}
	clear(model[off : off+n])
	r.wantSame("what is read after a discard", r.read(f, 0, size), model)
	if used := r.mem.Used(); used != size-n {
		t.Errorf("the backend uses %d bytes after the discard, wanted %d", used, int64(size-n))
	}
	f.Close()
	run(t, "blkdiscard", r.dev.Path())
	if used := r.mem.Used(); used != 0 {
		t.Errorf("the backend uses %d bytes after everything was discarded", used)
	}
}

func (s suite) testWriteZeroes(t *testing.T) {
	const size = 32 * mib
	r := s.device(t, options(size))
	f := r.open(unix.O_DIRECT)
	model := aligned(size, 10)
	r.write(f, model, 0)
	modes := []uint32{unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE}
	passes := r.passesWriteZeroes()
	if !passes { // a hole that must not be written is not possible then
		modes = modes[:1]
	}
	for i, mode := range modes {
		off, n := int64(i+1)*4*mib+block, int64(2*mib+3*block)
		if err := unix.Fallocate(int(f.Fd()), mode, off, n); err != nil {
			t.Fatalf("fallocate mode %x: %v", mode, err)
		}
		clear(model[off : off+n])
		r.wantSame("what is read after zeroing", r.read(f, 0, size), model)
	}
	writes := r.mem.Stats().Writes
	f.Close()
	run(t, "blkdiscard", "-z", "-o", fmt.Sprint(16*mib), "-l", fmt.Sprint(8*mib), r.dev.Path())
	clear(model[16*mib : 24*mib])
	r.wantSame("what the backend holds after blkdiscard -z", r.mem.Live(0, size), model)
	if now := r.mem.Stats().Writes; now != writes && passes {
		t.Errorf("zeros travelled as data: %d writes", now-writes)
	}
}

// passesWriteZeroes says whether the kernel's driver has write-zeroes at all; nbd
// lacks them before Linux 6.12, and the kernel writes zeros.
func (r *rig) passesWriteZeroes() bool {
	r.Helper()
	raw, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(r.dev.Path()), "queue/write_zeroes_max_bytes"))
	if err != nil {
		r.Fatal(err)
	}
	passes := strings.TrimSpace(string(raw)) != "0"
	if !passes && r.fe.Name() != "nbd" {
		r.Error("the device does not take write-zeroes")
	}
	return passes
}

func (s suite) testErrors(t *testing.T) {
	r := s.device(t, options(8*mib))
	f := r.open(unix.O_DIRECT)
	for _, kind := range holdfast.Kinds() {
		r.mem.SetFail(func(*replication.Request) error { return holdfast.E("test", kind, "told to fail") })
		within(t, patience, "I/O that fails with "+kind.String(), func() {
			if _, err := f.WriteAt(aligned(block, 1), 0); err == nil {
				t.Errorf("a write succeeded though the backend said %q", kind)
			}
			if _, err := f.ReadAt(aligned(block, 1), 0); err == nil {
				t.Errorf("a read succeeded though the backend said %q", kind)
			}
		})
		r.mem.SetFail(nil)
		r.write(f, aligned(block, 2), 0) // one error does not spoil the device
	}
	r.mem.SetFail(func(*replication.Request) error { return errors.New("an error of no kind") })
	if err := f.Sync(); err == nil {
		t.Error("a flush succeeded though the backend failed")
	}
	r.mem.SetFail(nil)
}

func (s suite) testDepth(t *testing.T) {
	r := s.device(t, options(64*mib))
	r.mem.SetDelay(2 * time.Millisecond)
	for _, rw := range []string{"randread", "randwrite"} {
		run(t, "fio", "--name=x", "--filename="+r.dev.Path(), "--rw="+rw, "--bs=4k", "--iodepth=64", "--ioengine=libaio", "--direct=1",
			"--number_ios=3000", "--size=64m")
		if most := r.mem.Stats().MostInFlight; most < 48 {
			t.Errorf("%s at depth 64: at most %d requests were in flight", rw, most)
		}
	}
}

func (s suite) testFioVerify(t *testing.T) {
	r := s.device(t, options(64*mib))
	out := run(t, "fio", "--name=x", "--filename="+r.dev.Path(), "--rw=randwrite", "--bsrange=4k-256k", "--iodepth=32", "--ioengine=libaio", "--direct=1",
		"--size=64m", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--fsync=64", "--trim_percentage=0")
	if strings.Contains(out, "verify: bad") {
		t.Error(out)
	}
}

func (s suite) testReadOnly(t *testing.T) {
	o := options(8 * mib)
	o.ReadOnly = true
	r := s.device(t, o)
	p := aligned(block, 3)
	f, err := os.OpenFile(r.dev.Path(), os.O_RDWR|unix.O_DIRECT, 0)
	if err == nil {
		defer f.Close()
		if _, err := f.WriteAt(p, 0); err == nil {
			t.Error("a read-only device was written to")
		}
		if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, block); err == nil {
			t.Error("a read-only device was discarded")
		}
	}
	g, err := os.Open(r.dev.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	r.wantSame("what a read-only device holds", r.read(g, 0, block), make([]byte, block))
	if st := r.mem.Stats(); st.Writes+st.Trims != 0 {
		t.Errorf("the backend was asked to change a read-only device: %+v", st)
	}
}
