package lifecycle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/controller/placement"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

// CreateRequest asks for a volume.
type CreateRequest struct {
	Name string
	Spec holdfast.Spec // defaults are filled in
	// MaxBytes allows a volume of this name that exists already to have from
	// Spec.SizeBytes to MaxBytes; 0: exactly Spec.SizeBytes.
	MaxBytes int64
	// From is the node that asks: it gets the first replica when it has room.
	From holdfast.NodeID
	// Source is what the new volume is a clone of; nil: it is empty. Spec.SizeBytes,
	// FSType and LogicalBlk may then be zero: as the source has them.
	Source *Source
	// Changing says that whoever creates volumes so may have changed this one since,
	// by Modify: if its parameters at its creation were the same, that is no
	// difference.
	Changing bool
}

// createKey is what joins: the same request, whoever makes it.
type createKey struct{ name, request string }

// Create makes a volume, asked for by this node. See CreateVolume.
func (s *Service) Create(ctx context.Context, name string, spec holdfast.Spec) (holdfast.Record, error) {
	return s.CreateVolume(ctx, CreateRequest{Name: name, Spec: spec, From: s.cfg.Self})
}

// CreateVolume makes a volume with all its replicas and answers when it is ready.
// The same again answers with what exists. Errors: Invalid or OutOfRange for a
// request that cannot work, Exists for another volume of that name, and
// placement's, after which nothing is left of the volume, NotFound for a source
// that does not exist. After Unavailable because of the caller's deadline, it goes
// on. A clone is usable at once, and independent of its source from then on.
func (s *Service) CreateVolume(ctx context.Context, q CreateRequest) (holdfast.Record, error) {
	op := "create volume " + q.Name
	if err := holdfast.ValidateName(q.Name); err != nil {
		return holdfast.Record{}, holdfast.Wrap("create volume", err)
	}
	if err := s.fillFromSource(ctx, &q); err != nil {
		return holdfast.Record{}, holdfast.Wrap(op, err)
	}
	q.Spec = q.Spec.Clone().WithDefaults()
	if err := q.Spec.Validate(); err != nil {
		return holdfast.Record{}, holdfast.Wrap(op, err)
	}
	if q.MaxBytes == 0 {
		q.MaxBytes = q.Spec.SizeBytes
	}
	request, err := json.Marshal(q)
	if err != nil {
		return holdfast.Record{}, holdfast.WrapKind(op, holdfast.Invalid, err)
	}
	rec, err := s.creates.Do(ctx, createKey{q.Name, string(request)}, func(ctx context.Context) (holdfast.Record, error) {
		ctx, end := s.background(ctx)
		defer end()
		return s.create(ctx, q)
	})
	return rec.Clone(), holdfast.Wrap(op, err)
}

// create finds out where the volume is in its life, and takes it on from there.
func (s *Service) create(ctx context.Context, q CreateRequest) (holdfast.Record, error) {
	for range maxRaces {
		rec, err := s.cfg.Store.Volume(ctx, q.Name)
		if errors.Is(err, holdfast.NotFound) {
			rec, err = s.begin(ctx, q)
			if errors.Is(err, holdfast.Exists) {
				continue // somebody else began it just now
			}
		}
		if err != nil {
			return rec, err
		}
		if err := sameVolume(rec, q); err != nil {
			return rec, err
		}
		switch rec.Phase {
		case holdfast.PhaseReady:
			return rec, nil
		case holdfast.PhaseDeleting:
			if err := s.delete(ctx, rec.ID); err != nil {
				return rec, err
			}
		default:
			rec, err = s.takeOn(ctx, rec, q.From)
			if o := rec.Origin; o != nil && o.Temporary && (err == nil || rec.ID == "") {
				s.dropTemporary(ctx, SnapshotRef{o.Volume, o.Snapshot})
			}
			return rec, err
		}
	}
	return holdfast.Record{}, errRaced()
}

// takeOn finishes a creation. A volume that somebody deletes meanwhile stays
// deleted: the one who asked for it may have gone.
func (s *Service) takeOn(ctx context.Context, rec holdfast.Record, from holdfast.NodeID) (holdfast.Record, error) {
	rec, err := s.finishCreate(ctx, rec, from)
	if errors.Is(err, holdfast.NotFound) || err == nil && rec.Phase != holdfast.PhaseReady {
		err = holdfast.E("", holdfast.Unavailable, "it was deleted while it was being created; repeat the call to create it anew")
	}
	return rec, err
}

// sameVolume says whether a volume of the wanted name is what is asked for.
// Topology is not compared: an orchestrator that repeats a request names the
// nodes there are now.
func sameVolume(rec holdfast.Record, q CreateRequest) error {
	if rec.Name != q.Name {
		return holdfast.E("", holdfast.Exists, fmt.Sprintf("%s is the id of volume %q; choose another name", rec.ID, rec.Name))
	}
	if rec.Phase == holdfast.PhaseDeleting {
		return nil // it goes first
	}
	differs := func(what string, have, want any) error {
		return holdfast.E("", holdfast.Exists, fmt.Sprintf("a volume of this name exists with %s %v, not %v; choose another name or ask for the same", what, have, want))
	}
	have, want := rec.Spec, q.Spec
	if q.Changing && maps.Equal(have.Parameters, want.Parameters) {
		want.Replicas, want.MinInSync, want.Locality = have.Replicas, have.MinInSync, have.Locality
	}
	switch {
	case have.SizeBytes < want.SizeBytes || have.SizeBytes > q.MaxBytes:
		return differs("size in bytes", have.SizeBytes, want.SizeBytes)
	case have.Replicas != want.Replicas:
		return differs("replicas", have.Replicas, want.Replicas)
	case have.MinInSync != want.MinInSync:
		return differs("minInSync", have.MinInSync, want.MinInSync)
	case have.FSType != want.FSType:
		return differs("filesystem", have.FSType, want.FSType)
	case have.LogicalBlk != want.LogicalBlk:
		return differs("logical block size", have.LogicalBlk, want.LogicalBlk)
	case have.Locality != want.Locality:
		return differs("locality", have.Locality, want.Locality)
	case fmt.Sprint(have.Racks) != fmt.Sprint(want.Racks):
		return differs("racks", have.Racks, want.Racks)
	case fmt.Sprint(have.Zones) != fmt.Sprint(want.Zones):
		return differs("zones", have.Zones, want.Zones)
	case q.Source == nil && rec.Origin != nil:
		return holdfast.E("", holdfast.Exists, "a volume of this name exists as a clone of another one; choose another name")
	case q.Source != nil && !q.Source.isOf(rec):
		return holdfast.E("", holdfast.Exists, fmt.Sprintf("a volume of this name exists, but is no clone of %s; choose another name", q.Source))
	}
	return nil
}

// begin chooses the replicas and stores the record, in phase Creating: from here
// on everything that is made is named somewhere.
func (s *Service) begin(ctx context.Context, q CreateRequest) (holdfast.Record, error) {
	if q.Source != nil {
		return s.beginClone(ctx, q)
	}
	rec := s.newRecord(q)
	where, err := s.site(ctx, rec)
	if err != nil {
		return holdfast.Record{}, err
	}
	choices, err := where.choose(placement.Request{Count: q.Spec.Replicas, From: q.From})
	if err != nil {
		return holdfast.Record{}, err
	}
	rec.Replicas = newReplicas(choices)
	return s.store(ctx, rec)
}

// newRecord is a record without replicas.
func (s *Service) newRecord(q CreateRequest) holdfast.Record {
	rec := holdfast.Record{
		Version: holdfast.RecordVersion, ID: holdfast.NewVolumeID(), Name: q.Name, Created: s.cfg.Now().UTC(),
		Spec: q.Spec, Phase: holdfast.PhaseCreating, SizeBytes: holdfast.RoundUp(q.Spec.SizeBytes),
	}
	rec.SetSpec(q.Spec) // for the version
	return rec
}

func newReplicas(choices []placement.Choice) []holdfast.Replica {
	var rs []holdfast.Replica
	for _, c := range choices {
		rs = append(rs, holdfast.Replica{ID: holdfast.NewReplicaID(), Node: c.Node, Pool: c.Pool, State: holdfast.New})
	}
	return rs
}

// creation is a volume in phase Creating that is taken on.
type creation struct {
	rec    holdfast.Record
	from   holdfast.NodeID
	made   map[holdfast.ReplicaID]bool
	failed map[holdfast.NodeID]error // nodes not to be asked again
}

// finishCreate makes the replicas of a record in phase Creating, on other nodes
// where one fails, and makes it Ready. When that cannot be, the record is dropped
// with tombstones for all replicas. Errors: placement's, NotFound when somebody
// else dropped the record, Unavailable when ctx ended (nothing is undone then).
func (s *Service) finishCreate(ctx context.Context, rec holdfast.Record, from holdfast.NodeID) (holdfast.Record, error) {
	c := &creation{rec: rec, from: from, made: map[holdfast.ReplicaID]bool{}, failed: map[holdfast.NodeID]error{}}
	for range maxRaces {
		if c.rec.Phase != holdfast.PhaseCreating {
			return c.rec, nil // it is done, or somebody else ended it
		}
		next, err := s.createStep(ctx, c)
		if errors.Is(err, holdfast.Busy) {
			next, err = s.cfg.Store.Volume(ctx, string(rec.ID))
		}
		if err != nil {
			return c.rec, err
		}
		c.rec = next
	}
	return c.rec, errRaced()
}

// createStep makes what is missing and stores what comes of it.
func (s *Service) createStep(ctx context.Context, c *creation) (holdfast.Record, error) {
	bad := s.makeReplicas(ctx, c)
	if ctx.Err() != nil {
		return c.rec, holdfast.WrapKind("make replicas", holdfast.Unavailable, ctx.Err())
	}
	if len(bad) == 0 {
		return s.cfg.Store.SwapVolume(ctx, ready(c.rec))
	}
	return s.replaceFailed(ctx, c, bad)
}

// ready is the record of a volume whose replicas are all made: empty and equal,
// they are in sync at epoch 1.
func ready(rec holdfast.Record) holdfast.Record {
	next := rec.Clone()
	next.Phase, next.Epoch = holdfast.PhaseReady, 1
	for i := range next.Replicas {
		next.Replicas[i].State, next.Replicas[i].Since = holdfast.InSync, 1
	}
	return next
}

// makeReplicas asks all nodes at once for the replicas that are not made yet, and
// answers with those that failed, and why.
func (s *Service) makeReplicas(ctx context.Context, c *creation) map[holdfast.ReplicaID]error {
	var mu sync.Mutex
	var wg sync.WaitGroup
	bad := map[holdfast.ReplicaID]error{}
	missing := slices.DeleteFunc(slices.Clone(c.rec.Replicas), func(x holdfast.Replica) bool { return c.made[x.ID] })
	for _, x := range missing {
		wg.Go(func() {
			err := s.MakeReplica(ctx, c.rec, x)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				c.made[x.ID] = true
			} else {
				bad[x.ID] = err
			}
		})
	}
	wg.Wait()
	return bad
}

// MakeReplica asks a replica's node to make it; again is fine. The first replicas
// of a clone are made from its source's, all others empty: once the volume is
// ready, it may have been written to.
func (s *Service) MakeReplica(ctx context.Context, rec holdfast.Record, x holdfast.Replica) error {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.CallTimeout)
	defer cancel()
	q := &holdfastv1.CreateReplicaRequest{VolumeId: string(rec.ID), ReplicaId: string(x.ID), PoolId: string(x.Pool), SizeBytes: rec.SizeBytes}
	if rec.Phase == holdfast.PhaseCreating && rec.Origin != nil {
		origin, err := s.originOf(ctx, rec, x)
		if err != nil {
			return err
		}
		q.OriginReplicaId, q.OriginSnapshotId = string(origin), string(rec.Origin.Snapshot)
	}
	return s.call(ctx, x.Node, func(ctx context.Context, c holdfastv1.NodeServiceClient) error {
		_, err := c.CreateReplica(ctx, q)
		return err
	})
}

// replaceFailed takes the replicas that could not be made out of the record, with
// tombstones since they may exist after all, and names others instead. If there
// are none, the volume is given up.
func (s *Service) replaceFailed(ctx context.Context, c *creation, bad map[holdfast.ReplicaID]error) (holdfast.Record, error) {
	now, err := s.cfg.Store.Volume(ctx, string(c.rec.ID))
	if err != nil || now.Revision != c.rec.Revision {
		return now, err // somebody changed or deleted it: that is why, not the nodes
	}
	where, err := s.site(ctx, c.rec)
	if errors.Is(err, holdfast.NotFound) {
		return c.rec, s.giveUp(ctx, c.rec, err)
	}
	if err != nil {
		return c.rec, err
	}
	next := c.rec.Clone()
	var gone []holdfast.Replica
	for _, x := range c.rec.Replicas {
		if e := bad[x.ID]; e != nil {
			c.failed[x.Node] = e
			gone = append(gone, x)
			next.Replicas = remove(next.Replicas, x.ID)
		}
	}
	avoid, unavailable := map[holdfast.NodeID]string{}, false
	for n, e := range c.failed {
		avoid[n] = "failed: " + e.Error()
		unavailable = unavailable || errors.Is(e, holdfast.Unavailable)
	}
	s.cfg.Log.Warn("replicas could not be made; choosing other nodes", "volume", c.rec.Name, "failed", avoid)
	choices, err := where.choose(placement.Request{Count: len(gone), Existing: next.Replicas, Avoid: avoid, From: c.from})
	if err != nil {
		if unavailable { // another time it may work
			err = holdfast.WrapKind("", holdfast.Unavailable, err)
		}
		return c.rec, s.giveUp(ctx, c.rec, err)
	}
	next.Replicas = append(next.Replicas, newReplicas(choices)...)
	stones := s.tombstones(c.rec, gone)
	next, err = s.cfg.Store.RetireReplicas(ctx, next, stones)
	if err == nil {
		s.purgeSoon(ctx, stones)
	}
	return next, err
}

// giveUp drops a record in phase Creating with tombstones for all its replicas,
// and answers with why. If that fails, reconcile finishes it.
func (s *Service) giveUp(ctx context.Context, rec holdfast.Record, why error) error {
	stones := s.tombstones(rec, rec.Replicas)
	err := s.cfg.Store.DropVolume(ctx, rec, stones)
	switch {
	case errors.Is(err, holdfast.Busy), errors.Is(err, holdfast.NotFound):
		return err // somebody else is at it: look again
	case err != nil:
		return errors.Join(why, holdfast.Wrap("give the volume up", err))
	}
	s.purgeSoon(ctx, stones)
	return why
}
