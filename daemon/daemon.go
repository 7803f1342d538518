// Package daemon is what runs on every node, wired together: the metadata store
// (with the embedded etcd, if configured), the node with its pools, devices and
// CSI services, a controller candidate, and the users' API.
//
// It promises that a daemon that cannot work as configured ends with an error
// that says what to change, that it waits for an etcd that does not answer yet,
// and that on its end everything is stopped in the order that keeps others safe.
// It decides nothing itself.
//
// Goroutines: Run owns one for the node, one for the controller, one for the API,
// one for the keeper, one for the request to hand over, and those of the packages it composes; all have ended when it returns.
package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/api"
	"github.com/holdfast-storage/holdfast/controller/csi"
	"github.com/holdfast-storage/holdfast/controller/lifecycle"
	"github.com/holdfast-storage/holdfast/controller/reconcile"
	"github.com/holdfast-storage/holdfast/controller/schedule"
	"github.com/holdfast-storage/holdfast/internal/processors"
	"github.com/holdfast-storage/holdfast/internal/rpc"
	"github.com/holdfast-storage/holdfast/metrics"
	"github.com/holdfast-storage/holdfast/node"
	"github.com/holdfast-storage/holdfast/node/agent"
	"github.com/holdfast-storage/holdfast/node/device/fuseloop"
	"github.com/holdfast-storage/holdfast/node/keeper"
)

// Options are what is no configuration.
type Options struct {
	Release string
	Log     *slog.Logger
	RPC     rpc.Config // zero: plain connections
	// Ready, if set, is called once when the node is registered and answers.
	Ready func()
	// Keeper, if set, holds the devices over the end of this process.
	Keeper *keeper.Client
	// DeviceHelper is the command for fuseloop.RunHelper: see fuseloop.Config.
	DeviceHelper []string
	// Processors, if set, chooses how many processors this process uses.
	Processors *processors.Governor
	// HandOver, when it is readable, has the daemon end and leave its devices to
	// the one that the keeper starts next.
	HandOver <-chan os.Signal
}

// keeper is the keeper as devices use it.
func (o Options) keeper() fuseloop.Keeper {
	if o.Keeper == nil {
		return nil // not a nil *keeper.Client inside a non-nil interface
	}
	return o.Keeper
}

// kept says whether the devices outlive this process.
func (o Options) kept() bool {
	if o.Keeper == nil {
		return false
	}
	select {
	case <-o.Keeper.Lost():
		return false
	default:
		return true
	}
}

// Run is the daemon's life: until ctx ends, which is no error, or until a part
// fails that it cannot work without.
func Run(ctx context.Context, cfg Config, o Options) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	unlock, err := lockState(cfg.StateDir)
	if errors.Is(err, holdfast.InUse) && node.FreeDying(cfg.RunDir, o.keeper()) {
		unlock, err = lockState(cfg.StateDir)
	}
	if err != nil {
		return err
	}
	defer unlock()
	log := o.Log.With("node", cfg.Node)
	routeKlog(log)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-o.HandOver: // nil: never
			log.Info("handing over to the next daemon")
			cancel(node.HandOver{})
		case <-ctx.Done():
		}
	}()
	log.Info("starting", "release", o.Release, "address", cfg.Address, "pools", len(cfg.Pools))
	recs, err := openRecords(ctx, cfg, log)
	if err != nil {
		return stoppedOr(ctx, err)
	}
	d := &daemon{cfg: cfg, o: o, log: log}
	d.measure = metrics.New(metrics.Config{Node: holdfast.NodeID(cfg.Node), Release: o.Release, Measures: d.measures, Kept: o.kept})
	recs.Store = d.measure.Store(recs.Store)
	d.recs = recs
	err = d.run(ctx)
	if ctx.Err() != nil && errors.Is(err, holdfast.Unavailable) {
		// What could not be given back, as nobody answers, runs out by itself.
		log.Warn("stopping without having given everything back", "err", err)
		err = nil
	}
	end := recs.Close
	if errors.Is(context.Cause(ctx), node.HandOver{}) {
		end = recs.leave
	}
	err = errors.Join(stoppedOr(ctx, err), holdfast.Wrap("close the metadata store", end()))
	log.Info("stopped")
	return err
}

// stoppedOr is nil for an error that only says that ctx has ended.
func stoppedOr(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return nil
	}
	return err
}

// daemon is the parts while they run.
type daemon struct {
	cfg       Config
	o         Options
	log       *slog.Logger
	recs      records
	clients   *nodeClients
	life      *lifecycle.Service
	schedules *schedule.Service
	found     *controllerService
	measure   *metrics.Exporter
	node      atomic.Pointer[node.Node] // once it answers
}

// measures takes stock of the node, once it answers.
func (d *daemon) measures() (agent.Measures, bool) {
	if nd := d.node.Load(); nd != nil {
		return nd.Agent().Measures(), true
	}
	return agent.Measures{}, false
}

// run composes the parts over the open store.
func (d *daemon) run(ctx context.Context) error {
	conns := rpc.NewConns(d.o.RPC)
	defer func() { _ = conns.Close() }()
	d.clients = newNodeClients(d.recs, conns)
	var err error
	d.life, err = lifecycle.New(lifecycle.Config{Store: d.recs, Nodes: d.clients, Self: holdfast.NodeID(d.cfg.Node), Policy: d.cfg.Placement.policy(), SnapshotPercent: d.cfg.Placement.SnapshotPercent, Log: d.log})
	if err != nil {
		return err
	}
	defer d.life.Close()
	if d.schedules, err = schedule.New(schedule.Config{Store: d.recs, Snapshots: d.life, Log: d.log}); err != nil {
		return err
	}
	rc, err := reconcile.New(reconcile.Config{
		Schedules: d.schedules, Store: d.recs, Lifecycle: d.life, Nodes: d.clients, Candidate: d.cfg.Node, Log: d.log,
		Policy: d.cfg.Placement.policy(), Limits: d.cfg.limits(),
	})
	if err != nil {
		return err
	}
	d.found = &controllerService{problems: rc.Problems}
	nc, err := d.nodeConfig()
	if err != nil {
		return err
	}
	nd, err := node.New(nc)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return ended(ctx, "the node", nd.Run(ctx)) })
	g.Go(func() error { return watchServer(ctx, d.recs) })
	g.Go(func() error { rc.Run(ctx); return nil })
	g.Go(func() error { return ended(ctx, "the API", d.serveAPI(ctx)) })
	g.Go(func() error { d.tellReady(ctx, nd); return nil })
	g.Go(func() error { d.watchKeeper(ctx, nd.Ready()); return nil })
	return g.Wait()
}

func (d *daemon) tellReady(ctx context.Context, nd *node.Node) {
	select {
	case <-nd.Ready():
		d.node.Store(nd)
		d.log.Info("ready", "api", d.cfg.API, "csi", d.cfg.CSI)
		if d.o.Ready != nil {
			d.o.Ready()
		}
	case <-ctx.Done():
	}
}

// watchKeeper tells the keeper that the daemon works, and the log when the keeper
// is gone.
func (d *daemon) watchKeeper(ctx context.Context, ready <-chan struct{}) {
	if d.o.Keeper == nil {
		return
	}
	select {
	case <-ready:
	case <-ctx.Done():
		return
	}
	err := d.o.Keeper.Ready()
	if err == nil {
		err = d.o.Keeper.Wait(ctx)
	}
	if err != nil {
		d.log.Error("the keeper is gone: if this daemon ends, the I/O of its devices fails; start the service anew when nothing is mounted", "pid", os.Getpid(), "err", err)
	}
}

// ended makes the end of a part an error while the daemon should go on.
func ended(ctx context.Context, part string, err error) error {
	if err == nil && ctx.Err() == nil {
		return holdfast.E("run "+part, holdfast.Other, "it ended by itself")
	}
	return err
}

// watchServer ends the daemon when its embedded etcd has stopped by itself: a
// supervisor starts both again.
func watchServer(ctx context.Context, recs records) error {
	select {
	case err := <-recs.failed():
		return holdfast.WrapKind("run the embedded etcd", holdfast.Unavailable, err)
	case <-ctx.Done():
		return nil
	}
}

// lockState makes the state folder and keeps other daemons from it.
func lockState(dir string) (unlock func(), err error) {
	op := "use the state folder " + dir
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, holdfast.WrapKind(op, holdfast.Invalid, err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, holdfast.WrapKind(op, holdfast.Invalid, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		pid, _ := io.ReadAll(io.LimitReader(f, 20))
		_ = f.Close()
		return nil, holdfast.E(op, holdfast.InUse, fmt.Sprintf("another daemon runs with it, process %s; stop that one (if it has lost its keeper, which its log says: when none of its volumes is mounted, with kill), or choose another folder with --state-dir",
			cmp.Or(string(pid), "unknown")))
	}
	err = f.Truncate(0)
	if err == nil {
		_, err = fmt.Fprint(f, os.Getpid()) // for the message above
	}
	if err != nil {
		_ = f.Close()
		return nil, holdfast.WrapKind(op, holdfast.Other, err)
	}
	return func() { _ = f.Close() }, nil
}

func (d *daemon) serveAPI(ctx context.Context) error {
	srv, err := api.New(api.Config{
		Self: holdfast.NodeID(d.cfg.Node), Release: d.o.Release, Store: d.recs, Lifecycle: d.life, Snapshots: d.life, Groups: d.life, Admin: d.life, Nodes: d.clients, RPC: d.o.RPC, Log: d.log,
		Handlers:  map[string]http.Handler{"GET /metrics": d.measure.Handler()},
		Findings:  leadersFindings{self: d.cfg.Node, own: d.found, clients: d.clients},
		Schedules: d.schedules,
	})
	if err != nil {
		return err
	}
	var ls []net.Listener
	defer func() {
		for _, l := range ls {
			_ = l.Close()
		}
	}()
	for _, a := range d.cfg.API {
		if err := socketFolder(a); err != nil {
			return err
		}
		l, err := d.o.RPC.Listen(ctx, a)
		if err != nil {
			return err
		}
		ls = append(ls, l)
	}
	return srv.Serve(ctx, ls...)
}

// socketFolder makes the folder of a Unix socket.
func socketFolder(target string) error {
	network, path, err := rpc.SplitTarget(target)
	if err != nil || network != "unix" {
		return err
	}
	return holdfast.WrapKind("make folder of "+target, holdfast.Invalid, os.MkdirAll(filepath.Dir(path), 0o755))
}

// nodeConfig is the node's part of the configuration. One socket serves all
// three CSI services.
func (d *daemon) nodeConfig() (node.Config, error) {
	cfg, nc := d.cfg, node.DefaultConfig()
	nc.Agent.ID, nc.Agent.Domain, nc.Agent.Release = holdfast.NodeID(cfg.Node), cfg.Domain, d.o.Release
	nc.Agent.Pools, nc.Agent.AutoPools = cfg.Pools, cfg.AutoPools
	nc.Agent.LeaseTTL, nc.Agent.RetryPools = time.Duration(cfg.Times.Lease), time.Duration(cfg.Times.RetryPools)
	nc.Agent.ScrubEvery = time.Duration(cfg.Replication.ScrubEvery)
	nc.Store, nc.Log, nc.RPC = d.recs, d.o.Log, d.o.RPC // the agent adds the node itself
	nc.RPC.Congestion = cfg.Replication.Congestion
	nc.StateDir, nc.RunDir, nc.FrontEnd = cfg.StateDir, cfg.RunDir, cfg.FrontEnd
	nc.Keeper = d.o.keeper()
	nc.DeviceHelper = d.o.DeviceHelper
	nc.DataListen, nc.APIListen, nc.Advertise = cfg.hostPort(cfg.DataPort), cfg.hostPort(cfg.NodePort), cfg.Address
	nc.Primary, nc.RegisterAPI = cfg.Replication.primary(), d.found.register
	nc.RepairRate, nc.Repairs = cfg.Replication.nodeRate(), cfg.Replication.Repairs
	nc.Stepped = d.o.Processors.Look
	if cfg.CSI == "" {
		return nc, nil
	}
	nc.CSINoStaging = cfg.CSIOptions.NoStaging
	cc := cfg.csiController()
	cc.Lifecycle, cc.Release, cc.Log = d.life, d.o.Release, d.log
	controller, err := csi.New(cc)
	if err != nil {
		return nc, err
	}
	nc.CSIEndpoint, nc.RegisterCSI = cfg.CSI, func(g *grpc.Server) { controller.Register(g) }
	return nc, nil
}
