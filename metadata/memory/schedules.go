package memory

import (
	"context"
	"fmt"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/metadata/internal/layout"
)

// PutSchedule stores a schedule.
func (s *Store) PutSchedule(ctx context.Context, x holdfast.Schedule) (holdfast.Schedule, error) {
	data, err := layout.EncodeSchedule(x)
	if err != nil {
		return holdfast.Schedule{}, err
	}
	var out holdfast.Schedule
	err = s.do(ctx, Op{"PutSchedule", x.Name}, func(d *db) error {
		key := layout.ScheduleKey(x.Name)
		if have := d.values[key].revision; have != x.Revision {
			out, _ = d.schedule(key)
			return holdfast.E("", holdfast.Busy, fmt.Sprintf("the schedule changed meanwhile: it is at revision %d, not %d; read it again", have, x.Revision))
		}
		d.put(key, data)
		out, err = d.schedule(key)
		return err
	})
	return out, err
}

func (d *db) schedule(key string) (holdfast.Schedule, error) {
	v, ok := d.values[key]
	if !ok {
		return holdfast.Schedule{}, holdfast.E("", holdfast.NotFound, "there is no such schedule")
	}
	return layout.DecodeSchedule(key, v.data, v.revision)
}

// Schedule reads one schedule.
func (s *Store) Schedule(ctx context.Context, name string) (holdfast.Schedule, error) {
	var out holdfast.Schedule
	if err := layout.CheckID("read schedule", "schedule's name", name); err != nil {
		return out, err
	}
	err := s.do(ctx, Op{"Schedule", name}, func(d *db) (err error) {
		out, err = d.schedule(layout.ScheduleKey(name))
		return err
	})
	return out, err
}

// Schedules reads all schedules.
func (s *Store) Schedules(ctx context.Context) ([]holdfast.Schedule, error) {
	var out []holdfast.Schedule
	bad := skipped{}
	err := s.do(ctx, Op{Name: "Schedules"}, func(d *db) error {
		for _, key := range d.list(layout.Schedules) {
			if x, err := d.schedule(key); err != nil {
				bad[key] = err
			} else {
				out = append(out, x)
			}
		}
		return nil
	})
	s.report(bad)
	return out, err
}

// DropSchedule forgets a schedule.
func (s *Store) DropSchedule(ctx context.Context, name string) error {
	if err := layout.CheckID("drop schedule", "schedule's name", name); err != nil {
		return err
	}
	return s.do(ctx, Op{"DropSchedule", name}, func(d *db) error {
		if key := layout.ScheduleKey(name); d.values[key].revision != 0 {
			d.drop(key)
		}
		return nil
	})
}
