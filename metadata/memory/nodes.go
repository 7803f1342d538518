package memory

import (
	"context"
	"fmt"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/metadata"
	"github.com/holdfast-storage/holdfast/metadata/internal/layout"
)

// PutNode stores a registration.
func (s *Store) PutNode(ctx context.Context, n holdfast.Node) (holdfast.Node, error) {
	data, err := layout.EncodeNode(n)
	if err != nil {
		return holdfast.Node{}, err
	}
	var out holdfast.Node
	err = s.do(ctx, Op{"PutNode", string(n.ID)}, func(d *db) error {
		key := layout.NodeKey(n.ID)
		if have := d.values[key].revision; have != n.Revision {
			out, _ = d.node(key)
			return holdfast.E("", holdfast.Busy, fmt.Sprintf("the registration changed meanwhile: it is at revision %d, not %d; read it again", have, n.Revision))
		}
		d.put(key, data)
		out, err = d.node(key)
		return err
	})
	return out, err
}

func (d *db) node(key string) (holdfast.Node, error) {
	v, ok := d.values[key]
	if !ok {
		return holdfast.Node{}, holdfast.E("", holdfast.NotFound, "there is no such node")
	}
	n, err := layout.DecodeNode(key, v.data, v.revision)
	if err == nil {
		_, n.Alive = d.holder(layout.AliveKey(n.ID))
	}
	return n, err
}

// Node reads one registration.
func (s *Store) Node(ctx context.Context, id holdfast.NodeID) (holdfast.Node, error) {
	var out holdfast.Node
	err := s.do(ctx, Op{"Node", string(id)}, func(d *db) (err error) {
		out, err = d.node(layout.NodeKey(id))
		return err
	})
	return out, err
}

// Nodes reads all registrations.
func (s *Store) Nodes(ctx context.Context) ([]holdfast.Node, error) {
	var out []holdfast.Node
	bad := skipped{}
	err := s.do(ctx, Op{Name: "Nodes"}, func(d *db) error {
		for _, key := range d.list(layout.Nodes) {
			if n, err := d.node(key); err != nil {
				bad[key] = err
			} else {
				out = append(out, n)
			}
		}
		return nil
	})
	s.report(bad)
	return out, err
}

// DropNode forgets a node that is not alive.
func (s *Store) DropNode(ctx context.Context, id holdfast.NodeID) error {
	return s.do(ctx, Op{"DropNode", string(id)}, func(d *db) error {
		if _, ok := d.values[layout.NodeKey(id)]; !ok {
			return holdfast.E("", holdfast.NotFound, "there is no such node")
		}
		if _, alive := d.holder(layout.AliveKey(id)); alive {
			return holdfast.E("", holdfast.InUse, "the node is alive; stop its daemon first")
		}
		d.drop(layout.NodeKey(id))
		return nil
	})
}

// Join takes a node's lease.
func (s *Store) Join(ctx context.Context, id holdfast.NodeID, instance string, ttl time.Duration) (metadata.Lease, error) {
	if err := holdfast.ValidateNodeID(id); err != nil {
		return nil, err
	}
	if instance == "" || ttl <= 0 {
		return nil, holdfast.E("Join "+string(id), holdfast.Invalid, "an instance and a time to live are needed")
	}
	key := layout.AliveKey(id)
	taken := s.db.now()
	var got lease
	err := s.do(ctx, Op{"Join", string(id)}, func(d *db) error {
		if now, held := d.holder(key); held && now.holder != instance {
			return holdfast.E("", holdfast.InUse, fmt.Sprintf("instance %q of the node holds its lease; stop it, or wait until the lease runs out", now.holder))
		}
		got = d.take(key, instance, ttl)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return s.keep(s.life, key, got, taken), nil
}

// Alive says whether a node's lease is there.
func (s *Store) Alive(ctx context.Context, id holdfast.NodeID) (bool, error) {
	var alive bool
	err := s.do(ctx, Op{"Alive", string(id)}, func(d *db) error {
		_, alive = d.holder(layout.AliveKey(id))
		return nil
	})
	return alive, err
}

// Campaign waits until this candidate leads.
func (s *Store) Campaign(ctx context.Context, candidate string) (context.Context, func(), error) {
	const op = "Campaign"
	if candidate == "" {
		return nil, nil, holdfast.E(op, holdfast.Invalid, "a candidate needs a name")
	}
	for {
		taken := s.db.now()
		var got lease
		var won bool
		var changed chan struct{}
		again := metadata.DefaultLeaseTTL / 10
		err := s.do(ctx, Op{op, candidate}, func(d *db) error {
			if now, held := d.holder(layout.LeaderKey); held {
				again = time.Until(now.expires)
			} else {
				got, won = d.take(layout.LeaderKey, candidate, metadata.DefaultLeaseTTL), true
			}
			changed = d.changed
			return nil
		})
		if err == nil && won {
			return s.lead(ctx, got, taken)
		}
		if err != nil && s.life.Err() != nil {
			return nil, nil, err
		}
		select {
		case <-ctx.Done():
			return nil, nil, holdfast.WrapKind(op, holdfast.Unavailable, context.Cause(ctx))
		case <-s.life.Done():
		case <-changed:
		case <-time.After(again):
		}
	}
}

func (s *Store) lead(ctx context.Context, l lease, taken time.Duration) (context.Context, func(), error) {
	kept := s.keep(ctx, layout.LeaderKey, l, taken)
	led, end := context.WithCancelCause(ctx)
	go func() {
		<-kept.Lost()
		end(holdfast.E("lead", holdfast.Fenced, "the leadership has ended"))
	}()
	return led, func() { _ = kept.Close() }, nil
}

// Leader names the present leader.
func (s *Store) Leader(ctx context.Context) (string, error) {
	var name string
	err := s.do(ctx, Op{Name: "Leader"}, func(d *db) error {
		if l, held := d.holder(layout.LeaderKey); held {
			name = l.holder
		}
		return nil
	})
	return name, err
}
