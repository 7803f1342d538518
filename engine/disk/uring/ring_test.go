package uring_test

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast/engine/disk/uring"
)

func newRing(t testing.TB, entries int) *uring.Ring {
	t.Helper()
	r, err := uring.New(entries)
	if err != nil {
		t.Fatalf("io_uring: %v", err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func newFile(t testing.TB, content []byte) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err == nil {
		_, err = f.Write(content)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func TestWritesAndReads(t *testing.T) {
	const entries, blk = 8, 4096
	r := newRing(t, entries)
	want := make([]byte, 64*blk)
	f := newFile(t, want)
	rnd := rand.New(rand.NewPCG(1, 2))
	for round := range 500 { // the rings' counters go round many times
		var ops []uring.Op
		for _, b := range rnd.Perm(64)[:1+rnd.IntN(entries)] {
			o := uring.Op{FD: int(f.Fd()), P: make([]byte, blk), Off: int64(b * blk), Write: rnd.IntN(2) == 0}
			if o.Write {
				for i := range o.P {
					o.P[i] = byte(rnd.Uint32())
				}
				copy(want[o.Off:], o.P)
			}
			ops = append(ops, o)
		}
		r.Do(ops, time.Duration(round%2)*time.Second, time.Duration(round%3)*time.Millisecond)
		for i, o := range ops {
			if o.Errno != 0 || o.N != blk {
				t.Fatalf("round %d, operation %d: %d bytes, %v", round, i, o.N, o.Errno)
			}
			if !bytes.Equal(o.P, want[o.Off:o.Off+blk]) {
				t.Fatalf("round %d, operation %d: not what was written", round, i)
			}
		}
	}
	got, err := os.ReadFile(f.Name())
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("the file is not what was written (%v)", err)
	}
}

// TestEachHasItsOwnAnswer: short ones and failed ones between good ones.
func TestEachHasItsOwnAnswer(t *testing.T) {
	r := newRing(t, 4)
	f := newFile(t, make([]byte, 5000))
	p := make([]byte, 4096)
	ops := []uring.Op{
		{FD: int(f.Fd()), P: p, Off: 0},
		{FD: int(f.Fd()), P: p, Off: 4096},
		{FD: -1, P: p, Off: 0},
		{FD: int(f.Fd()), P: p, Off: 8192},
	}
	r.Do(ops, 0, 0)
	for i, want := range []struct {
		n     int
		errno unix.Errno
	}{{4096, 0}, {904, 0}, {0, unix.EBADF}, {0, 0}} {
		if ops[i].N != want.n || ops[i].Errno != want.errno {
			t.Errorf("operation %d: %d bytes, %v; want %d, %v", i, ops[i].N, ops[i].Errno, want.n, want.errno)
		}
	}
}

// TestHoldEnds: who waits with a processor gives it up after hold, and at once when
// the only one is wanted by others.
func TestHoldEnds(t *testing.T) {
	for name, hold := range map[string]time.Duration{"after hold": 20 * time.Millisecond, "wanted": time.Hour} {
		t.Run(name, func(t *testing.T) {
			if name == "wanted" {
				runtime.GOMAXPROCS(1)
				defer runtime.SetDefaultGOMAXPROCS()
			}
			from, to, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _, _ = from.Close(), to.Close() }()
			fd := int(from.Fd()) // blocking from now on
			const after = 100 * time.Millisecond
			time.AfterFunc(after, func() { _, _ = to.Write([]byte("x")) })
			ops := []uring.Op{{FD: fd, P: make([]byte, 1)}}
			if waited := newRing(t, 4).Do(ops, hold, 0); ops[0].N != 1 || waited < after/2 {
				t.Errorf("%d bytes, %v after %v", ops[0].N, ops[0].Errno, waited)
			}
		})
	}
}

// TestPolls: who looks for the end finds it, whether it comes soon, while it looks, or
// long after; and what could not be begun is reported.
func TestPolls(t *testing.T) {
	f := newFile(t, bytes.Repeat([]byte{7}, 4096))
	from, to, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = from.Close(), to.Close() }()
	fd := int(from.Fd()) // blocking from now on
	r := newRing(t, 4)
	for name, c := range map[string]struct{ poll, after time.Duration }{
		"at once": {time.Hour, 0}, "while it looks": {time.Hour, 20 * time.Millisecond}, "later": {time.Millisecond, 20 * time.Millisecond},
	} {
		began := time.Now()
		time.AfterFunc(c.after, func() { _, _ = to.Write([]byte("x")) })
		ops := []uring.Op{{FD: fd, P: make([]byte, 1)}, {FD: int(f.Fd()), P: make([]byte, 4096)}, {FD: -1, P: make([]byte, 1)}}
		r.Do(ops, time.Hour, c.poll)
		if ops[0].N != 1 || ops[0].P[0] != 'x' || ops[1].N != 4096 || ops[1].P[4095] != 7 || ops[2].Errno != unix.EBADF {
			t.Errorf("%s: %d, %d bytes, %v", name, ops[0].N, ops[1].N, ops[2].Errno)
		}
		if took := time.Since(began); took < c.after {
			t.Errorf("%s: over after %v, before it was", name, took)
		}
	}
}

// TestStallsCount: waits are counted as such although the thread did nothing but compute
// in the one in which that was asked for last.
func TestStallsCount(t *testing.T) {
	f := newFile(t, make([]byte, 4096))
	from, to, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = from.Close(), to.Close() }()
	fd := int(from.Fd()) // blocking from now on
	const (
		stalls = 10
		each   = 5 * time.Millisecond // short of what makes Go's scheduler interrupt a wait
	)
	r := newRing(t, 4)
	r.Do([]uring.Op{{FD: int(f.Fd()), P: make([]byte, 4096)}}, time.Second, 0) // it is in memory
	var waited time.Duration
	for range stalls {
		time.AfterFunc(each, func() { _, _ = to.Write([]byte("x")) })
		ops := []uring.Op{{FD: fd, P: make([]byte, 1)}}
		if waited += r.Do(ops, time.Hour, 0); ops[0].N != 1 {
			t.Fatalf("%d bytes, %v", ops[0].N, ops[0].Errno)
		}
	}
	if waited < stalls*each/2 {
		t.Errorf("%v of %v counted", waited, stalls*each)
	}
}

// TestManyRings: one per caller, from goroutines that change threads.
func TestManyRings(t *testing.T) {
	f := newFile(t, nil)
	var wg sync.WaitGroup
	for g := range 8 {
		r := newRing(t, 4)
		wg.Go(func() {
			for round := range 200 {
				var ops []uring.Op
				for i := range 4 {
					ops = append(ops, uring.Op{FD: int(f.Fd()), Write: true, P: bytes.Repeat([]byte{byte(round)}, 512), Off: int64(g*4+i) * 512})
				}
				r.Do(ops, time.Duration(g%2)*time.Second, time.Duration(g%3)*time.Millisecond)
				for _, o := range ops {
					if o.N != 512 {
						t.Errorf("%d bytes, %v", o.N, o.Errno)
					}
				}
			}
		})
	}
	wg.Wait()
	got, err := os.ReadFile(f.Name())
	if err != nil || !bytes.Equal(got, bytes.Repeat([]byte{199}, 32*512)) {
		t.Errorf("the file is not what was written last (%v)", err)
	}
}
