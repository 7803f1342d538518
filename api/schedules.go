package api

import (
	"context"
	"errors"
	"maps"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/controller/schedule"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

// Schedules works with schedules of snapshots; every method is idempotent.
type Schedules interface {
	Create(ctx context.Context, x holdfast.Schedule) (holdfast.Schedule, error)
	Get(ctx context.Context, name string) (holdfast.Schedule, error)
	List(ctx context.Context) ([]holdfast.Schedule, error)
	Pause(ctx context.Context, name string) (holdfast.Schedule, error)
	Resume(ctx context.Context, name string) (holdfast.Schedule, error)
	Delete(ctx context.Context, name string) error
}

// CreateSchedule implements the service; see api.proto.
func (s *Server) CreateSchedule(ctx context.Context, q *holdfastv1.CreateScheduleRequest) (*holdfastv1.Schedule, error) {
	op := "create schedule " + q.GetName()
	if err := validateLabels(q.GetLabels()); err != nil {
		return nil, holdfast.Wrap(op, err)
	}
	if q.GetVolume() != "" {
		if err := s.known(ctx, op, q.GetVolume()); err != nil {
			return nil, err
		}
	}
	x, err := s.cfg.Schedules.Create(ctx, holdfast.Schedule{Name: q.GetName(), Cron: q.GetCron(), Zone: q.GetZone(), Volume: holdfast.VolumeID(q.GetVolume()),
		Labels: q.GetLabels(), KeepLast: int(q.GetKeepLast()), KeepSeconds: q.GetKeepSeconds()})
	return s.showSchedule(ctx, x, err)
}

// ListSchedules implements the service; see api.proto.
func (s *Server) ListSchedules(ctx context.Context, _ *holdfastv1.ListSchedulesRequest) (*holdfastv1.ListSchedulesResponse, error) {
	xs, err := s.cfg.Schedules.List(ctx)
	if err != nil {
		return nil, err
	}
	recs, err := s.cfg.Store.Volumes(ctx)
	if err != nil {
		return nil, holdfast.Wrap("list schedules", err)
	}
	out := &holdfastv1.ListSchedulesResponse{}
	for _, x := range xs {
		p := scheduleProto(x, recs)
		p.Snapshots = nil
		out.Schedules = append(out.Schedules, p)
	}
	return out, nil
}

// GetSchedule implements the service; see api.proto.
func (s *Server) GetSchedule(ctx context.Context, q *holdfastv1.GetScheduleRequest) (*holdfastv1.Schedule, error) {
	x, err := s.cfg.Schedules.Get(ctx, q.GetSchedule())
	return s.showSchedule(ctx, x, err)
}

// PauseSchedule implements the service; see api.proto.
func (s *Server) PauseSchedule(ctx context.Context, q *holdfastv1.PauseScheduleRequest) (*holdfastv1.Schedule, error) {
	x, err := s.cfg.Schedules.Pause(ctx, q.GetSchedule())
	return s.showSchedule(ctx, x, err)
}

// ResumeSchedule implements the service; see api.proto.
func (s *Server) ResumeSchedule(ctx context.Context, q *holdfastv1.ResumeScheduleRequest) (*holdfastv1.Schedule, error) {
	x, err := s.cfg.Schedules.Resume(ctx, q.GetSchedule())
	return s.showSchedule(ctx, x, err)
}

// DeleteSchedule implements the service; see api.proto.
func (s *Server) DeleteSchedule(ctx context.Context, q *holdfastv1.DeleteScheduleRequest) (*holdfastv1.DeleteScheduleResponse, error) {
	if err := s.cfg.Schedules.Delete(ctx, q.GetSchedule()); err != nil {
		return nil, err
	}
	return &holdfastv1.DeleteScheduleResponse{}, nil
}

// showSchedule is a schedule with its snapshots, or the error.
func (s *Server) showSchedule(ctx context.Context, x holdfast.Schedule, err error) (*holdfastv1.Schedule, error) {
	switch {
	case errors.Is(err, holdfast.NotFound):
		return nil, &holdfast.Error{Op: "find schedule", Kind: holdfast.NotFound, Msg: "there is no such schedule; holdfast schedule list shows those there are"}
	case err != nil:
		return nil, err
	}
	recs, err := s.cfg.Store.Volumes(ctx)
	if err != nil {
		return nil, holdfast.Wrap("inspect schedule "+x.Name, err)
	}
	return scheduleProto(x, recs), nil
}

// scheduleProto is a schedule with what the records say that it has done.
func scheduleProto(x holdfast.Schedule, recs []holdfast.Record) *holdfastv1.Schedule {
	out := &holdfastv1.Schedule{Name: x.Name, Cron: x.Cron, Zone: x.Zone, VolumeId: string(x.Volume), Labels: maps.Clone(x.Labels),
		KeepLast: int32(x.KeepLast), KeepSeconds: x.KeepSeconds, Created: timestamppb.New(x.Created), Paused: x.Paused, Problem: x.Problem}
	if !x.LastRun.IsZero() {
		out.LastRun = timestamppb.New(x.LastRun)
	}
	if next := schedule.Next(x, time.Now()); !next.IsZero() {
		out.NextRun = timestamppb.New(next)
	}
	for i := range recs {
		r := &recs[i]
		if r.ID == x.Volume {
			out.Volume = r.Name
		}
		if x.Selects(r) {
			out.Volumes++
		}
		for _, y := range schedule.Made(x, r) {
			out.Kept++
			out.Snapshots = append(out.Snapshots, snapshotProto(r, y))
		}
	}
	return out
}
