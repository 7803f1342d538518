package reconcile_test

import (
	"strings"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
)

// change rewrites a node's registration, as its daemon does.
func (g *rig) change(id holdfast.NodeID, f func(*holdfast.Node)) {
	g.t.Helper()
	n, err := g.Store.Node(g.t.Context(), id)
	if err != nil {
		g.t.Fatal(err)
	}
	f(&n)
	if _, err := g.Store.PutNode(g.t.Context(), n); err != nil {
		g.t.Fatal(err)
	}
}

func TestHowLongANodeIsGoneOutlivesTheLeader(t *testing.T) {
	g := newRig(t, "n1", "n2", "n3", "n4")
	g.create("db", 3)
	g.Node("n3").Kill()
	g.Settle()
	g.pass()
	began := g.clock.Now()
	if n, err := g.Store.Node(t.Context(), "n3"); err != nil || !n.GoneSince.Equal(began) {
		t.Errorf("registered as gone since %v, %v; want %v", n.GoneSince, err, began)
	}
	g.clock.add(9 * time.Minute)
	_, g.rec = g.controller(g.Store) // another one leads
	g.pass()
	g.want("db", "n1 n2 n3:stale")
	g.clock.add(time.Minute)
	_, g.rec = g.controller(g.Store)
	g.converge()
	g.want("db", "n1 n2 n4")
}

func TestANodeThatReturnedIsNotGoneAnyMore(t *testing.T) {
	g := newRig(t, "n1", "n2", "n3", "n4")
	g.create("db", 3)
	g.Node("n3").Kill()
	g.Settle()
	g.pass()
	g.clock.add(9 * time.Minute)
	g.Node("n3").Start()
	g.pass()
	if n, err := g.Store.Node(t.Context(), "n3"); err != nil || !n.GoneSince.IsZero() {
		t.Errorf("registered as gone since %v, %v; it is alive", n.GoneSince, err)
	}
	g.Node("n3").Kill()
	g.pass()
	g.clock.add(9 * time.Minute)
	g.converge()
	g.want("db", "n1 n2 n3:stale")
}

func TestAFailedReplicaIsReplacedAfterAWhile(t *testing.T) {
	g := newRig(t, "n1", "n2", "n3", "n4")
	rec := g.create("db", 3)
	g.change("n3", func(n *holdfast.Node) {
		n.Pools[0].Failed = []holdfast.FailedReplica{{ID: rec.On("n3").ID, Since: g.clock.Now(), Why: "input/output error"}}
	})
	g.converge()
	g.want("db", "n1 n2 n3")
	g.clock.add(10 * time.Minute)
	g.pass()
	g.want("db", "n1 n2 n3 n4:new")
	g.converge()
	g.want("db", "n1 n2 n4")
}

// In a cluster with as many nodes as replicas there is only the node itself.
func TestAnExchangedDiskFillsAgain(t *testing.T) {
	g := newRig(t, "n1", "n2", "n3")
	g.create("db", 3)
	g.change("n3", func(n *holdfast.Node) { n.Pools[0].ID = "new-disk" })
	g.converge()
	g.want("db", "n1 n2 n3")
	g.clock.add(10 * time.Minute)
	g.converge()
	g.want("db", "n1 n2 n3")
	rec, err := g.life.Get(t.Context(), "db")
	if err != nil || rec.On("n3").Pool != "new-disk" {
		t.Errorf("the replica on n3: %+v, %v; want it on the new disk", rec.On("n3"), err)
	}
}

func TestWhatCannotBeReplacedSaysWhatToDo(t *testing.T) {
	g := newRig(t, "n1", "n2", "n3")
	g.create("db", 3)
	g.Node("n3").Kill()
	g.Settle()
	g.pass()
	g.clock.add(10 * time.Minute)
	g.pass()
	ps := g.rec.Problems()
	if len(ps) != 1 || ps[0].Volume != "db" || !strings.Contains(ps[0].Remedy, "add a storage node") {
		t.Errorf("problems %+v", ps)
	}
}
