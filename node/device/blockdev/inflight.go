package blockdev

import (
	"maps"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast/internal/buf"
	"github.com/holdfast-storage/holdfast/node/device"
	"github.com/holdfast-storage/holdfast/replication"
)

// trimPiece is the longest trim given to a backend at once, in bytes, so that
// other requests on the volume get their turn.
const trimPiece = 64 << 20

// Answer is what the kernel is told about a request.
type Answer struct {
	Cookie uint64
	Errno  unix.Errno // 0 for success
	Length int64      // of a read's or write's data; 0 for others
	// Data is what a successful read gave, with a reference of the receiver's;
	// else nil.
	Data *buf.Buf
}

// Inflight hands requests to a backend and knows those that are not answered
// yet, so that all of them can be answered at once when a device is removed.
// Each is answered exactly once.
type Inflight struct {
	backend device.Backend
	answer  func(Answer) // called under mu: must not block
	ios     sync.Pool

	mu      sync.Mutex
	open    map[*io]bool
	settles []*settle
	failing unix.Errno // not 0: what everything is answered with
}

// settle waits for some requests to be answered.
type settle struct {
	open map[*io]bool
	done chan struct{}
}

// NewInflight is one without requests. answer must not block and not call back.
func NewInflight(b device.Backend, answer func(Answer)) *Inflight {
	f := &Inflight{backend: b, answer: answer, open: map[*io]bool{}}
	f.ios.New = func() any {
		q := &io{f: f}
		q.done = q.finish
		return q
	}
	return f
}

// io is one request with what is needed to answer it. It is used again and
// again.
type io struct {
	replication.Request
	f      *Inflight
	cookie uint64
	pieces *pieces
	done   func(*replication.Request, error) // finish, bound once
}

// pieces are the parts of a long trim; the last one to end answers, with the
// first error.
type pieces struct {
	whole *io
	left  int // under mu
	err   error
}

// Submit hands r to the backend, in pieces if it is a long trim; its Done is
// set here. The buffer of r goes with it.
func (f *Inflight) Submit(cookie uint64, r replication.Request) {
	q := f.ios.Get().(*io)
	q.cookie, q.Request = cookie, r
	q.Done = q.done
	f.mu.Lock()
	if e := f.failing; e != 0 {
		f.answer(Answer{Cookie: cookie, Errno: e})
		f.mu.Unlock()
		f.recycle(q)
		return
	}
	f.open[q] = true
	f.mu.Unlock()
	if r.Op == replication.OpTrim && r.Length > trimPiece {
		f.submitPieces(q)
		return
	}
	f.backend.Submit(&q.Request)
}

func (f *Inflight) submitPieces(q *io) {
	end := q.Offset + q.Length
	g := &pieces{whole: q, left: int((q.Length + trimPiece - 1) / trimPiece)}
	fua := q.FUA
	for off := q.Offset; off < end; off += trimPiece {
		part := f.ios.Get().(*io)
		part.pieces = g
		part.Request = replication.Request{Op: replication.OpTrim, FUA: fua, Offset: off, Length: min(trimPiece, end-off), Done: part.done}
		f.backend.Submit(&part.Request)
	}
}

// Refuse answers a request that the backend does not get.
func (f *Inflight) Refuse(cookie uint64, e unix.Errno) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.answer(Answer{Cookie: cookie, Errno: e})
}

// Fail answers everything that is open, and all that comes from now on, with e:
// afterwards nothing in the kernel waits for the backend.
func (f *Inflight) Fail(e unix.Errno) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.failing = e
	for q := range f.open {
		f.answer(Answer{Cookie: q.cookie, Errno: e})
	}
	clear(f.open)
	for _, w := range f.settles {
		close(w.done)
	}
	f.settles = nil
}

// Settled gives a channel that is closed once all requests that are open now are
// answered, whatever comes meanwhile.
func (f *Inflight) Settled() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	w := &settle{open: maps.Clone(f.open), done: make(chan struct{})}
	f.settles = append(f.settles, w)
	f.settle(nil)
	return w.done
}

// settle notes that a request is answered; called under mu.
func (f *Inflight) settle(q *io) {
	f.settles = slices.DeleteFunc(f.settles, func(w *settle) bool {
		if delete(w.open, q); len(w.open) == 0 {
			close(w.done)
			return true
		}
		return false
	})
}

// finish takes the backend's answer. It is called under the volume's lock.
func (q *io) finish(_ *replication.Request, err error) {
	f := q.f
	f.mu.Lock()
	whole := q
	if g := q.pieces; g != nil {
		g.left--
		if g.err == nil {
			g.err = err
		}
		if g.left > 0 {
			f.mu.Unlock()
			f.recycle(q)
			return
		}
		whole, err = g.whole, g.err
	}
	if f.open[whole] { // else it was answered by Fail
		delete(f.open, whole)
		f.answer(whole.result(err))
		f.settle(whole)
	}
	f.mu.Unlock()
	if whole != q {
		f.recycle(q)
	}
	f.recycle(whole)
}

func (q *io) result(err error) Answer {
	a := Answer{Cookie: q.cookie, Errno: Errno(err)}
	switch {
	case err != nil:
	case q.Op == replication.OpRead:
		a.Length, a.Data = q.Length, q.Buf.Retain()
	case q.Op == replication.OpWrite:
		a.Length = q.Length
	}
	return a
}

func (f *Inflight) recycle(q *io) {
	q.Buf.Release()
	q.pieces, q.Request = nil, replication.Request{}
	f.ios.Put(q)
}

// Limits are what a device takes.
type Limits struct {
	SizeBytes int64
	ReadOnly  bool
}

// Check is 0 if a request of the kernel's can be submitted; flushes need none.
func (l Limits) Check(op replication.Op, off, n int64) unix.Errno {
	data := op == replication.OpRead || op == replication.OpWrite
	switch {
	case op == replication.OpFlush:
		return 0
	case l.ReadOnly && op != replication.OpRead:
		return unix.EROFS
	case n <= 0 || data && n > buf.Max || off < 0:
		return unix.EINVAL
	case off > l.SizeBytes-n:
		return unix.ENOSPC
	}
	return 0
}
