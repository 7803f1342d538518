package etcd

import (
	"context"
	"slices"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/metadata/internal/layout"
)

// tombstonesAtOnce stays below the 128 operations that etcd allows in one
// transaction by default.
const tombstonesAtOnce = 100

// AddTombstones allows replicas' data to be removed. Adding one again is fine,
// so that a call that failed in between is repeated.
func (s *Store) AddTombstones(ctx context.Context, ts []holdfast.Tombstone) error {
	puts, err := s.putTombstones(ts, nil)
	if err != nil {
		return err
	}
	for part := range slices.Chunk(puts, tombstonesAtOnce) {
		if _, err := s.txn(ctx, "add tombstones", txn{then: part}); err != nil {
			return err
		}
	}
	return nil
}

// Tombstones reads all.
func (s *Store) Tombstones(ctx context.Context) ([]holdfast.Tombstone, error) {
	resp, err := s.get(ctx, "list tombstones", layout.Tombstones, clientv3.WithPrefix())
	if err != nil {
		return nil, err
	}
	var out []holdfast.Tombstone
	for _, kv := range resp.Kvs {
		t, err := layout.DecodeTombstone(strings.TrimPrefix(string(kv.Key), s.cfg.Prefix), kv.Value)
		if err != nil {
			s.skip(string(kv.Key), err)
			continue
		}
		out = append(out, t)
	}
	return out, nil
}

// DropTombstone removes one that has been carried out.
func (s *Store) DropTombstone(ctx context.Context, id holdfast.ReplicaID) error {
	_, err := s.txn(ctx, "drop tombstone of replica "+string(id),
		txn{then: []clientv3.Op{clientv3.OpDelete(s.key(layout.TombstoneKey(id)))}})
	return err
}
