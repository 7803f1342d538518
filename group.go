package holdfast

import (
	"fmt"
	"maps"
	"slices"
	"time"
)

// GroupID names one group snapshot: 32 hexadecimal digits.
type GroupID string

// NewGroupID makes a random group snapshot identity.
func NewGroupID() GroupID { return GroupID(newHexID()) }

// MaxGroupMembers bounds the volumes of one group snapshot: all their writes are
// held at the same time.
const MaxGroupMembers = 64

// GroupState is where a group snapshot is in its life.
type GroupState string

// The states. Taking becomes Ready when all members' snapshots are of one point in
// time, or Deleting; Deleting ends when the members are deleted and the group is
// gone from the metadata store.
const (
	GroupTaking   GroupState = "taking"
	GroupReady    GroupState = "ready"
	GroupDeleting GroupState = "deleting"
)

// Group is a group snapshot: snapshots of several volumes at one point in time. It
// is one key in the metadata store, named by the group's name, and changed only by
// compare-and-swap. A volume's snapshot that says that it is of a group, and which
// that does not name, is of an attempt that came to nothing.
type Group struct {
	Version int               `json:"version"` // GroupVersion
	ID      GroupID           `json:"id"`
	Name    string            `json:"name"`
	Created time.Time         `json:"created"`
	State   GroupState        `json:"state"`
	Members []GroupMember     `json:"members"` // in the order of the volumes' ids
	Labels  map[string]string `json:"labels,omitempty"`
	// HeldMillis is for how long the members' writes were held at most, once it is
	// ready.
	HeldMillis int64 `json:"heldMillis,omitempty"`
	// Owner is who takes it, and Until when it will have given up; while Taking.
	Owner string    `json:"owner,omitempty"`
	Until time.Time `json:"until,omitzero"`

	// Revision is the metadata store's, see Record.
	Revision int64 `json:"-"`
}

// GroupMember is one volume's snapshot in a group.
type GroupMember struct {
	Volume   VolumeID   `json:"volume"`
	Snapshot SnapshotID `json:"snapshot"`
}

// GroupVersion is the version of Group's JSON form. History: 1, the first.
const GroupVersion = 1

// Clone is a deep copy.
func (g Group) Clone() Group {
	g.Members, g.Labels = slices.Clone(g.Members), maps.Clone(g.Labels)
	return g
}

// Has says whether the group names a volume's snapshot.
func (g *Group) Has(v VolumeID, x SnapshotID) bool {
	return slices.Contains(g.Members, GroupMember{v, x})
}

// Validate checks what every group must hold, whoever wrote it. The error is of
// kind Corrupt.
func (g *Group) Validate() error {
	bad := func(format string, a ...any) error {
		return E("validate group snapshot "+g.Name, Corrupt, fmt.Sprintf(format, a...))
	}
	switch {
	case g.Version != GroupVersion:
		return bad("it has version %d; this release reads %d", g.Version, GroupVersion)
	case g.ID == "" || ValidateName(g.Name) != nil:
		return bad("id %q, name %q: an id and a name are needed", g.ID, g.Name)
	case g.State != GroupTaking && g.State != GroupReady && g.State != GroupDeleting:
		return bad("the state %q is unknown", g.State)
	case len(g.Members) == 0 || len(g.Members) > MaxGroupMembers:
		return bad("it has %d members; 1 to %d are possible", len(g.Members), MaxGroupMembers)
	}
	for i, m := range g.Members {
		if m.Volume == "" || m.Snapshot == "" || i > 0 && g.Members[i-1].Volume >= m.Volume {
			return bad("member %d (%q, %q) is not complete, or out of order", i, m.Volume, m.Snapshot)
		}
	}
	return nil
}
