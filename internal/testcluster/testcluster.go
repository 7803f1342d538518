// Package testcluster runs a whole cluster in one test process: real nodes with
// real pools (XFS on loop devices over sparse image files), real block devices
// and connections over 127.0.0.1; only the metadata store is the one in memory.
// It needs root, /dev/fuse and loop devices.
//
// It promises that everything it made is gone when the test has ended, however
// it ended, as long as the process lives until its clean-ups have run; and that
// what a killed run left behind does not disturb the next, as all names are new.
// It is for tests only and keeps no promise about speed.
//
// Goroutines: one per node that runs, ended by the test's clean-up.
package testcluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/mountpoint"
	"github.com/holdfast-storage/holdfast/internal/rpc"
	"github.com/holdfast-storage/holdfast/metadata/memory"
	"github.com/holdfast-storage/holdfast/node"
	"github.com/holdfast-storage/holdfast/node/agent"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

// waitFor bounds every wait of this package.
const waitFor = 60 * time.Second

// Options describe a cluster. The zero value is three storage nodes.
type Options struct {
	Storage     int           // nodes with a pool; default 3
	Storageless int           // nodes without
	PoolBytes   int64         // of each pool's sparse image; default 1 GiB
	LeaseTTL    time.Duration // default 2 s, so that tests need not wait long
	// Configure may change a node's configuration before each start: to serve
	// CSI, for instance. Run, if set, runs beside a node until ctx ends: its
	// controller and API.
	Configure func(n *Node, c *node.Config)
	Run       func(ctx context.Context, n *Node) error
	Log       io.Writer // default: the test's log
}

// Cluster is a cluster that runs.
type Cluster struct {
	DB    *memory.Store // looks at the cluster's records; every node has a client of its own
	Nodes []*Node
	t     testing.TB
	opts  Options
	dir   string
	conns *rpc.Conns
}

// Start runs a cluster until the test ends. It fails the test if it cannot.
func Start(t testing.TB, o Options) *Cluster {
	t.Helper()
	if o.Storage == 0 && o.Storageless == 0 {
		o.Storage = 3
	}
	if o.PoolBytes == 0 {
		o.PoolBytes = 1 << 30
	}
	if o.LeaseTTL == 0 {
		o.LeaseTTL = 2 * time.Second
	}
	if o.Log == nil {
		o.Log = testLog{t}
	}
	dir, err := os.MkdirTemp("", "hf-test-cluster-")
	if err != nil {
		t.Fatal(err)
	}
	c := &Cluster{DB: memory.New(), t: t, opts: o, dir: dir, conns: rpc.NewConns(rpc.Config{})}
	t.Cleanup(c.close)
	for i := range o.Storage + o.Storageless {
		n := &Node{ID: holdfast.NodeID(fmt.Sprintf("n%d", i+1)), cluster: c, Dir: filepath.Join(dir, fmt.Sprintf("n%d", i+1)), storage: i < o.Storage}
		c.Nodes = append(c.Nodes, n)
		n.Begin()
	}
	for _, n := range c.Nodes {
		n.WaitReady()
	}
	return c
}

// testLog writes the nodes' logs to the test's.
type testLog struct{ t testing.TB }

func (l testLog) Write(p []byte) (int, error) {
	l.t.Logf("%s", p[:max(0, len(p)-1)])
	return len(p), nil
}

func (c *Cluster) close() {
	for _, n := range c.Nodes {
		n.Stop()
	}
	if err := errors.Join(c.conns.Close(), c.DB.Close()); err != nil {
		c.t.Errorf("close the cluster: %v", err)
	}
	// Never across a mount: what is still mounted below is a failure, not rubbish.
	if left := mountsBelow(c.dir); len(left) > 0 {
		c.t.Errorf("still mounted after the cluster was stopped: %v", left)
		return
	}
	if err := errors.Join(mountpoint.ReleaseBelow(c.dir), os.RemoveAll(c.dir)); err != nil {
		c.t.Errorf("remove the cluster's directory: %v", err)
	}
}

// Node is one node of a cluster: begun, stopped or killed, and begun again.
type Node struct {
	ID  holdfast.NodeID
	Dir string // its own; survives its restarts
	// Store is this start's client of the metadata store.
	Store   *memory.Store
	Config  node.Config // of this start
	cluster *Cluster
	storage bool
	node    *node.Node
	end     context.CancelCauseFunc
	over    chan struct{}
	err     error // why it ended; after over
}

// Begin starts the node without waiting for it. It must not run.
func (n *Node) Begin() {
	t, o := n.cluster.t, n.cluster.opts
	t.Helper()
	if n.end != nil {
		t.Fatalf("node %s runs already", n.ID)
	}
	if err := os.MkdirAll(n.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	n.Store = n.cluster.DB.Client()
	n.Config = n.config()
	if o.Configure != nil {
		o.Configure(n, &n.Config)
	}
	made, err := node.New(n.Config)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	n.node, n.end, n.over = made, cancel, make(chan struct{})
	go n.run(ctx)
}

func (n *Node) run(ctx context.Context) {
	defer close(n.over)
	beside := make(chan error, 1)
	go func() {
		if n.cluster.opts.Run == nil {
			beside <- nil
			return
		}
		select {
		case <-n.node.Ready():
			beside <- n.cluster.opts.Run(ctx, n)
		case <-ctx.Done():
			beside <- nil
		}
	}()
	err := n.node.Run(ctx)
	n.end(err)
	n.err = errors.Join(err, <-beside)
}

func (n *Node) config() node.Config {
	c := node.DefaultConfig()
	c.Agent.ID = n.ID
	c.Agent.Release = "test"
	c.Agent.LeaseTTL = n.cluster.opts.LeaseTTL
	c.Agent.RefreshEvery, c.Agent.PurgeEvery, c.Agent.CheckEvery, c.Agent.RetryPools = time.Second, time.Second, 500*time.Millisecond, 2*time.Second
	if n.storage {
		c.Agent.Pools = []agent.PoolConfig{{Path: filepath.Join(n.Dir, "pool.img"), Format: true, ImageBytes: n.cluster.opts.PoolBytes}}
	}
	c.Store = n.Store
	c.Log = slog.New(slog.NewTextHandler(n.cluster.opts.Log, nil)).With("on", string(n.ID))
	c.StateDir, c.RunDir = filepath.Join(n.Dir, "state"), filepath.Join(n.Dir, "run")
	c.DataListen, c.APIListen = "127.0.0.1:0", "127.0.0.1:0"
	return c
}

// WaitReady waits until the node is registered and answers.
func (n *Node) WaitReady() {
	t := n.cluster.t
	t.Helper()
	select {
	case <-n.node.Ready():
	case <-n.over:
		t.Fatalf("node %s ended: %v", n.ID, n.err)
	case <-time.After(waitFor):
		t.Fatalf("node %s is not ready after %v", n.ID, waitFor)
	}
}

// Start begins the node and waits for it.
func (n *Node) Start() {
	n.cluster.t.Helper()
	n.Begin()
	n.WaitReady()
}

// Stop ends the node as a daemon that is told to stop. One that does not run is
// fine.
func (n *Node) Stop() { n.finish(nil) }

// Kill ends the node as near to kill -9 as one process can: its metadata client
// is cut off first, so that nothing is given back and its lease runs out by
// itself; then its connections and devices break.
func (n *Node) Kill() {
	n.Store.SetOutage(true)
	n.finish(node.Abandon{})
}

func (n *Node) finish(cause error) {
	t := n.cluster.t
	t.Helper()
	if n.end == nil {
		return
	}
	n.end(cause)
	<-n.over
	n.end = nil
	if n.err != nil {
		t.Errorf("node %s: %v", n.ID, n.err)
	}
	if err := n.Store.Close(); err != nil {
		t.Errorf("node %s: close its metadata client: %v", n.ID, err)
	}
}

// Agent is the node's agent, for looking behind its services.
func (n *Node) Agent() *agent.Agent { return n.node.Agent() }

// Client speaks to the node's services over its connection.
func (n *Node) Client() holdfastv1.NodeServiceClient {
	t := n.cluster.t
	t.Helper()
	cc, err := n.cluster.conns.Conn(n.Agent().Node().APIAddr)
	if err != nil {
		t.Fatal(err)
	}
	return holdfastv1.NewNodeServiceClient(cc)
}
