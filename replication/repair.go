package replication

import (
	"time"

	"github.com/holdfast-storage/holdfast"
)

// repairStage is how far the repair of one replica has come.
type repairStage uint8

const (
	repairMapping  repairStage = iota // finding out what it lacks
	repairCopying                     // copying that under range locks
	repairDraining                    // its answer is needed from now on; older writes finish
	repairMarking                     // flushed; it learns what those that are away lack
	repairReady                       // may become in sync with the next swap
)

// repair brings one replica back in sync: live writes go to it from the start,
// and a copier takes what it lacks piece by piece. What it lacks only shrinks,
// so the repair ends however much is written meanwhile.
type repair struct {
	t      *peer
	source *peer
	stage  repairStage
	isLive bool
	dead   bool // stopped; callbacks only let go of what they hold

	copies   extentSet // to be copied
	compares extentSet // to be compared, and copied where it differs
	active   int       // pieces under way
	barrier  uint64    // requests up to this one must be answered before the flush

	total, left, copied int64
	began               time.Duration
}

// live says whether live writes go to a peer that is not in sync.
func (t *peer) live() bool { return t.repair != nil && t.repair.isLive }

// pacer bounds the repair traffic of a volume.
type pacer struct {
	rate   int64 // bytes a second; 0: no bound
	tokens float64
	last   time.Duration
}

// refill adds what the time since the last call allows, at most a tenth of a
// second's worth or two chunks.
func (b *pacer) refill(now time.Duration) {
	if b.rate == 0 {
		return
	}
	limit := max(float64(b.rate)/10, 2*RepairChunk)
	b.tokens = min(limit, b.tokens+float64(b.rate)*(now-b.last).Seconds())
	b.last = now
}

// working says whether replicas are repaired: while the volume is served, and
// while a release waits for writes that minInSync holds back.
func (p *Primary) working() bool {
	return p.phase == serving || p.phase == releasing && len(p.inflight) > 0
}

// tickRepairs starts repairs and keeps them going.
func (p *Primary) tickRepairs(now time.Duration) {
	p.repairs.refill(now)
	if !p.working() || p.member.losing != 0 {
		return
	}
	for _, t := range p.peers {
		switch {
		case t.inSync() || !t.up || t.rep.Leaving:
		case t.repair == nil && now >= t.repairAt && !t.required && !p.heldOff(t, now):
			p.startRepair(t)
		case t.repair != nil && t.repair.stage == repairCopying:
			p.pump(t.repair)
		}
	}
}

// startRepair begins with the size, then live writes, then the maps: in this
// order nothing falls between.
func (p *Primary) startRepair(t *peer) {
	source := p.repairSource()
	if source == nil {
		return
	}
	r := &repair{t: t, source: source, began: p.now()}
	t.repair = r
	size := max(p.target(), p.rec.SizeBytes)
	p.ask(t, &Message{Type: MsgGrow, Length: size}, func(m *Message) {
		switch {
		case r.dead:
		case m == nil || m.Status != StatusOK:
			p.failRepair(r, "it could not grow")
		default:
			t.size = max(t.size, size)
			p.goLive(r)
		}
	})
}

// repairSource is the in-sync peer that knows most: in sync for longest, the
// local one among equals.
func (p *Primary) repairSource() *peer {
	var best *peer
	for _, t := range p.peers {
		if !t.inSync() || !t.up {
			continue
		}
		if best == nil || t.rep.Since < best.rep.Since || t.rep.Since == best.rep.Since && t.rep.Node == p.cfg.Self {
			best = t
		}
	}
	return best
}

// goLive sends live writes to the target from now on. Those under way that it
// does not get are part of what it lacks, as are its own tail and suspects and
// those of the source (invariant 7).
func (p *Primary) goLive(r *repair) {
	r.isLive = true
	var flying []holdfast.Extent
	for _, w := range p.inflight {
		flying = append(flying, w.ext) // begun before, whatever an earlier session got
	}
	known := union(flying, r.t.welcome.Tail)
	suspects := union(r.t.welcome.Suspects, r.source.welcome.Suspects)
	switch {
	case mutant(Mutate7NoOwnTail):
		known = flying
	case mutant(Mutate7NoSuspects):
		suspects = nil
	case mutant(Mutate7NoSourceSuspects):
		suspects = union(r.t.welcome.Suspects)
	case mutant(Mutate7NoFlying):
		known = r.t.welcome.Tail
	}
	if r.t.rep.Since == 0 {
		p.mapAllocated(r, known, suspects)
		return
	}
	p.list(r.source, &Message{Type: MsgChanged, Since: r.t.rep.Since}, func(changed extentSet, st Status) {
		switch {
		case r.dead:
		case st == StatusNoMap:
			p.mapAllocated(r, known, suspects)
		case st != StatusOK:
			p.failRepair(r, "the source's change maps could not be read")
		default:
			p.mapped(r, union(known, changed), suspects)
		}
	})
}

// mapAllocated is for a replica of which it is not known what it lacks: all that
// is allocated on either side is compared, or copied if the target is empty.
func (p *Primary) mapAllocated(r *repair, known, suspects extentSet) {
	whole := func() *Message { return &Message{Type: MsgAllocated, Length: p.rec.SizeBytes} }
	p.list(r.source, whole(), func(ours extentSet, st Status) {
		if r.dead || st != StatusOK {
			p.failRepair(r, "the source's allocation could not be read")
			return
		}
		p.list(r.t, whole(), func(theirs extentSet, st Status) {
			switch {
			case r.dead || st != StatusOK:
				p.failRepair(r, "its allocation could not be read")
			case len(theirs) == 0:
				p.mapped(r, union(known, ours), suspects)
			default:
				p.mapped(r, known, union(suspects, ours, theirs))
			}
		})
	})
}

// mapped begins to copy.
func (p *Primary) mapped(r *repair, copies, compares extentSet) {
	r.copies = clip(copies, p.rec.SizeBytes)
	r.compares = compares.widen(HashBlock, p.rec.SizeBytes).minus(r.copies).widen(HashBlock, p.rec.SizeBytes)
	r.total = r.copies.bytes() + r.compares.bytes()
	r.left = r.total
	r.stage = repairCopying
	p.changed("repairing replica %s on node %s: %d bytes to copy, %d to compare", r.t.rep.ID, r.t.rep.Node, r.copies.bytes(), r.compares.bytes())
	p.plan() // the record says Rebuilding
	p.pump(r)
}

// pump takes as many pieces as depth and rate allow; when none is left, the
// target's answer is required from then on.
func (p *Primary) pump(r *repair) {
	for !r.dead && r.stage == repairCopying && r.active < p.cfg.RepairDepth && (p.repairs.rate == 0 || p.repairs.tokens > 0) {
		piece, ok := r.copies.take(RepairChunk)
		compare := !ok
		if compare {
			if piece, ok = r.compares.take(RepairChunk); !ok {
				break
			}
		}
		p.repairs.tokens -= float64(piece.Length)
		r.active++
		c := &chunk{r: r, ext: piece, compare: compare}
		c.hold = hold{ext: piece, exclusive: true, repair: true, granted: func() { p.runChunk(c) }}
		if p.locks.acquire(&c.hold) {
			p.runChunk(c)
		}
	}
	if !r.dead && r.stage == repairCopying && r.active == 0 && len(r.copies) == 0 && len(r.compares) == 0 {
		p.requireTarget(r)
	}
}

// chunk is one piece being compared or copied.
type chunk struct {
	r       *repair
	ext     holdfast.Extent
	compare bool
	hold    hold
	ours    []Hash
	theirs  []Hash
	todo    extentSet
}

// runChunk works on a piece whose range is locked.
func (p *Primary) runChunk(c *chunk) {
	switch {
	case c.r.dead || p.phase == ended:
		p.endChunk(c, true)
	case c.compare:
		p.compareChunk(c)
	default:
		c.todo = extentSet{c.ext}
		p.copyChunk(c)
	}
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
	p.ask(c.r.source, &Message{Type: MsgHash, Offset: c.ext.Offset, Length: c.ext.Length}, got(&c.ours))
	p.ask(c.r.t, &Message{Type: MsgHash, Offset: c.ext.Offset, Length: c.ext.Length}, got(&c.theirs))
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
	p.ask(c.r.source, &Message{Type: MsgRead, Offset: piece.Offset, Length: piece.Length}, func(m *Message) {
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
	w := &Message{Type: MsgWrite, Offset: piece.Offset, Length: piece.Length, Buf: m.Buf.Retain()}
	if allZero(m.Buf.B) {
		w.Buf.Release()
		w = &Message{Type: MsgTrim, Offset: piece.Offset, Length: piece.Length}
	}
	p.ask(c.r.t, w, func(m *Message) {
		switch {
		case m == nil:
			p.endChunk(c, false)
		case m.Status == StatusOK:
			c.r.copied += piece.Length
			p.counters.RepairBytes += uint64(piece.Length)
			p.copyChunk(c)
		case m.Status == StatusNoSpace:
			p.endChunk(c, false)
			p.lose(c.r.t, "its pool is full")
		default:
			p.endChunk(c, false)
			p.lose(c.r.t, "its disk has failed")
		}
	})
}

// endChunk gives the range free. A piece that failed fails the repair, which
// begins again later: what it has copied it need not copy twice only if the
// epoch's maps say so.
func (p *Primary) endChunk(c *chunk, ok bool) {
	r := c.r
	r.active--
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

// requireTarget makes every write wait for the target from now on, also those
// under way that were sent to it, then waits until it has answered all older
// ones: only then a flush covers them.
func (p *Primary) requireTarget(r *repair) {
	r.stage = repairDraining
	r.t.required = true
	r.barrier = r.t.nextID
	for _, w := range p.inflight {
		if w.owed&r.t.bit != 0 && !w.done {
			w.waiting |= r.t.bit
		}
	}
	p.repairProgress(r.t)
}

// repairProgress is called when the target has answered a write.
func (p *Primary) repairProgress(t *peer) {
	r := t.repair
	if r == nil || r.stage != repairDraining {
		return
	}
	for id, k := range t.pending {
		if k.w != nil && id <= r.barrier {
			return
		}
	}
	r.stage = repairMarking
	if mutant(Mutate4PromoteUnflushed) {
		p.teachTarget(r)
		return
	}
	p.ask(t, &Message{Type: MsgFlush}, func(m *Message) {
		switch {
		case r.dead:
		case m == nil || m.Status != StatusOK:
			p.failRepair(r, "it could not be flushed")
		default:
			p.teachTarget(r)
		}
	})
}

// teachTarget marks on the target what those that are still away lack, so that
// it can be their source (field lesson 20), then asks for its promotion.
func (p *Primary) teachTarget(r *repair) {
	oldest, away := holdfast.Epoch(0), false
	for _, t := range p.peers {
		if t != r.t && !t.inSync() && t.rep.Since != 0 && (!away || t.rep.Since < oldest) {
			oldest, away = t.rep.Since, true
		}
	}
	ready := func(ok bool) {
		switch {
		case r.dead:
		case !ok:
			p.failRepair(r, "it could not learn what others lack")
		default:
			r.stage = repairReady
			p.plan()
		}
	}
	if !away || mutant(Mutate7NoTeaching) {
		ready(true)
		return
	}
	p.list(r.source, &Message{Type: MsgChanged, Since: oldest}, func(changed extentSet, st Status) {
		switch {
		case r.dead:
		case st == StatusNoMap:
			ready(true) // then the others are compared as a whole anyway, from whatever source
		case st != StatusOK:
			ready(false)
		default:
			p.markAll([]*peer{r.t}, union(changed, clip(r.source.welcome.Suspects, p.rec.SizeBytes)), ready)
		}
	})
}

// failRepair ends a repair that cannot go on now; it begins again later.
func (p *Primary) failRepair(r *repair, why string) {
	if r.dead {
		return
	}
	t := r.t
	t.refusal = why
	p.stopRepair(t)
	t.repairAt = p.now() + p.cfg.RepairRetry
}

// stopRepair forgets a repair. Its target stays required while a swap that
// makes it in sync may still take effect.
func (p *Primary) stopRepair(t *peer) {
	if r := t.repair; r != nil {
		t.repair = nil
		t.lastTotal, t.lastCopied = r.total, r.copied
		r.dead = true
		t.repairAt = p.now() + p.cfg.RepairRetry
		if !t.inSync() && (!p.member.open() || mutant(Mutate2ForgetUnknown)) && p.phase != ended {
			p.unrequire(t)
		}
	}
	p.stopRepairsFrom(t)
}

// stopRepairsFrom ends the repairs that copy from a peer that is gone, or is not
// in sync any more: what is acknowledged without it is missing there.
func (p *Primary) stopRepairsFrom(source *peer) {
	for _, o := range p.peers {
		if o.repair != nil && o.repair.source == source {
			p.failRepair(o.repair, "its source was lost")
		}
	}
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
