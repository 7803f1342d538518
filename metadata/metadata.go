// Package metadata keeps the cluster's records: one key per volume, nodes and
// their leases, tombstones, schedules, and who leads. There are two stores, etcd (embedded
// or external) and memory, and one contract suite that both pass.
//
// It promises linearizable reads, compare-and-swap by revision, and watches that
// survive compaction, reconnects and a restarted etcd by reading everything
// again. It does not interpret records beyond checking them, and keeps no cache.
// It is the only importer of the etcd client.
package metadata

import (
	"context"
	"time"

	"github.com/holdfast-storage/holdfast"
)

// Volumes are the volumes' records. Errors: NotFound; Busy when the revision
// is no longer the stored one; Unavailable when the store does not answer, in
// which case a change may or may not have happened.
type Volumes interface {
	// CreateVolume stores a new record under its id and its name, both of which
	// must be free: Exists otherwise, with the stored record that has the id,
	// else the name. On return it is durable.
	CreateVolume(ctx context.Context, r holdfast.Record) (holdfast.Record, error)
	// Volume reads one record by id or by name, id first. Corrupt when it cannot
	// be understood.
	Volume(ctx context.Context, idOrName string) (holdfast.Record, error)
	// Volumes reads all records, ordered by id. One that cannot be understood is
	// left out and reported (see the store's OnCorrupt), so that it hides no other.
	Volumes(ctx context.Context) ([]holdfast.Record, error)
	// SwapVolume replaces the record if the stored revision is r.Revision, and
	// returns it with its new one. On Busy it returns the record as stored now.
	// ID and Name never change: Invalid.
	SwapVolume(ctx context.Context, r holdfast.Record) (holdfast.Record, error)
	// DropVolume removes the record and its name if the revision is r.Revision,
	// and adds the tombstones, all at once. Tombstones may also be added alone
	// with AddTombstones.
	DropVolume(ctx context.Context, r holdfast.Record, ts []holdfast.Tombstone) error
	// RetireReplicas is SwapVolume that adds tombstones as well, all at once: the
	// one way by which a replica leaves a record that stays. Without it a crash
	// between both would leak the replica or, worse, bury one that is in use.
	// Invalid when r still names one of the buried replicas.
	RetireReplicas(ctx context.Context, r holdfast.Record, ts []holdfast.Tombstone) (holdfast.Record, error)
	// WatchVolumes calls f for every record there is and then for every change,
	// one at a time, until ctx ends: its cause is then the error's cause. It
	// waits for a store that does not answer. Changes may be merged, never lost;
	// the same state may be reported twice.
	WatchVolumes(ctx context.Context, f func(VolumeEvent)) error
}

// VolumeEvent is a change of one volume's record.
type VolumeEvent struct {
	ID      holdfast.VolumeID
	Record  holdfast.Record // as it is now; zero when Deleted
	Deleted bool
	// Synced is set on one event with an empty ID each time everything that
	// existed has been reported: at the start and after every re-read.
	Synced bool
}

// Nodes are the nodes' registrations and leases.
type Nodes interface {
	// PutNode stores a registration if n.Revision is the stored one (0: none
	// yet): Busy otherwise.
	PutNode(ctx context.Context, n holdfast.Node) (holdfast.Node, error)
	Node(ctx context.Context, id holdfast.NodeID) (holdfast.Node, error)
	// Nodes reads all, ordered by id, with Alive filled in.
	Nodes(ctx context.Context) ([]holdfast.Node, error)
	// DropNode forgets a node: NotFound if unknown, InUse while it is alive.
	DropNode(ctx context.Context, id holdfast.NodeID) error
	// Join takes the node's lease: on return the node is alive until the lease
	// is closed or not refreshed for ttl (the store may round it up to its own
	// least). InUse while another instance of the node holds it, who is named.
	// The same instance may join again: its older lease is then lost. The lease
	// outlives ctx; it ends, without being given back, with the store's Close.
	Join(ctx context.Context, id holdfast.NodeID, instance string, ttl time.Duration) (Lease, error)
	// Alive says whether the node's lease is there.
	Alive(ctx context.Context, id holdfast.NodeID) (bool, error)
}

// Lease is a node's sign of life, refreshed in the background until closed.
type Lease interface {
	// Lost is closed when the lease has run out or could not be confirmed for
	// its whole ttl, at the latest when the store lets it run out; the holder
	// joins again.
	Lost() <-chan struct{}
	// Held says whether the lease is held, by the clock: after a pause of the
	// process it knows before Lost is closed.
	Held() bool
	// Close gives the lease back at once.
	Close() error
}

// Tombstones allow replicas' data to be removed (invariant 8).
type Tombstones interface {
	AddTombstones(ctx context.Context, ts []holdfast.Tombstone) error
	Tombstones(ctx context.Context) ([]holdfast.Tombstone, error)
	// DropTombstone removes one that has been carried out; absent is fine.
	DropTombstone(ctx context.Context, id holdfast.ReplicaID) error
}

// Claims are names that have one owner each in the cluster, besides those of
// volumes: snapshots' names. An owner is any text; the store does not look into it.
type Claims interface {
	// Claim is who owns a name; "" if nobody does.
	Claim(ctx context.Context, name string) (owner string, err error)
	// SwapClaim gives a name that from owns ("": that nobody owns) to another one
	// ("": to nobody). On return it is durable. When somebody else owns it: Busy,
	// with who does.
	SwapClaim(ctx context.Context, name, from, to string) (owner string, err error)
}

// Groups are group snapshots, one key each, by name.
type Groups interface {
	// PutGroup stores a group if the stored revision is g.Revision (0: there is
	// none), and returns it with its new one. On return it is durable. Busy
	// otherwise, with the group as stored now.
	PutGroup(ctx context.Context, g holdfast.Group) (holdfast.Group, error)
	// Group reads one by name: NotFound if there is none.
	Group(ctx context.Context, name string) (holdfast.Group, error)
	// Groups reads all, ordered by their keys. One that cannot be understood is
	// left out and reported.
	Groups(ctx context.Context) ([]holdfast.Group, error)
	// DropGroup removes a group if the stored revision is g.Revision: Busy
	// otherwise. Absent is fine.
	DropGroup(ctx context.Context, g holdfast.Group) error
}

// Schedules are the schedules of snapshots.
type Schedules interface {
	// PutSchedule stores a schedule if x.Revision is the stored one (0: none yet):
	// Busy otherwise, with what is stored now.
	PutSchedule(ctx context.Context, x holdfast.Schedule) (holdfast.Schedule, error)
	// Schedule reads one by name. Errors: NotFound.
	Schedule(ctx context.Context, name string) (holdfast.Schedule, error)
	// Schedules reads all, ordered by name.
	Schedules(ctx context.Context) ([]holdfast.Schedule, error)
	// DropSchedule forgets one; one that is not there is fine.
	DropSchedule(ctx context.Context, name string) error
}

// Leader elects one controller.
type Leader interface {
	// Campaign waits, also for a store that does not answer, until this
	// candidate leads; the context it returns ends when the leadership does, and
	// with ctx. Call resign to give it up; it may be called again. The error is
	// Unavailable, caused by ctx's end.
	Campaign(ctx context.Context, candidate string) (led context.Context, resign func(), err error)
	// Leader names the present leader; "" if none.
	Leader(ctx context.Context) (string, error)
}

// Store is the whole metadata store.
type Store interface {
	Volumes
	Nodes
	Tombstones
	Claims
	Groups
	Schedules
	Leader
	// Cluster is the cluster's identity, made by the first caller.
	Cluster(ctx context.Context) (holdfast.ClusterID, error)
	Close() error
}

// DefaultCallTimeout bounds one call to a store that does not answer, whatever
// longer deadline the caller's context has.
const DefaultCallTimeout = 5 * time.Second

// DefaultLeaseTTL is how long a node, or the leader, counts as alive after its
// last sign of life.
const DefaultLeaseTTL = 5 * time.Second
