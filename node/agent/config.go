package agent

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/metadata"
	"github.com/holdfast-storage/holdfast/node/device"
	"github.com/holdfast-storage/holdfast/replication"
)

// Config says what a node is. Start from DefaultConfig.
type Config struct {
	ID      holdfast.NodeID
	Domain  holdfast.Domain // Host defaults to the id
	Release string          // of this daemon, for the registration
	// Instance names this process among those that ever are this node; default:
	// a new name. Whoever sets it makes sure that no two that live share it: the
	// lease of an earlier one is then taken over without waiting.
	Instance string
	Pools    []PoolConfig
	// AutoPools also adopts every block device that carries this cluster's and
	// this node's identity, now and when it turns up later.
	AutoPools bool

	LeaseTTL     time.Duration // a node that is silent for so long is dead
	RefreshEvery time.Duration // free space in the registration
	PurgeEvery   time.Duration // looking for tombstones without being asked
	RetryPools   time.Duration // opening again what could not be opened
	OpenPatience time.Duration // a pool that takes longer to open is taken when it is
	CheckEvery   time.Duration // looking for volumes that need maintenance
	// OpTimeout bounds one attach or detach that nobody waits for any more.
	OpTimeout time.Duration
	// MaxMaintenance bounds the maintenance primaries at a time on this node.
	MaxMaintenance int
	// ScrubEvery is how long after its last scrub a volume is scrubbed again, one
	// at a time of those that this node looks after; 0: only when asked for.
	ScrubEvery time.Duration
}

// DefaultConfig is a configuration with everything but the identity.
func DefaultConfig() Config {
	return Config{
		LeaseTTL: 5 * time.Second, RefreshEvery: 10 * time.Second, PurgeEvery: 15 * time.Second,
		RetryPools: 30 * time.Second, OpenPatience: 10 * time.Second, CheckEvery: 5 * time.Second, OpTimeout: 2 * time.Minute, MaxMaintenance: 4,
	}
}

// Validate checks a configuration. Errors are of kind Invalid and say what to
// change.
func (c Config) Validate() error {
	const op = "validate agent configuration"
	if err := holdfast.ValidateNodeID(c.ID); err != nil {
		return holdfast.Wrap(op, err)
	}
	for name, d := range map[string]time.Duration{
		"lease": c.LeaseTTL, "refresh interval": c.RefreshEvery, "purge interval": c.PurgeEvery,
		"pool retry interval": c.RetryPools, "patience for opening a pool": c.OpenPatience, "maintenance interval": c.CheckEvery, "operation timeout": c.OpTimeout,
	} {
		if d <= 0 {
			return holdfast.E(op, holdfast.Invalid, fmt.Sprintf("the %s is %v; it must be positive", name, d))
		}
	}
	if c.MaxMaintenance < 1 {
		return holdfast.E(op, holdfast.Invalid, fmt.Sprintf("%d maintenance primaries at a time are too few; allow at least 1", c.MaxMaintenance))
	}
	seen := map[string]bool{}
	for _, p := range c.Pools {
		if err := p.Validate(); err != nil {
			return holdfast.Wrap(op, err)
		}
		if seen[p.Path] {
			return holdfast.E(op, holdfast.Invalid, "the pool "+p.Path+" is listed twice; remove one of them")
		}
		seen[p.Path] = true
	}
	return nil
}

// PoolConfig names one pool of this node.
type PoolConfig struct {
	// Path is a block device, or an image file that becomes a loop device.
	Path string `json:"path"`
	// Format makes a pool of an empty device. What holds anything is refused.
	Format bool `json:"format,omitempty"`
	// ImageBytes makes the image file, sparse and of this size, if there is
	// none. For trying things out; 0: it must be there.
	ImageBytes int64 `json:"imageBytes,omitempty"`
}

// Validate checks one pool's configuration.
func (p PoolConfig) Validate() error {
	const op = "validate pool configuration"
	switch {
	case len(p.Path) == 0 || p.Path[0] != '/':
		return holdfast.E(op, holdfast.Invalid, fmt.Sprintf("the pool's path %q is not absolute; write /dev/... or an image file's whole path", p.Path))
	case p.ImageBytes < 0:
		return holdfast.E(op, holdfast.Invalid, fmt.Sprintf("an image of %d bytes is not possible", p.ImageBytes))
	}
	return nil
}

// Deps is what an agent works with.
type Deps struct {
	Store    metadata.Store
	Plane    Plane
	FrontEnd device.FrontEnd
	Pools    PoolOpener
	Freezer  Freezer // nil: no filesystem is ever frozen
	Log      *slog.Logger
}

// Plane is the node's data plane: where primaries and replicas run.
type Plane interface {
	// Open grants the volume to this node and starts its primary; it returns
	// when that serves. InUse, naming the holder, while a live node holds it and
	// force is not set.
	Open(ctx context.Context, id holdfast.VolumeID, o OpenOptions) (Volume, error)
	// RemoveReplica stops the replica's sessions and tasks and closes it; one
	// that is not there is fine.
	RemoveReplica(ctx context.Context, id holdfast.ReplicaID) error
}

// PoolOpener finds and opens pools.
type PoolOpener interface {
	// Open opens one configured pool, formatting it first if that is asked for
	// and it is empty.
	Open(ctx context.Context, c PoolConfig) (Pool, error)
	// Find lists the block devices that carry this cluster's and node's identity.
	Find(ctx context.Context) ([]string, error)
}

// Pool is one open pool.
type Pool interface {
	// Info is how the pool is, with the replicas that failed, but not since when.
	Info() holdfast.Pool
	// Create makes a replica, empty or with an origin; durable on return, and the
	// same again is fine.
	Create(ctx context.Context, r Stored) error
	// Replicas lists what is stored, whether served or not: all of it, or what is
	// named, if it is there.
	Replicas(Named) ([]Stored, error)
	// Serve opens a replica and hands it to the data plane; again is fine.
	Serve(ctx context.Context, id holdfast.ReplicaID) error
	// Remove deletes a replica that the data plane has let go of; one that is
	// not there is fine.
	Remove(ctx context.Context, id holdfast.ReplicaID) error
	// Check verifies everything the pool holds and lists what is wrong.
	Check(ctx context.Context, progress func(done, total int64)) ([]string, error)
	Close() error
}

// Stored is one replica as a pool holds it.
type Stored struct {
	// Volume is empty when the replica is too damaged to tell.
	Volume         holdfast.VolumeID
	Replica        holdfast.ReplicaID
	SizeBytes      int64
	AllocatedBytes int64
	Promised       holdfast.Epoch
	Failure        string // why it is served no more; "" while it is
	Origin         Origin // for Create only: what it is a clone of
	Snapshots      []SnapshotUsage
}

// Named narrows a list of replicas to those of a volume, or to the one that is
// named, which may be another volume's. Zero: all.
type Named struct {
	Volume  holdfast.VolumeID
	Replica holdfast.ReplicaID
}

// Origin is a snapshot of a replica on the same pool; zero: none.
type Origin struct {
	Replica  holdfast.ReplicaID
	Snapshot holdfast.SnapshotID
}

// SnapshotUsage is what a snapshot takes on a replica: what was changed since,
// and what its own file refers to.
type SnapshotUsage struct {
	ID                        holdfast.SnapshotID
	HeldBytes, AllocatedBytes int64
}

// OpenOptions say what a primary is for.
type OpenOptions struct {
	Kind  holdfast.PrimaryKind
	Force bool // also while the holder's lease lives
}

// Volume is a primary that serves on this node.
type Volume interface {
	device.Backend
	SizeBytes() int64
	// Release ends the primary and gives the grant back; the device is gone by
	// then. Once it has ended, nil.
	Release(ctx context.Context) error
	// Abort ends it at once: its requests fail, and the record keeps the grant.
	Abort()
	// Ended is closed when it serves no more; Err says why then.
	Ended() <-chan struct{}
	Err() error
	// OnResize sets what is called, without blocking, when the device may grow.
	OnResize(f func(sizeBytes int64))
	Status() replication.PrimaryStatus
}
