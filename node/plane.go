package node

import (
	"context"
	"net"
	"sync"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/node/agent"
	"github.com/holdfast-storage/holdfast/node/dataplane"
)

// plane shows the data plane as the agent wants it.
type plane struct{ *dataplane.Plane }

func (p plane) Open(ctx context.Context, id holdfast.VolumeID, o agent.OpenOptions) (agent.Volume, error) {
	v, err := p.Plane.Open(ctx, id, dataplane.OpenOptions{Kind: o.Kind, Force: o.Force})
	if err != nil {
		return nil, err // not a nil *dataplane.Volume inside a non-nil interface
	}
	return v, nil
}

// newPlane makes the data plane. Events about volumes go to the agent, which is
// made after it.
func (n *Node) newPlane(cluster holdfast.ClusterID) (*dataplane.Plane, error) {
	c := n.cfg
	quiet, err := newQuietGrants(c.RunDir, c.Log)
	if err != nil {
		return nil, err
	}
	return dataplane.New(dataplane.Config{
		Cluster: cluster, Self: c.Agent.ID, Volumes: c.Store, Alive: c.Store.Alive,
		Addr: func(ctx context.Context, id holdfast.NodeID) (string, error) {
			node, err := c.Store.Node(ctx, id)
			if err == nil && node.DataAddr == "" {
				err = holdfast.E("find node "+string(id), holdfast.Unavailable, "it has not said yet where it is")
			}
			return node.DataAddr, err
		},
		Others: func(ctx context.Context) ([]holdfast.NodeID, error) {
			all, err := c.Store.Nodes(ctx)
			var ids []holdfast.NodeID
			for _, x := range all {
				if x.Alive && x.ID != c.Agent.ID {
					ids = append(ids, x.ID)
				}
			}
			return ids, err
		},
		Dial: func(ctx context.Context, addr string) (net.Conn, error) { return c.RPC.DialData(ctx, addr) },
		Log:  c.Log, Primary: c.Primary, RepairRate: c.RepairRate, Repairs: c.Repairs,
		Changed: n.changes.put, Quiet: quiet, Stepped: c.Stepped,
	})
}

// changes takes events from under the volumes' locks to the agent: put never
// blocks. It keeps what came before the agent was there.
type changes struct {
	mu    sync.Mutex
	queue []change
	soon  chan struct{} // capacity 1
}

type change struct {
	id   holdfast.VolumeID
	what string
}

// maxChanges bounds what waits to be written down; more is dropped: these are
// words for people.
const maxChanges = 4096

func newChanges() *changes { return &changes{soon: make(chan struct{}, 1)} }

func (c *changes) put(id holdfast.VolumeID, what string) {
	c.mu.Lock()
	if len(c.queue) < maxChanges {
		c.queue = append(c.queue, change{id, what})
	}
	c.mu.Unlock()
	select {
	case c.soon <- struct{}{}:
	default:
	}
}

// run hands what is put to f until ctx ends.
func (c *changes) run(ctx context.Context, f func(id holdfast.VolumeID, what string)) {
	for {
		c.mu.Lock()
		all := c.queue
		c.queue = nil
		c.mu.Unlock()
		for _, x := range all {
			f(x.id, x.what)
		}
		select {
		case <-c.soon:
		case <-ctx.Done():
			return
		}
	}
}
