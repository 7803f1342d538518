package etcd

import (
	"context"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/metadata/internal/layout"
)

func (s *Store) schedules() named[holdfast.Schedule] {
	return named[holdfast.Schedule]{s: s, what: "schedule", prefix: layout.Schedules, key: layout.ScheduleKey, encode: layout.EncodeSchedule, decode: layout.DecodeSchedule,
		id: func(x holdfast.Schedule) (string, int64) { return x.Name, x.Revision }}
}

// PutSchedule stores a schedule that nobody changed meanwhile.
func (s *Store) PutSchedule(ctx context.Context, x holdfast.Schedule) (holdfast.Schedule, error) {
	return s.schedules().put(ctx, x)
}

// Schedule reads one schedule.
func (s *Store) Schedule(ctx context.Context, name string) (holdfast.Schedule, error) {
	return s.schedules().get(ctx, name)
}

// Schedules reads all schedules.
func (s *Store) Schedules(ctx context.Context) ([]holdfast.Schedule, error) {
	return s.schedules().list(ctx)
}

// DropSchedule forgets a schedule.
func (s *Store) DropSchedule(ctx context.Context, name string) error {
	op := "drop schedule " + name
	if err := layout.CheckID(op, "schedule's name", name); err != nil {
		return err
	}
	_, err := s.txn(ctx, op, txn{then: []clientv3.Op{clientv3.OpDelete(s.key(layout.ScheduleKey(name)))}})
	return err
}
