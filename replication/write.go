package replication

import (
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/buf"
)

// write is a write or trim on its way to the replicas.
type write struct {
	req  *Request
	hold hold
	trim bool
	fua  bool
	snap holdfast.SnapshotID // its data is this snapshot's
	ext  holdfast.Extent
	buf  *buf.Buf
	seq  uint64
	at   time.Duration

	waiting uint32 // peers whose answer is needed for the acknowledgement
	full    uint32 // peers that had no space and are asked again
	owed    uint32 // peers that have it on their way, in their present connection
	retryAt time.Duration
	done    bool
	// failed: the request was told that it took too long; the write goes on.
	failed bool
	// unlocked: the range was given free, after done.
	unlocked bool
}

// beginWrite locks the range and sends the write to all replicas.
func (p *Primary) beginWrite(r *Request) {
	if r.Offset%holdfast.BlockSize != 0 || r.Length%holdfast.BlockSize != 0 {
		p.beginUnaligned(r)
		return
	}
	w := &write{req: r, trim: r.Op == OpTrim, fua: r.FUA, snap: r.snap, ext: holdfast.Extent{Offset: r.Offset, Length: r.Length}}
	if r.Op == OpWrite {
		w.buf = r.Buf.Retain()
	}
	p.lockWrite(w)
}

// lockWrite starts w once its range is free (invariant 5).
func (p *Primary) lockWrite(w *write) {
	w.hold = hold{ext: w.ext, exclusive: true, write: w}
	if p.locks.acquire(&w.hold) {
		p.startWrite(w)
		return
	}
	w.hold.granted = func() { p.startWrite(w) }
	w.hold.at, w.hold.fail = w.req.at, func(err error) { p.finishWrite(w, err) }
}

// startWrite gives the write its number and sends it. A write that got its range
// only after the volume ended or while a replica is being dropped waits for
// nothing special: it is sent to who is there, and acknowledged by the rules.
func (p *Primary) startWrite(w *write) {
	if p.phase == ended {
		p.finishWrite(w, p.endErr())
		return
	}
	p.seq++
	w.seq, w.at = p.seq, p.now()
	p.inflight = append(p.inflight, w)
	for _, t := range p.peers {
		if t.required {
			w.waiting |= t.bit
		}
	}
	for _, t := range p.peers {
		if t.up && (t.required || t.live()) {
			p.sendWrite(t, w)
		}
	}
}

// sendWrite sends one write to one peer, unless it is on its way there already:
// a second one could be applied after a later write has (invariant 5).
func (p *Primary) sendWrite(t *peer, w *write) {
	if w.owed&t.bit != 0 && !mutant(Mutate5SendTwice) {
		return
	}
	m := &Message{Type: MsgWrite, Seq: w.seq, Offset: w.ext.Offset, Length: w.ext.Length, FUA: w.fua}
	switch {
	case w.trim:
		m.Type = MsgTrim
	case w.snap != "":
		m.Type, m.Snapshot = MsgRestore, &SnapshotArg{ID: w.snap}
	default:
		m.Buf = w.buf.Retain()
	}
	w.full &^= t.bit
	w.owed |= t.bit
	p.send(t, m, call{w: w})
}

// wrote is a peer's answer to a write.
func (p *Primary) wrote(t *peer, w *write, m *Message) {
	w.owed &^= t.bit
	switch m.Status {
	case StatusOK:
		t.noSpaceSince = 0
		if w.waiting&t.bit != 0 {
			w.waiting &^= t.bit
			p.settleWrite(w)
		}
		p.repairProgress(t)
	case StatusNoSpace:
		p.noSpace(t, w)
	case StatusFailed:
		p.diskFailed(t)
	default:
		p.lose(t, "it refused a write as invalid")
	}
	p.unlockWrite(w)
}

// noSpace keeps the write waiting for a full pool; others' volumes go on (field
// lesson 30).
func (p *Primary) noSpace(t *peer, w *write) {
	if !t.inSync() {
		p.lose(t, "its pool is full")
		return
	}
	w.full |= t.bit
	w.retryAt = p.now() + p.cfg.NoSpaceRetry
	if t.noSpaceSince == 0 {
		t.noSpaceSince = p.now()
		p.changed("the pool of replica %s on node %s is full: writes wait", t.rep.ID, t.rep.Node)
	}
}

// diskFailed is the end of a replica; if it is the last one, of the device.
func (p *Primary) diskFailed(t *peer) {
	p.lose(t, "its disk has failed")
	p.backOff(t)
	if t.required {
		p.disqualify(t)
	}
}

// mayAck says whether the in-sync set is large enough to acknowledge writes.
func (p *Primary) mayAck() bool {
	n := 0
	for i := range p.rec.Replicas {
		if p.rec.Replicas[i].State == holdfast.InSync {
			n++
		}
	}
	return n >= p.rec.Spec.MinInSync
}

// settleWrite acknowledges w when every needed replica has applied it
// (invariant 2).
func (p *Primary) settleWrite(w *write) {
	switch {
	case w.waiting != 0 || w.done:
		return
	case !p.mayAck():
		p.unlockWrite(w)
		return
	}
	p.finishWrite(w, nil)
	p.cutInflight()
	p.finishRelease()
}

// settleHeld acknowledges what minInSync has held back.
func (p *Primary) settleHeld() {
	for _, w := range append([]*write(nil), p.inflight...) {
		p.settleWrite(w)
	}
	p.flush.settle(p)
}

// unlockWrite gives the range of a write free that all needed replicas have
// applied, when nobody has it on the way any more. A replica under repair need
// not have applied it for the acknowledgement, but must before an overlapping one
// is sent (invariant 5). The acknowledgement itself is not waited for: one that
// minInSync holds back comes after a repair, which needs the range.
func (p *Primary) unlockWrite(w *write) {
	if (w.done || w.waiting == 0) && (w.owed == 0 || mutant(Mutate5EarlyUnlock)) && !w.unlocked {
		w.unlocked = true
		p.locks.release(&w.hold)
	}
}

// finishWrite answers the request.
func (p *Primary) finishWrite(w *write, err error) {
	w.done = true
	w.buf.Release()
	w.buf = nil
	if err != nil {
		w.owed = 0
	}
	if w.failed {
		p.limit.left--
	} else {
		if err == nil {
			p.countWrite(w)
		}
		w.req.Done(w.req, err)
	}
	p.unlockWrite(w)
}

func (p *Primary) countWrite(w *write) {
	c, took := &p.counters, p.awake()-w.req.at
	if w.snap != "" {
		return
	}
	if w.trim {
		c.Trims++
		c.TrimBytes += uint64(w.ext.Length)
		c.TrimTime.add(took)
		return
	}
	c.Writes++
	c.WriteBytes += uint64(w.ext.Length)
	c.WriteTime.add(took)
	p.tellGate(OpWrite, w.ext.Length, took)
}

// cutInflight forgets finished writes at the front, which moves committed on.
func (p *Primary) cutInflight() {
	i := 0
	for i < len(p.inflight) && p.inflight[i].done {
		p.inflight[i] = nil
		i++
	}
	p.inflight = p.inflight[i:]
	if len(p.inflight) == 0 {
		p.inflight = nil
	}
}

// committed is the number up to which all writes are applied on every in-sync
// replica. What a take-over copies has a number too, and is in the tails of those
// that have got it until all have: if it is broken off and its source does not come
// back, nothing else says where the others differ (invariant 6).
func (p *Primary) committed() uint64 {
	if p.phase < serving && !mutant(Mutate6CopiesUntold) {
		return 0
	}
	if len(p.inflight) > 0 {
		return p.inflight[0].seq - 1
	}
	return p.seq
}

// clearWaiting takes peers out of what writes and flushes wait for: only after
// the membership without them is committed and known to all others.
func (p *Primary) clearWaiting(bits uint32) {
	for _, w := range append([]*write(nil), p.inflight...) {
		w.waiting &^= bits
		w.full &^= bits
		p.settleWrite(w)
	}
	p.flush.clear(p, bits)
	p.clearCut(bits)
}

// tickWrites asks full pools again and drops replicas that live but do not get
// a write done.
func (p *Primary) tickWrites(now time.Duration) {
	for _, w := range p.inflight {
		if w.full == 0 || now < w.retryAt {
			continue
		}
		for _, t := range p.peers {
			if w.full&t.bit != 0 && t.up {
				p.sendWrite(t, w)
			}
		}
	}
	if len(p.inflight) == 0 || p.phase < serving {
		return
	}
	w := p.inflight[0]
	if w.done || now-max(w.at, p.woke) < p.cfg.IOTimeout {
		return
	}
	for _, t := range p.peers {
		if w.waiting&t.bit != 0 && w.full&t.bit == 0 && t.noSpaceSince == 0 && t.up && p.member.losing&t.bit == 0 && p.condemn(t) {
			p.lose(t, "it did not finish a write in time")
		}
	}
}

// failWrites ends everything in flight.
func (p *Primary) failWrites(err error) {
	if err == nil {
		err = holdfast.Unavailable
	}
	ws := p.inflight
	p.inflight = nil
	for _, w := range ws {
		if !w.done {
			p.finishWrite(w, err)
		}
	}
	waiting := p.locks.waiting
	p.locks.waiting = nil
	for _, h := range waiting {
		h.granted() // finds that the volume has ended
	}
}

// endErr is what requests get that the end overtook.
func (p *Primary) endErr() error {
	if p.err != nil {
		return p.err
	}
	return holdfast.E("I/O on volume "+p.rec.Name, holdfast.Unavailable, "the volume is detached")
}
