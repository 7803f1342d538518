package reconcile

import (
	"context"
	"errors"
	"slices"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/grpcstatus"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

// stored notes how storing a record went. A record that somebody else changed
// first is left for the next pass.
func (r *Reconciler) stored(v *View, what string, rec holdfast.Record, err error) bool {
	switch {
	case err == nil:
		v.put(rec)
		return true
	case errors.Is(err, holdfast.Busy), errors.Is(err, holdfast.NotFound):
		return false
	}
	r.cfg.Log.Warn("could not "+what+"; the next pass tries again", "volume", rec.Name, "err", err)
	return false
}

// finish takes half-done creations and deletions to their end.
func (r *Reconciler) finish(ctx context.Context, v *View) {
	for _, rec := range planFinish(v) {
		if ctx.Err() != nil {
			return
		}
		if err := r.cfg.Lifecycle.Finish(ctx, rec.ID); err != nil {
			r.cfg.Log.Warn("a half-done operation could not be finished", "volume", rec.Name, "phase", string(rec.Phase), "err", err)
		} else {
			r.cfg.Log.Info("finished a half-done operation", "volume", rec.Name, "phase", string(rec.Phase))
		}
	}
}

// clearGrants takes volumes from holders that are lost.
func (r *Reconciler) clearGrants(ctx context.Context, v *View) {
	for _, rec := range planGrants(v) {
		if ctx.Err() != nil {
			return
		}
		next := rec.Clone()
		next.Primary = nil
		next, err := r.cfg.Store.SwapVolume(ctx, next)
		if r.stored(v, "clear a lost node's grant", next, err) {
			r.cfg.Log.Info("cleared the grant of a node that is lost", "volume", next.Name, "node", string(rec.Primary.Node))
		}
	}
}

// dropSurplus marks and retires what planSurplus names.
func (r *Reconciler) dropSurplus(ctx context.Context, v *View) {
	for _, rm := range planSurplus(v) {
		if ctx.Err() != nil {
			return
		}
		r.remove(ctx, v, rm)
	}
}

// makeRoom gives up replicas in whose stead their own nodes can take others.
func (r *Reconciler) makeRoom(ctx context.Context, v *View) {
	for _, rm := range planMakeRoom(v) {
		if ctx.Err() != nil {
			return
		}
		r.remove(ctx, v, rm)
	}
}

// remove carries out one removal, all at once.
func (r *Reconciler) remove(ctx context.Context, v *View, rm Removal) bool {
	next := rm.Record.Clone()
	var stones []holdfast.Tombstone
	for _, id := range rm.Retire {
		x := *next.Replica(id)
		stones = append(stones, holdfast.Tombstone{Replica: x.ID, Volume: next.ID, Node: x.Node, Pool: x.Pool, Made: r.cfg.Now().UTC()})
	}
	for _, id := range rm.Leave {
		next.Replica(id).Leaving = true
	}
	next.Replicas = slices.DeleteFunc(next.Replicas, func(x holdfast.Replica) bool { return slices.Contains(rm.Retire, x.ID) })
	next, err := r.cfg.Store.RetireReplicas(ctx, next, stones)
	if !r.stored(v, "remove replicas", next, err) {
		return false
	}
	r.cfg.Log.Info("removed replicas that are not needed", "volume", next.Name, "retired", rm.Retire, "leaving", rm.Leave)
	return true
}

// add names new replicas in records. Making them follows.
func (r *Reconciler) add(ctx context.Context, v *View, adds []Addition) {
	for _, a := range adds {
		if ctx.Err() != nil {
			return
		}
		next := a.Record.Clone()
		for _, c := range a.Choices {
			next.Replicas = append(next.Replicas, holdfast.Replica{ID: holdfast.NewReplicaID(), Node: c.Node, Pool: c.Pool, State: holdfast.New})
		}
		next, err := r.cfg.Store.SwapVolume(ctx, next)
		if r.stored(v, "add replicas", next, err) {
			r.cfg.Log.Info("added replicas", "volume", next.Name, "on", a.Choices)
		}
	}
}

// make asks nodes for new replicas. One that cannot be made is retired, and its
// node is not asked again for a while; a node that does not answer is.
func (r *Reconciler) make(ctx context.Context, v *View) {
	r.forgetMade(v)
	for _, m := range planMake(v) {
		if ctx.Err() != nil {
			return
		}
		err := r.cfg.Lifecycle.MakeReplica(ctx, m.Record, m.Replica)
		if err == nil {
			r.made[m.Replica.ID] = true
			continue
		}
		if ctx.Err() != nil {
			return
		}
		r.cfg.Log.Warn("a replica could not be made", "volume", m.Record.Name, "node", string(m.Replica.Node), "err", err)
		if errors.Is(err, holdfast.Unavailable) {
			continue
		}
		i := slices.IndexFunc(v.Volumes, func(x holdfast.Record) bool { return x.ID == m.Record.ID })
		if i < 0 || v.Volumes[i].Replica(m.Replica.ID) == nil {
			continue
		}
		if r.remove(ctx, v, Removal{Record: v.Volumes[i], Retire: []holdfast.ReplicaID{m.Replica.ID}}) {
			r.refused[m.Replica.Node] = r.cfg.Now().Add(r.cfg.Limits.RefuseFor)
		}
	}
}

// forgetMade drops what is not new any more.
func (r *Reconciler) forgetMade(v *View) {
	isNew := map[holdfast.ReplicaID]bool{}
	for _, rec := range v.Volumes {
		for _, x := range rec.Replicas {
			isNew[x.ID] = x.State == holdfast.New
		}
	}
	for id := range r.made {
		if !isNew[id] {
			delete(r.made, id)
		}
	}
}

// purge asks nodes to carry out their tombstones, as there are by now.
func (r *Reconciler) purge(ctx context.Context) {
	v, err := r.look(ctx)
	if err != nil {
		return // the next pass says so
	}
	for _, n := range planPurge(v) {
		if ctx.Err() != nil {
			return
		}
		if err := r.cfg.Lifecycle.Purge(ctx, n); err != nil {
			r.cfg.Log.Warn("a node could not carry out its tombstones", "node", string(n), "err", err)
		}
	}
}

// verify asks all live nodes what they store, and compares. Records are read before
// the answers and again after them, and what no record names must still be stored
// then: so nothing is reported that was made or removed meanwhile.
func (r *Reconciler) verify(ctx context.Context) []Problem {
	before, err := r.look(ctx)
	if err != nil {
		return r.found
	}
	found, answered := r.askAll(ctx, before)
	after, err := r.look(ctx)
	if err != nil {
		return r.found
	}
	first, second := planVerify(before, found, answered), planVerify(after, found, answered)
	out := slices.DeleteFunc(second, func(p Problem) bool { return !slices.Contains(first, p) })
	if len(out) == 0 {
		return nil
	}
	still, _ := r.askAll(ctx, before)
	found = slices.DeleteFunc(found, func(f Found) bool { return !slices.Contains(still, f) })
	third := planVerify(after, found, answered)
	return slices.DeleteFunc(out, func(p Problem) bool { return !slices.Contains(third, p) })
}

// askAll asks all live nodes; answered are those whose list is complete.
func (r *Reconciler) askAll(ctx context.Context, v *View) (found []Found, answered map[holdfast.NodeID]bool) {
	answered = map[holdfast.NodeID]bool{}
	for _, n := range v.Nodes {
		if n.Alive {
			fs, err := r.ask(ctx, n.ID)
			answered[n.ID] = err == nil
			found = append(found, fs...)
		}
	}
	return found, answered
}

// ask asks one node which replicas it stores.
func (r *Reconciler) ask(ctx context.Context, n holdfast.NodeID) ([]Found, error) {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.CallTimeout)
	defer cancel()
	c, err := r.cfg.Nodes.Client(ctx, n)
	if err != nil {
		return nil, err
	}
	out, err := c.NodeVolumes(ctx, &holdfastv1.NodeVolumesRequest{})
	if err != nil {
		return nil, grpcstatus.From(err)
	}
	var found []Found
	for _, x := range out.GetVolumes() {
		if id := x.GetReplica().GetReplicaId(); id != "" {
			found = append(found, Found{Node: n, Volume: holdfast.VolumeID(x.GetVolumeId()), Replica: holdfast.ReplicaID(id)})
		}
	}
	return found, nil
}
