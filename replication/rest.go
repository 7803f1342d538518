package replication

import (
	"slices"
	"time"

	"github.com/holdfast-storage/holdfast"
)

// A volume that is well and of which nothing was asked for RestAfter is at rest: its
// replicas are asked every RestPing whether they live instead of every PingEvery,
// and until then its owner need not call Tick. With a thousand idle volumes the
// questions and the ticks were all that a node did.
//
// No invariant depends on it. What was acknowledged is on all replicas, and they
// know that it is (the last ping before the rest has told Committed). Reads need an
// answer from within the read window as ever: the first one after a rest waits until
// every in-sync replica has given one, which is one round trip. Writes need all of
// their answers anyway. Only the silence of a replica is found later: when something
// is asked for, with the next RestPing or, if the owner sees it on another volume
// (Events.Silent), with the Probe that this is followed by.

// rest is how a primary is at rest.
type rest struct {
	on    bool
	began time.Duration
	until time.Duration // when Tick is due
	asked time.Duration // when a request came last
}

// Rests says whether no tick is needed before a moment, unless another event comes
// first: then it is to be asked again. It is part of the event that went before.
func (p *Primary) Rests() (until time.Duration, ok bool) {
	now := p.now()
	if !p.calm(now) {
		p.stir()
		return 0, false
	}
	until = now + p.cfg.RestPing
	for _, t := range p.peers {
		switch {
		case t.told != p.committed() || !t.onlyPinged():
			p.stir()
			return 0, false
		case len(t.pending) > 0:
			// Soon enough to tell a pause of this process from the peer's silence.
			until = min(until, t.sentAt+p.cfg.SilentAfter/2)
		default:
			until = min(until, t.sentAt+p.cfg.RestPing)
		}
	}
	if !p.rest.on {
		p.rest.on, p.rest.began = true, now
	}
	p.rest.until = until
	return until, true
}

// stir ends the rest, or interrupts it for a ping: something is to be waited for, so
// the time until the next tick counts. Where that one should have come already, this
// process was paused.
func (p *Primary) stir() {
	if !p.rest.on {
		return
	}
	p.rest.on = false
	at := min(p.now(), p.rest.until)
	p.slowBegan += at - p.rest.began // nobody could be slow meanwhile
	p.lastTick = max(p.lastTick, at)
}

// Probe asks the replicas on a node whether they live, unless they were asked just
// now. The owner calls it for any volume from time to time, so that the death of a
// node is noticed whose volumes are all at rest, and for all of them when one has
// noticed it.
func (p *Primary) Probe(node holdfast.NodeID) {
	now := p.now()
	for _, t := range p.peers {
		if t.rep.Node == node && t.up && now-t.sentAt >= p.cfg.PingEvery {
			p.ping(t)
		}
	}
}

func (p *Primary) ping(t *peer) {
	p.send(t, &Message{Type: MsgPing}, call{ping: true, fn: func(*Message) { p.retryReads() }})
}

// onlyPinged says whether no answers are missing but those to pings.
func (t *peer) onlyPinged() bool {
	for _, k := range t.pending {
		if !k.ping {
			return false
		}
	}
	return true
}

// pingDue says whether a session needs a sign of life. Who has a task does: it may be a
// long one. A little early is fine when at rest, so that all of a volume's are pinged in
// one tick.
func (p *Primary) pingDue(t *peer, calm bool, now time.Duration) bool {
	if calm && len(t.pending) == 0 && t.told == p.committed() {
		return now-t.sentAt >= p.cfg.RestPing-p.cfg.RestPing/8
	}
	return now-t.sentAt >= p.cfg.PingEvery
}

// Replicas calls f with the node of each replica in the record.
func (p *Primary) Replicas(f func(node holdfast.NodeID)) {
	for _, t := range p.peers {
		f(t.rep.Node)
	}
}

// calm says whether nothing is under way, wanted, or waited for, but for answers to
// pings.
func (p *Primary) calm(now time.Duration) bool {
	m := &p.member
	switch {
	case p.phase != serving || now-p.rest.asked < p.cfg.RestAfter || p.cfg.RestPing <= p.cfg.PingEvery:
		return false
	case len(p.inflight) > 0 || len(p.backlog) > 0 || p.readers.n > 0 || !p.flush.idle() || len(p.locks.held) > 0 || p.locks.wanted():
		return false
	case m.open() || m.reading || m.losing != 0 || m.gone != 0 || m.doubt > p.epoch || p.epoch != p.rec.Epoch:
		return false
	case p.limit.failing || p.limit.left > 0 || p.scrubs.run != nil || p.waits.what != "" || p.growth.what != "":
		return false
	case p.target() > p.rec.SizeBytes || !p.mayAck() || p.pruneDue() || !p.snapshotsCalm():
		return false
	}
	return !slices.ContainsFunc(p.peers, func(t *peer) bool { return !p.peerCalm(t) })
}

// snapshotsCalm says whether none is being taken, dropped, restored, or held for.
func (p *Primary) snapshotsCalm() bool {
	return p.snaps.hold == nil && p.snaps.restore == nil && p.rec.Restore == nil &&
		!slices.ContainsFunc(p.rec.Snapshots, func(s holdfast.Snapshot) bool { return s.State != holdfast.SnapshotReady })
}

// peerCalm says whether a replica is in sync and there, and nothing is to be done
// about it.
func (p *Primary) peerCalm(t *peer) bool {
	switch {
	case !t.inSync() || t.rep.Leaving || !t.required || !t.up || t.unfit || t.epochPending || t.repair != nil:
		return false
	case t.unsettled || t.settling > 0 || t.growing || t.dropping || t.cutting || t.size < p.rec.SizeBytes || t.shown < p.rec.Revision:
		return false
	case t.slow.slow || t.slow.behind > 0 || t.waits.what != "" || len(t.damaged) > 0:
		return false
	}
	_, leftover := p.leftover(t)
	return !leftover
}
