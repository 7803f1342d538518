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

// record decodes the record in a key-value pair; NotFound without one.
func (s *Store) record(kvs []*mvccpb.KeyValue) (holdfast.Record, error) {
	if len(kvs) == 0 {
		return holdfast.Record{}, holdfast.E("", holdfast.NotFound, "there is no such volume")
	}
	kv := kvs[0]
	return layout.DecodeRecord(strings.TrimPrefix(string(kv.Key), s.cfg.Prefix), kv.Value, kv.ModRevision)
}

// CreateVolume stores a new record under its id and its name.
func (s *Store) CreateVolume(ctx context.Context, r holdfast.Record) (holdfast.Record, error) {
	op := "create volume " + r.Name
	data, err := layout.EncodeRecord(r)
	if err != nil {
		return holdfast.Record{}, err
	}
	k, nameKey := s.key(layout.VolumeKey(r.ID)), s.key(layout.NameKey(r.Name))
	resp, err := s.txn(ctx, op, txn{
		cond: []clientv3.Cmp{
			clientv3.Compare(clientv3.CreateRevision(k), "=", 0),
			clientv3.Compare(clientv3.CreateRevision(nameKey), "=", 0),
		},
		then:      []clientv3.Op{clientv3.OpPut(k, string(data)), clientv3.OpPut(nameKey, string(r.ID))},
		otherwise: []clientv3.Op{clientv3.OpGet(k), clientv3.OpGet(nameKey)},
	})
	if err != nil {
		return holdfast.Record{}, err
	}
	if resp.Succeeded {
		return stored(r, data, resp.Header.Revision)
	}
	if kvs := resp.Responses[0].GetResponseRange().Kvs; len(kvs) > 0 {
		other, _ := s.record(kvs)
		return other, holdfast.E(op, holdfast.Exists, fmt.Sprintf("a volume with the id %s exists", r.ID))
	}
	id := string(resp.Responses[1].GetResponseRange().Kvs[0].Value)
	other, _ := s.Volume(ctx, id)
	return other, holdfast.E(op, holdfast.Exists, fmt.Sprintf("volume %s has the name %q", id, r.Name))
}

// stored is the record as a reader gets it.
func stored(r holdfast.Record, data []byte, revision int64) (holdfast.Record, error) {
	return layout.DecodeRecord(layout.VolumeKey(r.ID), data, revision)
}

// Volume reads one record by id or by name.
func (s *Store) Volume(ctx context.Context, idOrName string) (holdfast.Record, error) {
	op := "read volume " + idOrName
	if err := layout.CheckID(op, "volume's id or name", idOrName); err != nil {
		return holdfast.Record{}, err
	}
	byID := s.key(layout.VolumeKey(holdfast.VolumeID(idOrName)))
	byName := s.key(layout.NameKey(idOrName))
	resp, err := s.txn(ctx, op, txn{then: []clientv3.Op{clientv3.OpGet(byID), clientv3.OpGet(byName)}})
	if err != nil {
		return holdfast.Record{}, err
	}
	found := resp.Responses[0].GetResponseRange().Kvs
	if owner := resp.Responses[1].GetResponseRange().Kvs; len(found) == 0 && len(owner) > 0 {
		if found, err = s.named(ctx, op, byName, string(owner[0].Value)); err != nil {
			return holdfast.Record{}, err
		}
	}
	r, err := s.record(found)
	return r, holdfast.Wrap(op, err)
}

// named reads the record that a name pointed to a moment ago.
func (s *Store) named(ctx context.Context, op, nameKey, id string) ([]*mvccpb.KeyValue, error) {
	k := s.key(layout.VolumeKey(holdfast.VolumeID(id)))
	resp, err := s.txn(ctx, op, txn{
		cond:      []clientv3.Cmp{clientv3.Compare(clientv3.Value(nameKey), "=", id)},
		then:      []clientv3.Op{clientv3.OpGet(k)},
		otherwise: []clientv3.Op{clientv3.OpGet(k)},
	})
	if err != nil {
		return nil, err
	}
	kvs := resp.Responses[0].GetResponseRange().Kvs
	if resp.Succeeded && len(kvs) == 0 {
		return nil, holdfast.E(op, holdfast.Corrupt, "the name points to volume "+id+", which has no record")
	}
	return kvs, nil
}

// Volumes reads all records.
func (s *Store) Volumes(ctx context.Context) ([]holdfast.Record, error) {
	resp, err := s.get(ctx, "list volumes", layout.Volumes, clientv3.WithPrefix())
	if err != nil {
		return nil, err
	}
	var out []holdfast.Record
	for _, kv := range resp.Kvs {
		r, err := s.record([]*mvccpb.KeyValue{kv})
		if err != nil {
			s.skip(string(kv.Key), err)
			continue
		}
		out = append(out, r)
	}
	return out, nil
}

// SwapVolume replaces a record that nobody changed meanwhile.
func (s *Store) SwapVolume(ctx context.Context, r holdfast.Record) (holdfast.Record, error) {
	return s.swap(ctx, "change volume "+r.Name, r, nil)
}

// RetireReplicas replaces a record and adds tombstones, all at once.
func (s *Store) RetireReplicas(ctx context.Context, r holdfast.Record, ts []holdfast.Tombstone) (holdfast.Record, error) {
	return s.swap(ctx, "retire replicas of volume "+r.Name, r, ts)
}

func (s *Store) swap(ctx context.Context, op string, r holdfast.Record, ts []holdfast.Tombstone) (holdfast.Record, error) {
	data, err := layout.EncodeRecord(r)
	if err != nil {
		return holdfast.Record{}, err
	}
	puts, err := s.putTombstones(ts, &r)
	if err != nil {
		return holdfast.Record{}, err
	}
	k := s.key(layout.VolumeKey(r.ID))
	resp, err := s.txn(ctx, op, txn{
		cond: []clientv3.Cmp{
			unchanged(k, r.Revision),
			// The caller may have changed the name in its copy.
			clientv3.Compare(clientv3.Value(s.key(layout.NameKey(r.Name))), "=", string(r.ID)),
		},
		then:      append(puts, clientv3.OpPut(k, string(data))),
		otherwise: []clientv3.Op{clientv3.OpGet(k)},
	})
	if err != nil {
		return holdfast.Record{}, err
	}
	if resp.Succeeded {
		return stored(r, data, resp.Header.Revision)
	}
	now, err := s.conflict(op, resp, r)
	if err == nil {
		err = holdfast.E(op, holdfast.Invalid, fmt.Sprintf("a volume's name never changes; it is %q", now.Name))
	}
	return now, err
}

// unchanged compares a key's revision. A revision of 0 matches no stored value:
// a record that was never stored is created, not swapped.
func unchanged(k string, revision int64) clientv3.Cmp {
	if revision == 0 {
		revision = -1
	}
	return clientv3.Compare(clientv3.ModRevision(k), "=", revision)
}

// conflict says why a change was refused, from the record as it is now: NotFound,
// Corrupt or Busy; nil when the revision is the expected one.
func (s *Store) conflict(op string, resp *clientv3.TxnResponse, r holdfast.Record) (holdfast.Record, error) {
	now, err := s.record(resp.Responses[0].GetResponseRange().Kvs)
	if err != nil {
		return holdfast.Record{}, holdfast.Wrap(op, err)
	}
	if now.Revision != r.Revision {
		return now, holdfast.E(op, holdfast.Busy, fmt.Sprintf("the record changed meanwhile: it is at revision %d, not %d; read it again", now.Revision, r.Revision))
	}
	return now, nil
}

// DropVolume removes a record and its name and adds tombstones, all at once.
func (s *Store) DropVolume(ctx context.Context, r holdfast.Record, ts []holdfast.Tombstone) error {
	op := "delete volume " + r.Name
	puts, err := s.putTombstones(ts, nil)
	if err != nil {
		return err
	}
	k, nameKey := s.key(layout.VolumeKey(r.ID)), s.key(layout.NameKey(r.Name))
	ours := []clientv3.Cmp{clientv3.Compare(clientv3.Value(nameKey), "=", string(r.ID))}
	resp, err := s.txn(ctx, op, txn{
		cond: []clientv3.Cmp{unchanged(k, r.Revision)},
		then: append(puts, clientv3.OpDelete(k),
			clientv3.OpTxn(ours, []clientv3.Op{clientv3.OpDelete(nameKey)}, nil)),
		otherwise: []clientv3.Op{clientv3.OpGet(k)},
	})
	if err != nil || resp.Succeeded {
		return err
	}
	_, err = s.conflict(op, resp, r)
	return err
}

func (s *Store) putTombstones(ts []holdfast.Tombstone, keeps *holdfast.Record) ([]clientv3.Op, error) {
	stones, err := layout.EncodeTombstones(ts, keeps)
	if err != nil {
		return nil, err
	}
	var puts []clientv3.Op
	for _, st := range stones {
		puts = append(puts, clientv3.OpPut(s.key(st.Key), string(st.Value)))
	}
	return puts, nil
}
