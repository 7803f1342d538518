package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/netcluster"
	"github.com/holdfast-storage/holdfast/internal/rpc"
)

// run is a cluster with its volumes and their work.
type run struct {
	o       options
	allowed map[kind]int
	j       *journal
	net     netcluster.Network
	f       *fleet
	orch    *netcluster.Orchestrator
	conns   *rpc.Conns
	keepers []*keeper
	churn   *churn
	ledger  *netcluster.Ledger
	wg      sync.WaitGroup

	// troubled is set once a round has had a fault that applications may notice.
	troubled atomic.Bool

	mu     sync.Mutex
	dead   map[string]bool
	failed []error
	// longest is the longest wait for anything after faults were healed.
	longest     time.Duration
	longestWhat string
}

// play prepares, runs and removes everything.
func play(ctx context.Context, o options, allowed map[kind]int) (err error) {
	if err := possible(o); err != nil {
		return err
	}
	n := netcluster.Network{Prefix: o.prefix}
	calm := context.WithoutCancel(ctx)
	unlock, err := lock(ctx, o, func() error { return netcluster.Clean(calm, n, o.dir) })
	if err != nil {
		return err
	}
	defer unlock()
	if err := netcluster.Clean(calm, n, o.dir); err != nil {
		return holdfast.Wrap("clean up after an earlier run", err)
	}
	r, out, err := newRun(o, allowed, n)
	if err != nil {
		return errors.Join(err, netcluster.Clean(calm, n, o.dir))
	}
	defer func() { _ = out.Close() }()
	rounds, err := r.rounds(ctx)
	if err != nil && ctx.Err() == nil {
		r.explain(calm, rounds, err)
		err = holdfast.Wrap(fmt.Sprintf("seed %d, round %d", o.seed, rounds), err)
	}
	r.j.note("the daemons are stopped and everything is removed")
	r.f.stop()
	if err == nil {
		err = r.f.ends()
	}
	r.wg.Wait()
	_ = r.conns.Close()
	r.ledger.Close()
	if err != nil && o.keep {
		r.j.note("%s stays, as asked for", o.dir)
		return errors.Join(err, netcluster.Forget(o.dir), n.Down(calm), r.keepLogs())
	}
	failed := err != nil && ctx.Err() == nil
	err = errors.Join(err, holdfast.Wrap("clean up", netcluster.Clean(calm, n, o.dir)))
	if failed {
		err = errors.Join(err, r.keepLogs())
	}
	if err == nil {
		fmt.Printf("\nseed %d: %d rounds, %d rows, nothing lost, nothing stuck; the longest wait was %v, to %s\n", o.seed, rounds, r.ledger.Count(),
			r.longest.Round(100*time.Millisecond), r.longestWhat)
	}
	return err
}

// lock waits for other runs to end, at most as long as was asked for.
func lock(ctx context.Context, o options, clean func() error) (unlock func(), err error) {
	if unlock, err = netcluster.Lock("/run/"+o.prefix+"lock", clean); !errors.Is(err, holdfast.InUse) || o.wait == 0 {
		return unlock, err
	}
	fmt.Printf("another run is under way; waiting for its end, at most %v\n", o.wait)
	var last error
	err = netcluster.Until(ctx, o.wait, "wait for another run", func(context.Context) (bool, error) {
		unlock, last = netcluster.Lock("/run/"+o.prefix+"lock", clean)
		return !errors.Is(last, holdfast.InUse), last
	})
	return unlock, cmp.Or(err, last)
}

// keepLogs moves the logs to where the next run leaves them alone.
func (r *run) keepLogs() error {
	to := fmt.Sprintf("%s-failed-%d-%s", r.o.logs, r.o.seed, r.j.start.UTC().Format("20060102T150405"))
	if err := os.Rename(r.o.logs, to); err != nil {
		return holdfast.Wrap("keep the logs", err)
	}
	fmt.Printf("\nThe logs of the daemons, with what each was doing, and what the cluster said:\n  %s\n  %s\nThe same again:\n  %s\n", to, filepath.Join(to, "failure.txt"), r.o.repeat)
	return nil
}

// neededBytes is what a run writes at most.
const neededBytes = 6 << 30

func possible(o options) error {
	const op = "start chaos"
	if os.Geteuid() != 0 {
		return holdfast.E(op, holdfast.Denied, "it makes network namespaces and mounts filesystems: run it as root")
	}
	if _, err := os.Stat(o.binary); err != nil {
		return holdfast.E(op, holdfast.NotFound, o.binary+" is not there; build it: make build")
	}
	if err := netcluster.QualityTools(); err != nil {
		return err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(filepath.Dir(o.dir), &st); err != nil {
		return holdfast.WrapKind(op, holdfast.Invalid, err)
	}
	if free := int64(st.Bavail) * st.Bsize; free < neededBytes {
		return holdfast.E(op, holdfast.NoSpace, fmt.Sprintf("%s has %d MiB free, %d MiB are needed; choose another folder with -dir", filepath.Dir(o.dir), free>>20, neededBytes>>20))
	}
	return nil
}

func newRun(o options, allowed map[kind]int, n netcluster.Network) (*run, io.Closer, error) {
	if err := os.RemoveAll(o.logs); err != nil {
		return nil, nil, holdfast.Wrap("prepare chaos", err)
	}
	for _, d := range []string{o.dir, o.logs, filepath.Join(o.dir, "db")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, nil, holdfast.Wrap("prepare chaos", err)
		}
	}
	log, err := os.Create(filepath.Join(o.logs, "timeline.log"))
	if err != nil {
		return nil, nil, holdfast.Wrap("prepare chaos", err)
	}
	j := newJournal(io.MultiWriter(os.Stdout, log))
	r := &run{o: o, allowed: allowed, j: j, net: n, f: newFleet(o, n, j), conns: rpc.NewConns(rpc.Config{CallTimeout: 30 * time.Second}), dead: map[string]bool{}}
	r.orch = &netcluster.Orchestrator{Conns: r.conns, Socket: r.f.csiSocket, Folder: func(node string) string { return filepath.Join(r.f.folder(node), "csi") }}
	if r.ledger, err = netcluster.NewLedger(filepath.Join(o.logs, "acknowledged")); err != nil {
		return nil, nil, err
	}
	pg, err := netcluster.FindPostgres(filepath.Join(o.dir, "db"), filepath.Join(o.logs, "postgres.log"))
	if err != nil {
		return nil, nil, err
	}
	r.keepers = r.volumes(pg)
	r.churn = &churn{r: r}
	return r, log, nil
}

// volumes are what is worked on.
func (r *run) volumes(pg *netcluster.Postgres) []*keeper {
	claim := func(name, fs string, bytes int64) *netcluster.Claim {
		return &netcluster.Claim{Name: name, FSType: fs, Bytes: bytes, Replicas: "3"}
	}
	two := claim("raw-2", "", 16<<20)
	two.Replicas = "2"
	return []*keeper{
		newKeeper(r, claim("rows", "xfs", 512<<20), &rows{net: r.net, pg: pg, ledger: r.ledger, dir: filepath.Join(r.o.dir, "db")}),
		newKeeper(r, claim("fio-xfs", "xfs", 384<<20), newFioWork(r.net, r.o.logs, 1_000_000)),
		newKeeper(r, claim("fio-ext4", "ext4", 192<<20), newFioWork(r.net, r.o.logs, 2_000_000)),
		newKeeper(r, claim("raw", "", 64<<20), newRaw(64<<20, r.rng(0, 100))),
		newKeeper(r, two, newRaw(two.Bytes, r.rng(0, 101))),
	}
}

// rng is a source of random numbers for one purpose in one round.
func (r *run) rng(round, purpose int) *rand.Rand {
	return rand.New(rand.NewPCG(r.o.seed, uint64(round)<<16|uint64(purpose)))
}

// rounds runs them all and says which was the last one.
func (r *run) rounds(ctx context.Context) (n int, err error) {
	under := "without keepers"
	if r.o.keepers {
		under = "under their keepers"
	}
	r.j.note("seed %d: five nodes %s, %v, logs in %s", r.o.seed, under, r.o.duration, r.o.logs)
	if err := r.prepare(ctx); err != nil {
		return 0, holdfast.Wrap("prepare", err)
	}
	var longest time.Duration
	for n = 1; n == 1 || time.Since(r.j.start)+longest < r.o.duration && (r.o.rounds == 0 || n <= r.o.rounds); n++ {
		begin := time.Now()
		r.j.round(n)
		if err := r.round(ctx, n); err != nil {
			return n, err
		}
		longest = max(longest, time.Since(begin))
	}
	return n - 1, nil
}

// prepare starts the cluster and makes the volumes.
func (r *run) prepare(ctx context.Context) error {
	if err := r.f.up(ctx); err != nil {
		return err
	}
	if err := r.healthy(ctx); err != nil {
		return err
	}
	r.j.note("the cluster is up")
	for i, k := range r.keepers {
		k.rng = r.rng(0, i)
		if err := r.orch.Create(ctx, r.f.machines[0].node(), k.claim); err != nil {
			return err
		}
	}
	if err := r.settle(ctx); err != nil {
		return err
	}
	r.j.note("the volumes are made")
	return nil
}

// round is one time of faults and what is checked after it.
func (r *run) round(ctx context.Context, n int) error {
	if err := r.chaos(ctx, n); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	r.j.note("all faults are healed")
	if err := r.healthy(ctx); err != nil {
		return err
	}
	r.j.note("all nodes are well")
	if err := r.settle(ctx); err != nil {
		return err
	}
	return r.check(ctx, r.rng(n, 1003))
}

// chaos lets everybody work while faults happen.
func (r *run) chaos(ctx context.Context, n int) error {
	faults := schedule(r.rng(n, 1000), r.o.faults, r.allowed)
	r.troubled.Store(false)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r.wg.Go(func() { r.watchNodes(ctx) })
	g, gctx := errgroup.WithContext(ctx)
	for i, k := range r.keepers {
		k.rng = r.rng(n, i)
		g.Go(func() error { return holdfast.Wrap(k.claim.Name, k.keep(gctx)) })
	}
	r.wg.Go(func() { r.churn.run(ctx, r.rng(n, 1002)) })
	err := r.injector(gctx, r.rng(n, 1001)).play(gctx, faults)
	sleep(gctx, r.o.faults/8)
	if gctx.Err() == nil {
		cancel()
	}
	err = errors.Join(g.Wait(), err)
	r.wg.Wait()
	return errors.Join(err, r.failure())
}

// injector makes faults, and asks random volumes to move and to grow.
func (r *run) injector(ctx context.Context, rng *rand.Rand) *injector {
	in := newInjector(r.f)
	var mu sync.Mutex
	some := func() *keeper {
		mu.Lock()
		defer mu.Unlock()
		return r.keepers[rng.IntN(len(r.keepers))]
	}
	in.move = func() {
		select {
		case some().moves <- struct{}{}:
		default:
		}
	}
	in.grow = func() { r.growSome(ctx) }
	in.trouble = func() { r.troubled.Store(true) }
	in.whole, in.dark = r.whole, func() {
		for _, k := range r.keepers {
			if w, ok := k.load.(*raw); ok {
				w.blackout()
			}
		}
	}
	return in
}

// fail notes what somebody found out in passing.
func (r *run) fail(err error) {
	r.j.note("FAILED: %v", err)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failed = append(r.failed, err)
}

func (r *run) failure() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return errors.Join(r.failed...)
}

// settle verifies all volumes elsewhere and leaves them published nowhere.
func (r *run) settle(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, k := range r.keepers {
		g.Go(func() error { return k.settle(ctx) })
	}
	g.Go(func() error { return r.churn.settle(ctx) })
	return errors.Join(g.Wait(), r.failure())
}
