package agent

import (
	"context"
	"errors"
	"fmt"

	"github.com/holdfast-storage/holdfast"
)

// CreateReplica makes a replica on one of this node's pools, empty or a clone, and
// serves it; durable on return, and again is fine. The volume's record has to name it
// first, so that a creation which arrives after its volume was given up cannot
// leave a replica that nobody knows. Errors: NotFound (pool, volume, or the
// record does not name it), NoSpace, Unavailable.
func (a *Agent) CreateReplica(ctx context.Context, pool holdfast.PoolID, r Stored) error {
	op := fmt.Sprintf("create replica %s of volume %s", r.Replica, r.Volume)
	if err := checkReplica(r); err != nil {
		return holdfast.Wrap(op, err)
	}
	p, err := a.findPool(pool)
	if err != nil {
		return holdfast.Wrap(op, err)
	}
	unlock, err := a.lockReplica(ctx, r.Replica)
	if err != nil {
		return holdfast.Wrap(op, err)
	}
	defer unlock()
	rec, err := a.deps.Store.Volume(ctx, string(r.Volume))
	if err != nil {
		return holdfast.Wrap(op, err)
	}
	if named := rec.Replica(r.Replica); named == nil || named.Node != a.cfg.ID || named.Pool != pool {
		return holdfast.E(op, holdfast.NotFound, fmt.Sprintf("the volume's record names no such replica on pool %s of node %s", pool, a.cfg.ID))
	}
	if err := a.create(ctx, p, r, written(rec, r.Replica)); err != nil {
		return holdfast.Wrap(op, err)
	}
	a.note(r.Volume, fmt.Sprintf("created replica %s on pool %s", r.Replica, pool))
	wake(a.refreshSoon)
	return nil
}

func checkReplica(r Stored) error {
	switch {
	case r.Volume == "" || r.Replica == "":
		return holdfast.E("", holdfast.Invalid, "a volume id and a replica id are needed")
	case (r.Origin.Replica == "") != (r.Origin.Snapshot == ""):
		return holdfast.E("", holdfast.Invalid, "a clone needs both the replica and the snapshot that it is made of")
	case r.SizeBytes < holdfast.MinVolumeBytes || r.SizeBytes > holdfast.MaxVolumeBytes || r.SizeBytes%holdfast.BlockSize != 0:
		return holdfast.E("", holdfast.OutOfRange, fmt.Sprintf("a size of %d bytes is not possible; it is %d to %d, in blocks of %d",
			r.SizeBytes, int64(holdfast.MinVolumeBytes), int64(holdfast.MaxVolumeBytes), holdfast.BlockSize))
	}
	return nil
}

// written says whether a replica may hold data by its record: it is or was in
// sync, and the volume was granted to somebody since it was made.
func written(rec holdfast.Record, id holdfast.ReplicaID) bool {
	x := rec.Replica(id)
	return rec.Phase == holdfast.PhaseReady && rec.Epoch > 1 && x != nil && x.Since > 0
}

// create makes and serves the replica. Replicas are thin: room means that the
// pool takes new data at all. One that is there already needs none. One that is
// not, but should hold data, is not made anew: empty, it would pass for in sync.
func (a *Agent) create(ctx context.Context, p Pool, r Stored, written bool) error {
	info := p.Info()
	if !info.SilentSince.IsZero() {
		return holdfast.E("", holdfast.Unavailable, fmt.Sprintf("pool %s: %s", info.ID, info.Message))
	}
	stored, err := p.Replicas(Named{Replica: r.Replica})
	if err != nil {
		return err
	}
	there := false
	for _, s := range stored {
		if s.Replica != r.Replica {
			continue
		}
		if s.Volume != "" && s.Volume != r.Volume {
			return holdfast.E("", holdfast.Exists, "a replica of volume "+string(s.Volume)+" has this id")
		}
		there = true
	}
	if !there && written {
		return holdfast.E("", holdfast.Corrupt, "the record says that this replica holds data, but the pool does not have it; it is not made anew, empty: let another replica take its place")
	}
	if !there && (info.State != holdfast.PoolOnline || info.FreeBytes <= 0) {
		return holdfast.E("", holdfast.NoSpace, fmt.Sprintf("pool %s is %s with %d bytes free", info.ID, info.State, info.FreeBytes))
	}
	if err := enoughFiles(filesKeptFromReplicas); err != nil && !there {
		return err
	}
	if err := p.Create(ctx, r); err != nil {
		return err
	}
	return p.Serve(ctx, r.Replica)
}

// keepPurging removes what tombstones name, now and then and when woken.
func (a *Agent) keepPurging(ctx context.Context) {
	every(ctx, a.cfg.PurgeEvery, a.purgeSoon, func() {
		if _, err := a.PurgeTombstones(ctx); err != nil && ctx.Err() == nil {
			a.log.Warn("tombstones could not be carried out; the next attempt follows", "err", err)
		}
	})
}

// PurgeTombstones removes the replicas of this node that tombstones name, and
// says how many tombstones it has carried out.
func (a *Agent) PurgeTombstones(ctx context.Context) (int, error) {
	const op = "purge tombstones"
	ts, err := a.deps.Store.Tombstones(ctx)
	if err != nil {
		return 0, holdfast.Wrap(op, err)
	}
	purged := 0
	var errs []error
	for _, t := range append(ts, a.absent(ctx)...) {
		done, err := a.purge(ctx, t)
		if err != nil {
			errs = append(errs, fmt.Errorf("replica %s: %w", t.Replica, err))
		}
		if done {
			purged++
		}
	}
	if purged > 0 {
		wake(a.refreshSoon)
	}
	return purged, holdfast.Wrap(op, errors.Join(errs...))
}

// purge carries out one tombstone if its replica is here, or is certainly not
// where it says. Invariant 8: only what it names is removed, and nothing that a
// record still names: then somebody is in the middle of something.
func (a *Agent) purge(ctx context.Context, t holdfast.Tombstone) (bool, error) {
	p, err := a.poolOf(t)
	if p == nil || err != nil {
		return false, err
	}
	unlock, err := a.lockReplica(ctx, t.Replica)
	if err != nil {
		return false, err
	}
	defer unlock()
	rec, err := a.deps.Store.Volume(ctx, string(t.Volume))
	if err != nil && !errors.Is(err, holdfast.NotFound) {
		return false, err
	}
	if err == nil && rec.Replica(t.Replica) != nil && !mutant(Mutate8InTheRecord) {
		a.log.Warn("a tombstone names a replica that its volume's record names too; leaving it", "volume", string(t.Volume), "replica", string(t.Replica))
		return false, nil
	}
	if err := a.deps.Plane.RemoveReplica(ctx, t.Replica); err != nil {
		return false, err
	}
	if err := p.Remove(ctx, t.Replica); err != nil {
		return false, err
	}
	if err := a.deps.Store.DropTombstone(ctx, t.Replica); err != nil {
		return false, err
	}
	a.log.Info("removed a replica that a tombstone names", "volume", string(t.Volume), "replica", string(t.Replica))
	return true, nil
}

// poolOf is the open pool that the tombstone names: a replica never changes its
// pool, wherever that one's disk turns up. Nil: it is another node's, or away, and
// its tombstone waits.
func (a *Agent) poolOf(t holdfast.Tombstone) (Pool, error) {
	for _, o := range a.openedPools() {
		p := o.pool
		if o.id != t.Pool {
			continue
		}
		if info := p.Info(); info.State == holdfast.PoolFailed || !info.SilentSince.IsZero() {
			continue
		}
		stored, err := p.Replicas(Named{Replica: t.Replica})
		if err != nil {
			return nil, err
		}
		for _, s := range stored {
			if s.Replica == t.Replica && s.Volume != "" && s.Volume != t.Volume {
				return nil, holdfast.E("", holdfast.Corrupt, fmt.Sprintf("its tombstone says volume %s, the pool says %s; leaving it", t.Volume, s.Volume))
			}
		}
		return p, nil
	}
	return nil, nil
}
