package etcd

import (
	"context"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/metadata"
	"github.com/holdfast-storage/holdfast/metadata/internal/layout"
)

// watchRetry is the pause before everything is read again.
const watchRetry = 200 * time.Millisecond

// WatchVolumes reports every record and then every change. Whatever happens to
// the watch (compaction, no leader, a member that went away, an etcd that was
// put back) it reads everything again: there is one way back, and it is the one
// that every start takes.
func (s *Store) WatchVolumes(ctx context.Context, f func(metadata.VolumeEvent)) error {
	const op = "watch volumes"
	known := map[holdfast.VolumeID]bool{}
	for {
		s.watchOnce(ctx, known, f)
		select {
		case <-ctx.Done():
			return holdfast.WrapKind(op, holdfast.Unavailable, context.Cause(ctx))
		case <-s.life.Done():
			return holdfast.E(op, holdfast.Unavailable, "the metadata store is closed")
		case <-time.After(watchRetry):
		}
	}
}

// watchOnce reads everything and follows the changes until something is wrong.
// known are the volumes reported and not yet reported as deleted.
func (s *Store) watchOnce(ctx context.Context, known map[holdfast.VolumeID]bool, f func(metadata.VolumeEvent)) {
	rewound := s.rewoundChan() // before the read: what is put back after it is noticed
	resp, err := s.get(ctx, "list volumes", layout.Volumes, clientv3.WithPrefix())
	if err != nil {
		return
	}
	present := map[holdfast.VolumeID]bool{}
	for _, kv := range resp.Kvs {
		present[s.volumeID(kv)] = true
		s.deliver(kv, known, f)
	}
	for id := range known {
		if !present[id] {
			delete(known, id)
			f(metadata.VolumeEvent{ID: id, Deleted: true})
		}
	}
	f(metadata.VolumeEvent{Synced: true})

	// Without a leader a member would keep a watch open and silent.
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	changes := s.client.Watch(ctx, s.key(layout.Volumes), clientv3.WithPrefix(), clientv3.WithRev(resp.Header.Revision+1))
	for {
		select {
		case <-rewound:
			return
		case <-s.life.Done():
			return
		case w, ok := <-changes:
			if !ok || w.Err() != nil {
				return
			}
			for _, e := range w.Events {
				s.change(e, known, f)
			}
		}
	}
}

func (s *Store) change(e *clientv3.Event, known map[holdfast.VolumeID]bool, f func(metadata.VolumeEvent)) {
	if e.Type == mvccpb.Event_PUT {
		s.deliver(e.Kv, known, f)
		return
	}
	id := s.volumeID(e.Kv)
	delete(known, id)
	f(metadata.VolumeEvent{ID: id, Deleted: true})
}

func (s *Store) deliver(kv *mvccpb.KeyValue, known map[holdfast.VolumeID]bool, f func(metadata.VolumeEvent)) {
	r, err := s.record([]*mvccpb.KeyValue{kv})
	if err != nil {
		s.skip(string(kv.Key), err)
		return
	}
	known[r.ID] = true
	f(metadata.VolumeEvent{ID: r.ID, Record: r})
}

func (s *Store) volumeID(kv *mvccpb.KeyValue) holdfast.VolumeID {
	return holdfast.VolumeID(layout.ID(strings.TrimPrefix(string(kv.Key), s.cfg.Prefix), layout.Volumes))
}
