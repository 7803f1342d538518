package holdfast

import (
	"fmt"
	"maps"
	"slices"
	"time"
)

// Limits of snapshots.
const (
	// DefaultSnapshots is how many snapshots a volume may have unless its owner
	// says otherwise.
	DefaultSnapshots = 256
	// MaxSnapshots bounds the snapshots of one record, which must stay small
	// enough to be shown to every replica whenever it changes.
	MaxSnapshots = 1024
)

// SnapshotState is where a snapshot is in its life.
type SnapshotState string

// The states. Wanted becomes Ready when every in-sync replica has it and the
// primary has committed that; Deleting ends when no in-sync replica has it any
// more and it is gone from the record. A wanted one may also be taken out of the
// record at once. Only Ready ones are read, cloned, restored and rebuilt.
const (
	SnapshotWanted   SnapshotState = "wanted"
	SnapshotReady    SnapshotState = "ready"
	SnapshotDeleting SnapshotState = "deleting"
)

// Snapshot is a volume's content at one point in time, the same on every
// replica. The record is the only truth about snapshots: what a replica has
// besides is a leftover, and is dropped there.
type Snapshot struct {
	ID      SnapshotID    `json:"id"`
	Name    string        `json:"name,omitempty"`
	Created time.Time     `json:"created"` // when it was asked for
	State   SnapshotState `json:"state"`
	// SizeBytes is the volume's size at that time; 0 until it is ready.
	SizeBytes int64 `json:"sizeBytes,omitempty"`
	// Epoch is the one in which it was taken: whatever was written after it is in
	// the change maps of this epoch or a later one. 0 until it is ready.
	Epoch Epoch `json:"epoch,omitempty"`
	// Cut names the one attempt to take it that succeeded, unique for ever. A
	// replica's snapshot of the same id and another cut is a leftover.
	Cut string `json:"cut,omitempty"`
	// Group is set for a member of a group, which is only taken together with the
	// others, by command.
	Group  string            `json:"group,omitempty"`
	Labels map[string]string `json:"labels,omitempty"`
	// Frozen says that the volume's filesystem was frozen while it was taken:
	// filesystem-consistent. Else it is crash-consistent.
	Frozen bool `json:"frozen,omitempty"`
}

// Restore asks for the volume's content to become that of a snapshot again. No
// client is granted the volume before it is done, which is when the primary
// takes it out of the record.
type Restore struct {
	ID       string     `json:"id"` // names this one among all the volume ever had
	Snapshot SnapshotID `json:"snapshot"`
	Asked    time.Time  `json:"asked"`
}

// Origin is what a clone's content came from.
type Origin struct {
	Volume   VolumeID   `json:"volume"`
	Snapshot SnapshotID `json:"snapshot"`
	// Temporary says that the snapshot was taken for the clone alone, and is
	// deleted when that is ready.
	Temporary bool `json:"temporary,omitempty"`
}

// Snapshot finds a snapshot by id; nil if the record names none such.
func (r *Record) Snapshot(id SnapshotID) *Snapshot {
	for i := range r.Snapshots {
		if r.Snapshots[i].ID == id {
			return &r.Snapshots[i]
		}
	}
	return nil
}

// ReadySnapshots lists those that every in-sync replica has, oldest first.
func (r *Record) ReadySnapshots() []Snapshot {
	var ready []Snapshot
	for _, s := range r.Snapshots {
		if s.State == SnapshotReady {
			ready = append(ready, s)
		}
	}
	return ready
}

// PutSnapshot adds a snapshot, or changes that of the same id, keeps those that
// were taken in order before those that were not, and gives the record the
// version that this needs.
func (r *Record) PutSnapshot(s Snapshot) {
	r.Snapshots = slices.Clone(r.Snapshots)
	if old := r.Snapshot(s.ID); old != nil && (old.Epoch != 0) == (s.Epoch != 0) {
		*old = s
	} else {
		r.RemoveSnapshot(s.ID)
		at := len(r.Snapshots)
		if s.Epoch != 0 {
			if at = slices.IndexFunc(r.Snapshots, func(x Snapshot) bool { return x.Epoch == 0 }); at < 0 {
				at = len(r.Snapshots)
			}
		}
		r.Snapshots = slices.Insert(r.Snapshots, at, s)
	}
	r.fitVersion()
}

// RemoveSnapshot takes a snapshot out of the record, if it is there.
func (r *Record) RemoveSnapshot(id SnapshotID) {
	r.Snapshots = slices.DeleteFunc(slices.Clone(r.Snapshots), func(s Snapshot) bool { return s.ID == id })
	if len(r.Snapshots) == 0 {
		r.Snapshots = nil
	}
	r.fitVersion()
}

// SetRestore asks for a restore, or with nil ends it.
func (r *Record) SetRestore(x *Restore) {
	r.Restore = x
	r.fitVersion()
}

// SetOrigin notes what the volume is a clone of.
func (r *Record) SetOrigin(o Origin) {
	r.Origin = &o
	r.fitVersion()
}

// fitVersion gives the record the oldest version that can say what it says.
func (r *Record) fitVersion() {
	switch {
	case r.Spec.Limits != (Limits{}):
		r.Version = RecordVersionLimits
	case r.Spec.waitingSet():
		r.Version = RecordVersionWaiting
	case len(r.Snapshots) > 0 || r.Restore != nil || r.Origin != nil:
		r.Version = RecordVersionSnapshots
	case r.Scrub != nil:
		r.Version = RecordVersionScrub
	default:
		r.Version = RecordVersion
	}
}

// cloneSnapshots is the part of Clone that is about snapshots.
func (r *Record) cloneSnapshots(c *Record) {
	c.Snapshots = slices.Clone(r.Snapshots)
	for i := range c.Snapshots {
		c.Snapshots[i].Labels = maps.Clone(c.Snapshots[i].Labels)
	}
	if r.Restore != nil {
		x := *r.Restore
		c.Restore = &x
	}
	if r.Origin != nil {
		x := *r.Origin
		c.Origin = &x
	}
}

// snapshotsWrong says what is wrong with the record's snapshots; "" if nothing.
func (r *Record) snapshotsWrong() string {
	if len(r.Snapshots) > MaxSnapshots {
		return fmt.Sprintf("it has %d snapshots; at most %d are possible", len(r.Snapshots), MaxSnapshots)
	}
	if (len(r.Snapshots) > 0 || r.Restore != nil || r.Origin != nil) && r.Version < RecordVersionSnapshots {
		return fmt.Sprintf("snapshots, a restore and an origin need version %d of the record", RecordVersionSnapshots)
	}
	seen := map[SnapshotID]bool{}
	last, taken := Epoch(0), true
	for i := range r.Snapshots {
		s := &r.Snapshots[i]
		if wrong := s.wrong(); wrong != "" {
			return fmt.Sprintf("snapshot %q: %s", s.ID, wrong)
		}
		switch {
		case seen[s.ID]:
			return fmt.Sprintf("snapshot %q is named twice", s.ID)
		case s.Epoch > r.Epoch:
			return fmt.Sprintf("snapshot %q is of epoch %d, later than the record's %d", s.ID, s.Epoch, r.Epoch)
		case s.Epoch != 0 && (!taken || s.Epoch < last):
			return fmt.Sprintf("snapshot %q stands out of order: those that were taken come first, oldest first", s.ID)
		}
		seen[s.ID] = true
		last, taken = s.Epoch, s.Epoch != 0
	}
	return r.restoreWrong()
}

func (r *Record) restoreWrong() string {
	x := r.Restore
	switch {
	case x == nil:
		return ""
	case x.ID == "":
		return "a restore needs an id"
	case r.AttachedTo() != "":
		return "the volume is attached while a snapshot is restored"
	}
	if s := r.Snapshot(x.Snapshot); s == nil || s.State != SnapshotReady {
		return fmt.Sprintf("snapshot %q, which is to be restored, is not there or not ready", x.Snapshot)
	}
	return ""
}

// wrong says what is wrong with a snapshot alone; "" if nothing.
func (s *Snapshot) wrong() string {
	taken := s.Epoch != 0
	switch {
	case s.ID == "":
		return "it has no id"
	case taken != (s.Cut != "") || taken != (s.SizeBytes > 0) || s.SizeBytes < 0 || s.SizeBytes%BlockSize != 0:
		return fmt.Sprintf("epoch %d, cut %q, size %d: one that was taken has all three, in whole blocks, any other none", s.Epoch, s.Cut, s.SizeBytes)
	case s.State == SnapshotWanted && taken:
		return "it is wanted, but was taken"
	case s.State == SnapshotReady && !taken:
		return "it is ready, but was not taken"
	case s.State != SnapshotWanted && s.State != SnapshotReady && s.State != SnapshotDeleting:
		return fmt.Sprintf("the state %q is unknown", s.State)
	}
	return ""
}
