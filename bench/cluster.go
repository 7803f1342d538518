package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/daemon"
	"github.com/holdfast-storage/holdfast/internal/rpc"
	"github.com/holdfast-storage/holdfast/node/agent"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

const (
	nodes     = 3
	poolBytes = 8 << 30
	// stopLimit is what a daemon may take to stop: an etcd inside takes up to nine
	// seconds of it.
	stopLimit = 20 * time.Second
)

// cluster is three daemons on 127.0.0.1; the first one has the etcd inside.
type cluster struct {
	dir, binary string
	ports       []int
	kept        [nodes]bool // runs under a keeper
	procs       []*process
	conns       *rpc.Conns
}

// process is a daemon that was started.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
}

func newCluster(o options) *cluster {
	return &cluster{dir: o.dir, binary: o.binary, procs: make([]*process, nodes), conns: rpc.NewConns(rpc.Config{CallTimeout: 30 * time.Second})}
}

func nodeName(i int) string { return fmt.Sprintf("n%d", i+1) }
func rackName(i int) string { return "rack-" + nodeName(i) }

func (c *cluster) path(i int, elem ...string) string {
	return filepath.Join(append([]string{c.dir, nodeName(i)}, elem...)...)
}

// start runs the daemons and waits until all pools are there.
func (c *cluster) start(ctx context.Context) error {
	if _, err := os.Stat(c.binary); err != nil {
		return holdfast.E("start the cluster", holdfast.NotFound, c.binary+" is not there; build it first: make build")
	}
	var err error
	if c.ports, err = freePorts(2 + 2*nodes); err != nil {
		return err
	}
	for i := range nodes {
		if err := c.configure(i); err != nil {
			return err
		}
		if err := c.startNode(i); err != nil {
			return err
		}
	}
	return c.working(ctx)
}

// working waits until all daemons answer and all pools are well.
func (c *cluster) working(ctx context.Context) error {
	return until(ctx, 30*time.Second, "start the cluster", func(ctx context.Context) (bool, error) {
		for i, p := range c.procs {
			if p.ended() {
				return false, holdfast.E("run node "+nodeName(i), holdfast.Unavailable, "its daemon ended by itself:\n"+c.lastLog(i))
			}
		}
		cc, err := c.conns.Conn("unix://" + c.path(0, "api.sock"))
		if err != nil {
			return false, err
		}
		st, err := holdfastv1.NewClusterServiceClient(cc).GetStatus(ctx, &holdfastv1.GetStatusRequest{})
		if err != nil {
			return false, nil
		}
		return st.GetPools().GetWell() == nodes && st.GetLeader() != "", nil
	})
}

// config is a node's configuration.
func (c *cluster) config(i int) daemon.Config {
	cfg := daemon.DefaultConfig()
	cfg.Node, cfg.Address = nodeName(i), "127.0.0.1"
	cfg.DataPort, cfg.NodePort = c.ports[2+2*i], c.ports[3+2*i]
	cfg.API, cfg.CSI = []string{"unix://" + c.path(i, "api.sock")}, ""
	cfg.StateDir, cfg.RunDir = c.path(i, "state"), c.path(i, "run")
	cfg.Keeper = c.kept[i] // without one, who kills the process means the daemon
	cfg.Processors = "one" // as where the daemon has CAP_SYS_RESOURCE
	cfg.Domain = holdfast.Domain{Rack: rackName(i)}
	cfg.Placement.Overcommit = 100 // of 100 GiB little is written
	cfg.Pools = []agent.PoolConfig{{Path: c.path(i, "pool.img"), Format: true, ImageBytes: poolBytes}}
	if i == 0 {
		cfg.Etcd.Embedded = &daemon.EmbeddedEtcd{ClientPort: c.ports[0], PeerPort: c.ports[1]}
	} else {
		cfg.Etcd.Endpoints = []string{fmt.Sprintf("http://127.0.0.1:%d", c.ports[0])}
	}
	return cfg
}

func (c *cluster) configure(i int) error {
	text, err := yaml.Marshal(c.config(i))
	if err == nil {
		err = os.MkdirAll(c.path(i), 0o755)
	}
	if err == nil {
		err = os.WriteFile(c.path(i, "node.yaml"), text, 0o644)
	}
	return holdfast.Wrap("configure node "+nodeName(i), err)
}

// startNode starts a node's daemon, also again.
func (c *cluster) startNode(i int) error {
	p, err := startProcess(exec.Command(c.binary, "node", "--config", c.path(i, "node.yaml")), c.path(i, "log"))
	if err != nil {
		return holdfast.Wrap("start node "+nodeName(i), err)
	}
	c.procs[i] = p
	return nil
}

// startProcess starts a process that ends with this one, its output in a file.
func startProcess(cmd *exec.Cmd, output string) (*process, error) {
	log, err := os.Create(output)
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }()
	cmd.Stdout, cmd.Stderr = log, log
	// A group of its own: Ctrl-C at the terminal must not reach it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{cmd: cmd, done: make(chan struct{})}
	go func() {
		_ = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// pids are the daemons' process ids.
func (c *cluster) pids() []int {
	var out []int
	for _, p := range c.procs {
		out = append(out, p.cmd.Process.Pid)
	}
	return out
}

func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// stop ends the daemons, the one with the etcd last.
func (c *cluster) stop() {
	_ = c.conns.Close()
	for i := len(c.procs) - 1; i >= 0; i-- {
		c.stopNode(i)
	}
}

// stopNode ends a node's daemon; none is fine.
func (c *cluster) stopNode(i int) {
	p := c.procs[i]
	if p == nil {
		return
	}
	_ = p.cmd.Process.Signal(syscall.SIGCONT) // it may have been stopped
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(stopLimit): // what a keeper leaves is ended at the end of the run
		p.kill()
	}
}

// ready says whether a daemon that was started has said that it answers: the cluster
// takes one that was killed for well until its lease has run out.
func (c *cluster) ready(i int) bool {
	raw, err := os.ReadFile(c.path(i, "log"))
	return err == nil && strings.Contains(string(raw), "msg=ready ")
}

func (c *cluster) lastLog(i int) string {
	raw, _ := os.ReadFile(c.path(i, "log"))
	lines := strings.Split(strings.TrimSpace(string(raw)), "\n")
	return strings.Join(lines[max(0, len(lines)-5):], "\n")
}

// volumes is the API of one node.
func (c *cluster) volumes(i int) (holdfastv1.VolumeServiceClient, error) {
	cc, err := c.conns.Conn("unix://" + c.path(i, "api.sock"))
	if err != nil {
		return nil, err
	}
	return holdfastv1.NewVolumeServiceClient(cc), nil
}

// create makes a volume, with its replicas on these nodes only if any are named,
// and says how long it took.
func (c *cluster) create(ctx context.Context, name string, replicas int32, size int64, on ...int) (time.Duration, error) {
	return c.createVia(ctx, 0, name, replicas, size, on...)
}

// createVia is create by the API of a node, which gets the first replica.
func (c *cluster) createVia(ctx context.Context, node int, name string, replicas int32, size int64, on ...int) (time.Duration, error) {
	cl, err := c.volumes(node)
	if err != nil {
		return 0, err
	}
	var racks []string
	for _, i := range on {
		racks = append(racks, rackName(i))
	}
	began := time.Now()
	_, err = cl.CreateVolume(ctx, &holdfastv1.CreateVolumeRequest{Name: name, SizeBytes: size, Replicas: replicas, Racks: racks})
	return time.Since(began), holdfast.Wrap("create volume "+name, err)
}

// attach attaches a volume to a node, and says where and how long it took.
func (c *cluster) attach(ctx context.Context, name string, node int) (string, time.Duration, error) {
	cl, err := c.volumes(node)
	if err != nil {
		return "", 0, err
	}
	began := time.Now()
	r, err := cl.AttachVolume(ctx, &holdfastv1.AttachVolumeRequest{Volume: name, Node: nodeName(node)})
	return r.GetDevicePath(), time.Since(began), holdfast.Wrap("attach volume "+name, err)
}

func (c *cluster) detach(ctx context.Context, name string, node int) error {
	cl, err := c.volumes(node)
	if err != nil {
		return err
	}
	_, err = cl.DetachVolume(ctx, &holdfastv1.DetachVolumeRequest{Volume: name})
	return holdfast.Wrap("detach volume "+name, err)
}

// freePorts finds n ports of 127.0.0.1 that nobody listens on.
func freePorts(n int) ([]int, error) {
	var ports []int
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, holdfast.Wrap("find free ports", err)
		}
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}

// until calls f until it says true or fails, at most for limit.
func until(ctx context.Context, limit time.Duration, what string, f func(context.Context) (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		if ok, err := f(ctx); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return holdfast.WrapKind(what, holdfast.Unavailable, ctx.Err())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// daemonsBelow are the processes whose configuration is below dir.
func daemonsBelow(dir string) (pids []int) {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil || !strings.Contains(string(raw), "\x00--config\x00"+filepath.Clean(dir)+"/") {
			continue
		}
		if pid, err := strconv.Atoi(strings.Split(file, "/")[2]); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}
