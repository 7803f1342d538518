package replication

import (
	"fmt"
	"slices"
	"time"

	"github.com/holdfast-storage/holdfast"
)

// How a snapshot is taken: new writes are held; those under way end; every in-sync
// replica takes it (its content can change no more); writes go on; the record is
// committed. What any replica has taken and no record names as ready is a leftover
// of an attempt that came to nothing, and is dropped. So the point in time is the
// same everywhere, and the metadata store is no part of the stall.
//
// Between the cut and the commit nobody may become in sync who lacks the snapshot,
// so no repair goes live then, and those that were live go on with what they lack
// of the snapshot's content (see repairstage.go).

// snapshots is what a primary does about its volume's snapshots.
type snapshots struct {
	hold  *writeHold // nil: writes go
	cuts  uint64     // attempts under this grant
	taken []holdfast.Snapshot
	// taken were cut on every in-sync replica; the record may not say so yet.
	retryAt  time.Duration
	failures int // attempts in a row that came to nothing
	why      string
	restore  *restoring // under way
	restored string     // the one that was done, to be taken out of the record
}

// writeHold keeps writes from beginning.
type writeHold struct {
	token string // of a group's command; "" for one snapshot
	since time.Duration
	until time.Duration // given up then
	quiet bool          // nothing is under way
	told  func(error)   // hears when it is quiet
	cut   *cut
	// next is the group's snapshot that is to be cut once the record shows it.
	next     holdfast.SnapshotID
	nextDone func(error)
	first    *holdfast.Snapshot // that was cut under this hold
}

// cut is one attempt to take a snapshot.
type cut struct {
	snap holdfast.Snapshot
	left uint32 // replicas that have not answered
	done func(error)
}

// Holding of writes for a group's snapshot.
const (
	// MaxHold bounds how long a group may hold a volume's writes.
	MaxHold = 10 * time.Second
	// snapshotBackOff is the longest time between attempts.
	snapshotBackOff = 30 * time.Second
)

// tickSnapshots keeps everything about snapshots going.
func (p *Primary) tickSnapshots(now time.Duration) {
	if h := p.snaps.hold; h != nil && now >= h.until {
		p.attemptFailed("the writes under way, or a replica, took too long")
		p.endHold(holdfast.E("hold volume "+p.rec.Name, holdfast.Unavailable, "the time for holding its writes is over"))
	}
	p.stepSnapshots()
}

// stepSnapshots does what can be done now.
func (p *Primary) stepSnapshots() {
	if p.working() {
		p.dropLeftovers() // a repair may wait for it
	}
	if p.phase != serving {
		return
	}
	h := p.snaps.hold
	if h == nil {
		if s := p.nextWanted(); s != nil {
			p.beginHold(&writeHold{until: p.now() + p.cfg.SnapshotHold})
		}
		p.stepRestore()
		return
	}
	p.stepHold(h)
}

// stepHold goes on with a hold as soon as nothing is under way.
func (p *Primary) stepHold(h *writeHold) {
	if !h.quiet && !p.writesEnded() && !mutant(MutateSnapCutInFlight) {
		return
	}
	if !h.quiet {
		h.quiet = true
		if h.told != nil {
			h.told(nil)
			h.told = nil
		}
	}
	if h.cut != nil || !p.cuttable() {
		return
	}
	switch {
	case h.token == "":
		s := p.nextWanted()
		if s == nil {
			p.endHold(nil) // it was deleted meanwhile
			return
		}
		p.beginCut(h, *s, func(error) {})
	case h.next != "":
		if s := p.rec.Snapshot(h.next); s != nil && s.State == holdfast.SnapshotWanted && !p.leftoverOf(s.ID) {
			done := h.nextDone
			h.next, h.nextDone = "", nil
			p.beginCut(h, *s, done)
		}
	}
}

// nextWanted is the snapshot that is to be taken now; nil if there is none.
func (p *Primary) nextWanted() *holdfast.Snapshot {
	h := p.snaps.hold
	if p.rec.Restore != nil || h == nil && (p.now() < p.snaps.retryAt || !p.cuttable()) {
		return nil
	}
	for i := range p.rec.Snapshots {
		s := &p.rec.Snapshots[i]
		if s.State == holdfast.SnapshotWanted && s.Group == "" && p.takenSnapshot(s.ID) == nil {
			if p.leftoverOf(s.ID) {
				return nil // dropped first; the order stays
			}
			return s
		}
	}
	return nil
}

// cuttable says whether the membership is settled and every in-sync replica
// there: a cut that does not reach one of them would have to wait for its drop.
func (p *Primary) cuttable() bool {
	if p.phase != serving || p.member.losing != 0 || p.member.open() || !p.mayAck() {
		return false
	}
	for _, t := range p.peers {
		if t.inSync() && (!t.up || t.epochPending || t.cutting) {
			return false
		}
	}
	return !slices.ContainsFunc(p.inflight, func(w *write) bool { return w.full != 0 }) // a full pool keeps writes for long
}

// writesEnded says whether every write that has begun is applied on all in-sync
// replicas, and none waits for its range any more. Those that minInSync holds
// back count as ended: they are applied.
func (p *Primary) writesEnded() bool {
	open := func(h *hold) bool { return h.write != nil && (h.write.seq == 0 || h.write.waiting != 0) }
	return !slices.ContainsFunc(p.locks.held, open) && !slices.ContainsFunc(p.locks.waiting, open)
}

// beginHold stops new writes.
func (p *Primary) beginHold(h *writeHold) {
	h.since = p.now()
	p.snaps.hold = h
	p.stepHold(h)
}

// endHold lets writes go; whoever waits for it hears err.
func (p *Primary) endHold(err error) {
	h := p.snaps.hold
	if h == nil {
		return
	}
	p.snaps.hold = nil
	if h.cut != nil {
		h.cut.done(err)
	}
	for _, told := range []func(error){h.told, h.nextDone} {
		if told != nil {
			told(err)
		}
	}
	if p.phase == ended {
		return
	}
	p.resumeRepairs(h.first)
	p.admit()
	p.plan()
}

// beginCut asks every in-sync replica to take the snapshot.
func (p *Primary) beginCut(h *writeHold, s holdfast.Snapshot, done func(error)) {
	p.pauseRepairs() // not before: writes that had begun may only now have been sent
	p.snaps.cuts++
	s.Cut = fmt.Sprintf("%d-%d", p.grant, p.snaps.cuts)
	s.Epoch, s.SizeBytes, s.State = p.epoch, p.rec.SizeBytes, holdfast.SnapshotReady
	c := &cut{snap: s, done: done}
	h.cut = c
	for _, t := range p.peers {
		if t.inSync() {
			c.left |= t.bit
		}
	}
	for _, t := range p.peers {
		if c.left&t.bit != 0 {
			p.sendCut(t, c)
		}
	}
}

// sendCut asks one replica. It is asked again when its connection broke.
func (p *Primary) sendCut(t *peer, c *cut) {
	t.cutting = t.up
	p.ask(t, &Message{Type: MsgSnapshot, Snapshot: &SnapshotArg{ID: c.snap.ID, Cut: c.snap.Cut}}, func(m *Message) {
		t.cutting = false
		if m != nil && m.Status == StatusOK {
			t.addSnapshot(SnapshotRef{ID: c.snap.ID, Cut: c.snap.Cut})
		}
		h := p.snaps.hold
		if h == nil || h.cut != c {
			return // given up: what was taken is a leftover
		}
		switch {
		case m == nil:
		case m.Status == StatusOK:
			p.clearCut(t.bit)
		case m.Status == StatusFailed:
			p.diskFailed(t)
		default:
			why := map[Status]string{StatusNoSpace: "has no space for it", StatusBusy: "cannot take it now"}[m.Status]
			if why == "" {
				why = "cannot take snapshots"
			}
			p.attemptFailed(fmt.Sprintf("the pool of node %s %s", t.rep.Node, why))
			err := holdfast.E("take a snapshot of volume "+p.rec.Name, holdfast.NoSpace, p.snaps.why)
			if h.token == "" {
				p.endHold(err)
				return
			}
			h.cut = nil
			c.done(err)
		}
	})
}

// attemptFailed notes that an attempt came to nothing: the next one waits longer.
func (p *Primary) attemptFailed(why string) {
	s := &p.snaps
	s.failures++
	s.why = why
	s.retryAt = p.now() + min(p.cfg.RepairRetry<<min(s.failures-1, 10), snapshotBackOff)
	p.changed("no snapshot was taken: %s", why)
}

// resendCut asks a replica again that came back.
func (p *Primary) resendCut(t *peer) {
	if h := p.snaps.hold; h != nil && h.cut != nil && h.cut.left&t.bit != 0 {
		p.sendCut(t, h.cut)
	}
}

// clearCut takes replicas out of what the cut waits for: they have answered, or
// were dropped.
func (p *Primary) clearCut(bits uint32) {
	h := p.snaps.hold
	if h == nil || h.cut == nil {
		return
	}
	c := h.cut
	if c.left &^= bits; c.left != 0 && !mutant(MutateSnapCommitEarly) {
		return
	}
	h.cut = nil
	if h.first == nil {
		h.first = &c.snap
	}
	p.snaps.taken = append(p.snaps.taken, c.snap)
	p.adoptSnapshots() // it may have been deleted meanwhile: then it is a leftover (seed 70039475)
	p.snaps.failures, p.snaps.why = 0, ""
	p.changed("snapshot %s was taken; writes were held for %.1f ms", c.snap.ID, (p.now()-h.since).Seconds()*1000)
	c.done(nil)
	if h.token == "" {
		p.endHold(nil)
		return
	}
	p.plan()
}

// takenSnapshot finds one that was cut and is to be committed.
func (p *Primary) takenSnapshot(id holdfast.SnapshotID) *holdfast.Snapshot {
	for i := range p.snaps.taken {
		if p.snaps.taken[i].ID == id {
			return &p.snaps.taken[i]
		}
	}
	return nil
}

// desiredSnapshots is the part of desired that is about snapshots.
func (p *Primary) desiredSnapshots(next *holdfast.Record) (wanted bool) {
	for _, t := range p.snaps.taken {
		if s := next.Snapshot(t.ID); s != nil && s.State == holdfast.SnapshotWanted {
			ready := *s
			ready.Epoch, ready.Cut, ready.SizeBytes, ready.State = t.Epoch, t.Cut, t.SizeBytes, t.State
			next.PutSnapshot(ready)
			wanted = true
		}
	}
	if p.phase != serving && p.phase != releasing {
		return wanted
	}
	for _, s := range p.rec.Snapshots {
		if s.State == holdfast.SnapshotDeleting && !p.leftoverOf(s.ID) && next.Snapshot(s.ID) != nil {
			next.RemoveSnapshot(s.ID)
			wanted = true
		}
	}
	if next.Restore != nil && next.Restore.ID == p.snaps.restored {
		next.SetRestore(nil)
		wanted = true
	}
	return wanted
}

// adoptSnapshots is the part of adopt that is about snapshots.
func (p *Primary) adoptSnapshots() {
	p.snaps.taken = slices.DeleteFunc(p.snaps.taken, func(t holdfast.Snapshot) bool {
		s := p.rec.Snapshot(t.ID)
		return s == nil || s.State != holdfast.SnapshotWanted
	})
}

// addSnapshot notes that a replica has one.
func (t *peer) addSnapshot(x SnapshotRef) {
	if !slices.Contains(t.snaps, x) {
		t.snaps = append(t.snaps, x)
	}
}

// lacks says whether a replica lacks a snapshot that was taken.
func (t *peer) lacks(s holdfast.Snapshot) bool {
	return !slices.Contains(t.snaps, SnapshotRef{ID: s.ID, Cut: s.Cut})
}

// missing is the oldest of a record's snapshots that a replica has to have to be
// in sync and lacks; nil if it has all.
// What the source does not have either cannot be asked for.
func (t *peer) missing(rec *holdfast.Record, source *peer) *holdfast.Snapshot {
	for i := range rec.Snapshots {
		if s := &rec.Snapshots[i]; s.State == holdfast.SnapshotReady && t.lacks(*s) && (source == nil || !source.lacks(*s)) {
			return s
		}
	}
	return nil
}

// mayJoin says whether a repaired replica has every snapshot that it has to have.
func (p *Primary) mayJoin(t *peer) bool {
	return p.snaps.hold == nil && len(p.snaps.taken) == 0 && t.missing(&p.rec, t.repair.source) == nil || mutant(MutateSnapPromote)
}

// noteLostSnapshots notes which in-sync replicas lack one of the record's
// snapshots that another one has: they must be repaired.
func (p *Primary) noteLostSnapshots() {
	for _, t := range p.peers {
		for _, o := range p.peers {
			if !t.inSync() || !t.up || !o.inSync() || !o.up {
				continue
			}
			if s := t.missing(&p.rec, o); s != nil {
				t.refusal, t.unfit = fmt.Sprintf("it has lost snapshot %s", s.ID), true
			}
		}
	}
}

// leftoverOf says whether an in-sync replica has a snapshot of this id that
// cannot be the one which is to be taken.
func (p *Primary) leftoverOf(id holdfast.SnapshotID) bool {
	for _, t := range p.peers {
		if t.inSync() && t.hasCut(id) {
			return true
		}
	}
	return false
}
