// Package schedule takes snapshots at times, and deletes those that it has taken
// when they are not to be kept any longer.
//
// It promises that a due run makes one snapshot of each volume, whoever leads and
// however often it is repeated: the snapshot's name is made of the schedule, the
// volume and the time when it was due. After a time in which nobody ran, as many
// runs as were missed make one snapshot, not one each. A volume of which a
// scheduled snapshot could not be taken yet gets no second one. Only snapshots
// that a schedule has made are deleted, never the newest one, and none while it is
// paused or when it is gone.
//
// It does not promise that a snapshot is taken at its time: a run begins some
// seconds after, and waits for the volume's replicas. It keeps no state and owns
// no goroutine; the leading controller calls Pass.
package schedule

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/controller/lifecycle"
	"github.com/holdfast-storage/holdfast/metadata"
)

// Snapshots takes and deletes snapshots; every call is idempotent.
type Snapshots interface {
	// WantSnapshot has a snapshot taken, and does not wait for it.
	WantSnapshot(ctx context.Context, q lifecycle.SnapshotRequest) (holdfast.Record, lifecycle.SnapshotRef, error)
	DeleteSnapshot(ctx context.Context, ref lifecycle.SnapshotRef) error
}

// Store is where schedules and volumes are.
type Store interface {
	metadata.Schedules
	Volume(ctx context.Context, idOrName string) (holdfast.Record, error)
	Volumes(ctx context.Context) ([]holdfast.Record, error)
}

// Config is what the service needs. Store and Snapshots are required.
type Config struct {
	Store     Store
	Snapshots Snapshots
	Log       *slog.Logger
	Now       func() time.Time // default time.Now
}

// Service works with schedules. Use New; all methods may be called from any
// goroutine.
type Service struct{ cfg Config }

// New checks the configuration.
func New(cfg Config) (*Service, error) {
	if cfg.Store == nil || cfg.Snapshots == nil {
		return nil, holdfast.E("make schedules", holdfast.Invalid, "a metadata store and a service for snapshots are needed")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Service{cfg}, nil
}

func (s *Service) now() time.Time { return s.cfg.Now().UTC().Round(0) }

// Create makes a schedule; Volume may be a name. The same again answers with what
// exists. Errors: Invalid, with what to write instead; NotFound for the volume;
// Exists when there is another one of that name.
func (s *Service) Create(ctx context.Context, x holdfast.Schedule) (holdfast.Schedule, error) {
	op := "create schedule " + x.Name
	x.Version, x.Created = holdfast.ScheduleVersion, s.now()
	x.Since, x.Revision = x.Created, 0
	if x.Volume != "" {
		rec, err := s.cfg.Store.Volume(ctx, string(x.Volume))
		if err != nil {
			return x, holdfast.Wrap(op, err)
		}
		x.Volume = rec.ID
	}
	if err := x.Validate(); err != nil {
		return x, holdfast.Wrap(op, err)
	}
	t, err := parse(x)
	if err == nil && t.next(x.Created).IsZero() {
		err = holdfast.E("", holdfast.Invalid, fmt.Sprintf("%q is never due; does the month have that day?", x.Cron))
	}
	if err != nil {
		return x, holdfast.Wrap(op, err)
	}
	stored, err := s.cfg.Store.PutSchedule(ctx, x)
	if errors.Is(err, holdfast.Busy) && stored.Name != "" {
		if !same(stored, x) {
			return stored, holdfast.E(op, holdfast.Exists, "there is another schedule of this name; delete it first, or choose another name")
		}
		return stored, nil
	}
	return stored, holdfast.Wrap(op, err)
}

// same says whether two schedules ask for the same.
func same(a, b holdfast.Schedule) bool {
	return a.Cron == b.Cron && a.Zone == b.Zone && a.Volume == b.Volume && maps.Equal(a.Labels, b.Labels) &&
		a.KeepLast == b.KeepLast && a.KeepSeconds == b.KeepSeconds
}

// Get reads a schedule. Errors: NotFound.
func (s *Service) Get(ctx context.Context, name string) (holdfast.Schedule, error) {
	x, err := s.cfg.Store.Schedule(ctx, name)
	return x, holdfast.Wrap("get schedule "+name, err)
}

// List reads all schedules, ordered by name.
func (s *Service) List(ctx context.Context) ([]holdfast.Schedule, error) {
	xs, err := s.cfg.Store.Schedules(ctx)
	return xs, holdfast.Wrap("list schedules", err)
}

// Pause stops a schedule: nothing is taken, nothing deleted. Again is fine.
func (s *Service) Pause(ctx context.Context, name string) (holdfast.Schedule, error) {
	x, err := s.change(ctx, name, func(x *holdfast.Schedule) { x.Paused, x.Problem = true, "" })
	return x, holdfast.Wrap("pause schedule "+name, err)
}

// Resume ends a pause; what was due meanwhile is not done any more. Again is fine.
func (s *Service) Resume(ctx context.Context, name string) (holdfast.Schedule, error) {
	x, err := s.change(ctx, name, func(x *holdfast.Schedule) {
		if x.Paused {
			x.Paused, x.Since = false, s.now()
		}
	})
	return x, holdfast.Wrap("resume schedule "+name, err)
}

// Delete forgets a schedule; its snapshots stay, and nobody deletes them any more.
// One that is not there is fine.
func (s *Service) Delete(ctx context.Context, name string) error {
	return holdfast.Wrap("delete schedule "+name, s.cfg.Store.DropSchedule(ctx, name))
}

// maxRaces bounds how often a change is tried again because somebody else changed
// the same schedule first.
const maxRaces = 20

func (s *Service) change(ctx context.Context, name string, f func(*holdfast.Schedule)) (holdfast.Schedule, error) {
	for range maxRaces {
		x, err := s.cfg.Store.Schedule(ctx, name)
		if err != nil {
			return x, err
		}
		next := x.Clone()
		if f(&next); next.Paused == x.Paused && next.Problem == x.Problem && next.Since.Equal(x.Since) && next.LastRun.Equal(x.LastRun) {
			return x, nil
		}
		next, err = s.cfg.Store.PutSchedule(ctx, next)
		if !errors.Is(err, holdfast.Busy) {
			return next, err
		}
	}
	return holdfast.Schedule{}, holdfast.E("", holdfast.Unavailable, "others keep changing the schedule; try again")
}
