package replication

import (
	"slices"

	"github.com/holdfast-storage/holdfast"
)

// The repair of a replica that lacks snapshots goes in stages, oldest first: its
// live data becomes the content of the next snapshot that it lacks, which it then
// takes itself; so what the snapshots share is shared there too. Live writes are
// sent to it only in the last stage, when it lacks none.
//
// Each stage copies a superset of where its live data may differ. In the first
// that is what the source has marked since the replica was in sync, or since the
// newest snapshot that it has, with its own tail, its suspects and the source's
// (invariant 7): what changed after the snapshot that is built is compared, the
// rest copied. From then on its live data is exactly the last snapshot's content,
// and what the source's two snapshots differ in is enough.

// staged is how far a repair has come with snapshots.
type staged struct {
	snap   *holdfast.Snapshot // being built; nil in the last stage, or between two
	exact  *holdfast.Snapshot // the target's live data is this one's content
	taking bool               // the target was asked to take snap
	paused bool               // it was live when writes were held
}

// nextStage goes on with the next snapshot that the target lacks, or goes live.
func (p *Primary) nextStage(r *repair) {
	if mutant(MutateSnapLiveTooEarly) {
		r.isLive = true
	}
	if s := r.t.missing(&p.rec, r.source); s != nil && !mutant(MutateSnapPromote) {
		c := *s
		r.st.snap, r.stage = &c, repairMapping
		p.mapStage(r, c)
		return
	}
	if p.snaps.hold != nil || len(p.snaps.taken) > 0 || r.t.size < max(p.target(), p.rec.SizeBytes) {
		r.stage = repairCopying // looked at again with the next tick
		return
	}
	r.stage = repairMapping
	p.goLive(r)
}

// repairBase is an epoch such that the source's maps since then name all that a
// replica may lack, but for its own tail and suspects; 0 if it lacks everything.
func (p *Primary) repairBase(t *peer) holdfast.Epoch {
	base := t.rep.Since
	for _, s := range p.rec.Snapshots {
		if s.State == holdfast.SnapshotReady && !t.lacks(s) {
			base = max(base, s.Epoch)
		}
	}
	return base
}

// knows says whether the source's maps since an epoch are complete for the target's
// repair: it has been in sync since then, or the target has been away since before
// and the source was taught what it lacks. Nobody was taught for a target that never
// was in sync and has a snapshot of that epoch: a source that came in later may have
// been compared and found equal after a power loss that took its marks.
func (r *repair) knows(since holdfast.Epoch) bool {
	return r.source.rep.Since <= since || r.t.rep.Since != 0 && r.t.rep.Since <= since
}

// mapStage finds out what the target lacks of a snapshot's content.
func (p *Primary) mapStage(r *repair, s holdfast.Snapshot) {
	if r.st.exact != nil {
		p.mapNext(r, s.ID, s.SizeBytes, nil)
		return
	}
	base := p.repairBase(r.t)
	p.listDiff(r, s.ID, "", s.SizeBytes, func(later extentSet) {
		if base == 0 || !r.knows(base) {
			p.mapStageAllocated(r, s, later)
			return
		}
		p.list(r.source, &Message{Type: MsgChanged, Since: base}, func(changed extentSet, st Status) {
			switch {
			case r.dead:
			case st == StatusNoMap:
				p.mapStageAllocated(r, s, later)
			case st != StatusOK:
				p.failRepair(r, "the source's change maps could not be read")
			default:
				if base > s.Epoch {
					changed = union(changed, later)
				}
				changed = union(changed, r.t.welcome.Tail)
				suspects := union(r.t.welcome.Suspects, r.source.welcome.Suspects)
				p.mappedStage(r, s.SizeBytes, changed.minus(later), union(suspects, changed.both(later)))
			}
		})
	})
}

// mapStageAllocated is for a target of which it is not known what it lacks.
func (p *Primary) mapStageAllocated(r *repair, s holdfast.Snapshot, later extentSet) {
	theirs := &Message{Type: MsgSnapAllocated, Length: s.SizeBytes, Snapshot: &SnapshotArg{ID: s.ID}}
	p.list(r.source, theirs, func(ours extentSet, st Status) {
		if r.dead || st != StatusOK {
			p.failRepair(r, "the source's allocation could not be read")
			return
		}
		p.list(r.t, &Message{Type: MsgAllocated, Length: s.SizeBytes}, func(theirs extentSet, st Status) {
			switch {
			case r.dead || st != StatusOK:
				p.failRepair(r, "its allocation could not be read")
			case len(theirs) == 0:
				p.mappedStage(r, s.SizeBytes, ours, nil)
			default:
				p.mappedStage(r, s.SizeBytes, nil, union(ours, theirs, r.t.welcome.Tail))
			}
		})
	})
}

// mapNext finds out in what two snapshots of the source differ, or the last one
// and what is live (to is ""). flying are writes that the target does not get.
func (p *Primary) mapNext(r *repair, to holdfast.SnapshotID, size int64, flying extentSet) {
	from := *r.st.exact
	p.listDiff(r, from.ID, to, size, func(diff extentSet) {
		p.list(r.source, &Message{Type: MsgChanged, Since: from.Epoch}, func(changed extentSet, st Status) {
			switch {
			case r.dead:
			case st == StatusNoMap:
				p.mappedStage(r, size, union(diff, flying), nil)
			case st != StatusOK:
				p.failRepair(r, "the source's change maps could not be read")
			default:
				// Whatever differs was written after the older snapshot, and marked,
				// or is among what the source's power loss made suspect.
				suspects := diff.both(union(r.source.welcome.Suspects))
				if !r.knows(from.Epoch) {
					suspects = diff.minus(changed)
				}
				p.mappedStage(r, size, union(diff.both(changed), flying), suspects)
			}
		})
	})
}

// listDiff lists on the source what may differ between a snapshot and a newer one.
func (p *Primary) listDiff(r *repair, from, to holdfast.SnapshotID, size int64, done func(extentSet)) {
	m := &Message{Type: MsgDiff, Length: size, Snapshot: &SnapshotArg{ID: to, From: from}}
	p.list(r.source, m, func(diff extentSet, st Status) {
		switch {
		case r.dead:
		case st != StatusOK:
			p.failRepair(r, "what changed between two snapshots could not be read")
		default:
			done(diff)
		}
	})
}

// mappedStage begins to copy.
func (p *Primary) mappedStage(r *repair, size int64, copies, compares extentSet) {
	if r.dead {
		return
	}
	r.todo = backlog{copies: clip(copies, size)}
	r.todo.compares = compares.widen(HashBlock, size).minus(r.todo.copies).widen(HashBlock, size)
	n := r.todo.bytes()
	r.total, r.left = r.total+n, r.left+n
	r.stage = repairCopying
	r.save.done, r.save.next = r.left, p.now()+p.cfg.ProgressEvery
	p.plan() // the record says Rebuilding
	p.pump(r)
}

// stageDone goes on when a stage has copied everything. false: this was the last.
func (p *Primary) stageDone(r *repair) bool {
	switch {
	case r.st.taking:
	case r.st.snap != nil:
		p.takeStage(r)
	case !r.isLive:
		p.nextStage(r)
	case mutant(MutateSnapLiveTooEarly) && r.t.missing(&p.rec, r.source) != nil:
		p.nextStage(r)
	default:
		return false
	}
	return true
}

// takeStage has the target take the snapshot whose content it has now. Writes of
// when it was live may still be under way to it; they are part of that.
func (p *Primary) takeStage(r *repair) {
	t, s := r.t, *r.st.snap
	switch now := p.rec.Snapshot(s.ID); {
	case now != nil && now.State == holdfast.SnapshotReady && now.Cut == s.Cut:
	case p.takenSnapshot(s.ID) != nil && p.takenSnapshot(s.ID).Cut == s.Cut:
		return // not committed yet
	default:
		p.failRepair(r, "the snapshot that it is built from is gone")
		return
	}
	for _, k := range t.pending {
		if k.w != nil {
			return
		}
	}
	r.st.taking = true
	p.ask(t, &Message{Type: MsgSnapshot, Snapshot: &SnapshotArg{ID: s.ID, Cut: s.Cut}}, func(m *Message) {
		if m != nil && m.Status == StatusOK {
			t.addSnapshot(SnapshotRef{ID: s.ID, Cut: s.Cut})
		}
		switch {
		case r.dead:
		case m == nil:
			p.failRepair(r, "its connection broke")
		case m.Status == StatusOK:
			r.st.taking, r.st.snap, r.st.exact = false, nil, &s
			p.nextStage(r)
		case m.Status == StatusNoSpace:
			p.lose(t, "its pool is full")
		case m.Status == StatusFailed:
			p.lose(t, "its disk has failed")
		default:
			p.failRepair(r, "it could not take a snapshot")
		}
	})
}

// pauseRepairs makes the repairs that are live ready for a snapshot: from now on
// nothing is sent to their targets but what they lack of it.
func (p *Primary) pauseRepairs() {
	for _, t := range p.peers {
		r := t.repair
		if r == nil || !r.isLive {
			continue
		}
		switch r.stage {
		case repairMapping, repairMarking:
			p.failRepair(r, "a snapshot is taken")
			t.repairAt = p.now()
		default:
			r.isLive, r.st.paused, r.stage = mutant(MutateSnapStayLive), true, repairCopying
			if p.member.losing&t.bit == 0 {
				p.unrequire(t)
			}
		}
	}
}

// resumeRepairs goes on with them, before any write does: with what they lack of
// the snapshot that was taken or, if none was, as they were.
func (p *Primary) resumeRepairs(cut *holdfast.Snapshot) {
	for _, t := range p.peers {
		r := t.repair
		if r == nil || !r.st.paused {
			continue
		}
		r.st.paused = false
		if cut != nil {
			c := *cut // its content is what it would have got
			r.st.snap, r.st.exact = &c, nil
		} else {
			r.isLive = true
		}
		p.pump(r)
	}
}

// fits says whether the target is large enough for the present stage: the volume
// may have grown since the repair began.
func (r *repair) fits() bool { return r.st.snap == nil || r.t.size >= r.st.snap.SizeBytes }

// stopRepairsWith ends the repairs that need a snapshot which is dropped.
func (p *Primary) stopRepairsWith(id holdfast.SnapshotID) {
	for _, t := range p.peers {
		if r := t.repair; r != nil && (r.st.snap != nil && r.st.snap.ID == id || r.st.exact != nil && r.st.exact.ID == id && !r.isLive) {
			p.failRepair(r, "the snapshot that it is built from is deleted")
		}
	}
}

// startable says whether a replica has nothing any more that the record does not
// want, so that its repair can begin.
func (p *Primary) startable(t *peer) bool {
	if t.dropping {
		return false
	}
	x, found := p.leftover(t)
	if !found || mutant(MutateSnapKeepLeftovers) {
		return true
	}
	s := p.rec.Snapshot(x.ID)
	return p.now() < t.dropAt && (s == nil || s.State != holdfast.SnapshotReady) // what cannot be dropped is in nobody's way
}

// fromSource is a request to the source for content of the present stage.
func (r *repair) fromSource(m *Message) *Message {
	if r.st.snap == nil {
		return m
	}
	m.Type = map[MsgType]MsgType{MsgRead: MsgSnapRead, MsgHash: MsgSnapHash, MsgAllocated: MsgSnapAllocated}[m.Type]
	m.Copied = false
	m.Snapshot = &SnapshotArg{ID: r.st.snap.ID}
	return m
}

// hasCut says whether a replica has a snapshot, of whatever cut.
func (t *peer) hasCut(id holdfast.SnapshotID) bool {
	return slices.ContainsFunc(t.snaps, func(x SnapshotRef) bool { return x.ID == id })
}
