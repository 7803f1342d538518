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

func (s *Store) node(kv *mvccpb.KeyValue) (holdfast.Node, error) {
	return layout.DecodeNode(strings.TrimPrefix(string(kv.Key), s.cfg.Prefix), kv.Value, kv.ModRevision)
}

// PutNode stores a registration that nobody changed meanwhile.
func (s *Store) PutNode(ctx context.Context, n holdfast.Node) (holdfast.Node, error) {
	op := "register node " + string(n.ID)
	data, err := layout.EncodeNode(n)
	if err != nil {
		return holdfast.Node{}, err
	}
	k := s.key(layout.NodeKey(n.ID))
	alive := clientv3.OpGet(s.key(layout.AliveKey(n.ID)), clientv3.WithCountOnly())
	resp, err := s.txn(ctx, op, txn{
		cond:      []clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(k), "=", n.Revision)},
		then:      []clientv3.Op{clientv3.OpPut(k, string(data)), alive},
		otherwise: []clientv3.Op{clientv3.OpGet(k), alive},
	})
	if err != nil {
		return holdfast.Node{}, err
	}
	isAlive := resp.Responses[1].GetResponseRange().Count > 0
	if resp.Succeeded {
		out, err := layout.DecodeNode(layout.NodeKey(n.ID), data, resp.Header.Revision)
		out.Alive = isAlive
		return out, err
	}
	var have int64
	var now holdfast.Node
	if kvs := resp.Responses[0].GetResponseRange().Kvs; len(kvs) > 0 {
		have = kvs[0].ModRevision
		now, _ = s.node(kvs[0])
		now.Alive = isAlive
	}
	return now, holdfast.E(op, holdfast.Busy, fmt.Sprintf("the registration changed meanwhile: it is at revision %d, not %d; read it again", have, n.Revision))
}

// Node reads one registration.
func (s *Store) Node(ctx context.Context, id holdfast.NodeID) (holdfast.Node, error) {
	op := "read node " + string(id)
	resp, err := s.txn(ctx, op, txn{then: []clientv3.Op{
		clientv3.OpGet(s.key(layout.NodeKey(id))),
		clientv3.OpGet(s.key(layout.AliveKey(id)), clientv3.WithCountOnly()),
	}})
	if err != nil {
		return holdfast.Node{}, err
	}
	kvs := resp.Responses[0].GetResponseRange().Kvs
	if len(kvs) == 0 {
		return holdfast.Node{}, holdfast.E(op, holdfast.NotFound, "there is no such node")
	}
	n, err := s.node(kvs[0])
	n.Alive = err == nil && resp.Responses[1].GetResponseRange().Count > 0
	return n, holdfast.Wrap(op, err)
}

// Nodes reads all registrations.
func (s *Store) Nodes(ctx context.Context) ([]holdfast.Node, error) {
	resp, err := s.txn(ctx, "list nodes", txn{then: []clientv3.Op{
		clientv3.OpGet(s.key(layout.Nodes), clientv3.WithPrefix()),
		clientv3.OpGet(s.key(layout.Alive), clientv3.WithPrefix(), clientv3.WithKeysOnly()),
	}})
	if err != nil {
		return nil, err
	}
	alive := map[string]bool{}
	for _, kv := range resp.Responses[1].GetResponseRange().Kvs {
		alive[string(kv.Key)] = true
	}
	var out []holdfast.Node
	for _, kv := range resp.Responses[0].GetResponseRange().Kvs {
		n, err := s.node(kv)
		if err != nil {
			s.skip(string(kv.Key), err)
			continue
		}
		n.Alive = alive[s.key(layout.AliveKey(n.ID))]
		out = append(out, n)
	}
	return out, nil
}

// DropNode forgets a node that is not alive.
func (s *Store) DropNode(ctx context.Context, id holdfast.NodeID) error {
	op := "forget node " + string(id)
	k, aliveKey := s.key(layout.NodeKey(id)), s.key(layout.AliveKey(id))
	resp, err := s.txn(ctx, op, txn{
		cond: []clientv3.Cmp{
			clientv3.Compare(clientv3.CreateRevision(k), ">", 0),
			clientv3.Compare(clientv3.CreateRevision(aliveKey), "=", 0),
		},
		then:      []clientv3.Op{clientv3.OpDelete(k)},
		otherwise: []clientv3.Op{clientv3.OpGet(k, clientv3.WithCountOnly())},
	})
	if err != nil || resp.Succeeded {
		return err
	}
	if resp.Responses[0].GetResponseRange().Count == 0 {
		return holdfast.E(op, holdfast.NotFound, "there is no such node")
	}
	return holdfast.E(op, holdfast.InUse, "the node is alive; stop its daemon first")
}

// Alive says whether a node's lease is there.
func (s *Store) Alive(ctx context.Context, id holdfast.NodeID) (bool, error) {
	resp, err := s.get(ctx, "ask whether node "+string(id)+" is alive", layout.AliveKey(id), clientv3.WithCountOnly())
	if err != nil {
		return false, err
	}
	return resp.Count > 0, nil
}
