package replication

import (
	"errors"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
)

// asked counts the questions to outsiders.
type asked struct{ n int }

func (a *asked) Ask() { a.n++ }

// asking is a take-over of two replicas that waits for outsiders alone.
func asking(t *testing.T) *rig {
	t.Helper()
	g := newRig(t, states{in, in}, nil)
	others := &asked{}
	g.p.ports.Outsiders = others
	g.p.Start() // anew, with somebody to ask
	g.greet(0, Welcome{})
	g.greet(1, Welcome{})
	if g.serve(); g.serving || others.n != 1 {
		t.Fatalf("serving %v, asked %d times", g.serving, others.n)
	}
	return g
}

// newer is an outsider that knows more than the store.
func (g *rig) newer() Outsider {
	rec := g.stored.Clone()
	rec.Epoch += 5
	rec.Replicas[0].State, rec.Replicas[0].Since = stale, rec.Epoch-1
	return Outsider{Node: "n7", Record: rec, Promise: rec.Epoch}
}

// mustBeRolledBack fails the test unless the primary has ended so.
func (g *rig) mustBeRolledBack() {
	g.t.Helper()
	if !g.ended || !errors.Is(g.err, ErrRolledBack) || !errors.Is(g.err, holdfast.Corrupt) {
		g.t.Fatalf("ended %v with %v", g.ended, g.err)
	}
}

func TestATakeOverHearsNodesThatTheRecordDoesNotName(t *testing.T) {
	t.Run("nobody has one", func(t *testing.T) {
		g := asking(t)
		g.p.OnOutsiders([]Outsider{{Node: "n7"}, {Node: "n0", Record: g.stored.Clone(), Promise: g.stored.Epoch}})
		if g.serve(); !g.serving {
			t.Fatal("all have answered")
		}
	})
	t.Run("one that was removed", func(t *testing.T) {
		g := asking(t)
		rec := g.stored.Clone()
		rec.Epoch, rec.Replicas[0].ID = rec.Epoch-2, "removed since"
		rec.Replicas[0].Since = 0
		g.p.rec.Replicas[0].Since = rec.Epoch + 1
		g.p.OnOutsiders([]Outsider{{Node: "n7", Record: rec, Promise: rec.Epoch}})
		if g.serve(); !g.serving {
			t.Fatalf("ended %v with %v", g.ended, g.err)
		}
	})
	t.Run("newer, and the store has no more", func(t *testing.T) {
		g := asking(t)
		g.p.OnOutsiders([]Outsider{g.newer()})
		if g.pass(time.Second); g.serving || g.reads != 1 {
			t.Fatalf("serving %v, %d reads: only the store can say who is right", g.serving, g.reads)
		}
		g.p.OnRead(g.stored.Clone(), nil)
		g.mustBeRolledBack()
	})
	t.Run("newer, and so is the store", func(t *testing.T) {
		g := asking(t)
		g.p.OnOutsiders([]Outsider{g.newer()})
		g.pass(time.Second)
		g.stored.Revision++
		g.stored.Epoch += 7
		g.stored.Primary = &holdfast.Primary{Node: "n7", Kind: holdfast.ClientPrimary, Grant: g.stored.Epoch}
		g.p.OnRead(g.stored.Clone(), nil)
		if !g.ended || !errors.Is(g.err, holdfast.Fenced) {
			t.Fatalf("ended %v with %v", g.ended, g.err)
		}
	})
	t.Run("older, of another history", func(t *testing.T) {
		g := asking(t)
		x := g.newer()
		x.Record.Epoch, x.Promise = g.stored.Epoch, g.stored.Epoch
		x.Record.Replicas[1].Since = 0
		g.p.OnOutsiders([]Outsider{x})
		g.mustBeRolledBack()
	})
	t.Run("no answer", func(t *testing.T) {
		g := asking(t)
		if g.pass(time.Second); !g.serving {
			t.Fatal("it is waited for without end")
		}
		g.p.OnOutsiders([]Outsider{g.newer()}) // late, but heard
		g.pass(time.Second)
		g.p.OnRead(g.stored.Clone(), nil)
		g.mustBeRolledBack()
	})
}
