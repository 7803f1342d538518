package holdfast

import (
	"fmt"
	"slices"
	"time"
)

// The versions of Record's JSON form. A record has the oldest one that can say
// what it says, so that earlier releases go on reading what they can understand.
const (
	RecordVersion          = 1 // the first: of a new record
	RecordVersionScrub     = 2 // with Scrub
	RecordVersionSnapshots = 3 // with Snapshots, Restore or Origin
	RecordVersionWaiting   = 4 // with Spec.IOTimeoutMillis or Spec.SlowReplicas
	RecordVersionLimits    = 5 // with Spec.Limits
)

// Epoch numbers a volume's memberships. Every grant of a primary and every
// replica that enters or leaves the in-sync set adds one; nothing else does.
type Epoch uint64

// Record is a volume's one key in the metadata store, changed only by
// compare-and-swap, and shown to every replica (invariant 10).
type Record struct {
	Version   int       `json:"version"`
	ID        VolumeID  `json:"id"`
	Name      string    `json:"name"`
	Created   time.Time `json:"created"`
	Spec      Spec      `json:"spec"`
	Phase     Phase     `json:"phase"`
	SizeBytes int64     `json:"sizeBytes"` // what every in-sync replica has grown to: the device's size
	Epoch     Epoch     `json:"epoch"`
	Primary   *Primary  `json:"primary,omitempty"`
	Replicas  []Replica `json:"replicas"`
	// Scrub is the newest one; set by SetScrub. From version 2 on.
	Scrub *Scrub `json:"scrub,omitempty"`
	// Snapshots, in the order in which they were taken, then those that are yet
	// to be; changed by PutSnapshot and RemoveSnapshot. This and what follows is
	// from version 3 on.
	Snapshots []Snapshot `json:"snapshots,omitempty"`
	// Restore is the one to be done; set by SetRestore.
	Restore *Restore `json:"restore,omitempty"`
	// Origin is what a clone was made of; set by SetOrigin.
	Origin *Origin `json:"origin,omitempty"`

	// Revision is the metadata store's: the one this record was read at, 0 for
	// one that is not stored yet. Swaps compare it; it is not part of the JSON.
	Revision int64 `json:"-"`
}

// Spec is what the user asked for. The controller changes it; no epoch is added.
type Spec struct {
	SizeBytes  int64             `json:"sizeBytes"` // wanted; a primary grows the replicas to it
	Replicas   int               `json:"replicas"`
	MinInSync  int               `json:"minInSync"`  // writes wait below this; at least 1
	FSType     string            `json:"fsType"`     // "xfs", "ext4"; "" for raw block only
	LogicalBlk int               `json:"logicalBlk"` // logical block size shown, 512 or 4096
	Locality   Locality          `json:"locality"`
	Requisite  []Domain          `json:"requisite,omitempty"`  // topology: replicas may only be in one of these
	Preferred  []Domain          `json:"preferred,omitempty"`  // topology: earlier ones first
	Racks      []string          `json:"racks,omitempty"`      // replicas only in these racks, if any
	Zones      []string          `json:"zones,omitempty"`      // replicas only in these zones, if any
	Parameters map[string]string `json:"parameters,omitempty"` // as given at creation, for idempotency and echo
	Labels     map[string]string `json:"labels,omitempty"`
	// IOTimeoutMillis is after how long I/O that cannot go on fails; 0: never. From
	// the record's version 4 on, as the next.
	IOTimeoutMillis int64 `json:"ioTimeoutMillis,omitempty"`
	// SlowReplicas is what becomes of a replica that is much slower than the
	// others; "" leaves it to the node where the volume is attached.
	SlowReplicas SlowPolicy `json:"slowReplicas,omitempty"`
	// Limits bound what the device may do. From the record's version 5 on.
	Limits Limits `json:"limits,omitzero"`
}

// SetSpec changes the spec, for which the record may need another version.
func (r *Record) SetSpec(s Spec) {
	r.Spec = s
	r.fitVersion()
}

// SlowPolicy says what a primary does about a replica that lives but is much
// slower than the others.
type SlowPolicy string

// The policies: nothing, say so, or say so and do without it for a while, as
// long as enough others are in sync.
const (
	SlowOff    SlowPolicy = "off"
	SlowReport SlowPolicy = "report"
	SlowDrop   SlowPolicy = "drop"
)

// Known says whether a policy is one of these.
func (p SlowPolicy) Known() bool { return p == SlowOff || p == SlowReport || p == SlowDrop }

// Locality says whether a task must, should or need not run where a replica is.
type Locality string

// The localities.
const (
	LocalityPreferred Locality = "preferred" // default
	LocalityRequired  Locality = "required"
	LocalityNone      Locality = "none"
)

// Phase is where a volume is in its life.
type Phase string

// The phases. Creating becomes Ready when every replica was made, or the volume
// is deleted again by reconcile; Deleting ends when the record is gone and
// tombstones name its replicas.
const (
	PhaseCreating Phase = "creating"
	PhaseReady    Phase = "ready"
	PhaseDeleting Phase = "deleting"
)

// PrimaryKind says why a primary serves.
type PrimaryKind string

// A client primary serves a device; a maintenance primary only repairs, and
// gives way to a client at once.
const (
	ClientPrimary      PrimaryKind = "client"
	MaintenancePrimary PrimaryKind = "maintenance"
)

// Primary is the grant under which one process serves the volume.
type Primary struct {
	Node  NodeID      `json:"node"`
	Kind  PrimaryKind `json:"kind"`
	Grant Epoch       `json:"grant"` // the epoch that granted it: its identity
}

// ReplicaState is a replica's standing in the record.
type ReplicaState string

// The states. Only InSync replicas are read from or counted.
const (
	InSync     ReplicaState = "in-sync"
	Stale      ReplicaState = "stale"      // was in sync until epoch Since
	Rebuilding ReplicaState = "rebuilding" // being repaired; Since is kept
	New        ReplicaState = "new"        // never was in sync: lacks all that is allocated
)

// Replica is one copy of the volume.
type Replica struct {
	ID    ReplicaID    `json:"id"`
	Node  NodeID       `json:"node"`
	Pool  PoolID       `json:"pool"`
	State ReplicaState `json:"state"`
	// Since is the epoch since which the replica is in sync (InSync) or lacks
	// writes (Stale, Rebuilding); 0 for one that never was in sync.
	Since Epoch `json:"since"`
	// Leaving marks a replica that the controller wants gone, for good: the
	// primary drops it from the in-sync set (never the last one), starts no repair
	// of it and never makes it InSync again; the controller then retires it.
	Leaving bool `json:"leaving,omitempty"`
}

// Clone is a deep copy.
func (r Record) Clone() Record {
	c := r
	c.Replicas = slices.Clone(r.Replicas)
	if r.Primary != nil {
		p := *r.Primary
		c.Primary = &p
	}
	if r.Scrub != nil {
		s := *r.Scrub
		c.Scrub = &s
	}
	r.cloneSnapshots(&c)
	c.Spec = r.Spec.Clone()
	return c
}

// Replica finds a replica by id; nil if the record names none such.
func (r *Record) Replica(id ReplicaID) *Replica {
	for i := range r.Replicas {
		if r.Replicas[i].ID == id {
			return &r.Replicas[i]
		}
	}
	return nil
}

// On finds the replica on a node; nil if there is none.
func (r *Record) On(node NodeID) *Replica {
	for i := range r.Replicas {
		if r.Replicas[i].Node == node {
			return &r.Replicas[i]
		}
	}
	return nil
}

// InSyncReplicas lists the in-sync set.
func (r *Record) InSyncReplicas() []Replica {
	var in []Replica
	for _, x := range r.Replicas {
		if x.State == InSync {
			in = append(in, x)
		}
	}
	return in
}

// AttachedTo is the node whose client primary holds the volume; "" if none.
func (r *Record) AttachedTo() NodeID {
	if r.Primary == nil || r.Primary.Kind != ClientPrimary {
		return ""
	}
	return r.Primary.Node
}

// Healthy says whether all wanted replicas are in sync.
func (r *Record) Healthy() bool { return len(r.InSyncReplicas()) >= r.Spec.Replicas }

// Validate checks what every record must hold, whoever wrote it. The error is
// of kind Corrupt.
func (r *Record) Validate() error {
	bad := func(format string, a ...any) error {
		return E("validate record of volume "+string(r.ID), Corrupt, fmt.Sprintf(format, a...))
	}
	switch {
	case r.Version < RecordVersion || r.Version > RecordVersionLimits:
		return bad("it has version %d; this release reads versions %d to %d", r.Version, RecordVersion, RecordVersionLimits)
	case r.Version < RecordVersionWaiting && r.Spec.waitingSet():
		return bad("a limit for waiting I/O and a policy for slow replicas need version %d of the record", RecordVersionWaiting)
	case r.Version < RecordVersionLimits && r.Spec.Limits != (Limits{}):
		return bad("limits of I/O need version %d of the record", RecordVersionLimits)
	case r.Scrub != nil && (r.Version < RecordVersionScrub || r.Scrub.ID == ""):
		return bad("a scrub needs an id, and version %d of the record or a later one", RecordVersionScrub)
	}
	if wrong := r.snapshotsWrong(); wrong != "" {
		return bad("%s", wrong)
	}
	if r.ID == "" || r.SizeBytes <= 0 || r.SizeBytes%BlockSize != 0 {
		return bad("id %q, size %d: an id and a size in whole blocks are needed", r.ID, r.SizeBytes)
	}
	seen := map[string]bool{}
	for _, x := range r.Replicas {
		for _, key := range []string{"replica " + string(x.ID), "node " + string(x.Node)} {
			if seen[key] {
				return bad("%s is named twice", key)
			}
			seen[key] = true
		}
		if x.Since > r.Epoch {
			return bad("replica %s is in its state since epoch %d, later than the record's %d", x.ID, x.Since, r.Epoch)
		}
	}
	if r.Primary != nil && r.Primary.Grant > r.Epoch {
		return bad("the primary's grant %d is later than the epoch %d", r.Primary.Grant, r.Epoch)
	}
	return nil
}

// RoundUp rounds a size in bytes up to whole blocks: what is allocated and
// shown as a device for a volume whose logical size may be any byte count.
func RoundUp(bytes int64) int64 { return (bytes + BlockSize - 1) / BlockSize * BlockSize }
