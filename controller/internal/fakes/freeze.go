package fakes

import (
	"context"

	"google.golang.org/grpc"

	"github.com/holdfast-storage/holdfast"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

// Frozen is the token of the freeze of a volume's filesystem; "" if it is not
// frozen.
func (c *Cluster) Frozen(id holdfast.VolumeID) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.frozen[id]
}

// ThawByItself ends a freeze as the node's watchdog does.
func (c *Cluster) ThawByItself(id holdfast.VolumeID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.frozen, id)
}

// Freeze implements the node's service: of volumes that Mount has mounted.
func (n *Node) Freeze(_ context.Context, in *holdfastv1.FreezeRequest, _ ...grpc.CallOption) (*holdfastv1.FreezeResponse, error) {
	out := &holdfastv1.FreezeResponse{}
	err := n.serve("Freeze", func() error {
		n.c.mu.Lock()
		defer n.c.mu.Unlock()
		id := holdfast.VolumeID(in.VolumeId)
		if have := n.c.frozen[id]; have != "" && have != in.Token {
			return holdfast.E("", holdfast.Busy, "it is frozen for another snapshot")
		}
		if out.Frozen = n.mounted[id]; out.Frozen {
			n.c.frozen[id] = in.Token
		}
		return nil
	})
	return out, err
}

// Thaw implements the node's service.
func (n *Node) Thaw(_ context.Context, in *holdfastv1.ThawRequest, _ ...grpc.CallOption) (*holdfastv1.ThawResponse, error) {
	err := n.serve("Thaw", func() error {
		n.c.mu.Lock()
		defer n.c.mu.Unlock()
		if n.c.frozen[holdfast.VolumeID(in.VolumeId)] != in.Token {
			return holdfast.E("", holdfast.Unavailable, "the freeze was over already")
		}
		delete(n.c.frozen, holdfast.VolumeID(in.VolumeId))
		return nil
	})
	return &holdfastv1.ThawResponse{}, err
}
