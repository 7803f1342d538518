package replication

import (
	"slices"

	"github.com/holdfast-storage/holdfast"
)

// enterEpoch makes the record's epoch the one that messages carry, and tells all
// sessions. Writes that a dropped replica has not answered are marked in the new
// epoch's change maps (invariant 7), and acknowledged only when everybody who
// stays has promised the epoch and made the marks durable (invariant 2).
func (p *Primary) enterEpoch() {
	p.epoch = p.rec.Epoch
	lost := p.lost()
	var marks []holdfast.Extent
	for _, w := range p.inflight {
		if w.waiting&lost != 0 && !mutant(Mutate7NoMarks) {
			marks = append(marks, w.ext)
		}
	}
	p.member.marks = union(marks, p.damaged(lost))
	for _, t := range p.peers {
		t.asked = 0
		t.epochPending = t.inSync() || t.live()
		switch {
		case t.conn != nil && !t.up:
			p.lose(t, "the epoch changed while greeting")
		case t.up:
			p.announce(t)
		}
	}
	p.announced()
}

// lost is the set of peers being dropped that the record does not count any more.
func (p *Primary) lost() uint32 {
	lost := p.member.gone
	for _, t := range p.peers {
		if p.member.losing&t.bit != 0 && !t.inSync() {
			lost |= t.bit
		}
	}
	return lost
}

// announce tells one session the new epoch.
func (p *Primary) announce(t *peer) {
	rec, epoch := p.rec.Clone(), p.epoch
	t.shown = rec.Revision
	// One under repair needs the marks too: it may be somebody's source soon.
	m := &Message{Type: MsgEpoch, Record: &rec, Extents: p.member.marks}
	p.ask(t, m, func(m *Message) { p.heardEpoch(t, epoch, m) })
}

// remind tells a peer that came back what it may not have heard: the epoch went
// with the greeting, the marks go now.
func (p *Primary) remind(t *peer) {
	if !t.epochPending {
		return
	}
	if len(p.member.marks) == 0 {
		t.epochPending = false
		p.announced()
		return
	}
	epoch := p.epoch
	p.ask(t, &Message{Type: MsgMark, Extents: p.member.marks}, func(m *Message) { p.heardEpoch(t, epoch, m) })
}

func (p *Primary) heardEpoch(t *peer, epoch holdfast.Epoch, m *Message) {
	switch {
	case m == nil || epoch != p.epoch:
	case m.Status == StatusOK:
		t.epochPending = false
		p.announced()
	case m.Status == StatusFailed:
		p.diskFailed(t)
	default:
		p.lose(t, "it refused the new epoch")
	}
}

// announced goes on when all in-sync replicas have promised the epoch.
func (p *Primary) announced() {
	p.promoted()
	for _, t := range p.peers {
		if t.inSync() && t.epochPending && !mutant(Mutate2AckBeforePromise) {
			return
		}
	}
	lost := p.lost()
	p.member.losing &^= lost
	p.slots &^= p.member.gone
	p.member.gone = 0
	for _, t := range p.peers {
		if lost&t.bit != 0 {
			t.required, t.unfit, t.damaged = false, false, nil
			if !mutant(Mutate7DroppedSource) {
				p.stopRepairsFrom(t) // before clearWaiting lets writes end that it lacks
			}
			p.changed("replica %s on node %s was dropped in epoch %d: %s", t.rep.ID, t.rep.Node, p.epoch, t.why())
		}
	}
	p.clearWaiting(lost)
	p.settleHeld()
	p.settle()
	p.prune()
	p.admit()
	p.retryReads()
	p.tickTakeover(p.now())
	p.plan()
}

// promoted ends the repairs of those that are in sync now.
func (p *Primary) promoted() {
	for _, t := range p.peers {
		if r := t.repair; r != nil && t.inSync() {
			p.stopRepair(t)
			t.unsettled = true
			p.changed("replica %s on node %s is in sync again in epoch %d: %d bytes copied", t.rep.ID, t.rep.Node, p.epoch, r.copied)
		}
	}
}

// settle lets replicas that have become in sync forget what they were asked for
// in the repair: their own tails of earlier grants, and their suspects.
func (p *Primary) settle() {
	for _, t := range p.peers {
		if t.unsettled && t.inSync() && t.up && !t.epochPending && !t.unfit {
			t.unsettled = false
			p.askSettle(t, 0)
		}
	}
}

// prune lets the replicas forget what is of no use when all are in sync: old
// change maps, suspects, and tails of earlier grants.
func (p *Primary) prune() {
	if !p.pruneDue() || slices.ContainsFunc(p.peers, func(t *peer) bool { return t.epochPending }) {
		return
	}
	p.member.pruned = p.epoch
	for _, t := range p.peers {
		p.askSettle(t, p.epoch)
	}
}

// pruneDue says whether all replicas are in sync and there, and have not been told
// to forget in this epoch.
func (p *Primary) pruneDue() bool {
	if !p.served || p.member.losing != 0 || p.member.pruned == p.epoch {
		return false
	}
	return !slices.ContainsFunc(p.peers, func(t *peer) bool { return !t.inSync() || !t.up || t.unfit })
}

// askSettle tells a replica to forget; again when it is back, if it did not answer.
func (p *Primary) askSettle(t *peer, since holdfast.Epoch) {
	t.settling++
	p.ask(t, &Message{Type: MsgSettle, Since: since}, func(m *Message) {
		t.settling--
		switch {
		case m != nil:
		case since == 0:
			t.unsettled = true
		case since == p.member.pruned:
			p.member.pruned = 0
		}
		p.finishRelease()
	})
}

// settled says whether all replicas that are there have forgotten what they were
// to. A repair with no other writes fills the target's tail; if the grant went
// back before that is forgotten, the next take-over would copy all of it again,
// and nothing is served meanwhile. A source that lost power itself would be
// dropped, and compared with those that were repaired from it. A replica whose
// disk does not answer, and that is the last, is not waited for.
func (p *Primary) settled() bool {
	for _, t := range p.peers {
		if t.up && t.inSync() && (t.settling > 0 || t.unsettled && !t.unfit) && !p.stuck(t, p.now()) {
			return false
		}
	}
	return !p.pruneDue()
}
