package reconcile

import (
	"context"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/controller/lifecycle"
)

// planOrphans names the snapshots that an attempt at a group has left: no group
// names them, and they are older than any attempt lasts. The volumes are of an
// earlier moment than the groups: a group is there before its snapshots.
func planOrphans(v *View, groups []holdfast.Group) []lifecycle.SnapshotRef {
	byID := map[string]*holdfast.Group{}
	for i := range groups {
		byID[string(groups[i].ID)] = &groups[i]
	}
	var out []lifecycle.SnapshotRef
	for _, r := range v.Volumes {
		for _, x := range r.Snapshots {
			if x.Group == "" || x.State == holdfast.SnapshotDeleting || v.Now.Sub(x.Created) < v.Limits.FinishAfter {
				continue
			}
			if g := byID[x.Group]; g == nil || !g.Has(r.ID, x.ID) {
				out = append(out, lifecycle.SnapshotRef{Volume: r.ID, Snapshot: x.ID})
			}
		}
	}
	return out
}

// dropGroups ends groups that nobody takes or deletes any more, and deletes what
// attempts at groups have left.
func (r *Reconciler) dropGroups(ctx context.Context, v *View) {
	groups, err := r.cfg.Store.Groups(ctx)
	if err != nil {
		r.cfg.Log.Debug("group snapshots cannot be read", "err", err)
		return
	}
	for _, g := range groups {
		if g.State == holdfast.GroupReady || ctx.Err() != nil {
			continue
		}
		if err := r.cfg.Lifecycle.FinishGroup(ctx, g.Name); err != nil {
			r.cfg.Log.Warn("a group snapshot that failed could not be removed; the next pass tries again", "group", g.Name, "err", err)
		}
	}
	for _, ref := range planOrphans(v, groups) {
		if ctx.Err() != nil {
			return
		}
		if err := r.cfg.Lifecycle.DeleteSnapshot(ctx, ref); err != nil {
			r.cfg.Log.Warn("a snapshot that an attempt at a group has left could not be deleted; the next pass tries again", "snapshot", ref.String(), "err", err)
		}
	}
}
