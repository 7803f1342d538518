package replication

import (
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
)

// unreachable has the dial of a replica fail.
func (g *rig) unreachable(i int, kind holdfast.Kind) {
	g.t.Helper()
	attempt, ok := g.dials[rigID(i)]
	if !ok {
		g.t.Fatalf("replica %d is not being dialled", i)
	}
	delete(g.dials, rigID(i))
	g.p.OnDialFailed(attempt, holdfast.E("dial", kind, "test"))
}

// I/O does not wait for the successor of a process that has ended.
func TestAReplicaWhoseProcessIsGoneIsDroppedAtOnce(t *testing.T) {
	g := served(t, []holdfast.ReplicaState{in, in, in}, nil)
	g.conn(2).holding(MsgWrite)
	w := g.submit(OpWrite, blocks(3, 1))
	g.serve()
	g.lost(2)
	if len(g.swaps) != 0 {
		t.Fatal("dropped before it is known whether its process lives")
	}
	g.unreachable(2, holdfast.NotFound)
	g.mustWait(w, "it is not dropped yet")
	g.commit()
	g.serve()
	g.must(w, "the others have it")
	if g.state(2) != stale {
		t.Errorf("the replica is %s", g.state(2))
	}
}

// Where nothing says that the process has ended, or nobody waits for it, it has
// ReconnectFor to be back, and goes on as if nothing had been then.
func TestAReplicaThatMayBeBackIsWaitedFor(t *testing.T) {
	for name, c := range map[string]struct {
		kind holdfast.Kind
		busy bool
	}{"the network may be at fault": {holdfast.Unavailable, true}, "nobody waits": {holdfast.NotFound, false}} {
		t.Run(name, func(t *testing.T) {
			g := served(t, []holdfast.ReplicaState{in, in, in}, nil)
			g.conn(2).holding(MsgWrite)
			var w *result
			if c.busy {
				w = g.submit(OpWrite, blocks(3, 1))
				g.serve()
			}
			g.lost(2)
			g.unreachable(2, c.kind)
			g.pass(DefaultConfig().ReconnectFor / 2)
			if len(g.swaps) != 0 {
				t.Fatal("it is dropped too early")
			}
			g.greet(2, Welcome{})
			g.serve()
			if g.pass(time.Second); len(g.swaps) != 0 || g.state(2) != in {
				t.Errorf("it is back, and dropped: %+v", g.swaps)
			}
			if c.busy {
				g.must(w, "it is back and was sent the write again")
			}
		})
	}
}

// The last replica is not dropped, whatever has become of its process, and one that
// was thought to be gone and nobody waited for is, as soon as somebody does.
func TestTheLastReplicaIsWaitedForThoughItsProcessIsGone(t *testing.T) {
	g := served(t, []holdfast.ReplicaState{in, in}, nil)
	g.lost(1)
	g.unreachable(1, holdfast.NotFound)
	g.pass(100 * time.Millisecond)
	if len(g.swaps) != 0 {
		t.Fatal("dropped though nobody waits")
	}
	w := g.submit(OpWrite, blocks(3, 1))
	g.pass(100 * time.Millisecond)
	g.commit()
	g.serve()
	g.must(w, "the other one has it")
	g.lost(0)
	g.unreachable(0, holdfast.NotFound)
	w = g.submit(OpWrite, blocks(3, 1))
	g.pass(2 * DefaultConfig().SilentAfter)
	g.mustWait(w, "no replica is there")
	if len(g.swaps) != 0 {
		t.Errorf("the last replica is dropped: %+v", g.swaps)
	}
}
