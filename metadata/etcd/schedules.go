package etcd

import (
	"context"
	"fmt"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/metadata/internal/layout"
)

func (s *Store) schedule(kv *mvccpb.KeyValue) (holdfast.Schedule, error) {
	return layout.DecodeSchedule(strings.TrimPrefix(string(kv.Key), s.cfg.Prefix), kv.Value, kv.ModRevision)
}

// PutSchedule stores a schedule that nobody changed meanwhile.
func (s *Store) PutSchedule(ctx context.Context, x holdfast.Schedule) (holdfast.Schedule, error) {
	op := "store schedule " + x.Name
	data, err := layout.EncodeSchedule(x)
	if err != nil {
		return holdfast.Schedule{}, err
	}
	k := s.key(layout.ScheduleKey(x.Name))
	resp, err := s.txn(ctx, op, txn{
		cond:      []clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(k), "=", x.Revision)},
		then:      []clientv3.Op{clientv3.OpPut(k, string(data))},
		otherwise: []clientv3.Op{clientv3.OpGet(k)},
	})
	if err != nil {
		return holdfast.Schedule{}, err
	}
	if resp.Succeeded {
		return layout.DecodeSchedule(layout.ScheduleKey(x.Name), data, resp.Header.Revision)
	}
	var have int64
	var now holdfast.Schedule
	if kvs := resp.Responses[0].GetResponseRange().Kvs; len(kvs) > 0 {
		have = kvs[0].ModRevision
		now, _ = s.schedule(kvs[0])
	}
	return now, holdfast.E(op, holdfast.Busy, fmt.Sprintf("the schedule changed meanwhile: it is at revision %d, not %d; read it again", have, x.Revision))
}

// Schedule reads one schedule.
func (s *Store) Schedule(ctx context.Context, name string) (holdfast.Schedule, error) {
	op := "read schedule " + name
	if err := layout.CheckID(op, "schedule's name", name); err != nil {
		return holdfast.Schedule{}, err
	}
	resp, err := s.get(ctx, op, layout.ScheduleKey(name))
	if err != nil {
		return holdfast.Schedule{}, err
	}
	if len(resp.Kvs) == 0 {
		return holdfast.Schedule{}, holdfast.E(op, holdfast.NotFound, "there is no such schedule")
	}
	x, err := s.schedule(resp.Kvs[0])
	return x, holdfast.Wrap(op, err)
}

// Schedules reads all schedules.
func (s *Store) Schedules(ctx context.Context) ([]holdfast.Schedule, error) {
	resp, err := s.get(ctx, "list schedules", layout.Schedules, clientv3.WithPrefix())
	if err != nil {
		return nil, err
	}
	var out []holdfast.Schedule
	for _, kv := range resp.Kvs {
		x, err := s.schedule(kv)
		if err != nil {
			s.skip(string(kv.Key), err)
			continue
		}
		out = append(out, x)
	}
	return out, nil
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
