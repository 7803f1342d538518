package fuseloop

import (
	"sync"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast/internal/buf"
	"github.com/holdfast-storage/holdfast/node/device/blockdev"
	"github.com/holdfast-storage/holdfast/replication"
)

// copyBelow is the size of a write up to which its data is copied out of the
// reader's buffer, in bytes: a small write would otherwise keep 1 MiB for as
// long as it is in flight, and the reader's buffer would never be warm in cache.
const copyBelow = 128 << 10

// trimPiece is the longest trim given to the backend at once, in bytes, so that
// other requests on the volume get their turn. maxTrim bounds one call: the
// block layer asks for less than 4 GiB at a time.
const (
	trimPiece = 64 << 20
	maxTrim   = 64 << 30
)

// ioRequest is one request with what is needed to answer it. It is used again
// and again.
type ioRequest struct {
	replication.Request
	s      *server
	unique uint64
	op     uint32
	trim   *trimGroup
	done   func(*replication.Request, error) // finish, bound once
	out    [outHeaderSize + writeOutSize]byte
}

func newIORequest(s *server) *ioRequest {
	q := &ioRequest{s: s}
	q.done = q.finish
	return q
}

func (s *server) request(h inHeader) *ioRequest {
	q := s.reqs.Get().(*ioRequest)
	q.unique, q.op = h.unique, h.op
	q.Request = replication.Request{Done: q.done}
	s.next.Taken()
	return q
}

// finish answers the kernel. It is called under the volume's lock.
func (q *ioRequest) finish(_ *replication.Request, err error) {
	s := q.s
	switch {
	case q.trim != nil:
		q.trim.finish(s, q.unique, err)
	case err != nil:
		s.sendError(q.unique, blockdev.Errno(err))
	case q.op == opRead:
		p := q.Buf.WithHead(outHeaderSize, int(q.Length))
		putOutHeader(p, len(p), q.unique, 0)
		s.send(p)
	case q.op == opWrite:
		putOutHeader(q.out[:], len(q.out), q.unique, 0)
		order.PutUint64(q.out[outHeaderSize:], uint64(q.Length)) // size and padding
		s.send(q.out[:])
	default:
		s.sendError(q.unique, 0)
	}
	s.next.Answered(q.op != opRead) // after a read from memory it did not pay
	q.Buf.Release()
	q.trim, q.Request = nil, replication.Request{}
	s.reqs.Put(q)
}

func (r *reader) read(h inHeader, body []byte) {
	off, n := int64(order.Uint64(body[8:])), int64(order.Uint32(body[16:]))
	size := r.s.size.Load()
	if h.node != nodeFile || off < 0 || n > maxWrite {
		r.s.sendError(h.unique, unix.EINVAL)
		return
	}
	if n = min(n, size-off); n <= 0 { // at the end of the file
		r.s.sendError(h.unique, 0)
		return
	}
	q := r.s.request(h)
	q.Op, q.Offset, q.Length, q.Buf = replication.OpRead, off, n, buf.Get(int(n))
	r.submit(q)
}

func (r *reader) write(h inHeader, body []byte) {
	off, n, flags := int64(order.Uint64(body[8:])), int64(order.Uint32(body[16:])), order.Uint32(body[32:])
	switch {
	case r.s.cfg.ReadOnly:
		r.s.sendError(h.unique, unix.EROFS)
		return
	case h.node != nodeFile || off < 0 || n > maxWrite || int64(len(body)-writeInSize) < n:
		r.s.sendError(h.unique, unix.EINVAL)
		return
	case off > r.s.size.Load()-n:
		r.s.sendError(h.unique, unix.EFBIG)
		return
	}
	q := r.s.request(h)
	q.Op, q.Offset, q.Length, q.Buf = replication.OpWrite, off, n, r.take(int(n))
	// O_SYNC includes the bit of O_DSYNC. A FUA of the loop device arrives as a
	// flush instead.
	q.FUA = flags&unix.O_DSYNC != 0
	r.submit(q)
}

// take gives the n bytes of data of the request just read as a buffer of its
// own.
func (r *reader) take(n int) *buf.Buf {
	if n > copyBelow {
		b := r.b
		b.B, r.b = b.B[:n], nil
		return b
	}
	b := buf.Get(n)
	copy(b.B, r.b.B)
	return b
}

func (r *reader) fsync(h inHeader) {
	q := r.s.request(h)
	q.Op = replication.OpFlush
	r.submit(q)
}

// fallocate serves discards (punched holes) and write-zeroes (zeroed ranges):
// both leave zeros, and never change the size.
func (r *reader) fallocate(h inHeader, body []byte) {
	off, n, mode := int64(order.Uint64(body[8:])), int64(order.Uint64(body[16:])), order.Uint32(body[24:])
	const keep, punch, zero = unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_PUNCH_HOLE, unix.FALLOC_FL_ZERO_RANGE
	switch {
	case mode != keep|punch && mode != keep|zero:
		r.s.sendError(h.unique, unix.EOPNOTSUPP)
		return
	case r.s.cfg.ReadOnly:
		r.s.sendError(h.unique, unix.EROFS)
		return
	case h.node != nodeFile || off < 0 || n <= 0 || n > maxTrim:
		r.s.sendError(h.unique, unix.EINVAL)
		return
	}
	if n = min(n, r.s.size.Load()-off); n <= 0 {
		r.s.sendError(h.unique, 0) // nothing is there beyond the end
		return
	}
	g := &trimGroup{left: int((n + trimPiece - 1) / trimPiece)}
	for end := off + n; off < end; off += trimPiece {
		q := r.s.request(h)
		q.Op, q.Offset, q.Length, q.trim = replication.OpTrim, off, min(trimPiece, end-off), g
		r.submit(q)
	}
}

// trimGroup are the pieces of one discard; the last one to end answers, with
// the first error.
type trimGroup struct {
	mu   sync.Mutex
	left int
	err  error
}

func (g *trimGroup) finish(s *server, unique uint64, err error) {
	g.mu.Lock()
	g.left--
	if g.err == nil {
		g.err = err
	}
	last, first := g.left == 0, g.err
	g.mu.Unlock()
	if last {
		s.sendError(unique, blockdev.Errno(first))
	}
}
