package reconcile

import (
	"context"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/controller/lifecycle"
)

// planTemporary names the snapshots that were taken to clone a volume and are not
// needed any more: the clone is ready, or nobody made it in time.
func planTemporary(v *View) []lifecycle.SnapshotRef {
	clones := map[lifecycle.SnapshotRef]holdfast.Phase{}
	for _, r := range v.Volumes {
		if o := r.Origin; o != nil {
			clones[lifecycle.SnapshotRef{Volume: o.Volume, Snapshot: o.Snapshot}] = r.Phase
		}
	}
	var out []lifecycle.SnapshotRef
	for _, r := range v.Volumes {
		for _, x := range r.Snapshots {
			if x.Labels[lifecycle.CloneLabel] == "" || x.Name != "" || x.State == holdfast.SnapshotDeleting {
				continue
			}
			ref := lifecycle.SnapshotRef{Volume: r.ID, Snapshot: x.ID}
			switch phase, cloned := clones[ref]; {
			case cloned && phase == holdfast.PhaseCreating:
			case cloned, v.Now.Sub(x.Created) >= v.Limits.FinishAfter:
				out = append(out, ref)
			}
		}
	}
	return out
}

// dropTemporary deletes what planTemporary names.
func (r *Reconciler) dropTemporary(ctx context.Context, v *View) {
	for _, ref := range planTemporary(v) {
		if ctx.Err() != nil {
			return
		}
		if err := r.cfg.Lifecycle.DeleteSnapshot(ctx, ref); err != nil {
			r.cfg.Log.Warn("a snapshot that was taken for a clone could not be deleted; the next pass tries again", "snapshot", ref.String(), "err", err)
		}
	}
}
