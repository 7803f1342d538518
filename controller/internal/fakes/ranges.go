package fakes

import (
	"context"
	"io"

	"google.golang.org/grpc"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/grpcstatus"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

// Listing is what a node answers about ranges of snapshots: steps, then an error
// or the end.
type Listing func(node holdfast.NodeID, q *holdfastv1.ListSnapshotRequest) ([]*holdfastv1.ListSnapshotResponse, error)

// SetListing says what the nodes answer.
func (c *Cluster) SetListing(l Listing) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.listing = l
}

// ListSnapshot implements the node's service.
func (n *Node) ListSnapshot(_ context.Context, q *holdfastv1.ListSnapshotRequest, _ ...grpc.CallOption) (grpc.ServerStreamingClient[holdfastv1.ListSnapshotResponse], error) {
	s := &listStream{}
	err := n.serve("ListSnapshot", func() error {
		n.c.mu.Lock()
		defer n.c.mu.Unlock()
		if n.c.listing == nil {
			return holdfast.E("", holdfast.NotFound, "the replica has no such snapshot")
		}
		s.steps, s.err = n.c.listing(n.ID, q)
		return nil
	})
	return s, err
}

type listStream struct {
	grpc.ClientStream
	steps []*holdfastv1.ListSnapshotResponse
	err   error
}

func (s *listStream) Recv() (*holdfastv1.ListSnapshotResponse, error) {
	if len(s.steps) == 0 {
		if s.err != nil {
			return nil, grpcstatus.To(s.err)
		}
		return nil, io.EOF
	}
	x := s.steps[0]
	s.steps = s.steps[1:]
	return x, nil
}

// SnapshotsTake says how many bytes of a pool snapshots take.
func (c *Cluster) SnapshotsTake(pool holdfast.PoolID, bytes int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.taken == nil {
		c.taken = map[holdfast.PoolID]int64{}
	}
	c.taken[pool] = bytes
}

// poolUsage tells of the pools of 100 GiB that AddThree makes.
func (n *Node) poolUsage() []*holdfastv1.PoolUsage {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	id := holdfast.PoolID("pool-" + n.ID)
	return []*holdfastv1.PoolUsage{{PoolId: string(id), TotalBytes: 100 << 30, SnapshotBytes: n.c.taken[id]}}
}
