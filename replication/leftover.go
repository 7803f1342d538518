package replication

import (
	"slices"

	"github.com/holdfast-storage/holdfast"
)

// dropLeftovers has every replica drop the snapshots that the record does not
// want: those being deleted, and those of attempts that came to nothing. A
// replica that is not in sync gets rid of them before its repair begins.
func (p *Primary) dropLeftovers() {
	// While a swap may still take effect, what is ready is not known.
	if h := p.snaps.hold; p.member.open() || h != nil && h.cut != nil || mutant(MutateSnapKeepLeftovers) {
		return
	}
	for _, t := range p.peers {
		if !t.up || t.dropping || p.now() < t.dropAt || t.epochPending && t.inSync() || !t.inSync() && t.repair != nil && !t.live() {
			continue
		}
		if x, found := p.leftover(t); found {
			p.dropSnapshot(t, x)
		}
	}
}

// leftover is the oldest snapshot that a replica has and should not have. One
// whose predecessor in the record it lacks is of no use either: what it lacks is
// rebuilt in order.
func (p *Primary) leftover(t *peer) (SnapshotRef, bool) {
	gap := false
	var after []SnapshotRef
	for _, s := range p.rec.Snapshots {
		if s.State != holdfast.SnapshotReady {
			continue
		}
		gap = gap || t.lacks(s)
		if gap {
			after = append(after, SnapshotRef{ID: s.ID, Cut: s.Cut})
		}
	}
	for _, x := range t.snaps {
		s := p.rec.Snapshot(x.ID)
		switch {
		case s != nil && s.State == holdfast.SnapshotReady && s.Cut == x.Cut && (t.inSync() || !slices.Contains(after, x)):
		case slices.ContainsFunc(p.snaps.taken, func(s holdfast.Snapshot) bool { return s.ID == x.ID && s.Cut == x.Cut }):
		default:
			return x, true
		}
	}
	return SnapshotRef{}, false
}

// dropSnapshot does one step of dropping a snapshot on a replica; the next one
// follows the answer.
func (p *Primary) dropSnapshot(t *peer, x SnapshotRef) {
	p.stopRepairsWith(x.ID)
	t.dropping = true
	p.ask(t, &Message{Type: MsgDropSnapshot, Snapshot: &SnapshotArg{ID: x.ID, Cut: x.Cut}}, func(m *Message) {
		t.dropping = false
		switch {
		case m == nil:
		case m.Status == StatusOK && !m.More || m.Status == StatusNoSnapshot:
			t.snaps = slices.DeleteFunc(t.snaps, func(y SnapshotRef) bool { return x == y })
			p.plan()
		case m.Status == StatusOK:
		case m.Status == StatusFailed:
			p.diskFailed(t)
			return
		default: // a clone depends on it, or the pool is full
			t.dropAt = p.now() + p.cfg.RepairRetry
			return
		}
		p.stepSnapshots()
	})
}
