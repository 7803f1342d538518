package replication

import (
	"fmt"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/buf"
)

// Reading snapshots through the primary. What a ready snapshot holds never
// changes, so neither locks nor the read window are needed. The results come
// under the volume's lock, and done must not call back.

// viewOf checks a range and chooses a replica to ask, the local one first.
func (p *Primary) viewOf(id holdfast.SnapshotID, off, n int64) (*peer, error) {
	op := fmt.Sprintf("read snapshot %s of volume %s", id, p.rec.Name)
	s := p.rec.Snapshot(id)
	switch {
	case s == nil || s.State != holdfast.SnapshotReady:
		return nil, holdfast.E(op, holdfast.NotFound, "there is no such snapshot, or it is not ready")
	case off < 0 || n <= 0 || off%holdfast.BlockSize != 0 || n%holdfast.BlockSize != 0 || off > s.SizeBytes || n > s.SizeBytes-off:
		return nil, holdfast.E(op, holdfast.OutOfRange, fmt.Sprintf("bytes %d to %d are not whole blocks of its %d", off, off+n, s.SizeBytes))
	}
	var best *peer
	for _, t := range p.peers {
		if t.inSync() && t.up && !t.lacks(*s) && (best == nil || t.rep.Node == p.cfg.Self) {
			best = t
		}
	}
	if best == nil {
		return nil, holdfast.E(op, holdfast.Unavailable, "no in-sync replica answers at the moment")
	}
	return best, nil
}

// ReadSnapshot reads whole blocks, at most MaxData bytes, of a ready snapshot.
// done gets a buffer that is only its own during the call, unless it retains it.
func (p *Primary) ReadSnapshot(id holdfast.SnapshotID, off, n int64, done func(*buf.Buf, error)) {
	t, err := p.viewOf(id, off, n)
	if err != nil {
		done(nil, err)
		return
	}
	p.ask(t, &Message{Type: MsgSnapRead, Offset: off, Length: n, Snapshot: &SnapshotArg{ID: id}}, func(m *Message) {
		if m == nil || m.Status != StatusOK || m.Buf == nil || int64(len(m.Buf.B)) != n {
			done(nil, p.viewLost(id, m))
			return
		}
		done(m.Buf, nil)
	})
}

// ListSnapshot lists where data is within a range of a ready snapshot or, with
// from, a superset of what differs from that older one.
func (p *Primary) ListSnapshot(id, from holdfast.SnapshotID, off, n int64, done func([]holdfast.Extent, error)) {
	t, err := p.viewOf(id, off, n)
	if err == nil && from != "" {
		_, err = p.viewOf(from, 0, holdfast.BlockSize)
	}
	if err != nil {
		done(nil, err)
		return
	}
	m := &Message{Type: MsgSnapAllocated, Offset: off, Length: n, Snapshot: &SnapshotArg{ID: id}}
	if from != "" {
		m.Type, m.Snapshot.From = MsgDiff, from
	}
	p.list(t, m, func(xs extentSet, st Status) {
		if st != StatusOK {
			done(nil, p.viewLost(id, &Message{Status: st}))
			return
		}
		done(xs, nil)
	})
}

// viewLost is the error for a read that a replica did not answer well.
func (p *Primary) viewLost(id holdfast.SnapshotID, m *Message) error {
	op := fmt.Sprintf("read snapshot %s of volume %s", id, p.rec.Name)
	if m != nil && m.Status == StatusNoSnapshot {
		return holdfast.E(op, holdfast.NotFound, "it was deleted meanwhile")
	}
	return holdfast.E(op, holdfast.Unavailable, "the replica that was asked does not answer any more; try again")
}
