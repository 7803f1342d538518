package disk

import (
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/holdfast-storage/holdfast/engine/disk/aio"
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

// contexts are for single reads and syncs of all directories: at once as many as there
// are, and more by ordinary calls. They are the process's, as the kernel takes long to
// destroy one.
var contexts = aio.NewPool(64)

// async reads or syncs so that no thread waits. Only direct reads are, and none where
// the kernel has no asynchronous I/O: the others are refused.
func (f *dirFile) async(o *aio.Op) {
	var c *aio.Context
	if f.direct || o.Sync {
		c = f.fs.contexts.Get()
	}
	if c == nil {
		o.Refused = true
		return
	}
	defer f.fs.contexts.Put(c)
	o.FD = f.fd
	c.Do(o)
}

const (
	// holdMost is for how long a goroutine keeps its processor while it waits for a
	// batch or a short write, if those of late took less than holdBelow on average. It
	// is later than the kernel's next tick: a timer that is the machine's next one is
	// expensive to set (docs/design/processors.md).
	holdMost  = 5 * time.Millisecond
	holdBelow = 300 * time.Microsecond
	// aloneMost is the size of a write that is done by a ring although it is the only
	// one, as then its goroutine can keep the processor.
	aloneMost = 64 << 10
	// paceOver is over how many batches the average goes, of which none counts for more
	// than paceMost.
	paceOver = 16
	paceMost = 6400 * time.Microsecond
	// pollMost is for how long a goroutine looks whether its short write is over before
	// its thread sleeps, if the last pollAfter were each the only one and took less than
	// pollBelow on average. With several together others are at work meanwhile.
	pollMost  = 200 * time.Microsecond
	pollBelow = 100 * time.Microsecond
	pollAfter = 100
)

// pace is how long the batches and the short writes of a directory's files took of late,
// each batch as one. A slow disk's goroutines give up their processor at once.
type pace struct {
	average atomic.Int64 // ns
	singles atomic.Int64 // so many were the only one, one after the other
}

func (p *pace) fast() bool { return p.average.Load() < int64(holdBelow) }

// poll is for how long to look for the end of so many operations; called once for each.
func (p *pace) poll(ops int) time.Duration {
	if ops > 1 {
		p.singles.Store(0)
		return 0
	}
	if p.singles.Add(1) <= pollAfter || p.average.Load() >= int64(pollBelow) {
		return 0
	}
	return pollMost
}

func (p *pace) took(d time.Duration) {
	was := p.average.Load()
	p.average.Store(was + (min(int64(d), int64(paceMost))-was)/paceOver) // what others add meanwhile may be lost
}

func (p *pace) do(r *ring, ops []uring.Op) {
	hold := time.Duration(0)
	if p.fast() {
		hold = holdMost
	}
	began := time.Now()
	waited.Add(int64(r.Do(ops, hold, p.poll(len(ops)))))
	p.took(time.Since(began))
}

// waited is what Waited says, in ns.
var waited atomic.Int64

// Waited is for how long threads have waited for disks since the process began, all
// together: in batches and short writes, and in reads and syncs that were not
// asynchronous. Each may have kept one of Go's processors meanwhile.
func Waited() time.Duration { return time.Duration(waited.Load()) }

// since counts what began then as waiting, and says how long that was.
func since(began time.Time) time.Duration {
	d := time.Since(began)
	waited.Add(int64(d))
	return d
}

// alone does one short write by a ring, where that may outlive the process, and says
// whether it did all of it. Without an error the rest is to be done by pwrite.
func (f *dirFile) alone(p []byte, off int64) (done bool, err error) {
	if !f.late || len(p) == 0 || len(p) > aloneMost || !f.fs.pace.fast() {
		return false, nil
	}
	r := f.fs.rings.get()
	if r == nil {
		return false, nil
	}
	defer f.fs.rings.put(r)
	o := &r.ops[0]
	*o = uring.Op{FD: f.fd, Write: true, P: p, Off: off}
	f.fs.pace.do(r, r.ops[:1])
	if otherwise(o.Errno) {
		return false, nil
	}
	if o.Errno != 0 {
		return false, sysErr("write", f.name, o.Errno)
	}
	return o.N == len(p), nil
}

// otherwise says whether the kernel may do by ordinary calls what it did not do by
// io_uring.
func otherwise(e syscall.Errno) bool {
	switch e {
	case syscall.EAGAIN, syscall.EINTR, syscall.EBADF, syscall.EINVAL, syscall.EOPNOTSUPP:
		return true
	}
	return false
}

// TransferAll implements Batcher by io_uring; false when there is none, or writes
// must not outlive the process.
func (f *dirFile) TransferAll(ts []Transfer) bool {
	if !f.late {
		return false
	}
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
	f.fs.pace.do(r, ops)
	for i := range ts {
		t, o := &ts[i], &ops[i]
		if o.Errno != 0 && !otherwise(o.Errno) {
			t.N, t.Err = 0, f.transferErr(t, o.Errno)
			continue
		}
		if t.N, t.Err = o.N, nil; t.N < len(t.P) {
			t.do(f, o.N)
		}
	}
}

func (f *dirFile) transferErr(t *Transfer, errno syscall.Errno) error {
	if t.Write {
		return sysErr("write", f.name, errno)
	}
	return sysErr("read", f.name, errno)
}
