package reconcile_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/controller/internal/fakes"
	"github.com/holdfast-storage/holdfast/controller/lifecycle"
	"github.com/holdfast-storage/holdfast/controller/reconcile"
	"github.com/holdfast-storage/holdfast/metadata"
)

const gib = int64(1) << 30

// clock is a clock that tests move.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// rig is a cluster with a controller.
type rig struct {
	*fakes.Cluster
	t     *testing.T
	clock *clock
	life  *lifecycle.Service
	rec   *reconcile.Reconciler
}

func newRig(t *testing.T, nodes ...holdfast.NodeID) *rig {
	g := &rig{Cluster: fakes.New(t), t: t, clock: &clock{now: time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)}}
	for i, n := range nodes {
		g.Add(n, holdfast.Domain{}, int64(200-i)*gib) // the first have most room
	}
	g.life, g.rec = g.controller(g.Store)
	return g
}

func (g *rig) controller(store metadata.Store) (*lifecycle.Service, *reconcile.Reconciler) {
	g.t.Helper()
	life, err := lifecycle.New(lifecycle.Config{Store: store, Nodes: g.Cluster, Now: g.clock.Now})
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(life.Close)
	rec, err := reconcile.New(reconcile.Config{Store: store, Lifecycle: life, Nodes: g.Cluster, Now: g.clock.Now, Candidate: "c"})
	if err != nil {
		g.t.Fatal(err)
	}
	return life, rec
}

func (g *rig) create(name string, replicas int) holdfast.Record {
	g.t.Helper()
	rec, err := g.life.Create(g.t.Context(), name, holdfast.Spec{SizeBytes: gib, Replicas: replicas})
	if err != nil {
		g.t.Fatal(err)
	}
	return rec
}

func (g *rig) pass() {
	g.t.Helper()
	if err := g.rec.Pass(g.t.Context()); err != nil {
		g.t.Fatal(err)
	}
}

// converge lets controller and primaries work by turns.
func (g *rig) converge() {
	g.t.Helper()
	for range 6 {
		g.pass()
		g.Settle()
	}
	g.pass()
}

// nodes are the nodes of a volume's replicas, with states other than in sync.
func (g *rig) nodes(volume string) string {
	g.t.Helper()
	rec, err := g.life.Get(context.Background(), volume)
	if err != nil {
		return err.Error()
	}
	var out []string
	for _, x := range rec.Replicas {
		s := string(x.Node)
		if x.State != holdfast.InSync {
			s += ":" + string(x.State)
		}
		if x.Leaving {
			s += "!"
		}
		out = append(out, s)
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func (g *rig) want(volume, nodes string) {
	g.t.Helper()
	if got := g.nodes(volume); got != nodes {
		g.t.Errorf("volume %s is on %s; want %s", volume, got, nodes)
	}
}

func TestALostReplicaIsReplacedAndItsDataRemovedWhenTheNodeReturns(t *testing.T) {
	g := newRig(t, "n1", "n2", "n3", "n4")
	g.create("db", 3)
	g.Node("n3").Kill()
	g.Settle()
	g.converge()
	g.want("db", "n1 n2 n3:stale") // not yet
	g.clock.add(10 * time.Minute)
	g.pass()
	g.want("db", "n1 n2 n3:stale n4:new")
	g.converge()
	g.want("db", "n1 n2 n4")
	g.CheckClean()
	if len(g.Node("n3").Replicas()) != 1 {
		t.Fatal("the dead node's replica vanished by itself")
	}
	g.Node("n3").Start()
	g.converge()
	g.want("db", "n1 n2 n4")
	g.CheckClean()
	if len(g.Node("n3").Replicas()) != 0 {
		t.Error("the returned node kept its replica")
	}
}

func TestIfTheOldReplicaReturnsFirstTheNewOneIsDropped(t *testing.T) {
	g := newRig(t, "n1", "n2", "n3", "n4")
	g.create("db", 3)
	g.Node("n3").Kill()
	g.Settle()
	g.pass()
	g.clock.add(11 * time.Minute)
	g.pass()
	g.want("db", "n1 n2 n3:stale n4:new")
	g.Node("n4").Kill()
	g.Node("n3").Start()
	g.Settle()
	g.converge()
	g.want("db", "n1 n2 n3")
	g.Node("n4").Start()
	g.converge()
	g.CheckClean()
	if n := len(g.Node("n4").Replicas()); n != 0 {
		t.Errorf("n4 keeps %d replicas", n)
	}
}

func TestTheGrantOfALostNodeIsClearedAndOfABriefOneNot(t *testing.T) {
	g := newRig(t, "n1", "n2", "n3")
	g.create("db", 2)
	if _, _, err := g.life.Attach(t.Context(), "db", "n1", false); err != nil {
		t.Fatal(err)
	}
	holder := func() holdfast.NodeID { rec, _ := g.life.Get(t.Context(), "db"); return rec.AttachedTo() }
	g.Node("n1").Kill()
	g.pass()
	g.clock.add(9 * time.Minute)
	g.pass()
	if holder() != "n1" {
		t.Error("the grant of a node that may return was cleared")
	}
	g.clock.add(time.Minute)
	g.converge()
	if holder() != "" {
		t.Errorf("still held by %q", holder())
	}
	g.want("db", "n2 n3")
	g.CheckClean()
}

func TestDrainMovesReplicasOneVolumeAfterAnother(t *testing.T) {
	g := newRig(t, "n1", "n2", "n3", "n4")
	for _, v := range []string{"a", "b", "c", "d", "e"} {
		g.create(v, 3)
	}
	if _, err := g.life.Drain(t.Context(), "n1"); err != nil {
		t.Fatal(err)
	}
	for i := 0; len(g.Node("n1").Replicas()) > 0; i++ {
		if i > 30 {
			t.Fatal("it is never drained")
		}
		g.pass()
		for _, v := range []string{"a", "b", "c", "d", "e"} {
			rec, _ := g.life.Get(t.Context(), v)
			if len(rec.InSyncReplicas()) < 3 {
				t.Errorf("volume %s has %d replicas in sync while it is moved", v, len(rec.InSyncReplicas()))
			}
		}
		// Repairs first, so that what leaves has been replaced.
		g.Settle()
	}
	g.converge()
	for _, v := range []string{"a", "b", "c", "d", "e"} {
		g.want(v, "n2 n3 n4")
	}
	g.CheckClean()
}

func TestAForgottenNodesReplicasAreReplacedAtOnce(t *testing.T) {
	g := newRig(t, "n1", "n2", "n3", "n4")
	g.create("db", 3)
	g.create("one", 1) // on n4: most room is left there
	on := g.nodes("one")
	g.Node("n1").Kill()
	if _, err := g.life.Forget(t.Context(), "n1"); err != nil {
		t.Fatal(err)
	}
	g.converge()
	g.want("db", "n2 n3 n4")
	g.want("one", on)
	g.CheckClean()
}

func TestHalfDoneOperationsAreFinished(t *testing.T) {
	g := newRig(t, "n1", "n2", "n3")
	half := func(name string, phase holdfast.Phase, nodes ...holdfast.NodeID) {
		rec := holdfast.Record{Version: holdfast.RecordVersion, ID: holdfast.NewVolumeID(), Name: name, Created: g.clock.Now(),
			Spec: holdfast.Spec{SizeBytes: gib}.WithDefaults(), Phase: phase, SizeBytes: gib}
		for _, n := range nodes {
			rec.Replicas = append(rec.Replicas, holdfast.Replica{ID: holdfast.NewReplicaID(), Node: n, Pool: holdfast.PoolID("pool-" + n), State: holdfast.New})
		}
		rec, err := g.Store.CreateVolume(t.Context(), rec)
		if err != nil {
			t.Fatal(err)
		}
		if err := g.life.MakeReplica(t.Context(), rec, rec.Replicas[0]); err != nil {
			t.Fatal(err)
		}
	}
	half("creating", holdfast.PhaseCreating, "n1", "n2", "n3")
	half("deleting", holdfast.PhaseDeleting, "n1", "n2", "n3")
	g.pass()
	g.want("creating", "n1:new n2:new n3:new") // its caller may be at it
	g.clock.add(3 * time.Minute)
	g.pass()
	g.want("creating", "n1 n2 n3")
	if _, err := g.life.Get(t.Context(), "deleting"); !errors.Is(err, holdfast.NotFound) {
		t.Errorf("the deletion was not finished: %v", err)
	}
	half("hopeless", holdfast.PhaseCreating, "n1", "n2")
	g.Node("n3").Kill()
	g.clock.add(3 * time.Minute)
	g.SetFault(func(n holdfast.NodeID, method string, _ bool) error {
		if n == "n2" && method == "CreateReplica" {
			return holdfast.E("", holdfast.NoSpace, "full")
		}
		return nil
	})
	g.pass()
	g.pass()
	if _, err := g.life.Get(t.Context(), "hopeless"); !errors.Is(err, holdfast.NotFound) {
		t.Errorf("a creation that cannot be finished is still there: %v", err)
	}
	g.pass()
	g.CheckClean()
}

func TestANodeThatCannotMakeAReplicaIsNotAskedAgainForAWhile(t *testing.T) {
	g := newRig(t, "n1", "n2", "n3", "n4")
	g.create("db", 2)
	g.SetFault(func(n holdfast.NodeID, method string, after bool) error {
		if n == "n3" && method == "CreateReplica" && after {
			return holdfast.E("", holdfast.NoSpace, "full")
		}
		return nil
	})
	g.Node("n2").Kill()
	g.Settle()
	g.pass()
	g.clock.add(11 * time.Minute)
	g.pass() // to n3, which has more room, in vain
	g.want("db", "n1 n2:stale")
	g.converge()
	g.want("db", "n1 n4")
	g.CheckClean()
	if n := len(g.Node("n3").Replicas()); n != 0 {
		t.Errorf("n3 keeps %d replicas", n)
	}
}

func TestProblemsAreSaidAndGoAway(t *testing.T) {
	g := newRig(t, "n1", "n2", "n3")
	g.create("db", 3)
	g.Node("n3").Kill()
	g.Settle()
	g.pass()
	g.clock.add(11 * time.Minute)
	g.pass()
	ps := g.rec.Problems()
	if len(ps) != 1 || ps[0].Volume != "db" || !strings.Contains(ps[0].Text, "node n3") {
		t.Fatalf("problems %v", ps)
	}
	g.Add("n4", holdfast.Domain{}, 100*gib)
	g.converge()
	if ps := g.rec.Problems(); len(ps) != 0 {
		t.Errorf("still problems: %v", ps)
	}
	g.want("db", "n1 n2 n4")
}

// Every pass of a whole story is killed at every step; the next leader brings it
// to the same end.
func TestPassesKilledAtEveryStep(t *testing.T) {
	stories := map[string]struct {
		begin func(*rig)
		want  string
	}{
		"a node is lost": {func(g *rig) {
			g.create("db", 3)
			g.Node("n3").Kill()
			g.Settle()
		}, "n1 n2 n4"},
		"a node drains": {func(g *rig) {
			g.create("db", 3)
			if _, err := g.life.Drain(g.t.Context(), "n3"); err != nil {
				g.t.Fatal(err)
			}
		}, "n1 n2 n4"},
		"a node is forgotten": {func(g *rig) {
			g.create("db", 3)
			g.Node("n3").Kill()
			if _, err := g.life.Forget(g.t.Context(), "n3"); err != nil {
				g.t.Fatal(err)
			}
		}, "n1 n2 n4"},
		"a creation is half done": {func(g *rig) {
			rec := holdfast.Record{Version: holdfast.RecordVersion, ID: holdfast.NewVolumeID(), Name: "db", Created: g.clock.Now(),
				Spec: holdfast.Spec{SizeBytes: gib}.WithDefaults(), Phase: holdfast.PhaseCreating, SizeBytes: gib}
			for _, n := range []holdfast.NodeID{"n1", "n2", "n4"} {
				rec.Replicas = append(rec.Replicas, holdfast.Replica{ID: holdfast.NewReplicaID(), Node: n, Pool: holdfast.PoolID("pool-" + n), State: holdfast.New})
			}
			if _, err := g.Store.CreateVolume(g.t.Context(), rec); err != nil {
				g.t.Fatal(err)
			}
		}, "n1 n2 n4"},
	}
	for name, s := range stories {
		for _, mode := range []struct{ after, once bool }{{}, {after: true}, {once: true}, {once: true, after: true}} {
			t.Run(fmt.Sprintf("%s/after=%v/once=%v", name, mode.after, mode.once), func(t *testing.T) {
				for at := 1; ; at++ {
					if at > 300 {
						t.Fatal("it never ends")
					}
					g := newRig(t, "n1", "n2", "n3", "n4")
					s.begin(g)
					g.pass() // sees who is gone
					g.clock.add(11 * time.Minute)
					store := g.Store.Client()
					_, doomed := g.controller(store)
					d := fakes.Death{At: at, After: mode.after, Once: mode.once}
					_ = doomed.Pass(t.Context()) // its clocks start here
					g.clock.add(11 * time.Minute)
					d.On(g.Cluster, store)
					for range 4 {
						_ = doomed.Pass(t.Context())
						g.Settle()
					}
					g.SetFault(nil)
					g.Check()
					g.converge()
					g.want("db", s.want)
					g.CheckClean()
					if t.Failed() {
						t.Fatalf("killed at step %d", at)
					}
					if !d.Struck() {
						return
					}
				}
			})
		}
	}
}

func TestOneCandidateLeadsAndTheOtherTakesOver(t *testing.T) {
	g := newRig(t, "n1", "n2", "n3")
	run := func(name string) (stop func()) {
		rec, err := reconcile.New(reconcile.Config{Store: g.Store.Client(), Lifecycle: g.life, Nodes: g.Cluster, Candidate: name,
			Interval: 20 * time.Millisecond, MinInterval: time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); rec.Run(ctx) }()
		stop = func() { cancel(); <-done }
		t.Cleanup(stop)
		return stop
	}
	leader := func() string {
		l, err := g.Store.Leader(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	deleted := func(name string) {
		rec := g.create(name, 3)
		rec.Phase = holdfast.PhaseDeleting
		if _, err := g.Store.SwapVolume(t.Context(), rec); err != nil {
			t.Fatal(err)
		}
		poll(t, "the deletion of "+name+" is finished", func() bool {
			_, err := g.life.Get(t.Context(), name)
			return errors.Is(err, holdfast.NotFound)
		})
	}
	stopA := run("a")
	poll(t, "a leads", func() bool { return leader() == "a" })
	run("b")
	deleted("one")
	stopA()
	poll(t, "b leads", func() bool { return leader() == "b" })
	deleted("two")
}

func poll(t *testing.T, what string, f func() bool) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !f() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s: not within 10 s", what)
		}
	}
}

func TestNewChecksItsConfiguration(t *testing.T) {
	if _, err := reconcile.New(reconcile.Config{}); !errors.Is(err, holdfast.Invalid) {
		t.Errorf("got %v", err)
	}
}
