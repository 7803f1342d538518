// Package lifecycle carries out what users and orchestrators ask of volumes and
// nodes: create, delete, attach, detach, expand, drain, forget.
//
// It promises that every operation is an idempotent state machine over the
// volume's record: repeated, also by another process or after this one died at
// any point, it ends in the same place, and what a failed operation began is
// undone or named by the record or a tombstone, never lost. A call that takes
// longer than its caller waits goes on, and the repeated call joins it. Volumes
// are named by id or by name everywhere.
//
// It touches no data and no device: nodes do, asked over their NodeService. It
// never changes a volume's in-sync set or epoch, except that it declares the
// replicas of a new volume, empty and equal, in sync at epoch 1. It clears a
// grant only when the holder's lease is gone or the volume is being deleted.
//
// It owns the goroutines of operations under way, and one that follows the volumes'
// records from the first creation on; Close ends them.
package lifecycle

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/controller/placement"
	"github.com/holdfast-storage/holdfast/internal/grpcstatus"
	"github.com/holdfast-storage/holdfast/internal/join"
	"github.com/holdfast-storage/holdfast/metadata"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

// NodeClients finds a node's services. Errors: NotFound for an unknown node,
// Unavailable.
type NodeClients interface {
	Client(ctx context.Context, node holdfast.NodeID) (holdfastv1.NodeServiceClient, error)
}

// Config is what the service needs. Store and Nodes are required.
type Config struct {
	Store  metadata.Store
	Nodes  NodeClients
	Policy placement.Policy // zero: placement.DefaultPolicy
	Self   holdfast.NodeID  // gets the first replica of volumes created through Create; may be ""
	Log    *slog.Logger
	Now    func() time.Time // for time stamps in records; default time.Now

	// SnapshotPercent is how much of a pool snapshots may take before none is taken
	// any more of volumes with a replica in sync there; default 50, 100: as much as
	// there is.
	SnapshotPercent int

	CallTimeout time.Duration // bounds one short call to one node; default 10 s
	OpTimeout   time.Duration // bounds one operation that goes on in the background; default 2 min
	// GroupTimeout bounds one attempt at a group snapshot; default 20 s. HoldFor is
	// how long its volumes' writes are held at most, of which half may pass until all
	// are; default 8 s. Nodes allow 10 s.
	GroupTimeout, HoldFor time.Duration
	Poll                  time.Duration // how often a record is looked at while waiting for it; default 50 ms
}

func (c Config) withDefaults() Config {
	if c.Policy == (placement.Policy{}) {
		c.Policy = placement.DefaultPolicy()
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	orDefault := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	if c.SnapshotPercent <= 0 {
		c.SnapshotPercent = DefaultSnapshotPercent
	}
	orDefault(&c.CallTimeout, 10*time.Second)
	orDefault(&c.OpTimeout, 2*time.Minute)
	orDefault(&c.GroupTimeout, 20*time.Second)
	orDefault(&c.HoldFor, 8*time.Second)
	orDefault(&c.Poll, 50*time.Millisecond)
	return c
}

// Service carries out operations. Use New; all methods may be called from any
// goroutine.
type Service struct {
	cfg   Config
	life  context.Context // ends when the service is closed
	end   context.CancelFunc
	owner string // of what this service has under way: node/instance

	promised *promised

	creates  join.Group[createKey, holdfast.Record]
	deletes  join.Group[holdfast.VolumeID, struct{}]
	attaches join.Group[attachKey, attached]
	detaches join.Group[attachKey, struct{}]
	groups   join.Group[groupKey, holdfast.Group]
}

// New checks the configuration and makes a service.
func New(cfg Config) (*Service, error) {
	if cfg.Store == nil || cfg.Nodes == nil {
		return nil, holdfast.E("make lifecycle service", holdfast.Invalid, "a metadata store and node clients are needed")
	}
	cfg = cfg.withDefaults()
	if err := cfg.Policy.Validate(); err != nil {
		return nil, err
	}
	s := &Service{cfg: cfg, owner: string(cfg.Self) + "/" + rand.Text(), promised: newPromised()}
	s.life, s.end = context.WithCancel(context.Background())
	return s, nil
}

// Close ends operations that are under way; they are resumed by a repeated call
// or by reconcile.
func (s *Service) Close() { s.end() }

// background bounds work that outlives its caller.
func (s *Service) background(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.OpTimeout)
	stop := context.AfterFunc(s.life, cancel)
	return ctx, func() { stop(); cancel() }
}

// Get reads a volume by id or name. Errors: NotFound, Unavailable.
func (s *Service) Get(ctx context.Context, volume string) (holdfast.Record, error) {
	op := "get volume " + volume
	if volume == "" {
		return holdfast.Record{}, holdfast.E("get volume", holdfast.Invalid, "a volume id or name is needed; it is empty")
	}
	if holdfast.ValidateName(volume) != nil {
		return holdfast.Record{}, holdfast.E(op, holdfast.NotFound, "there is no such volume")
	}
	rec, err := s.cfg.Store.Volume(ctx, volume)
	return rec, holdfast.Wrap(op, err)
}

// List reads all volumes, ordered by id.
func (s *Service) List(ctx context.Context) ([]holdfast.Record, error) {
	recs, err := s.cfg.Store.Volumes(ctx)
	return recs, holdfast.Wrap("list volumes", err)
}

// Nodes reads all nodes, ordered by id.
func (s *Service) Nodes(ctx context.Context) ([]holdfast.Node, error) {
	ns, err := s.cfg.Store.Nodes(ctx)
	return ns, holdfast.Wrap("list nodes", err)
}

// Cluster reads what placement decides on.
func (s *Service) Cluster(ctx context.Context) (placement.Cluster, error) {
	ns, err := s.cfg.Store.Nodes(ctx)
	if err != nil {
		return placement.Cluster{}, holdfast.Wrap("list nodes", err)
	}
	provisioned, err := s.provisioned(ctx)
	if err != nil {
		return placement.Cluster{}, holdfast.Wrap("list volumes", err)
	}
	return placement.Cluster{Nodes: ns, Provisioned: provisioned, Policy: s.cfg.Policy}, nil
}

// maxRaces bounds how often a change is tried again because somebody else
// changed the same record first.
const maxRaces = 20

// errRaced is what remains when that is not enough.
func errRaced() error {
	return holdfast.E("", holdfast.Unavailable, "others keep changing the volume's record; try again")
}

// update changes a record by compare-and-swap, reading it again when somebody
// else was first. change may say that nothing is to be done.
func (s *Service) update(ctx context.Context, id holdfast.VolumeID, change func(*holdfast.Record) (changed bool, err error)) (holdfast.Record, error) {
	for range maxRaces {
		rec, err := s.cfg.Store.Volume(ctx, string(id))
		if err != nil {
			return rec, err
		}
		next := rec.Clone()
		changed, err := change(&next)
		if err != nil || !changed {
			return rec, err
		}
		next, err = s.cfg.Store.SwapVolume(ctx, next)
		if !errors.Is(err, holdfast.Busy) {
			return next, err
		}
	}
	return holdfast.Record{}, errRaced()
}

// call makes one call to a node. What comes over gRPC becomes an error of ours.
func (s *Service) call(ctx context.Context, node holdfast.NodeID, f func(context.Context, holdfastv1.NodeServiceClient) error) error {
	c, err := s.cfg.Nodes.Client(ctx, node)
	if err == nil {
		err = grpcstatus.From(f(ctx, c))
	}
	return holdfast.Wrap("node "+string(node), err)
}

// Purge asks a node to carry out its tombstones now.
func (s *Service) Purge(ctx context.Context, node holdfast.NodeID) error {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.CallTimeout)
	defer cancel()
	return s.call(ctx, node, func(ctx context.Context, c holdfastv1.NodeServiceClient) error {
		_, err := c.PurgeTombstones(ctx, &holdfastv1.PurgeTombstonesRequest{})
		return err
	})
}

// purgeSoon asks nodes to carry out their tombstones, without waiting for it: the
// tombstones are durable, and nodes look by themselves now and then.
func (s *Service) purgeSoon(ctx context.Context, ts []holdfast.Tombstone) {
	ctx = context.WithoutCancel(ctx)
	asked := map[holdfast.NodeID]bool{}
	for _, t := range ts {
		if asked[t.Node] {
			continue
		}
		asked[t.Node] = true
		go func() {
			ctx, end := s.background(ctx)
			defer end()
			if err := s.Purge(ctx, t.Node); err != nil {
				s.cfg.Log.Debug("a node could not be asked to carry out its tombstones now", "node", string(t.Node), "err", err)
			}
		}()
	}
}

// tombstones are those for replicas of a record.
func (s *Service) tombstones(rec holdfast.Record, replicas []holdfast.Replica) []holdfast.Tombstone {
	ts := make([]holdfast.Tombstone, 0, len(replicas))
	for _, x := range replicas {
		ts = append(ts, holdfast.Tombstone{Replica: x.ID, Volume: rec.ID, Node: x.Node, Pool: x.Pool, Made: s.cfg.Now().UTC()})
	}
	return ts
}

// waitOr waits for d; false when ctx ends first.
func waitOr(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// notReady is the error for a volume that cannot be used now.
func notReady(rec holdfast.Record) error {
	if rec.Phase == holdfast.PhaseDeleting {
		return holdfast.E("", holdfast.NotFound, "the volume is being deleted")
	}
	return holdfast.E("", holdfast.Unavailable, fmt.Sprintf("the volume is %s; try again when it is ready", rec.Phase))
}
