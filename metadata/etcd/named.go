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

// named is a kind of thing that is kept under its name and changed by
// compare-and-swap of its revision.
type named[T any] struct {
	s      *Store
	what   string // as messages call one
	prefix string // of all keys
	key    func(name string) string
	encode func(T) ([]byte, error)
	decode func(key string, p []byte, revision int64) (T, error)
	id     func(T) (name string, revision int64)
}

func (k named[T]) read(kv *mvccpb.KeyValue) (T, error) {
	return k.decode(strings.TrimPrefix(string(kv.Key), k.s.cfg.Prefix), kv.Value, kv.ModRevision)
}

// put stores one that nobody changed meanwhile; with kind Busy it gives what is
// there.
func (k named[T]) put(ctx context.Context, x T) (T, error) {
	var none T
	name, revision := k.id(x)
	op := "store " + k.what + " " + name
	data, err := k.encode(x)
	if err != nil {
		return none, err
	}
	at := k.s.key(k.key(name))
	resp, err := k.s.txn(ctx, op, txn{
		cond:      []clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(at), "=", revision)},
		then:      []clientv3.Op{clientv3.OpPut(at, string(data))},
		otherwise: []clientv3.Op{clientv3.OpGet(at)},
	})
	if err != nil {
		return none, err
	}
	if resp.Succeeded {
		return k.decode(k.key(name), data, resp.Header.Revision)
	}
	return k.changed(op, revision, resp.Responses[0].GetResponseRange().Kvs)
}

// changed is the answer to who was late.
func (k named[T]) changed(op string, revision int64, kvs []*mvccpb.KeyValue) (T, error) {
	var have int64
	var now T
	if len(kvs) > 0 {
		have = kvs[0].ModRevision
		now, _ = k.read(kvs[0])
	}
	return now, holdfast.E(op, holdfast.Busy, fmt.Sprintf("the %s changed meanwhile: it is at revision %d, not %d; read it again", k.what, have, revision))
}

// get reads one; kind NotFound if there is none.
func (k named[T]) get(ctx context.Context, name string) (T, error) {
	var none T
	op := "read " + k.what + " " + name
	if err := layout.CheckID(op, k.what+"'s name", name); err != nil {
		return none, err
	}
	resp, err := k.s.get(ctx, op, k.key(name))
	if err != nil {
		return none, err
	}
	if len(resp.Kvs) == 0 {
		return none, holdfast.E(op, holdfast.NotFound, "there is no such "+k.what)
	}
	x, err := k.read(resp.Kvs[0])
	return x, holdfast.Wrap(op, err)
}

// list reads all of them; what cannot be read is left out, with a warning.
func (k named[T]) list(ctx context.Context) ([]T, error) {
	resp, err := k.s.get(ctx, "list "+k.what+"s", k.prefix, clientv3.WithPrefix())
	if err != nil {
		return nil, err
	}
	var out []T
	for _, kv := range resp.Kvs {
		x, err := k.read(kv)
		if err != nil {
			k.s.skip(string(kv.Key), err)
			continue
		}
		out = append(out, x)
	}
	return out, nil
}

// drop removes one that nobody changed meanwhile; one that is gone is well.
func (k named[T]) drop(ctx context.Context, x T) error {
	name, revision := k.id(x)
	op := "drop " + k.what + " " + name
	at := k.s.key(k.key(name))
	resp, err := k.s.txn(ctx, op, txn{
		cond:      []clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(at), "=", revision)},
		then:      []clientv3.Op{clientv3.OpDelete(at)},
		otherwise: []clientv3.Op{clientv3.OpGet(at)},
	})
	if err != nil || resp.Succeeded {
		return err
	}
	kvs := resp.Responses[0].GetResponseRange().Kvs
	if len(kvs) == 0 {
		return nil
	}
	_, err = k.changed(op, revision, kvs)
	return err
}
