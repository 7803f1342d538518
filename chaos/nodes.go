package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/daemon"
	"github.com/holdfast-storage/holdfast/internal/netcluster"
	"github.com/holdfast-storage/holdfast/node/agent"
)

const (
	machines  = 5 // each with a pool
	members   = 3 // the first ones have an etcd member
	poolBytes = 2 << 30
	// replaceAfter is short, so that a machine that stays away a bit longer has
	// its replicas replaced, and returns meanwhile.
	replaceAfter = 12 * time.Second
	retryPools   = 4 * time.Second
)

// machine is what a node runs on: a namespace with an address. The node on it
// can be replaced by another one, with another id and an empty pool.
type machine struct {
	number int
	// faulty is held by the fault that concerns its processes.
	faulty sync.Mutex
	// life is held, for reading, while something is started on the machine, and
	// for writing while it loses its power.
	life sync.RWMutex
	boot int // counts losses of power

	mu      sync.Mutex
	id      string // of the node
	born    int    // how many nodes it has been
	proc    *netcluster.Process
	running bool // it is meant to run: if it ends, it is started again
}

// place is the name of the machine's namespace without the prefix.
func (m *machine) place() string { return fmt.Sprintf("m%d", m.number+1) }

func (m *machine) node() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.id
}

func (m *machine) at() netcluster.Place { return netcluster.Place{ID: m.place(), Number: m.number} }

// process is the daemon, nil when none is meant to run.
func (m *machine) process() *netcluster.Process {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.running {
		return nil
	}
	return m.proc
}

// boots is how often it has lost its power.
func (m *machine) boots() int {
	m.life.RLock()
	defer m.life.RUnlock()
	return m.boot
}

// during calls start unless the machine has lost its power since boot: with the
// power all that ran there is gone, and nothing of it may start anything more.
func (m *machine) during(boot int, start func() error) error {
	m.life.RLock()
	defer m.life.RUnlock()
	if m.boot != boot {
		return holdfast.E("start on "+m.place(), holdfast.Unavailable, "it has lost its power")
	}
	return start()
}

// fleet is all machines.
type fleet struct {
	o        options
	net      netcluster.Network
	keepers  bool         // nodes run under their keepers
	crashes  atomic.Int64 // daemons killed under their keepers
	j        *journal
	machines []*machine
	// crashed collects what daemons did that nobody had ended.
	mu      sync.Mutex
	crashed []error
	wg      sync.WaitGroup
}

func newFleet(o options, n netcluster.Network, j *journal) *fleet {
	f := &fleet{o: o, net: n, j: j, keepers: o.keepers}
	for i := range machines {
		f.machines = append(f.machines, &machine{number: i, id: fmt.Sprintf("n%d", i+1)})
	}
	return f
}

func (f *fleet) folder(node string) string    { return filepath.Join(f.o.dir, node) }
func (f *fleet) csiSocket(node string) string { return filepath.Join(f.folder(node), "csi.sock") }
func (f *fleet) apiSocket(node string) string { return filepath.Join(f.folder(node), "api.sock") }

// on is the machine of a node; nil when that has been replaced.
func (f *fleet) on(node string) *machine {
	for _, m := range f.machines {
		if m.node() == node {
			return m
		}
	}
	return nil
}

// up makes the namespaces and starts all nodes.
func (f *fleet) up(ctx context.Context) error {
	var places []string
	for _, m := range f.machines {
		places = append(places, m.place())
	}
	if err := f.net.Up(ctx, places); err != nil {
		return err
	}
	for _, m := range f.machines {
		if err := f.configure(m); err != nil {
			return err
		}
		if err := f.start(m); err != nil {
			return err
		}
	}
	return nil
}

func (f *fleet) config(m *machine) daemon.Config {
	id := m.node()
	base := f.folder(id)
	cfg := daemon.DefaultConfig()
	cfg.Node, cfg.Address = id, f.net.Address(m.number)
	cfg.API, cfg.CSI = []string{"unix://" + f.apiSocket(id)}, "unix://"+f.csiSocket(id)
	cfg.StateDir, cfg.RunDir = filepath.Join(base, "state"), filepath.Join(base, "run")
	cfg.Keeper = f.keepers
	cfg.Processors = []string{"one", "all"}[m.number%2]
	cfg.Domain = holdfast.Domain{Rack: "rack-" + m.place()}
	cfg.Times.ReplaceAfter, cfg.Times.RetryPools = daemon.Duration(replaceAfter), daemon.Duration(retryPools)
	cfg.Pools = []agent.PoolConfig{{Path: filepath.Join(base, "pool.img"), Format: true, ImageBytes: poolBytes}}
	addresses := map[string]string{}
	for _, x := range f.machines[:members] {
		addresses[x.node()] = f.net.Address(x.number)
		cfg.Etcd.Endpoints = append(cfg.Etcd.Endpoints, fmt.Sprintf("http://%s:%d", f.net.Address(x.number), daemon.DefaultEtcdClientPort))
	}
	if m.number < members {
		cfg.Etcd = daemon.Etcd{Embedded: &daemon.EmbeddedEtcd{Members: addresses}}
	}
	return cfg
}

func (f *fleet) configure(m *machine) error {
	op := "configure node " + m.node()
	text, err := yaml.Marshal(f.config(m))
	if err != nil {
		return holdfast.Wrap(op, err)
	}
	base := f.folder(m.node())
	if err := os.MkdirAll(base, 0o755); err != nil {
		return holdfast.Wrap(op, err)
	}
	return holdfast.Wrap(op, os.WriteFile(filepath.Join(base, "node.yaml"), text, 0o644))
}

// start runs a machine's daemon, and again whenever it ends by itself, as a
// supervisor would.
func (f *fleet) start(m *machine) error {
	id := m.node()
	log, err := netcluster.OpenLog(f.o.logs, id)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	cmd := exec.Command(f.o.binary, "node", "--config", filepath.Join(f.folder(id), "node.yaml"))
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), "GOTRACEBACK=all")
	m.mu.Lock()
	defer m.mu.Unlock()
	p, err := f.net.StartIn(m.place(), cmd)
	if err != nil {
		return err
	}
	m.proc, m.running = p, true
	f.wg.Go(func() { f.supervise(m, p) })
	return nil
}

func (f *fleet) supervise(m *machine, p *netcluster.Process) {
	<-p.Done()
	m.mu.Lock()
	byItself := m.running && m.proc == p
	m.mu.Unlock()
	if !byItself {
		return
	}
	err := holdfast.E("run node "+m.node(), holdfast.Other, fmt.Sprintf("its daemon ended by itself: %v", p.Err()))
	f.j.note("%v", err)
	f.mu.Lock()
	f.crashed = append(f.crashed, err)
	f.mu.Unlock()
	if err := f.start(m); err != nil {
		f.j.note("%v", err)
	}
}

// ends are the ends of daemons that nobody had asked for.
func (f *fleet) ends() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return errors.Join(errors.Join(f.crashed...), f.restarts())
}

// kill ends a machine's daemon without warning; applications and mounts stay.
func (f *fleet) kill(m *machine) {
	m.mu.Lock()
	p := m.proc
	m.running = false
	m.mu.Unlock()
	if p != nil {
		f.end(m, p)
	}
}

// ask asks a daemon to end, and kills it after limit.
func (f *fleet) ask(m *machine, p *netcluster.Process, sig syscall.Signal, limit time.Duration) {
	p.Signal(sig)
	select {
	case <-p.Done():
	case <-time.After(limit):
		f.end(m, p)
	}
}

// killedWithin is how long a killed daemon may take to be gone.
const killedWithin = 30 * time.Second

// end kills a daemon. One that is not gone then hangs on a device of its own,
// which is a failure; its devices are taken by force, so that it can go.
func (f *fleet) end(m *machine, p *netcluster.Process) {
	pids := append(f.toBoth(p, syscall.SIGKILL), p.Pid())
	if gone(pids, killedWithin) {
		<-p.Done()
		return
	}
	var where []string
	for _, pid := range pids {
		where = append(where, waiting(pid)...)
	}
	err := holdfast.E("kill the daemon of "+m.node(), holdfast.Busy, fmt.Sprintf("it is not gone after %v: %q", killedWithin, where))
	f.j.note("FAILED: %v", err)
	f.mu.Lock()
	f.crashed = append(f.crashed, errors.Join(err, netcluster.Forget(f.folder(m.node()))))
	f.mu.Unlock()
	gone(pids, killedWithin)
	<-p.Done()
}

// terminateWithin is what a daemon gets to end in good order.
const terminateWithin = 10 * time.Second

// terminate asks a machine's daemon to end, as a supervisor does for an update.
func (f *fleet) terminate(m *machine) {
	m.mu.Lock()
	p := m.proc
	m.running = false
	m.mu.Unlock()
	if p == nil {
		return
	}
	begin := time.Now()
	f.ask(m, p, syscall.SIGTERM, terminateWithin)
	if took := time.Since(begin); took >= terminateWithin {
		f.j.note("the daemon of %s did not end within %v and was killed", m.node(), terminateWithin)
	}
}

// powerOff ends everything on a machine, and what its kernel would forget; if
// lose, what its pool has not synced as well.
func (f *fleet) powerOff(ctx context.Context, m *machine, lose bool) error {
	m.life.Lock()
	defer m.life.Unlock()
	m.boot++
	var errs []error
	if lose {
		f.j.note("%s loses what it has not synced", m.place())
		f.tell(m, syscall.SIGSTOP)
		pools, err := netcluster.PoolsBelow(f.folder(m.node()))
		errs = append(errs, err)
		for _, p := range pools {
			errs = append(errs, netcluster.UnplugDisk(p))
		}
	}
	f.kill(m)
	// Those that wait for I/O only end when their devices have.
	errs = append(errs, f.net.KillOn(ctx, m.place()), netcluster.Forget(f.folder(m.node())))
	return errors.Join(errs...)
}

// replace puts another node with an empty pool in place of one without power.
func (f *fleet) replace(m *machine) error {
	old := f.folder(m.node())
	if ms, err := netcluster.MountsBelow(old); err != nil || len(ms) > 0 {
		return errors.Join(err, holdfast.E("wipe node "+m.node(), holdfast.InUse, fmt.Sprintf("still mounted: %v", ms)))
	}
	if err := netcluster.Remove(old); err != nil {
		return holdfast.Wrap("wipe node "+m.node(), err)
	}
	m.mu.Lock()
	m.born++
	m.id = fmt.Sprintf("n%d-%d", m.number+1, m.born+1)
	m.mu.Unlock()
	return f.configure(m)
}

// stop ends all daemons in good order; the last ones have no etcd to tell.
func (f *fleet) stop() {
	for i := len(f.machines) - 1; i >= 0; i-- {
		m := f.machines[i]
		m.mu.Lock()
		p := m.proc
		m.running = false
		m.mu.Unlock()
		switch {
		case p == nil:
		case i == 0:
			f.end(m, p)
		default:
			f.toBoth(p, syscall.SIGCONT)
			f.ask(m, p, syscall.SIGTERM, 15*time.Second)
		}
	}
	f.wg.Wait()
}

// dump makes every daemon write its goroutines to its log, which ends it.
func (f *fleet) dump() {
	for _, m := range f.machines {
		if p := m.process(); p != nil {
			m.mu.Lock()
			m.running = false
			m.mu.Unlock()
			f.toBoth(p, syscall.SIGCONT)
			if f.keepers { // which must not start the next one
				daemons := f.halt(p)
				toAll(daemons, syscall.SIGQUIT)
				gone(daemons, 5*time.Second)
				f.end(m, p)
				continue
			}
			f.ask(m, p, syscall.SIGQUIT, 5*time.Second)
		}
	}
}
