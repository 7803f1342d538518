package node

import (
	"context"
	"path/filepath"
	"time"

	"github.com/holdfast-storage/holdfast/node/freeze"
)

// thawTimeout bounds what a node that stops waits for filesystems to be thawed; the
// next process goes on.
const thawTimeout = 3 * time.Second

func (n *Node) newFreezer() (*freeze.Freezer, error) {
	protect := []string{n.cfg.StateDir, n.cfg.RunDir}
	for _, p := range n.cfg.Agent.Pools {
		protect = append(protect, p.Path)
	}
	return freeze.New(freeze.Config{Dir: filepath.Join(n.cfg.RunDir, "freeze"), Protect: protect, Log: n.cfg.Log})
}

// thaw lets frozen filesystems go on while their devices still work.
func (n *Node) thaw(ctx context.Context, abandon bool) error {
	if n.freezer == nil {
		return nil
	}
	if abandon {
		return n.freezer.Abandon()
	}
	ctx, cancel := context.WithTimeout(ctx, thawTimeout)
	defer cancel()
	return n.freezer.Close(ctx)
}
