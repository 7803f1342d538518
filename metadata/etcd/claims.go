package etcd

import (
	"context"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/metadata/internal/layout"
)

// Claim is who owns a name.
func (s *Store) Claim(ctx context.Context, name string) (string, error) {
	op := "read claim " + name
	if err := layout.CheckID(op, "claimed name", name); err != nil {
		return "", err
	}
	resp, err := s.get(ctx, op, layout.ClaimKey(name))
	if err != nil || len(resp.Kvs) == 0 {
		return "", err
	}
	return string(resp.Kvs[0].Value), nil
}

// SwapClaim gives a name to another owner.
func (s *Store) SwapClaim(ctx context.Context, name, from, to string) (string, error) {
	op := "change claim " + name
	if err := layout.CheckID(op, "claimed name", name); err != nil {
		return "", err
	}
	key := s.key(layout.ClaimKey(name))
	t := txn{otherwise: []clientv3.Op{clientv3.OpGet(key)}}
	if from == "" {
		t.cond = []clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(key), "=", 0)}
	} else {
		t.cond = []clientv3.Cmp{clientv3.Compare(clientv3.Value(key), "=", from)}
	}
	switch {
	case to != "":
		t.then = []clientv3.Op{clientv3.OpPut(key, to)}
	default:
		t.then = []clientv3.Op{clientv3.OpDelete(key)}
	}
	resp, err := s.txn(ctx, op, t)
	if err != nil {
		return "", err
	}
	if resp.Succeeded {
		return to, nil
	}
	owner := ""
	if kvs := resp.Responses[0].GetResponseRange().Kvs; len(kvs) > 0 {
		owner = string(kvs[0].Value)
	}
	return owner, holdfast.E(op, holdfast.Busy, "it is claimed by "+owner)
}
