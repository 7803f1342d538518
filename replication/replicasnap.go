package replication

import "github.com/holdfast-storage/holdfast"

// The replica's part of snapshots: it does what its primary asks for. Whether a
// snapshot counts is decided by the record alone.

// aboutSnapshot says whether a message's kind is about a snapshot.
func aboutSnapshot(t MsgType) bool { return t >= MsgSnapshot && t <= MsgSnapHash }

// sensibleSnapshot checks the arguments of messages about snapshots. A snapshot
// may be shorter than the replica; the primary asks for nothing beyond its end.
func (r *Replica) sensibleSnapshot(m *Message, inside bool) bool {
	a := m.Snapshot
	if a == nil || a.ID == "" && m.Type != MsgDiff {
		return false
	}
	switch m.Type {
	case MsgSnapshot, MsgDropSnapshot:
		return a.Cut != ""
	case MsgDiff:
		return a.From != "" && a.From != a.ID && inside
	case MsgRestore, MsgSnapAllocated:
		return inside
	case MsgSnapRead:
		return inside && m.Length <= MaxData && m.Buf == nil
	case MsgSnapHash:
		return inside && m.Offset%HashBlock == 0 && m.Length <= MaxHashes*HashBlock
	}
	return false
}

// snapshotRefusal is the status for a task about a snapshot that was not done
// though the disk is well; StatusOK for any other error.
func snapshotRefusal(err error) Status {
	switch holdfast.KindOf(err) {
	case holdfast.NotFound:
		return StatusNoSnapshot
	case holdfast.Busy, holdfast.Exists, holdfast.Unavailable:
		return StatusBusy
	case holdfast.Unsupported, holdfast.Invalid, holdfast.OutOfRange:
		return StatusInvalid
	}
	return StatusOK
}

// goOn serves what was held, as far as that goes.
func (r *Replica) goOn(s *session) {
	held := s.held
	s.held = nil
	for i, h := range held {
		if r.session != s || s.promising || s.taking {
			s.held = append(s.held, held[i:]...)
			return
		}
		r.serve(s, h)
	}
}

// about notes which snapshot a task is about, if any.
func (t *Task) about(a *SnapshotArg) {
	if a != nil {
		t.Snapshot = *a
	}
}
