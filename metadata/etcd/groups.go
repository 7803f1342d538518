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

func (s *Store) group(kv *mvccpb.KeyValue) (holdfast.Group, error) {
	return layout.DecodeGroup(strings.TrimPrefix(string(kv.Key), s.cfg.Prefix), kv.Value, kv.ModRevision)
}

// PutGroup stores a group snapshot that nobody changed meanwhile.
func (s *Store) PutGroup(ctx context.Context, g holdfast.Group) (holdfast.Group, error) {
	op := "store group snapshot " + g.Name
	data, err := layout.EncodeGroup(g)
	if err != nil {
		return holdfast.Group{}, err
	}
	k := s.key(layout.GroupKey(g.Name))
	resp, err := s.txn(ctx, op, txn{
		cond:      []clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(k), "=", g.Revision)},
		then:      []clientv3.Op{clientv3.OpPut(k, string(data))},
		otherwise: []clientv3.Op{clientv3.OpGet(k)},
	})
	if err != nil {
		return holdfast.Group{}, err
	}
	if resp.Succeeded {
		return layout.DecodeGroup(layout.GroupKey(g.Name), data, resp.Header.Revision)
	}
	return s.changedGroup(op, g, resp.Responses[0].GetResponseRange().Kvs)
}

// changedGroup is the answer to who was late.
func (s *Store) changedGroup(op string, g holdfast.Group, kvs []*mvccpb.KeyValue) (holdfast.Group, error) {
	var have int64
	var now holdfast.Group
	if len(kvs) > 0 {
		have = kvs[0].ModRevision
		now, _ = s.group(kvs[0])
	}
	return now, holdfast.E(op, holdfast.Busy, fmt.Sprintf("the group changed meanwhile: it is at revision %d, not %d; read it again", have, g.Revision))
}

// Group reads one group snapshot by name.
func (s *Store) Group(ctx context.Context, name string) (holdfast.Group, error) {
	op := "read group snapshot " + name
	if err := layout.CheckID(op, "group snapshot's name", name); err != nil {
		return holdfast.Group{}, err
	}
	resp, err := s.get(ctx, op, layout.GroupKey(name))
	if err != nil {
		return holdfast.Group{}, err
	}
	if len(resp.Kvs) == 0 {
		return holdfast.Group{}, holdfast.E(op, holdfast.NotFound, "there is no such group snapshot")
	}
	g, err := s.group(resp.Kvs[0])
	return g, holdfast.Wrap(op, err)
}

// Groups reads all group snapshots.
func (s *Store) Groups(ctx context.Context) ([]holdfast.Group, error) {
	resp, err := s.txn(ctx, "list group snapshots", txn{then: []clientv3.Op{clientv3.OpGet(s.key(layout.Groups), clientv3.WithPrefix())}})
	if err != nil {
		return nil, err
	}
	var out []holdfast.Group
	for _, kv := range resp.Responses[0].GetResponseRange().Kvs {
		g, err := s.group(kv)
		if err != nil {
			s.skip(string(kv.Key), err)
			continue
		}
		out = append(out, g)
	}
	return out, nil
}

// DropGroup removes a group snapshot that nobody changed meanwhile.
func (s *Store) DropGroup(ctx context.Context, g holdfast.Group) error {
	op := "drop group snapshot " + g.Name
	k := s.key(layout.GroupKey(g.Name))
	resp, err := s.txn(ctx, op, txn{
		cond:      []clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(k), "=", g.Revision)},
		then:      []clientv3.Op{clientv3.OpDelete(k)},
		otherwise: []clientv3.Op{clientv3.OpGet(k)},
	})
	if err != nil || resp.Succeeded {
		return err
	}
	kvs := resp.Responses[0].GetResponseRange().Kvs
	if len(kvs) == 0 {
		return nil
	}
	_, err = s.changedGroup(op, g, kvs)
	return err
}
