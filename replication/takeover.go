package replication

import (
	"slices"
	"time"

	"github.com/holdfast-storage/holdfast"
)

// takeover is how a new primary comes to serve: it greets the in-sync replicas,
// leaves out those that are not there or have lost writes, waits out what an
// old primary may still read, and makes the tails equal.
type takeover struct {
	begun    time.Duration
	quietAt  time.Duration // when no older primary can answer reads any more
	quietSet bool
	run      int  // which reconciliation: callbacks of an earlier one are void
	asking   bool // nodes that the record does not name have not answered yet
}

// tickTakeover goes on with the take-over as far as it can.
func (p *Primary) tickTakeover(now time.Duration) {
	if p.phase != connecting || p.member.open() {
		return
	}
	// Who was to be left out, but is not yet, may be all that is left now.
	if p.member.losing = p.lost(); p.member.losing != 0 {
		return
	}
	var up, missing []*peer
	for _, t := range p.peers {
		switch {
		case !t.inSync():
		case t.up && !t.epochPending:
			up = append(up, t)
		default:
			missing = append(missing, t)
		}
	}
	if len(up) == 0 || len(missing) > 0 && now < p.takeover.begun+p.waitFor(up, missing) || p.mayKnowMore(now) {
		return
	}
	p.noteQuiet(up)
	if stay := p.choose(up); p.leaveOut(stay) {
		return
	}
	if now < p.takeover.quietAt {
		return
	}
	p.phase = reconciling
	p.reconcile()
}

// mayKnowMore says whether a replica that is not in sync, or nodes that the record
// does not name, are being asked just now. If the metadata store was rolled back,
// one may know a newer record, in which it is in sync and the others are not, and it
// refuses us: better before anything is served and written on an older set than
// after. It costs an ordinary take-over nothing: a
// replica that was in sync is waited for anyway, a node that is known to be dead,
// or refuses, is not waited for, and nobody for longer than AbsentAfter. Where one
// has promised a higher epoch, the metadata store is read first: either this take-over
// is superseded, or the store was rolled back.
func (p *Primary) mayKnowMore(now time.Duration) bool {
	if p.member.doubt > p.epoch {
		return true
	}
	if now >= p.takeover.begun+p.cfg.AbsentAfter {
		return false
	}
	return p.takeover.asking || slices.ContainsFunc(p.peers, func(t *peer) bool {
		return !t.inSync() && (t.attempt != 0 || t.conn != nil && !t.up) && !slices.Contains(p.cfg.Absent, t.rep.Node)
	})
}

// waitFor is how long a take-over waits for the missing: not long when their
// nodes are known to be dead, and somebody who is there has lost nothing.
func (p *Primary) waitFor(up, missing []*peer) time.Duration {
	for _, t := range missing {
		if !t.unfit && !slices.Contains(p.cfg.Absent, t.rep.Node) {
			return p.cfg.SilentAfter
		}
	}
	for _, t := range up {
		if len(t.welcome.Suspects) == 0 {
			return p.cfg.AbsentAfter
		}
	}
	return p.cfg.SilentAfter
}

// noteQuiet computes until when an older primary may answer reads. It needs every
// replica of its in-sync set for that, so the one that was quiet for longest
// decides. A tenth is added for clocks of different speed. The record is not
// asked: whoever it named last may have died, or been released, while it was
// itself waiting for a yet older one, and the controller clears grants of nodes
// that it cannot see. Only who knows more than the record need not wait: see
// Config.PriorQuiet.
func (p *Primary) noteQuiet(up []*peer) {
	if p.takeover.quietSet {
		return
	}
	p.takeover.quietSet = true
	if p.cfg.PriorQuiet || mutant(Mutate3NoQuiet) {
		return
	}
	window := p.cfg.ReadWindow + p.cfg.ReadWindow/10
	first := true
	for _, t := range up {
		at := t.greetedAt + window - time.Duration(t.welcome.QuietNanos)
		if first || at < p.takeover.quietAt {
			p.takeover.quietAt, first = at, false
		}
	}
}

// choose says who stays in sync: all that have lost nothing; if there is none,
// the one with the fewest suspect bytes, the local one among equals. The others
// come back by repair, which compares what is suspect.
func (p *Primary) choose(up []*peer) []*peer {
	var clean []*peer
	best := up[0]
	rank := func(t *peer) int64 {
		n := union(t.welcome.Suspects).bytes() * 2
		if t.rep.Node != p.cfg.Self {
			n++
		}
		if t.unfit {
			n += 4 * holdfast.MaxVolumeBytes
		}
		return n
	}
	for _, t := range up {
		if len(t.welcome.Suspects) == 0 && !t.unfit || mutant(Mutate6KeepSuspects) {
			clean = append(clean, t)
		}
		if rank(t) < rank(best) {
			best = t
		}
	}
	if len(clean) > 0 {
		return clean
	}
	return []*peer{best}
}

// leaveOut starts to drop all in-sync peers that are not in stay; false if there
// are none.
func (p *Primary) leaveOut(stay []*peer) bool {
	found := false
	for _, t := range p.peers {
		if !t.inSync() || findPeer(stay, t.rep.ID) != nil {
			continue
		}
		if t.refusal == "" {
			t.refusal = "it lost power, and what it wrote last must be compared"
			if !t.up {
				t.refusal = "it did not answer"
			}
		}
		p.member.losing |= t.bit
		found = true
	}
	if found {
		p.plan()
	}
	return found
}

// reconcile copies the union of the tails from one replica to the others, so
// that no two in-sync replicas differ (invariant 6), and marks it for those that
// are away (invariant 7).
func (p *Primary) reconcile() {
	p.takeover.run++
	p.seq = 1 // of what is copied here; see committed
	var in []*peer
	var tails extentSet
	for _, t := range p.peers {
		if t.inSync() {
			in = append(in, t)
			tails = union(tails, t.welcome.Tail)
		}
	}
	source := in[0]
	for _, t := range in {
		if t.rep.Node == p.cfg.Self {
			source = t
		}
	}
	tails = clip(tails, p.rec.SizeBytes)
	marks := union(tails, source.welcome.Suspects)
	if mutant(Mutate7NoSourceSuspects) {
		marks = tails
	}
	mark := p.unlessRestarted(func() { p.markTails(in, marks) })
	// What is undone here must stay undone: a write that nobody acknowledged may
	// be durable on the replica that loses it now, and come back with the next
	// power loss, after it was read as if it had never been.
	next := p.unlessRestarted(func() {
		if mutant(Mutate6UndoneNotDurable) {
			mark(true)
			return
		}
		p.toAll(in, func() *Message { return &Message{Type: MsgFlush} }, mark)
	})
	others := make([]*peer, 0, len(in))
	for _, t := range in {
		if t != source {
			others = append(others, t)
		}
	}
	if len(others) == 0 || len(tails) == 0 || mutant(Mutate6NoReconcile) {
		mark(true)
		return
	}
	p.equalize(source, others, tails, next)
}

// clip cuts a set to [0, limit).
func clip(s extentSet, limit int64) extentSet {
	return s.widen(holdfast.BlockSize, limit)
}

// equalize makes the targets' content equal to the source's in a set, while no
// I/O is served. done is called once.
func (p *Primary) equalize(source *peer, targets []*peer, set extentSet, done func(ok bool)) {
	if len(set) == 0 {
		done(true)
		return
	}
	ext := set[0]
	p.list(source, &Message{Type: MsgAllocated, Offset: ext.Offset, Length: ext.Length}, func(data extentSet, st Status) {
		if st != StatusOK {
			done(false)
			return
		}
		data = clip(data, p.rec.SizeBytes)
		p.trimAll(targets, extentSet{ext}.minus(data), func(ok bool) {
			if !ok {
				done(false)
				return
			}
			p.copyAll(source, targets, data, func(ok bool) {
				if !ok {
					done(false)
					return
				}
				p.equalize(source, targets, set[1:], done)
			})
		})
	})
}

// trimAll makes holes on all targets, one after the other.
func (p *Primary) trimAll(targets []*peer, holes extentSet, done func(ok bool)) {
	if len(holes) == 0 {
		done(true)
		return
	}
	p.toAll(targets, func() *Message {
		return &Message{Type: MsgTrim, Seq: p.seq, Offset: holes[0].Offset, Length: holes[0].Length}
	}, func(ok bool) {
		if !ok {
			done(false)
			return
		}
		p.trimAll(targets, holes[1:], done)
	})
}

// copyAll copies data piece by piece.
func (p *Primary) copyAll(source *peer, targets []*peer, data extentSet, done func(ok bool)) {
	piece, more := data.take(RepairChunk)
	if !more {
		done(true)
		return
	}
	p.ask(source, &Message{Type: MsgRead, Offset: piece.Offset, Length: piece.Length}, func(m *Message) {
		if m == nil || m.Status != StatusOK || m.Buf == nil {
			p.unable(source, m)
			done(false)
			return
		}
		b := m.Buf // released by who called this, after the sends below
		p.toAll(targets, func() *Message {
			return &Message{Type: MsgWrite, Seq: p.seq, Offset: piece.Offset, Length: piece.Length, Buf: b.Retain()}
		}, func(ok bool) {
			if !ok {
				done(false)
				return
			}
			p.copyAll(source, targets, data, done)
		})
	})
}

// toAll sends one request to every target and waits for all answers.
func (p *Primary) toAll(targets []*peer, make func() *Message, done func(ok bool)) {
	left, good := len(targets), true
	for _, t := range targets {
		if !t.up {
			left, good = left-1, false
			continue
		}
		p.ask(t, make(), func(m *Message) {
			if m == nil || m.Status != StatusOK {
				good = false
				p.unable(t, m)
			}
			if left--; left == 0 {
				done(good)
			}
		})
	}
	if left == 0 && !good {
		done(false)
	}
}

// unable notes that a replica could not do what it was asked for; in a take-over
// it is left out then, if there are others.
func (p *Primary) unable(t *peer, m *Message) {
	switch {
	case m == nil:
	case m.Status == StatusFailed:
		p.diskFailed(t)
	case m.Status == StatusNoSpace && p.phase == reconciling:
		t.unfit = true
		p.lose(t, "its pool is full")
	}
}

// unlessRestarted goes on with f after a step that went well, and begins the
// take-over again after one that did not. It does nothing when that has already
// happened.
func (p *Primary) unlessRestarted(f func()) func(ok bool) {
	run := p.takeover.run
	return func(ok bool) {
		switch {
		case run != p.takeover.run || p.phase != reconciling:
		case !ok:
			p.restartTakeover()
		default:
			f()
		}
	}
}

// markTails marks what was reconciled, and what the source itself may have
// lost, for replicas that are away, then lets the tails be forgotten.
func (p *Primary) markTails(in []*peer, set extentSet) {
	finish := p.unlessRestarted(func() { p.serve(in) })
	if len(in) == len(p.peers) || len(set) == 0 || mutant(Mutate7NoTailMarks) {
		finish(true)
		return
	}
	p.markAll(in, set, finish)
}

// markAll marks a set on all targets, durably, in as many messages as it needs.
func (p *Primary) markAll(targets []*peer, set extentSet, done func(ok bool)) {
	if len(set) == 0 {
		done(true)
		return
	}
	n := min(len(set), MaxExtents)
	p.toAll(targets, func() *Message { return &Message{Type: MsgMark, Extents: set[:n]} }, func(ok bool) {
		if !ok {
			done(false)
			return
		}
		p.markAll(targets, set[n:], done)
	})
}

// serve begins to serve.
func (p *Primary) serve(in []*peer) {
	p.phase, p.served = serving, true
	for _, t := range in {
		t.unfit = false // chosen all the same: there is no other
		// A source with suspects keeps them until all replicas are in sync again:
		// a repair needs them, also under a later primary.
		t.unsettled = len(t.welcome.Suspects) == 0
	}
	p.settle()
	p.growPeers()
	p.leave()
	p.prune()
	if p.ports.Events.Serving != nil {
		p.ports.Events.Serving()
	}
	p.changed("serving in epoch %d with %d of %d replicas in sync", p.epoch, len(in), len(p.peers))
	p.admit()
	p.plan()
}

// restartTakeover goes back to greeting, after a replica was lost on the way.
func (p *Primary) restartTakeover() {
	p.takeover.run++
	p.phase = connecting
	p.takeover.begun = p.now()
	for _, t := range p.peers {
		if t.inSync() && t.conn != nil {
			p.lose(t, "the take-over begins again") // to learn its tail anew
		}
	}
}

// list asks for all pages of a listing.
func (p *Primary) list(t *peer, m *Message, done func(extentSet, Status)) {
	p.listMore(t, m, nil, done)
}

func (p *Primary) listMore(t *peer, m *Message, got extentSet, done func(extentSet, Status)) {
	req := *m
	p.ask(t, &req, func(a *Message) {
		switch {
		case a == nil:
			done(nil, StatusFailed)
		case a.Status != StatusOK:
			done(nil, a.Status)
		case a.More && len(a.Extents) > 0:
			next := *m
			end := a.Extents[len(a.Extents)-1].End()
			if next.Length > 0 {
				next.Length -= end - next.Offset
			}
			next.Offset = end
			p.listMore(t, &next, union(got, a.Extents), done)
		default:
			done(union(got, a.Extents), StatusOK)
		}
	})
}
