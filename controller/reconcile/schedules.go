package reconcile

import (
	"context"

	"github.com/holdfast-storage/holdfast/controller/schedule"
)

// Schedules takes and deletes snapshots at times; see schedule.Service.
type Schedules interface {
	Pass(ctx context.Context) ([]schedule.Problem, error)
}

// carryOutSchedules has the schedules carried out.
func (r *Reconciler) carryOutSchedules(ctx context.Context) []Problem {
	if r.cfg.Schedules == nil || ctx.Err() != nil {
		return nil
	}
	ps, err := r.cfg.Schedules.Pass(ctx)
	if err != nil && ctx.Err() == nil {
		r.cfg.Log.Warn("the schedules of snapshots could not be carried out; the next pass tries again", "err", err)
	}
	var out []Problem
	for _, p := range ps {
		x := Problem{Volume: p.Volume, Text: p.Text, Remedy: p.Remedy}
		if x.Volume == "" {
			x.Text = "schedule " + p.Schedule + ": " + p.Text
		}
		out = append(out, x)
	}
	return out
}
