package replication

import (
	"errors"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
)

// The metadata store was restored from a backup: replicas know more than it.

func TestAReplicaRefusesARecordThatContradictsItsOwn(t *testing.T) {
	since := func(a, b holdfast.Epoch, sb holdfast.ReplicaState) holdfast.Record {
		return holdfast.Record{Version: holdfast.RecordVersion, ID: "vol", Replicas: []holdfast.Replica{
			{ID: "r0", Node: "n0", State: holdfast.InSync, Since: a}, {ID: "r1", Node: "n1", State: sb, Since: b}}}
	}
	smaller := since(1, 5, stale)
	smaller.SizeBytes = -1
	for name, c := range map[string]struct {
		next         holdfast.Record
		epoch, grant holdfast.Epoch
		want         Status
	}{
		"a successor":                        {since(1, 5, stale), 6, 6, StatusOK},
		"one that took it in again":          {since(1, 7, in), 7, 4, StatusOK},
		"one that knows of no drop":          {since(1, 1, in), 6, 6, StatusRolledBack},
		"one that says who was dropped when": {since(1, 4, stale), 6, 6, StatusRolledBack},
		"one that dropped us before":         {since(5, 1, in), 8, 8, StatusRolledBack},
		"the same epoch of another grant":    {since(1, 5, stale), 5, 5, StatusRolledBack},
		"a grant that never was":             {since(1, 5, stale), 6, 3, StatusRolledBack},
		"one from before it grew":            {smaller, 6, 6, StatusRolledBack},
		"an older epoch":                     {since(1, 1, in), 3, 3, StatusFenced},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBay(t, Promise{Epoch: 5, Grant: 4})
			b.store.state.Record = since(1, 5, stale)
			b.store.state.Record.Epoch = 5
			c.next.Epoch = c.epoch
			conn := &fakeConn{hold: map[MsgType]bool{}}
			b.send(conn, &Message{Type: MsgHello, Epoch: c.epoch, Hello: &Hello{Cluster: "c", Volume: "vol", Replica: "r0", Grant: c.grant, Record: c.next}})
			b.finish()
			if len(conn.sent) != 1 || conn.sent[0].Status != c.want {
				t.Fatalf("answered %+v, want status %d", conn.sent, c.want)
			}
		})
	}
}

func TestATakeOverEndsWhenTheStoreWasRolledBack(t *testing.T) {
	corrupt := func(t *testing.T, g *rig) {
		t.Helper()
		if !g.ended || !errors.Is(g.err, holdfast.Corrupt) || g.serving {
			t.Fatalf("ended %v with %v, serving %v: it goes on without a replica that knows more", g.ended, g.err, g.serving)
		}
	}
	t.Run("by another history", func(t *testing.T) {
		g := newRig(t, states{in, in}, nil)
		g.greet(0, Welcome{})
		hello := g.dialed(1)
		g.p.OnMessage(g.conn(1), &Message{Type: MsgHello, Answer: true, ID: hello.ID, Epoch: 12, Status: StatusRolledBack})
		corrupt(t, g)
	})
	t.Run("by a higher epoch", func(t *testing.T) {
		g := newRig(t, states{in, in}, nil)
		g.greet(0, Welcome{})
		hello := g.dialed(1)
		g.p.OnMessage(g.conn(1), &Message{Type: MsgHello, Answer: true, ID: hello.ID, Epoch: 12, Status: StatusFenced})
		if g.reads != 1 || g.ended {
			t.Fatalf("%d reads, ended %v: only the store can say who is right", g.reads, g.ended)
		}
		g.p.OnRead(g.stored.Clone(), nil)
		corrupt(t, g)
	})
}

// One that is not in sync in the record may be the only one that knows that the
// store was rolled back: it is heard before anything is served. Whoever does not
// answer holds nothing up for long, and whose node is dead for no time at all.
func TestATakeOverHearsTheStaleFirst(t *testing.T) {
	begun := func(t *testing.T, absent ...holdfast.NodeID) *rig {
		t.Helper()
		g := newRig(t, states{in, stale}, func(c *Config) { c.Absent = absent })
		g.greet(0, Welcome{})
		g.serve()
		if g.serving != (len(absent) > 0) {
			t.Fatalf("serving %v", g.serving)
		}
		return g
	}
	refused := func(g *rig, st Status) {
		hello := g.dialed(1)
		g.p.OnMessage(g.conn(1), &Message{Type: MsgHello, Answer: true, ID: hello.ID, Epoch: 12, Status: st})
		g.pass(50 * time.Millisecond)
	}
	t.Run("it knows more", func(t *testing.T) {
		g := begun(t)
		refused(g, StatusRolledBack)
		if !g.ended || !errors.Is(g.err, holdfast.Corrupt) || g.serving {
			t.Fatalf("ended %v with %v, serving %v", g.ended, g.err, g.serving)
		}
	})
	t.Run("it has promised more", func(t *testing.T) {
		g := begun(t)
		refused(g, StatusFenced)
		if g.pass(time.Second); g.serving || g.reads != 1 {
			t.Fatalf("serving %v, %d reads: only the store can say who is right", g.serving, g.reads)
		}
		g.p.OnRead(g.stored.Clone(), nil)
		if !g.ended || !errors.Is(g.err, holdfast.Corrupt) || g.serving {
			t.Fatalf("ended %v with %v, serving %v", g.ended, g.err, g.serving)
		}
	})
	t.Run("it welcomes us", func(t *testing.T) {
		g := begun(t)
		g.greet(1, Welcome{})
		g.serve()
		if !g.serving {
			t.Fatal("all have answered")
		}
	})
	t.Run("it cannot", func(t *testing.T) {
		g := begun(t)
		refused(g, StatusUnknown)
		if !g.serving {
			t.Fatal("all have answered")
		}
	})
	t.Run("it is not reached", func(t *testing.T) {
		g := begun(t)
		g.p.OnDialFailed(g.dials[rigID(1)], holdfast.Unavailable)
		g.pass(50 * time.Millisecond)
		if !g.serving {
			t.Fatal("there is nobody to wait for")
		}
	})
	t.Run("it does not answer", func(t *testing.T) {
		g := begun(t)
		g.dialed(1)
		if g.pass(400 * time.Millisecond); !g.serving {
			t.Fatal("it waits for longer than AbsentAfter")
		}
	})
	t.Run("its node is dead", func(t *testing.T) { begun(t, "n1") })
}
