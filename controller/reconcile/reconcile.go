// Package reconcile is the controller's background work, done by one leader:
// replacing replicas of nodes that do not return, moving them off draining nodes,
// dropping surplus ones, finishing half-done creations and deletions, having
// tombstones and schedules of snapshots carried out, and verifying what nodes store.
//
// It promises that each duty is a pure planner over a View with an executor that
// changes records by compare-and-swap only, so that a leader that dies at any
// step, or works on after another was elected, does no harm: the next pass ends
// in the same place. A replica is given up only when enough others are in sync.
// Repairs are capped per node and in the cluster. It never changes the in-sync
// set or the epoch: it adds replicas as New, removes those that are not in sync,
// and marks others Leaving for their primary to drop; it clears a grant only when
// its holder's lease has been gone for long.
//
// Run owns one goroutine while this candidate leads, which watches for changes.
package reconcile

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/controller/lifecycle"
	"github.com/holdfast-storage/holdfast/controller/placement"
	"github.com/holdfast-storage/holdfast/metadata"
)

// Config is what a reconciler needs. Store, Lifecycle and Nodes are required.
type Config struct {
	Store     metadata.Store
	Lifecycle *lifecycle.Service
	Nodes     lifecycle.NodeClients
	Candidate string // this process' name in the election
	Policy    placement.Policy
	Limits    Limits
	Schedules Schedules // may be left out
	Log       *slog.Logger
	Now       func() time.Time

	Interval    time.Duration // between passes when nothing changes; default 10 s
	MinInterval time.Duration // between passes when much changes; default 500 ms
	VerifyEvery time.Duration // between looks at what nodes store; default 10 min
	CallTimeout time.Duration // bounds one call to one node; default 10 s
}

func (c Config) withDefaults() Config {
	if c.Policy == (placement.Policy{}) {
		c.Policy = placement.DefaultPolicy()
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	for _, d := range []struct {
		is  *time.Duration
		def time.Duration
	}{{&c.Interval, 10 * time.Second}, {&c.MinInterval, 500 * time.Millisecond}, {&c.VerifyEvery, 10 * time.Minute}, {&c.CallTimeout, 10 * time.Second}} {
		if *d.is <= 0 {
			*d.is = d.def
		}
	}
	c.Limits = c.Limits.withDefaults()
	return c
}

// Reconciler does the duties. Use New, then Run.
type Reconciler struct {
	cfg Config

	// Kept between passes of one leadership; lost with it, which only makes the
	// next leader wait longer where nodes do not keep it.
	nodeGone map[holdfast.NodeID]time.Time
	poolGone map[holdfast.PoolID]time.Time
	refused  map[holdfast.NodeID]time.Time
	made     map[holdfast.ReplicaID]bool
	verified time.Time
	found    []Problem // by the last verification
	seen     seen

	mu       sync.Mutex
	problems []Problem
}

// New checks the configuration.
func New(cfg Config) (*Reconciler, error) {
	if cfg.Store == nil || cfg.Lifecycle == nil || cfg.Nodes == nil {
		return nil, holdfast.E("make reconciler", holdfast.Invalid, "a metadata store, a lifecycle service and node clients are needed")
	}
	cfg = cfg.withDefaults()
	if err := cfg.Policy.Validate(); err != nil {
		return nil, err
	}
	r := &Reconciler{cfg: cfg}
	r.forgetPast()
	return r, nil
}

func (r *Reconciler) forgetPast() {
	r.nodeGone, r.poolGone, r.refused = map[holdfast.NodeID]time.Time{}, map[holdfast.PoolID]time.Time{}, map[holdfast.NodeID]time.Time{}
	r.made = map[holdfast.ReplicaID]bool{}
	r.verified, r.found = time.Time{}, nil
	r.seen.forget()
}

// Problems are what the last pass could not mend; empty while another leads.
func (r *Reconciler) Problems() []Problem {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.problems)
}

// setProblems keeps them, and logs those that are new.
func (r *Reconciler) setProblems(ps []Problem) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range ps {
		if !slices.Contains(r.problems, p) {
			r.cfg.Log.Warn("reconcile found a problem that it cannot mend", "problem", p.String())
		}
	}
	r.problems = ps
}

// Run campaigns, and does the duties while this candidate leads, until ctx ends.
func (r *Reconciler) Run(ctx context.Context) {
	for ctx.Err() == nil {
		led, resign, err := r.cfg.Store.Campaign(ctx, r.cfg.Candidate)
		if err != nil {
			if ctx.Err() == nil {
				r.cfg.Log.Warn("could not campaign to lead", "err", err)
			}
			wait(ctx, r.cfg.Interval, nil)
			continue
		}
		r.cfg.Log.Info("leading: this controller does the background duties", "candidate", r.cfg.Candidate)
		r.lead(led)
		resign()
		r.setProblems(nil)
		r.cfg.Log.Info("no longer leading", "candidate", r.cfg.Candidate)
	}
}

// lead makes passes until the leadership ends.
func (r *Reconciler) lead(ctx context.Context) {
	r.forgetPast()
	changed := make(chan struct{}, 1)
	var watcher sync.WaitGroup
	watcher.Go(func() {
		for ctx.Err() == nil {
			err := r.cfg.Store.WatchVolumes(ctx, func(e metadata.VolumeEvent) {
				r.seen.note(e)
				select {
				case changed <- struct{}{}:
				default:
				}
			})
			r.seen.forget()
			if err != nil && ctx.Err() == nil {
				r.cfg.Log.Debug("the watch of volumes ended; it begins again", "err", err)
			}
			wait(ctx, r.cfg.Interval, nil)
		}
	})
	defer watcher.Wait()
	for ctx.Err() == nil {
		if err := r.Pass(ctx); err != nil && ctx.Err() == nil {
			r.cfg.Log.Warn("a reconcile pass failed; the next follows", "err", err)
		}
		wait(ctx, r.cfg.MinInterval, nil)
		wait(ctx, r.cfg.Interval-r.cfg.MinInterval, changed)
	}
}

// wait waits for d, until woken, or until ctx ends.
func wait(ctx context.Context, d time.Duration, woken <-chan struct{}) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	case <-woken:
	}
}

// Pass does all duties once. The error is of kind Unavailable when the metadata
// store did not answer; what single volumes or nodes failed at is logged and tried
// again in the next pass.
func (r *Reconciler) Pass(ctx context.Context) error {
	v, err := r.look(ctx)
	if err != nil {
		return holdfast.Wrap("reconcile", err)
	}
	r.finish(ctx, v)
	r.clearGrants(ctx, v)
	r.dropSurplus(ctx, v)
	r.makeRoom(ctx, v)
	r.dropTemporary(ctx, v)
	r.dropGroups(ctx, v)
	var problems []Problem
	for _, plan := range []func(*View) ([]Addition, []Problem){planReplace, planDrain} {
		adds, ps := plan(v)
		r.add(ctx, v, adds)
		problems = append(problems, ps...)
	}
	r.make(ctx, v)
	r.purge(ctx)
	every := r.cfg.VerifyEvery
	if len(r.found) > 0 {
		every = min(every, r.cfg.Interval) // what is mended is not reported for long
	}
	if r.cfg.Now().Sub(r.verified) >= every && ctx.Err() == nil {
		r.verified = r.cfg.Now()
		r.found = r.verify(ctx)
	}
	problems = append(problems, r.found...)
	problems = append(problems, r.carryOutSchedules(ctx)...)
	slices.SortFunc(problems, func(a, b Problem) int { return compareText(a.String(), b.String()) })
	r.setProblems(slices.Compact(problems))
	return holdfast.Wrap("reconcile", ctx.Err())
}

func compareText(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// look reads the view.
func (r *Reconciler) look(ctx context.Context) (*View, error) {
	nodes, err := r.cfg.Store.Nodes(ctx)
	if err != nil {
		return nil, err
	}
	volumes, err := r.volumes(ctx)
	if err != nil {
		return nil, err
	}
	stones, err := r.cfg.Store.Tombstones(ctx)
	if err != nil {
		return nil, err
	}
	now := r.cfg.Now()
	return &View{Now: now, Nodes: nodes, Volumes: volumes, Tombstones: stones,
		NodeGone: r.rememberNodes(ctx, nodes, now), PoolGone: r.rememberPools(nodes, volumes, now),
		Refused: r.refused, Made: r.made, Policy: r.cfg.Policy, Limits: r.cfg.Limits}, nil
}
