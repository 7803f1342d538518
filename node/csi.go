package node

import (
	"context"
	"path/filepath"

	nodecsi "github.com/holdfast-storage/holdfast/node/csi"
)

// listenCSI makes the socket for orchestrators on this machine, if one is
// configured, and returns what answers on it.
func (n *Node) listenCSI(ctx context.Context) (run func() error, err error) {
	c := n.cfg
	if c.CSIEndpoint == "" {
		return func() error { return nil }, nil
	}
	service, err := nodecsi.New(nodecsi.Config{Volumes: n.agent, StateDir: filepath.Join(c.StateDir, "csi"), Log: c.Log, NoStaging: c.CSINoStaging, Thaw: n.freezer.Release})
	if err != nil {
		return nil, err
	}
	return service.Serve(ctx, nodecsi.Endpoint{RPC: c.RPC, Target: c.CSIEndpoint, More: c.RegisterCSI})
}
