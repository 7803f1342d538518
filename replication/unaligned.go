package replication

import (
	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/buf"
)

// A request that is not made of whole blocks is widened under the range lock:
// the blocks at its edges are read, changed and written back as one write. A
// trim keeps its whole blocks in the middle as a trim.

// beginUnaligned splits a request into aligned parts that finish together.
func (p *Primary) beginUnaligned(r *Request) {
	parts := splitUnaligned(r)
	left := len(parts)
	var failed error
	for _, part := range parts {
		part.Done = func(_ *Request, err error) {
			if err != nil {
				failed = err
			}
			if part.Buf != r.Buf {
				part.Buf.Release()
			}
			if left--; left == 0 {
				r.Done(r, failed)
			}
		}
	}
	for _, part := range parts {
		if part.Op == OpTrim {
			p.beginWrite(part)
			continue
		}
		p.modify(part)
	}
}

// splitUnaligned gives the edges of a trim as writes of zeros and its middle as
// a trim; a write stays whole.
func splitUnaligned(r *Request) []*Request {
	if r.Op == OpWrite {
		return []*Request{{Op: OpWrite, FUA: r.FUA, Offset: r.Offset, Length: r.Length, Buf: r.Buf, at: r.at}}
	}
	end := r.Offset + r.Length
	first := holdfast.RoundUp(r.Offset)
	last := end / holdfast.BlockSize * holdfast.BlockSize
	zeros := func(from, to int64) *Request {
		b := buf.Get(int(to - from))
		clear(b.B)
		return &Request{Op: OpWrite, FUA: r.FUA, Offset: from, Length: to - from, Buf: b, at: r.at}
	}
	if first >= last {
		return []*Request{zeros(r.Offset, end)}
	}
	var parts []*Request
	if r.Offset < first {
		parts = append(parts, zeros(r.Offset, first))
	}
	parts = append(parts, &Request{Op: OpTrim, FUA: r.FUA, Offset: first, Length: last - first, at: r.at})
	if last < end {
		parts = append(parts, zeros(last, end))
	}
	return parts
}

// modify reads the blocks around a write and writes them back changed, all
// under one hold of the range.
func (p *Primary) modify(r *Request) {
	ext := blockRange(r.Offset, r.Length)
	w := &write{req: r, fua: r.FUA, ext: ext}
	if ext.Length > buf.Max { // a full-size write shifted by an edge: two halves
		p.halves(r, p.modify)
		return
	}
	b := buf.Get(int(ext.Length))
	read := &read{req: &Request{Op: OpRead, Offset: ext.Offset, Length: ext.Length, Buf: b, at: r.at}}
	read.req.Done = func(got *Request, err error) {
		b := got.Buf
		if err != nil {
			b.Release()
			p.finishWrite(w, err)
			return
		}
		copy(b.B[r.Offset-ext.Offset:], r.Buf.B)
		w.buf = b
		p.startWrite(w)
	}
	read.ext, read.inner = ext, true
	w.hold = hold{ext: ext, exclusive: true, write: w, granted: func() { p.startRead(read) }}
	if p.locks.acquire(&w.hold) {
		p.startRead(read)
		return
	}
	w.hold.at, w.hold.fail = r.at, func(err error) { read.req.Done(read.req, err) }
}

// halves splits a full-size request that an edge shifts, and whose widened form
// would exceed the largest buffer, between two blocks, so that no sector is torn.
func (p *Primary) halves(r *Request, begin func(*Request)) {
	half := holdfast.RoundUp(r.Offset+r.Length/2) - r.Offset
	left := 2
	var failed error
	part := func(off, n int64) {
		sub := &Request{Op: r.Op, FUA: r.FUA, Offset: r.Offset + off, Length: n, Buf: buf.Get(int(n)), at: r.at}
		if r.Op == OpWrite {
			copy(sub.Buf.B, r.Buf.B[off:])
		}
		sub.Done = func(_ *Request, err error) {
			if err != nil {
				failed = err
			} else if r.Op == OpRead {
				copy(r.Buf.B[off:], sub.Buf.B)
			}
			sub.Buf.Release()
			if left--; left == 0 {
				r.Done(r, failed)
			}
		}
		begin(sub)
	}
	part(0, half)
	part(half, r.Length-half)
}
