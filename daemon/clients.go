package daemon

import (
	"context"
	"errors"
	"sync"

	"google.golang.org/grpc"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/rpc"
	"github.com/holdfast-storage/holdfast/metadata"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

// nodeClients finds nodes' services by their registrations.
type nodeClients struct {
	nodes metadata.Nodes
	conns *rpc.Conns

	mu   sync.Mutex
	last map[holdfast.NodeID]string // addresses as last read
}

func newNodeClients(nodes metadata.Nodes, conns *rpc.Conns) *nodeClients {
	return &nodeClients{nodes: nodes, conns: conns, last: map[holdfast.NodeID]string{}}
}

// Client is a client of a node's services. The last address known is used while
// the metadata store does not answer. Errors: NotFound for an unknown node,
// Unavailable.
func (c *nodeClients) Client(ctx context.Context, id holdfast.NodeID) (holdfastv1.NodeServiceClient, error) {
	conn, err := c.conn(ctx, id)
	if err != nil {
		return nil, err
	}
	return holdfastv1.NewNodeServiceClient(conn), nil
}

// conn is a connection to a node's services.
func (c *nodeClients) conn(ctx context.Context, id holdfast.NodeID) (*grpc.ClientConn, error) {
	op := "find node " + string(id)
	n, err := c.nodes.Node(ctx, id)
	addr := n.APIAddr
	if err != nil {
		if errors.Is(err, holdfast.NotFound) {
			return nil, holdfast.Wrap(op, err)
		}
		if addr = c.known(id); addr == "" {
			return nil, holdfast.Wrap(op, err)
		}
	}
	c.remember(id, addr)
	if addr == "" {
		return nil, holdfast.E(op, holdfast.Unavailable, "it has not said yet where it can be reached")
	}
	conn, err := c.conns.Conn(addr)
	return conn, holdfast.Wrap(op, err)
}

func (c *nodeClients) known(id holdfast.NodeID) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last[id]
}

func (c *nodeClients) remember(id holdfast.NodeID, addr string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last[id] = addr
}
