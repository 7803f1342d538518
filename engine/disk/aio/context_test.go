package aio

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const blk = 4096

func newContext(t testing.TB) *Context {
	t.Helper()
	c, err := New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// aligned is memory for direct I/O.
func aligned(t testing.TB, blocks int) []byte {
	t.Helper()
	mem, err := unix.Mmap(-1, 0, blocks*blk, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(mem) })
	return mem
}

// newFile makes a file of so many blocks, each full of its number, open with O_DIRECT.
func newFile(t testing.TB, blocks int) (fd int, path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "f")
	var content []byte
	for i := range blocks {
		content = append(content, blockOf(i)...)
	}
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err == nil {
		err = unix.Fsync(fd)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd, path
}

func blockOf(n int) []byte { return bytes.Repeat([]byte{byte(n), byte(n >> 8)}, blk/2) }

// read reads a block, and says whether the kernel took it.
func read(t testing.TB, c *Context, fd int, mem []byte, block int) bool {
	t.Helper()
	o := Op{FD: fd, P: mem, Off: int64(block) * blk}
	c.Do(&o)
	if o.Refused {
		return false
	}
	if o.N != blk || o.Errno != 0 || !bytes.Equal(o.P, blockOf(block)) {
		t.Errorf("block %d: %d bytes, %v", block, o.N, o.Errno)
	}
	return true
}

// readMany reads blocks in a random order, most of which the kernel has to take.
func readMany(t testing.TB, c *Context, fd, blocks int, seed uint64) {
	t.Helper()
	const reads = 1000 // the ring goes round many times
	mem, rnd, did := aligned(t, 1), rand.New(rand.NewPCG(seed, 2)), 0
	for range reads {
		if read(t, c, fd, mem, rnd.IntN(blocks)) {
			did++
		}
	}
	if did < reads/2 {
		t.Errorf("the kernel has refused all but %d reads", did)
	}
}

func TestReads(t *testing.T) {
	const blocks = 300
	fd, _ := newFile(t, blocks)
	readMany(t, newContext(t), fd, blocks, 1)
}

// TestAnswers: short reads, failed ones, syncs, and what the kernel does not take, all
// with one context: nothing is left of the one before.
func TestAnswers(t *testing.T) {
	c := newContext(t)
	fd, path := newFile(t, 3)
	if err := errors.Join(os.Truncate(path, 2*blk+904), unix.Fsync(fd)); err != nil {
		t.Fatal(err)
	}
	p := aligned(t, 2)
	for range 2 {
		for what, x := range map[string]struct {
			op      Op
			n       int
			errno   unix.Errno
			refused bool
		}{
			"read":                {op: Op{FD: fd, P: p[:blk]}, n: blk},
			"short read":          {op: Op{FD: fd, P: p[:blk], Off: 2 * blk}, n: 904},
			"read beyond the end": {op: Op{FD: fd, P: p[:blk], Off: 4 * blk}},
			"read of no file":     {op: Op{FD: -1, P: p[:blk]}, errno: unix.EBADF, refused: true},
			"unaligned read":      {op: Op{FD: fd, P: p[1:][:blk]}, errno: unix.EINVAL, refused: true},
			"sync":                {op: Op{FD: fd, Sync: true}},
			"sync of no file":     {op: Op{FD: -1, Sync: true}, errno: unix.EBADF, refused: true},
		} {
			o := x.op
			if c.Do(&o); o.N != x.n || o.Errno != x.errno || o.Refused != x.refused {
				t.Errorf("%s: %d bytes, %v, refused %v; want %d, %v, %v", what, o.N, o.Errno, o.Refused, x.n, x.errno, x.refused)
			}
		}
	}
}

// TestNoThreadWaits: while reads take their time, other goroutines go on with the only
// processor, as nobody sits in the kernel with it.
func TestNoThreadWaits(t *testing.T) {
	runtime.GOMAXPROCS(1)
	defer runtime.SetDefaultGOMAXPROCS()
	const blocks = 1024
	c := newContext(t)
	fd, _ := newFile(t, blocks)
	mem := aligned(t, blocks)
	turns := 0
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				turns++
				runtime.Gosched()
			}
		}
	}()
	did := 0
	for range 20 {
		o := Op{FD: fd, P: mem}
		if c.Do(&o); !o.Refused {
			did++
		}
	}
	close(stop)
	<-stopped
	if did == 0 || turns < did {
		t.Errorf("others had %d turns in %d reads", turns, did)
	}
}

// TestMany: one context per caller, of goroutines that change threads.
func TestMany(t *testing.T) {
	const blocks = 64
	fd, _ := newFile(t, blocks)
	var wg sync.WaitGroup
	for g := range uint64(8) {
		c := newContext(t)
		wg.Go(func() { readMany(t, c, fd, blocks, g) })
		s := newContext(t)
		wg.Go(func() {
			for range 100 {
				o := Op{FD: fd, Sync: true}
				if s.Do(&o); o.Errno != 0 {
					t.Errorf("sync: %v", o.Errno)
				}
			}
		})
	}
	wg.Wait()
}

// TestWithoutPoller: where Go's poller cannot wait, a thread does, and Do does not come
// back before the operation is over.
func TestWithoutPoller(t *testing.T) {
	const blocks = 64
	c := newContext(t)
	if err := c.done.SetReadDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	fd, _ := newFile(t, blocks)
	readMany(t, c, fd, blocks, 5)
}

// TestPool: a context has one caller at a time, there are as many as are needed at once,
// up to the limit, and what was given back is lent again.
func TestPool(t *testing.T) {
	p := NewPool(2)
	a, b := p.Get(), p.Get()
	if a == nil || b == nil || a == b || p.Get() != nil {
		t.Fatal("of two contexts, two are lent, and no more")
	}
	p.Put(a)
	if p.Get() != a || p.Get() != nil {
		t.Error("what was given back is lent again, once")
	}
	for _, c := range []*Context{a, b} {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	if NewPool(0).Get() != nil {
		t.Error("there is one in an empty pool")
	}
}
