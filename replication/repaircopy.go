package replication

import (
	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/buf"
)

// maxPieces bounds the pieces of a repair under way, however small they are.
const maxPieces = 32

// probeCost is what a probe counts for in the limits, in bytes.
const probeCost = holdfast.BlockSize

// work is what is done with a piece.
type work uint8

const (
	copying work = iota
	probing
	comparing
)

// chunk is one piece being copied, probed or compared.
type chunk struct {
	r      *repair
	ext    holdfast.Extent
	work   work
	hold   hold
	ours   []Hash
	theirs []Hash
	todo   extentSet
	writes int    // under way
	status Status // of one that failed
}

func (c *chunk) cost() int64 {
	if c.work == probing {
		return probeCost
	}
	return c.ext.Length
}

// pump takes as many pieces as depth and rates allow; when none is left, the
// target's answer is required from then on.
func (p *Primary) pump(r *repair) {
	if r.dead || r.stage != repairCopying || p.snaps.hold != nil || !r.fits() {
		return
	}
	if r.pending == nil && r.todo.first(0) == nil {
		if len(r.chunks) == 0 && !p.stageDone(r) {
			r.waits = ""
			p.requireTarget(r)
		}
		return
	}
	if r.waits = p.mustWait(r); r.waits != "" {
		return
	}
	for !r.dead && r.stage == repairCopying && p.snaps.hold == nil && len(r.chunks) < maxPieces && r.flying < int64(p.cfg.RepairDepth)*p.cfg.RepairChunk && p.nextChunk(r) {
	}
}

// nextChunk starts one piece; false if there is none, or it must wait.
func (p *Primary) nextChunk(r *repair) bool {
	if p.repairs.rate != 0 && p.repairs.tokens <= 0 {
		return false // until the next tick
	}
	if r.pending == nil {
		r.pending = p.cut(r)
	}
	c := r.pending
	if c == nil || !p.hasRoom(r, c.cost()) || p.ports.Repairs != nil && !p.ports.Repairs.Take(c.cost(), func() { p.pump(r) }) {
		return false
	}
	r.pending = nil
	r.useRoom(c.cost())
	p.repairs.tokens -= float64(c.cost())
	r.chunks = append(r.chunks, c)
	r.flying += c.cost()
	c.hold = hold{ext: c.ext, exclusive: true, repair: true, granted: func() { p.runChunk(c) }}
	if p.locks.acquire(&c.hold) {
		p.runChunk(c)
	}
	return true
}

// cut takes the next piece; nil if none is left.
func (p *Primary) cut(r *repair) *chunk {
	limit := p.cfg.RepairChunk
	span := max(limit/HashBlock*HashBlock, HashBlock)
	s := r.todo.first(span)
	if s == nil {
		return nil
	}
	c := &chunk{r: r}
	switch s {
	case &r.todo.probes:
		c.work, limit = probing, limit*16
	case &r.todo.compares:
		c.work, limit = comparing, span
	}
	c.ext, _ = s.take(limit)
	return c
}

// runChunk works on a piece whose range is locked.
func (p *Primary) runChunk(c *chunk) {
	switch {
	case c.r.dead || p.phase == ended:
		p.endChunk(c, true)
	case c.work == comparing:
		p.compareChunk(c)
	case c.work == probing:
		p.probeChunk(c)
	default:
		c.todo = extentSet{c.ext}
		p.copyChunk(c)
	}
}

// probeChunk finds the source's holes in a piece, makes holes there on the
// target where it has data, and leaves the rest to be copied: a hole costs no
// reading, no sending and no space.
func (p *Primary) probeChunk(c *chunk) {
	piece := extentSet{c.ext}
	allocated := func(t *peer, then func(extentSet)) {
		m := &Message{Type: MsgAllocated, Offset: c.ext.Offset, Length: c.ext.Length}
		if t == c.r.source {
			m = c.r.fromSource(m)
		}
		p.list(t, m, func(x extentSet, st Status) {
			if st != StatusOK || c.r.dead {
				p.endChunk(c, c.r.dead)
				return
			}
			then(clip(x, p.rec.SizeBytes).both(piece))
		})
	}
	allocated(c.r.source, func(ours extentSet) {
		holes := piece.minus(ours)
		done := func() {
			c.r.todo.copies = union(c.r.todo.copies, ours)
			c.r.left += ours.bytes() // endChunk takes off the whole piece
			p.endChunk(c, true)
		}
		if len(holes) == 0 {
			done()
			return
		}
		allocated(c.r.t, func(theirs extentSet) { p.trimHoles(c, holes.both(theirs), done) })
	})
}

// trimHoles makes holes on the target, one after the other.
func (p *Primary) trimHoles(c *chunk, holes extentSet, done func()) {
	if len(holes) == 0 {
		done()
		return
	}
	p.ask(c.r.t, p.copied(c.r.t, &Message{Type: MsgTrim, Offset: holes[0].Offset, Length: holes[0].Length}), func(m *Message) {
		switch {
		case m == nil || c.r.dead:
			p.endChunk(c, c.r.dead)
		case m.Status != StatusOK:
			p.targetFailed(c, m.Status)
		default:
			p.trimHoles(c, holes[1:], done)
		}
	})
}

// copied marks a message as the copier's, if the peer knows what that is.
func (p *Primary) copied(t *peer, m *Message) *Message {
	m.Copied = t.welcome != nil && t.welcome.Progress != nil
	return m
}

// compareChunk asks both sides for hashes and copies the blocks that differ.
func (p *Primary) compareChunk(c *chunk) {
	left, good := 2, true
	got := func(into *[]Hash) func(*Message) {
		return func(m *Message) {
			if m == nil || m.Status != StatusOK {
				good = false
			} else {
				*into = m.Hashes
			}
			if left--; left > 0 {
				return
			}
			if !good || len(c.ours) != len(c.theirs) {
				p.endChunk(c, false)
				return
			}
			c.differing()
			p.copyChunk(c)
		}
	}
	hash := func(t *peer, into *[]Hash) {
		m := p.copied(t, &Message{Type: MsgHash, Offset: c.ext.Offset, Length: c.ext.Length})
		if t == c.r.source {
			m = c.r.fromSource(m)
		}
		p.ask(t, m, got(into))
	}
	hash(c.r.source, &c.ours)
	hash(c.r.t, &c.theirs)
}

// differing puts the blocks whose hashes differ on the list.
func (c *chunk) differing() {
	for i := range c.ours {
		if c.ours[i] == c.theirs[i] {
			continue
		}
		off := c.ext.Offset + int64(i)*HashBlock
		n := min(HashBlock, c.ext.End()-off)
		c.todo = union(c.todo, []holdfast.Extent{{Offset: off, Length: n}})
	}
}

// copyChunk copies what is on the chunk's list, one range at a time.
func (p *Primary) copyChunk(c *chunk) {
	piece, more := c.todo.take(RepairChunk)
	if !more || c.r.dead {
		p.endChunk(c, true)
		return
	}
	p.ask(c.r.source, c.r.fromSource(p.copied(c.r.source, &Message{Type: MsgRead, Offset: piece.Offset, Length: piece.Length})), func(m *Message) {
		switch {
		case m == nil || m.Status != StatusOK || m.Buf == nil:
			if m != nil && m.Status == StatusFailed {
				p.diskFailed(c.r.source)
			}
			p.endChunk(c, false)
		case c.r.dead:
			p.endChunk(c, true)
		default:
			p.writeChunk(c, piece, m)
		}
	})
}

// writeChunk puts what the source has on the target: zeros as a hole, so that
// what was trimmed while it was away takes no space there either.
func (p *Primary) writeChunk(c *chunk, piece holdfast.Extent, m *Message) {
	runs := runsOf(m.Buf.B)
	c.writes = len(runs)
	at := 0
	for _, x := range runs {
		w := &Message{Type: MsgTrim, Offset: piece.Offset + int64(at), Length: int64(x.n)}
		if !x.zero {
			w.Type, w.Buf = MsgWrite, part(m.Buf, at, x.n)
		}
		at += x.n
		p.ask(c.r.t, p.copied(c.r.t, w), func(m *Message) { p.wroteChunk(c, w, m) })
	}
}

// wroteChunk is the target's answer to one write of a chunk. All are waited for:
// the range must not be free while one may still be applied.
func (p *Primary) wroteChunk(c *chunk, w *Message, m *Message) {
	c.writes--
	switch {
	case m == nil:
		c.status = StatusFenced // the connection is gone, which has ended the repair
	case m.Status != StatusOK:
		c.status = m.Status
	case w.Type == MsgWrite:
		c.r.copied += w.Length
		p.counters.RepairBytes += uint64(w.Length)
	}
	switch {
	case c.writes > 0:
	case c.status != StatusOK:
		p.targetFailed(c, c.status)
	default:
		p.copyChunk(c)
	}
}

// targetFailed ends a chunk that the target could not take.
func (p *Primary) targetFailed(c *chunk, status Status) {
	p.endChunk(c, false)
	switch status {
	case StatusNoSpace:
		p.lose(c.r.t, "its pool is full")
	case StatusFenced:
	default:
		p.lose(c.r.t, "its disk has failed")
	}
}

// endChunk gives the range free. A piece that failed fails the repair.
func (p *Primary) endChunk(c *chunk, ok bool) {
	r := c.r
	for i, x := range r.chunks {
		if x == c {
			r.chunks = append(r.chunks[:i], r.chunks[i+1:]...)
			break
		}
	}
	r.flying -= c.cost()
	r.left -= c.ext.Length
	p.locks.release(&c.hold)
	switch {
	case r.dead:
	case !ok:
		p.failRepair(r, "a piece could not be copied")
	default:
		p.pump(r)
	}
}

// run is a part of a buffer in whole blocks.
type run struct {
	n    int
	zero bool
}

// runsOf divides a buffer into blocks of zeros and others.
func runsOf(b []byte) []run {
	var out []run
	for at := 0; at < len(b); at += holdfast.BlockSize {
		n := min(holdfast.BlockSize, len(b)-at)
		zero := allZero(b[at : at+n])
		if k := len(out) - 1; k >= 0 && out[k].zero == zero {
			out[k].n += n
		} else {
			out = append(out, run{n, zero})
		}
	}
	return out
}

// part is n bytes of a buffer, with a reference of its own.
func part(b *buf.Buf, at, n int) *buf.Buf {
	if n == len(b.B) {
		return b.Retain()
	}
	c := buf.Get(n)
	copy(c.B, b.B[at:at+n])
	return c
}

// allZero says whether a buffer holds zeros only.
func allZero(b []byte) bool {
	for len(b) >= 8 {
		if b[0]|b[1]|b[2]|b[3]|b[4]|b[5]|b[6]|b[7] != 0 {
			return false
		}
		b = b[8:]
	}
	for _, x := range b {
		if x != 0 {
			return false
		}
	}
	return true
}
