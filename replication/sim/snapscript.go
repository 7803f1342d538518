package sim

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/replication"
)

// Want asks for a snapshot, as the controller does; a group's is only taken by Cut.
func (s *Script) Want(id holdfast.SnapshotID, group string) {
	s.Change("want snapshot "+string(id), func(r *holdfast.Record) {
		r.PutSnapshot(holdfast.Snapshot{ID: id, State: holdfast.SnapshotWanted, Group: group})
	})
}

// Delete asks for a snapshot to be deleted.
func (s *Script) Delete(id holdfast.SnapshotID) {
	s.Change("delete snapshot "+string(id), func(r *holdfast.Record) {
		x := *r.Snapshot(id)
		x.State = holdfast.SnapshotDeleting
		r.PutSnapshot(x)
	})
}

// Restore asks for a restore of a volume that is detached.
func (s *Script) Restore(id holdfast.SnapshotID) {
	s.c.snaps.asked = s.Now()
	s.Change("restore "+string(id), func(r *holdfast.Record) {
		r.SetRestore(&holdfast.Restore{ID: fmt.Sprintf("x%d", r.Revision), Snapshot: id})
	})
}

// Maintain opens a maintenance primary on a node, if it is granted.
func (s *Script) Maintain(id holdfast.NodeID) { s.c.host(id).maintain() }

// Group commands on the newest primary of a node. Hold and Cut tell their result
// later.
func (s *Script) Hold(id holdfast.NodeID, token string, ttl time.Duration, done func(error)) {
	s.primary(id).Hold(token, ttl, done)
}

// Cut takes a group's snapshot under a hold.
func (s *Script) Cut(id holdfast.NodeID, token string, snap holdfast.SnapshotID, done func(error)) {
	s.primary(id).Cut(token, snap, done)
}

// Unhold ends a hold.
func (s *Script) Unhold(id holdfast.NodeID, token string) error { return s.primary(id).Unhold(token) }

func (s *Script) primary(id holdfast.NodeID) *replication.Primary {
	s.notePrimaries()
	if d := s.last[id]; d != nil {
		return d.p
	}
	panic("the volume never was attached to " + string(id))
}

// Snapshots lists what a node's replica has.
func (s *Script) Snapshots(id holdfast.NodeID) []replication.SnapshotRef {
	return s.c.host(id).disk.visible()
}

// InSnapshot says whether a replica's snapshot holds in block b what w wrote
// (nil: zeros).
func (s *Script) InSnapshot(id holdfast.NodeID, snap holdfast.SnapshotID, b int64, w *IO) bool {
	d := s.c.host(id).disk
	i := d.find(snap)
	if i < 0 {
		return false
	}
	got := make([]value, d.snaps[i].cells)
	for c := range got {
		got[c] = d.seen(i, int64(c))
	}
	return (&IO{op: &op{got: got}}).Same(b, w)
}

// SameSharing says whether two replicas' snapshots have kept as much for themselves.
func (s *Script) SameSharing(a, b holdfast.NodeID) error {
	if x, y := s.c.host(a).disk.exclusive(), s.c.host(b).disk.exclusive(); x != y {
		return fmt.Errorf("%s keeps %d granules for snapshots, %s %d", a, x, b, y)
	}
	return nil
}

// ReadSnapshot reads a block of a snapshot through the primary of a node, and
// lists what differs from an older one, if any.
func (s *Script) ReadSnapshot(id holdfast.NodeID, snap, from holdfast.SnapshotID, b int64, done func([]holdfast.Extent, error)) {
	if from == "" {
		s.primary(id).ListSnapshot(snap, "", b*holdfast.BlockSize, holdfast.BlockSize, done)
		return
	}
	s.primary(id).ListSnapshot(snap, from, b*holdfast.BlockSize, holdfast.BlockSize, done)
}

// SnapshotsWell checks that every in-sync replica has exactly the record's
// snapshots, with the content that was committed.
func (s *Script) SnapshotsWell() error {
	rec := s.Record()
	if slices.ContainsFunc(rec.Snapshots, func(x holdfast.Snapshot) bool { return x.State == holdfast.SnapshotDeleting }) {
		return errors.New("a snapshot is still being deleted")
	}
	return s.c.snapshotsEqual(&rec, true)
}
