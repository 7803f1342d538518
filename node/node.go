package node

import (
	"context"
	"errors"
	"net"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/node/agent"
	"github.com/holdfast-storage/holdfast/node/dataplane"
	"github.com/holdfast-storage/holdfast/node/device/frontends"
	"github.com/holdfast-storage/holdfast/node/device/fuseloop"
	"github.com/holdfast-storage/holdfast/node/freeze"
)

// stopTimeout bounds giving back what can be given back when the daemon stops.
const stopTimeout = 10 * time.Second

// Abandon, as the cause that ends Run's context, makes it stop without giving
// anything back, as a crash would: for tests, and for a watchdog.
type Abandon struct{}

// Error implements error.
func (Abandon) Error() string { return "the node is abandoned" }

// HandOver, as the cause that ends Run's context, makes it stop for a successor
// that follows at once: devices that the keeper holds are left to it.
type HandOver struct{}

// Error implements error.
func (HandOver) Error() string { return "the node is handed over to the next daemon" }

// FreeDying waits until a predecessor with this run directory is gone that was
// killed, but has a thread in the kernel that waits for one of its own devices,
// and frees it from that in the end. It says whether there is none any more.
func FreeDying(runDir string, k fuseloop.Keeper) bool {
	f, err := fuseloop.New(fuseloop.Config{Root: frontends.Root(runDir, frontends.FuseLoop), Keeper: k})
	if err != nil {
		return false
	}
	return f.Close() == nil
}

// Node is one node's daemon: New, then Run, once.
type Node struct {
	cfg     Config
	changes *changes
	ready   chan struct{}
	agent   *agent.Agent
	plane   *dataplane.Plane
	front   *frontends.Set
	freezer *freeze.Freezer
	lock    *os.File // of the instance
}

// New makes a node that does nothing yet. Errors: Invalid.
func New(cfg Config) (*Node, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Node{cfg: cfg, changes: newChanges(), ready: make(chan struct{})}, nil
}

// Run is New and Run in one call.
func Run(ctx context.Context, cfg Config) error {
	n, err := New(cfg)
	if err != nil {
		return err
	}
	return n.Run(ctx)
}

// Ready is closed when the node is registered and answers.
func (n *Node) Ready() <-chan struct{} { return n.ready }

// Agent is the node's agent; only once Ready.
func (n *Node) Agent() *agent.Agent { return n.agent }

// Run is the node's life until ctx ends, which is no error. Then what is not
// mounted is detached, and the lease is given back. Errors: InUse when another
// process is this node, or holds an address or the run directory.
func (n *Node) Run(ctx context.Context) error {
	op := "run node " + string(n.cfg.Agent.ID)
	if err := n.build(ctx); err != nil {
		return holdfast.Wrap(op, errors.Join(err, n.dismantle(nil)))
	}
	err := n.agent.Start(ctx)
	if err == nil {
		err = n.serve(ctx)
	}
	return holdfast.Wrap(op, errors.Join(err, n.dismantle(context.Cause(ctx))))
}

// build makes the parts; none of them answers anybody yet.
func (n *Node) build(ctx context.Context) error {
	boot, err := bootID()
	if err != nil {
		return err
	}
	cfg := n.cfg.Agent
	if n.lock, cfg.Instance, err = takeInstance(ctx, n.cfg.StateDir, boot); err != nil {
		return err
	}
	cluster, err := n.identity(ctx)
	if err != nil {
		return err
	}
	n.front, err = frontends.New(frontends.Config{Wanted: n.cfg.FrontEnd, RunDir: n.cfg.RunDir, Keeper: n.cfg.Keeper, Helper: n.cfg.DeviceHelper, Log: n.cfg.Log})
	if err != nil {
		return err
	}
	if n.plane, err = n.newPlane(cluster); err != nil {
		return err
	}
	if n.freezer, err = n.newFreezer(); err != nil {
		return err
	}
	n.agent, err = agent.New(cfg, agent.Deps{
		Store: n.cfg.Store, Plane: plane{n.plane}, FrontEnd: n.front, Pools: n.newPools(cluster, boot, n.plane), Freezer: n.freezer, Log: n.cfg.Log,
	})
	return err
}

// identityPause is between two questions for the cluster's identity.
const identityPause = 500 * time.Millisecond

// identity reads the cluster's identity, however long the metadata store is away:
// a daemon that ended for that would take its devices with it.
func (n *Node) identity(ctx context.Context) (holdfast.ClusterID, error) {
	every := time.NewTicker(identityPause)
	defer every.Stop()
	for {
		id, err := n.cfg.Store.Cluster(ctx)
		if !errors.Is(err, holdfast.Unavailable) || ctx.Err() != nil {
			return id, err
		}
		n.cfg.Log.Warn("the metadata store does not answer; this node starts when it does", "err", err)
		select {
		case <-ctx.Done():
			return "", err
		case <-every.C:
		}
	}
}

// dismantle ends the parts in the order that keeps others safe.
func (n *Node) dismantle(cause error) error {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	errs := []error{n.thaw(ctx, errors.Is(cause, Abandon{}))}
	switch {
	case n.agent != nil && errors.Is(cause, Abandon{}):
		errs = append(errs, n.agent.Abandon(n.plane.Close))
	case n.agent != nil && errors.Is(cause, HandOver{}):
		errs = append(errs, n.agent.HandOver(ctx, n.plane.Close))
	case n.agent != nil:
		errs = append(errs, n.agent.Close(ctx, n.plane.Close))
	case n.plane != nil:
		errs = append(errs, n.plane.Close())
	}
	if n.front != nil {
		errs = append(errs, n.front.Close())
	}
	if n.lock != nil { // last: it says that nothing of this process is left
		errs = append(errs, n.lock.Close())
	}
	return errors.Join(errs...)
}

// serve answers others and does the agent's duties until ctx ends.
func (n *Node) serve(ctx context.Context) error {
	data, err := n.cfg.RPC.ListenData(ctx, n.cfg.DataListen)
	if err != nil {
		return err
	}
	defer func() { _ = data.Close() }()
	api, err := n.cfg.RPC.Listen(ctx, n.cfg.APIListen)
	if err != nil {
		return err
	}
	defer func() { _ = api.Close() }()
	g, ctx := errgroup.WithContext(ctx)
	csi, err := n.listenCSI(ctx)
	if err != nil {
		return err
	}
	g.Go(csi)
	g.Go(func() error {
		return agent.NewService(n.agent).Serve(ctx, agent.Endpoint{RPC: n.cfg.RPC, Listener: api, More: n.cfg.RegisterAPI})
	})
	g.Go(func() error { return n.serveData(ctx, data) })
	g.Go(func() error { n.changes.run(ctx, n.agent.Note); return nil })
	g.Go(func() error {
		return n.agent.Run(ctx, agent.Addrs{Data: n.cfg.advertised(data), API: n.cfg.advertised(api)})
	})
	g.Go(func() error {
		select {
		case <-n.agent.Registered():
			close(n.ready)
		case <-ctx.Done():
		}
		return nil
	})
	return g.Wait()
}

// serveData runs the replica server until ctx ends.
func (n *Node) serveData(ctx context.Context, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	err := n.plane.Serve(l)
	if ctx.Err() != nil {
		return nil
	}
	return err
}
