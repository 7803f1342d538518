package replication

import (
	"github.com/holdfast-storage/holdfast"
)

// A restore makes the volume's content that of a snapshot again, while no client
// is granted it. It is made of writes whose data every replica takes from its own
// snapshot: they have a sequence number, a range lock, a tail and marks like all
// others, so that whoever is away is repaired as usual. A primary that takes over
// begins again; what was restored already is restored once more.

// restoring is one restore under way.
type restoring struct {
	id     string
	snap   holdfast.SnapshotID
	todo   extentSet
	active int
}

// restoreDepth is how many pieces are restored at once.
const restoreDepth = 8

// stepRestore begins a restore that the record asks for.
func (p *Primary) stepRestore() {
	x := p.rec.Restore
	if x == nil || p.snaps.restore != nil || p.snaps.restored == x.ID || p.rec.AttachedTo() != "" || p.member.losing != 0 {
		return
	}
	s := p.rec.Snapshot(x.Snapshot)
	source := p.repairSource()
	if s == nil || s.State != holdfast.SnapshotReady || source == nil {
		return
	}
	r := &restoring{id: x.ID, snap: s.ID}
	p.snaps.restore = r
	p.changed("restoring snapshot %s", s.ID)
	size, end := s.SizeBytes, p.rec.SizeBytes
	m := &Message{Type: MsgDiff, Length: size, Snapshot: &SnapshotArg{From: s.ID}}
	p.list(source, m, func(diff extentSet, st Status) {
		if p.snaps.restore != r {
			return
		}
		if st != StatusOK || p.phase != serving {
			p.snaps.restore = nil // it begins again with a later tick
			return
		}
		r.todo = clip(diff, size)
		if end > size { // it has grown since: zeros
			p.restorePart(r, &Request{Op: OpTrim, Offset: size, Length: end - size})
		}
		p.pumpRestore(r)
	})
}

// pumpRestore begins pieces; when all are done it makes them durable.
func (p *Primary) pumpRestore(r *restoring) {
	for p.snaps.restore == r && r.active < restoreDepth {
		piece, more := r.todo.take(RepairChunk)
		if !more {
			break
		}
		p.restorePart(r, &Request{Op: opRestore, Offset: piece.Offset, Length: piece.Length, snap: r.snap})
	}
	if p.snaps.restore != r || r.active > 0 || len(r.todo) > 0 {
		return
	}
	r.active++
	p.Submit(&Request{Op: OpFlush, Done: func(_ *Request, err error) {
		if p.snaps.restore != r {
			return
		}
		p.snaps.restore = nil
		if err == nil {
			p.snaps.restored = r.id
			p.changed("snapshot %s is restored", r.snap)
			p.plan()
		}
	}})
}

// restorePart does one piece; one that fails ends the restore, which begins again
// unless the primary has ended.
func (p *Primary) restorePart(r *restoring, q *Request) {
	r.active++
	q.Done = func(_ *Request, err error) {
		r.active--
		switch {
		case p.snaps.restore != r:
		case err != nil:
			p.snaps.restore = nil
		default:
			p.pumpRestore(r)
		}
	}
	p.Submit(q)
}
