package schedule

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/controller/lifecycle"
)

// Labels of the snapshots that schedules make: which one, and when it was due.
const (
	Label    = holdfast.DriverName + "/schedule"
	DueLabel = holdfast.DriverName + "/due"
)

// Problem is what a schedule could not do, for people to read.
type Problem struct {
	Schedule string
	Volume   string // name; "" when it is about none
	Text     string
	Remedy   string
}

// ahead is by how much clocks may differ. What is said to be done that far in the
// future was written by a clock that was wrong.
const ahead = time.Hour

// Pass does for all schedules what is to be done now. What single volumes failed
// at is a problem, and tried again by the next pass. The error is of kind
// Unavailable when the metadata store did not answer.
func (s *Service) Pass(ctx context.Context) ([]Problem, error) {
	const op = "carry out schedules"
	xs, err := s.cfg.Store.Schedules(ctx)
	if err != nil || len(xs) == 0 {
		return nil, holdfast.Wrap(op, err)
	}
	recs, err := s.cfg.Store.Volumes(ctx)
	if err != nil {
		return nil, holdfast.Wrap(op, err)
	}
	var problems []Problem
	for _, x := range xs {
		if ctx.Err() != nil {
			return problems, holdfast.WrapKind(op, holdfast.Unavailable, ctx.Err())
		}
		if !x.Paused {
			problems = append(problems, s.carryOut(ctx, x, recs)...)
		}
	}
	return problems, nil
}

// carryOut takes what is due of one schedule, notes how it went, and deletes what
// is not to be kept.
func (s *Service) carryOut(ctx context.Context, x holdfast.Schedule, recs []holdfast.Record) []Problem {
	now := s.now()
	t, err := parse(x)
	if err != nil {
		return []Problem{{Schedule: x.Name, Text: "it cannot be carried out: " + err.Error(), Remedy: "delete it, and create it anew"}}
	}
	if x.Since.After(now.Add(ahead)) {
		x = s.note(ctx, x, func(n *holdfast.Schedule) { n.Since = now })
	}
	problems := s.unknown(x, recs)
	if due, is := t.latest(x.Since, now); is {
		failed := s.take(ctx, x, due, recs)
		problems = append(problems, failed...)
		s.note(ctx, x, func(n *holdfast.Schedule) {
			n.Problem = ""
			switch {
			case len(failed) > 0:
				n.Problem = fmt.Sprintf("volume %s: %s", failed[0].Volume, failed[0].Text)
			case n.Since.Before(due):
				n.Since, n.LastRun = due, due
			}
		})
	}
	for i := range recs {
		problems = append(problems, s.prune(ctx, x, &recs[i], now)...)
	}
	return problems
}

// unknown says so when a schedule's one volume is gone.
func (s *Service) unknown(x holdfast.Schedule, recs []holdfast.Record) []Problem {
	if x.Volume == "" {
		return nil
	}
	for i := range recs {
		if recs[i].ID == x.Volume {
			return nil
		}
	}
	return []Problem{{Schedule: x.Name, Text: "its volume " + string(x.Volume) + " does not exist any more", Remedy: "holdfast schedule delete " + x.Name}}
}

// note changes what is stored of a schedule, unless it was paused meanwhile.
func (s *Service) note(ctx context.Context, x holdfast.Schedule, f func(*holdfast.Schedule)) holdfast.Schedule {
	next, err := s.change(ctx, x.Name, func(n *holdfast.Schedule) {
		if !n.Paused {
			f(n)
		}
	})
	if err != nil {
		if ctx.Err() == nil && !errors.Is(err, holdfast.NotFound) {
			s.cfg.Log.Debug("how a schedule went cannot be noted yet", "schedule", x.Name, "err", err)
		}
		return x
	}
	return next
}

// take has a snapshot taken of each volume that has none of this run, and none
// that is still to be taken.
func (s *Service) take(ctx context.Context, x holdfast.Schedule, due time.Time, recs []holdfast.Record) []Problem {
	var failed []Problem
	for i := range recs {
		r := &recs[i]
		if !x.Selects(r) || r.Phase != holdfast.PhaseReady || has(x, r, due) {
			continue
		}
		q := lifecycle.SnapshotRequest{Volume: string(r.ID), Name: snapshotName(x, r.ID, due),
			Labels: map[string]string{Label: x.Name, DueLabel: due.Format(time.RFC3339)}}
		_, _, err := s.cfg.Snapshots.WantSnapshot(ctx, q)
		switch {
		case err == nil:
			s.cfg.Log.Info("a scheduled snapshot is to be taken", "schedule", x.Name, "volume", r.Name, "snapshot", q.Name, "due", due)
		case ctx.Err() != nil:
			return append(failed, Problem{Schedule: x.Name, Volume: r.Name, Text: "it was interrupted"})
		case !errors.Is(err, holdfast.NotFound): // deleted meanwhile
			failed = append(failed, Problem{Schedule: x.Name, Volume: r.Name,
				Text:   fmt.Sprintf("schedule %s could not take the snapshot that was due at %s: %v", x.Name, due.Format(time.RFC3339), err),
				Remedy: "it is tried again; see holdfast schedule inspect " + x.Name})
		}
	}
	return failed
}

// snapshotName is the one name of a run's snapshot of a volume.
func snapshotName(x holdfast.Schedule, vol holdfast.VolumeID, due time.Time) string {
	id := string(vol)
	return fmt.Sprintf("%s-%s-%s", x.Name, id[:min(12, len(id))], strings.ToLower(due.UTC().Format("20060102T150405Z")))
}

// has says whether a volume has the snapshot of a run, or one that waits to be
// taken, which then does for this run, too.
func has(x holdfast.Schedule, r *holdfast.Record, due time.Time) bool {
	for i := range r.Snapshots {
		y := &r.Snapshots[i]
		if at, made := madeBy(x, r.ID, y); made && (at.Equal(due) || y.State == holdfast.SnapshotWanted) {
			return true
		}
	}
	return false
}

// madeBy says whether the schedule has made a snapshot, and when that was due. A
// label alone does not prove it: anybody may have set it.
func madeBy(x holdfast.Schedule, vol holdfast.VolumeID, y *holdfast.Snapshot) (due time.Time, made bool) {
	if y.Labels[Label] != x.Name || y.Created.Before(x.Created) {
		return due, false
	}
	due, err := time.Parse(time.RFC3339, y.Labels[DueLabel])
	return due, err == nil && y.Name == snapshotName(x, vol, due)
}

// prune deletes what is not to be kept of a volume.
func (s *Service) prune(ctx context.Context, x holdfast.Schedule, r *holdfast.Record, now time.Time) []Problem {
	for _, y := range expired(x, r, now) {
		err := s.cfg.Snapshots.DeleteSnapshot(ctx, lifecycle.SnapshotRef{Volume: r.ID, Snapshot: y.ID})
		switch {
		case err == nil:
			s.cfg.Log.Info("a scheduled snapshot is not kept any longer", "schedule", x.Name, "volume", r.Name, "snapshot", y.Name)
		case ctx.Err() != nil:
			return nil
		case !errors.Is(err, holdfast.Unavailable) && !errors.Is(err, holdfast.InUse):
			return []Problem{{Schedule: x.Name, Volume: r.Name,
				Text: fmt.Sprintf("schedule %s could not delete snapshot %s, which is not to be kept: %v", x.Name, y.Name, err), Remedy: "it is tried again"}}
		}
	}
	return nil
}

// expired are the snapshots that the schedule has made of a volume and are not to
// be kept: ready, not among the newest, and too old. The newest one is kept.
func expired(x holdfast.Schedule, r *holdfast.Record, now time.Time) []holdfast.Snapshot {
	var ours []holdfast.Snapshot // oldest first, as in the record
	for i := range r.Snapshots {
		if _, made := madeBy(x, r.ID, &r.Snapshots[i]); made && r.Snapshots[i].State == holdfast.SnapshotReady {
			ours = append(ours, r.Snapshots[i])
		}
	}
	var out []holdfast.Snapshot
	for i, y := range ours {
		newer := len(ours) - 1 - i
		young := x.KeepSeconds > 0 && now.Sub(y.Created) < time.Duration(x.KeepSeconds)*time.Second
		if newer > 0 && newer >= x.KeepLast && !young {
			out = append(out, y)
		}
	}
	return out
}

// Made are the snapshots that a schedule has made and that are there, of a volume.
func Made(x holdfast.Schedule, r *holdfast.Record) []holdfast.Snapshot {
	var out []holdfast.Snapshot
	for i := range r.Snapshots {
		y := &r.Snapshots[i]
		if _, made := madeBy(x, r.ID, y); made && y.State != holdfast.SnapshotDeleting {
			out = append(out, *y)
		}
	}
	return out
}
