package agent

import (
	"context"
	"slices"
	"time"

	"github.com/holdfast-storage/holdfast"
)

// releaseTimeout bounds giving back a maintenance grant, or that of an attach
// that failed. Who attaches next waits at most so long; its grant fences what is
// left.
const releaseTimeout = 5 * time.Second

// upkeep is one maintenance primary of this node, being opened or serving.
type upkeep struct {
	cancel context.CancelFunc
	done   chan struct{} // closed when nothing of it runs any more
	vol    Volume        // nil while it is being opened; guarded by the agent's mutex
}

// keepMaintaining opens maintenance primaries where this node is to, and ends
// them when nothing is left to do.
func (a *Agent) keepMaintaining(ctx context.Context) {
	every(ctx, a.cfg.CheckEvery, a.checkSoon, func() { a.maintain(ctx) })
}

func (a *Agent) maintain(ctx context.Context) {
	kept := a.keptNow()
	recs := a.needy(kept)
	if len(recs) == 0 {
		a.endUpkeep(nil)
		a.dropLeftovers(ctx, nil)
		return
	}
	nodes, err := a.deps.Store.Nodes(ctx)
	if err != nil {
		a.log.Debug("nodes cannot be read; maintenance stays as it is", "err", err)
		return
	}
	alive := map[holdfast.NodeID]bool{}
	for _, n := range nodes {
		alive[n.ID] = n.Alive
	}
	mine := map[holdfast.VolumeID]bool{}
	for _, rec := range recs {
		mine[rec.ID] = Maintainer(rec, alive) == a.cfg.ID || kept[rec.ID] && !servedElsewhere(rec, alive, a.cfg.ID)
	}
	a.endUpkeep(mine)
	a.dropLeftovers(ctx, mine)
	for _, rec := range recs {
		if mine[rec.ID] {
			a.startUpkeep(rec.ID, kept[rec.ID])
		}
	}
}

// needy lists the volumes that could need maintenance, or are kept for a hold, in
// the order of their ids, so that every node takes them in the same order.
func (a *Agent) needy(kept map[holdfast.VolumeID]bool) []holdfast.Record {
	a.mu.Lock()
	defer a.mu.Unlock()
	var recs []holdfast.Record
	for id := range a.lacking {
		if rec := a.records[id]; maintainable(rec) && imperfect(rec) && !kept[id] {
			recs = append(recs, rec)
		}
	}
	for id := range kept {
		if rec := a.records[id]; maintainable(rec) {
			recs = append(recs, rec)
		}
	}
	slices.SortFunc(recs, func(x, y holdfast.Record) int { return compareIDs(x.ID, y.ID) })
	return recs
}

// maintainable says whether a volume is one that could be maintained: it is there,
// and no client has it.
func maintainable(r holdfast.Record) bool {
	return r.Phase == holdfast.PhaseReady && r.AttachedTo() == ""
}

func compareIDs(x, y holdfast.VolumeID) int {
	switch {
	case x < y:
		return -1
	case x > y:
		return 1
	}
	return 0
}

// imperfect says whether a record asks for anything that a primary could do.
func imperfect(r holdfast.Record) bool {
	if holdfast.RoundUp(r.Spec.SizeBytes) > r.SizeBytes || r.Scrub.Pending() || snapshotWork(r) {
		return true
	}
	return slices.ContainsFunc(r.Replicas, func(x holdfast.Replica) bool { return x.Leaving == (x.State == holdfast.InSync) })
}

// snapshotWork says whether a primary is to take or drop a snapshot, or to restore
// one. A group's is taken by command.
func snapshotWork(r holdfast.Record) bool {
	return r.Restore != nil || slices.ContainsFunc(r.Snapshots, func(s holdfast.Snapshot) bool {
		return s.State == holdfast.SnapshotDeleting || s.State == holdfast.SnapshotWanted && s.Group == ""
	})
}

// Maintainer is the node that is to serve a volume's maintenance: the first in
// the record's order that lives and holds an in-sync replica. "" when nobody is
// to: it is attached, or a primary could do nothing now.
func Maintainer(r holdfast.Record, alive map[holdfast.NodeID]bool) holdfast.NodeID {
	if r.Phase != holdfast.PhaseReady || r.AttachedTo() != "" || !workable(r, alive) {
		return ""
	}
	if p := r.Primary; p != nil && alive[p.Node] {
		return p.Node // whoever does it already goes on, or begins again
	}
	for _, leaving := range []bool{false, true} { // one that leaves only if there is no other
		for _, x := range r.Replicas {
			if x.State == holdfast.InSync && x.Leaving == leaving && alive[x.Node] {
				return x.Node
			}
		}
	}
	return ""
}

// workable says whether a primary could do something now: grow or scrub the volume,
// do what its snapshots need, drop an in-sync replica that leaves (never the last), or repair one whose node is
// there.
func workable(r holdfast.Record, alive map[holdfast.NodeID]bool) bool {
	if holdfast.RoundUp(r.Spec.SizeBytes) > r.SizeBytes || scrubbable(r, alive) || snapshotWork(r) {
		return true
	}
	several := len(r.InSyncReplicas()) > 1
	return slices.ContainsFunc(r.Replicas, func(x holdfast.Replica) bool {
		if x.State == holdfast.InSync {
			return x.Leaving && several
		}
		return !x.Leaving && alive[x.Node]
	})
}

// startUpkeep opens a maintenance primary unless one is there, the node has
// enough of them (which does not count for one that is wanted at once), or the
// volume is being attached.
func (a *Agent) startUpkeep(id holdfast.VolumeID, atOnce bool) {
	a.mu.Lock()
	if a.closed || a.upkeep[id] != nil || a.volumes[id] != nil || len(a.upkeep) >= a.cfg.MaxMaintenance && !atOnce {
		a.mu.Unlock()
		return
	}
	ctx, cancel := context.WithCancel(a.ops)
	u := &upkeep{cancel: cancel, done: make(chan struct{})}
	a.upkeep[id] = u
	a.work.Add(1)
	a.mu.Unlock()
	go func() {
		defer a.work.Done()
		a.runUpkeep(ctx, id, u)
		cancel()
		a.mu.Lock()
		delete(a.upkeep, id)
		a.mu.Unlock()
		close(u.done)
	}()
}

// runUpkeep serves a volume for its maintenance until ctx ends or the primary
// does (fenced by a client, for instance).
func (a *Agent) runUpkeep(ctx context.Context, id holdfast.VolumeID, u *upkeep) {
	vol, err := a.deps.Plane.Open(ctx, id, OpenOptions{Kind: holdfast.MaintenancePrimary})
	if err != nil {
		if ctx.Err() == nil {
			a.log.Info("a volume cannot be maintained yet", "volume", string(id), "err", err)
			pause(ctx, a.cfg.CheckEvery)
		}
		return
	}
	a.note(id, "maintenance began")
	a.mu.Lock()
	u.vol = vol
	a.mu.Unlock()
	select {
	case <-vol.Ended():
		if err := vol.Err(); err != nil {
			a.note(id, "maintenance ended: "+err.Error())
		}
		return
	case <-ctx.Done():
	}
	rctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTimeout)
	defer cancel()
	if err := vol.Release(rctx); err != nil {
		a.log.Warn("a maintenance grant could not be given back", "volume", string(id), "err", err)
	}
	a.note(id, "maintenance ended")
}

// endUpkeep ends the maintenance that is not this node's any more, unless it has
// been asked for meanwhile.
func (a *Agent) endUpkeep(mine map[holdfast.VolumeID]bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for id, u := range a.upkeep {
		if !mine[id] && !time.Now().Before(a.kept[id]) {
			u.cancel()
		}
	}
}

// dropLeftovers gives back maintenance grants of this node under which nothing
// serves and nothing will: a predecessor's.
func (a *Agent) dropLeftovers(ctx context.Context, mine map[holdfast.VolumeID]bool) {
	a.mu.Lock()
	var left []holdfast.VolumeID
	for id := range a.lacking {
		p := a.records[id].Primary
		if p != nil && p.Node == a.cfg.ID && p.Kind == holdfast.MaintenancePrimary && !mine[id] && a.upkeep[id] == nil && a.volumes[id] == nil {
			left = append(left, id)
		}
	}
	a.mu.Unlock()
	for _, id := range left {
		_, unlock, err := a.lock(ctx, id)
		if err != nil {
			return
		}
		err = a.dropGrant(ctx, id, holdfast.MaintenancePrimary)
		unlock()
		if err != nil && ctx.Err() == nil {
			a.log.Debug("a leftover maintenance grant cannot be given back yet", "volume", string(id), "err", err)
		}
	}
}

// stopUpkeep ends a volume's maintenance and waits until nothing of it runs: the
// turn is held, so no other begins.
func (a *Agent) stopUpkeep(id holdfast.VolumeID) {
	a.mu.Lock()
	u := a.upkeep[id]
	delete(a.kept, id) // a client is to have it
	a.mu.Unlock()
	if u != nil {
		u.cancel()
		<-u.done
	}
}

func (a *Agent) stopAllUpkeep() {
	a.mu.Lock()
	all := make([]*upkeep, 0, len(a.upkeep))
	for _, u := range a.upkeep {
		all = append(all, u)
	}
	a.mu.Unlock()
	for _, u := range all {
		u.cancel()
	}
	for _, u := range all {
		<-u.done
	}
}
