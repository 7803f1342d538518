package disk

import (
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/holdfast-storage/holdfast/engine/disk/uring"
)

// Transfer is one read or write of a batch: File.ReadAt or WriteAt without
// dsync, with N and Err for what these return.
type Transfer struct {
	Write bool
	P     []byte
	Off   int64
	N     int
	Err   error
}

// Batcher is a File that can do a batch at once. TransferAll says whether it did.
type Batcher interface {
	TransferAll(ts []Transfer) bool
}

// TransferAll does all of a batch, in any order and at once where the file can
// do that. Its transfers must not overlap.
func TransferAll(f File, ts []Transfer) {
	if b, ok := f.(Batcher); ok && len(ts) > 1 && b.TransferAll(ts) {
		return
	}
	for i := range ts {
		ts[i].do(f, 0)
	}
}

// do does what is left of a transfer after the first done bytes.
func (t *Transfer) do(f File, done int) {
	if t.Write {
		t.N, t.Err = f.WriteAt(t.P[done:], t.Off+int64(done), false)
	} else {
		t.N, t.Err = f.ReadAt(t.P[done:], t.Off+int64(done))
	}
	t.N += done
}

// ringEntries bounds what is given to the kernel at once.
const ringEntries = 32

// rings lends io_urings to who does a batch. Those that nobody needs any more are
// closed by the garbage collector.
type rings struct {
	pool sync.Pool
	none atomic.Bool // the kernel has no io_uring, or does not allow it
}

// ring is an io_uring with the operations of its batch.
type ring struct {
	*uring.Ring
	ops [ringEntries]uring.Op
}

func (r *rings) get() *ring {
	if got, _ := r.pool.Get().(*ring); got != nil {
		return got
	}
	if r.none.Load() {
		return nil
	}
	made, err := uring.New(ringEntries)
	if err != nil {
		r.none.Store(true) // one after the other it goes as well
		return nil
	}
	got := &ring{Ring: made}
	runtime.SetFinalizer(got, func(r *ring) { _ = r.Close() })
	return got
}

func (r *rings) put(used *ring) {
	clear(used.ops[:]) // holds no memory of callers
	r.pool.Put(used)
}

// TransferAll implements Batcher by io_uring; false when there is none.
func (f *dirFile) TransferAll(ts []Transfer) bool {
	r := f.fs.rings.get()
	if r == nil {
		return false
	}
	defer f.fs.rings.put(r)
	for len(ts) > 0 {
		n := min(len(ts), ringEntries)
		f.transfer(r, ts[:n])
		ts = ts[n:]
	}
	return true
}

// transfer does what fits into a ring. What the kernel did in part, or not this
// way, is finished by ordinary calls.
func (f *dirFile) transfer(r *ring, ts []Transfer) {
	ops := r.ops[:0]
	for i := range ts {
		t := &ts[i]
		o := uring.Op{FD: f.fd, Write: t.Write, P: t.P, Off: t.Off}
		if len(t.P) == 0 || f.unaligned(t.P) {
			o.FD = -1 // fails at once: it needs a bounce buffer
		}
		ops = append(ops, o)
	}
	r.Do(ops)
	for i := range ts {
		t, o := &ts[i], &ops[i]
		switch o.Errno {
		case 0, syscall.EAGAIN, syscall.EINTR, syscall.EBADF, syscall.EINVAL, syscall.EOPNOTSUPP:
			if t.N, t.Err = o.N, nil; t.N < len(t.P) {
				t.do(f, o.N)
			}
		default:
			t.N, t.Err = 0, f.transferErr(t, o.Errno)
		}
	}
}

func (f *dirFile) transferErr(t *Transfer, errno syscall.Errno) error {
	if t.Write {
		return sysErr("write", f.name, errno)
	}
	return sysErr("read", f.name, errno)
}
