package demo

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"sigs.k8s.io/yaml"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/daemon"
	"github.com/holdfast-storage/holdfast/internal/netcluster"
	"github.com/holdfast-storage/holdfast/internal/rpc"
	"github.com/holdfast-storage/holdfast/node/agent"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

// poolBytes is the size of each storage node's image file; it is sparse.
const poolBytes = 6 << 30

// cluster is the four daemons.
type cluster struct {
	dir    string // everything of the run
	logs   string // outlives the run
	binary string // this program
	net    netcluster.Network
	nodes  []string // in the order of their addresses; the last one has no pool
	procs  map[string]*netcluster.Process
	conns  *rpc.Conns
}

func csiSocket(dir, node string) string { return filepath.Join(dir, node, "csi.sock") }
func apiSocket(dir, node string) string { return filepath.Join(dir, node, "api.sock") }

func (c *cluster) storage() []string { return c.nodes[:len(c.nodes)-1] }

// config is a node's configuration: the storage nodes are also the three etcd
// members, so that any one of them may die.
func (c *cluster) config(i int) daemon.Config {
	id, base := c.nodes[i], filepath.Join(c.dir, c.nodes[i])
	cfg := daemon.DefaultConfig()
	cfg.Node, cfg.Address = id, c.net.Address(i)
	cfg.API, cfg.CSI = []string{"unix://" + apiSocket(c.dir, id)}, "unix://"+csiSocket(c.dir, id)
	cfg.StateDir, cfg.RunDir = filepath.Join(base, "state"), filepath.Join(base, "run")
	cfg.Domain = holdfast.Domain{Rack: "rack-" + id}
	members := map[string]string{}
	for j, n := range c.storage() {
		members[n] = c.net.Address(j)
		cfg.Etcd.Endpoints = append(cfg.Etcd.Endpoints, fmt.Sprintf("http://%s:%d", c.net.Address(j), daemon.DefaultEtcdClientPort))
	}
	if i < len(c.storage()) {
		cfg.Etcd = daemon.Etcd{Embedded: &daemon.EmbeddedEtcd{Members: members}}
		cfg.Pools = []agent.PoolConfig{{Path: filepath.Join(base, "pool.img"), Format: true, ImageBytes: poolBytes}}
	}
	return cfg
}

// prepare writes the configuration files.
func (c *cluster) prepare() error {
	for i, id := range c.nodes {
		base := filepath.Join(c.dir, id)
		if err := os.MkdirAll(base, 0o755); err != nil {
			return holdfast.Wrap("prepare node "+id, err)
		}
		text, err := yaml.Marshal(c.config(i))
		if err != nil {
			return holdfast.Wrap("prepare node "+id, err)
		}
		if err := os.WriteFile(filepath.Join(base, "node.yaml"), text, 0o644); err != nil {
			return holdfast.Wrap("prepare node "+id, err)
		}
	}
	return nil
}

// start runs a node's daemon.
func (c *cluster) start(ctx context.Context, id string) error {
	log, err := netcluster.OpenLog(c.logs, id)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	cmd := exec.CommandContext(context.WithoutCancel(ctx), c.binary, "node", "--config", filepath.Join(c.dir, id, "node.yaml"))
	cmd.Stdout, cmd.Stderr = log, log
	p, err := c.net.StartIn(id, cmd)
	if err != nil {
		return err
	}
	c.procs[id] = p
	return nil
}

// alive fails if a daemon that should run has ended.
func (c *cluster) alive() error {
	for id, p := range c.procs {
		if p.Ended() {
			return holdfast.E("run node "+id, holdfast.Unavailable, fmt.Sprintf("its daemon ended by itself (%v); see %s", p.Err(), filepath.Join(c.logs, id+".log")))
		}
	}
	return nil
}

// powerOff kills a node's daemon and everything else that runs there, takes its
// link away, and removes what the kernel of a dead machine would not know any
// more. Its pool's image stays as it is.
func (c *cluster) powerOff(ctx context.Context, id string) error {
	if err := c.net.Cut(ctx, id); err != nil {
		return err
	}
	if err := c.net.KillOn(ctx, id); err != nil {
		return err
	}
	delete(c.procs, id)
	return netcluster.Forget(filepath.Join(c.dir, id))
}

// powerOn gives the link back and starts a new daemon.
func (c *cluster) powerOn(ctx context.Context, id string) error {
	if err := c.net.Mend(ctx, id); err != nil {
		return err
	}
	return c.start(ctx, id)
}

// stop ends all daemons in good order, one after the other, so that there is a
// majority of etcd to tell; the last one has none to tell and is killed.
func (c *cluster) stop() {
	for i := len(c.nodes) - 1; i >= 0; i-- {
		p := c.procs[c.nodes[i]]
		switch {
		case p == nil:
		case i == 0:
			p.Kill()
		default:
			p.Stop(syscall.SIGTERM, 15*time.Second)
		}
	}
	c.procs = map[string]*netcluster.Process{}
}

func (c *cluster) api(node string) (*grpc.ClientConn, error) {
	return c.conns.Conn("unix://" + apiSocket(c.dir, node))
}

// status asks one node how the cluster is.
func (c *cluster) status(ctx context.Context, via string) (*holdfastv1.ClusterStatus, error) {
	cc, err := c.api(via)
	if err != nil {
		return nil, err
	}
	return holdfastv1.NewClusterServiceClient(cc).GetStatus(ctx, &holdfastv1.GetStatusRequest{})
}

// pools asks one node which pools there are.
func (c *cluster) pools(ctx context.Context, via string) ([]*holdfastv1.Pool, error) {
	cc, err := c.api(via)
	if err != nil {
		return nil, err
	}
	r, err := holdfastv1.NewClusterServiceClient(cc).ListPools(ctx, &holdfastv1.ListPoolsRequest{})
	return r.GetPools(), err
}

// volume asks one node how a volume is.
func (c *cluster) volume(ctx context.Context, via, name string) (*holdfastv1.Volume, error) {
	cc, err := c.api(via)
	if err != nil {
		return nil, err
	}
	return holdfastv1.NewVolumeServiceClient(cc).GetVolume(ctx, &holdfastv1.GetVolumeRequest{Volume: name})
}

// ready waits until all nodes and pools are there.
func (c *cluster) ready(ctx context.Context) error {
	return netcluster.Until(ctx, time.Minute, "start the cluster", func(ctx context.Context) (bool, error) {
		if err := c.alive(); err != nil {
			return false, err
		}
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		st, err := c.status(ctx, c.nodes[0])
		if err != nil {
			return false, err
		}
		if int(st.GetNodes().GetWell()) < len(c.nodes) || int(st.GetPools().GetWell()) < len(c.storage()) || st.GetLeader() == "" {
			return false, fmt.Errorf("%d nodes and %d pools are there", st.GetNodes().GetWell(), st.GetPools().GetWell())
		}
		return c.sockets(), nil
	})
}

// healthy waits until a node that was away says that all is well: then its own
// etcd member has caught up too, and another one may die.
func (c *cluster) healthy(ctx context.Context, via string) error {
	return netcluster.Until(ctx, time.Minute, "be healthy again as node "+via+" sees it", func(ctx context.Context) (bool, error) {
		if err := c.alive(); err != nil {
			return false, err
		}
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		st, err := c.status(ctx, via)
		if err != nil {
			return false, err
		}
		if len(st.GetProblems()) > 0 {
			return false, fmt.Errorf("%s: %s", st.GetProblems()[0].GetSubject(), st.GetProblems()[0].GetWhat())
		}
		return true, nil
	})
}

func (c *cluster) sockets() bool {
	for _, id := range c.nodes {
		if _, err := os.Stat(csiSocket(c.dir, id)); err != nil {
			return false
		}
	}
	return true
}

// replica is what is said about a volume's replica on a node; nil if none.
func replica(v *holdfastv1.Volume, node string) *holdfastv1.VolumeReplica {
	for _, r := range v.GetReplicas() {
		if r.GetNode() == node {
			return r
		}
	}
	return nil
}

// inSyncOn waits until the replica on a node is in sync again.
func (c *cluster) inSyncOn(ctx context.Context, via, volume, node string, limit time.Duration) (*holdfastv1.Volume, error) {
	var v *holdfastv1.Volume
	err := netcluster.Until(ctx, limit, "repair the replica on node "+node, func(ctx context.Context) (bool, error) {
		if err := c.alive(); err != nil {
			return false, err
		}
		var err error
		if v, err = c.volume(ctx, via, volume); err != nil {
			return false, err
		}
		r := replica(v, node)
		if r.GetState() == string(holdfast.InSync) && r.GetNodeAlive() {
			return true, nil
		}
		return false, fmt.Errorf("it is %s, %d bytes are left (%s)", r.GetState(), r.GetLeftBytes(), r.GetMessage())
	})
	return v, err
}

// cli runs this program's command line against a node and gives what it prints.
func (c *cluster) cli(ctx context.Context, via string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	return netcluster.Output(exec.CommandContext(ctx, c.binary, append([]string{"--endpoint", "unix://" + apiSocket(c.dir, via)}, args...)...))
}
