package node

import (
	"context"
	"os"
	"path/filepath"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sync/errgroup"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/rpc"
	nodecsi "github.com/holdfast-storage/holdfast/node/csi"
)

// serveCSI answers orchestrators on this machine, if that is configured: the CSI
// node service over the agent, and what the caller adds.
func (n *Node) serveCSI(ctx context.Context, g *errgroup.Group) error {
	c := n.cfg
	if c.CSIEndpoint == "" {
		return nil
	}
	const op = "serve CSI"
	service, err := nodecsi.New(nodecsi.Config{Volumes: n.agent, StateDir: filepath.Join(c.StateDir, "csi"), Log: c.Log})
	if err != nil {
		return holdfast.Wrap(op, err)
	}
	_, path, err := rpc.SplitTarget(c.CSIEndpoint)
	if err != nil {
		return holdfast.Wrap(op, err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return holdfast.WrapKind(op, holdfast.Invalid, err)
	}
	l, err := c.RPC.Listen(ctx, c.CSIEndpoint)
	if err != nil {
		return holdfast.Wrap(op, err)
	}
	srv := c.RPC.NewLocalServer()
	csi.RegisterNodeServer(srv, service)
	c.RegisterCSI(srv)
	n.serveGRPC(ctx, g, srv, l)
	return nil
}
