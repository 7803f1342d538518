package replication

import (
	"slices"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
)

// The source of a repair keeps what it may have lost itself until all are in sync.
// If the grant went back before it forgot that, the next primary would drop it,
// and compare all of it, with no need (chaos 9004, and 1 of 6916dc2).
func TestAReleaseWaitsUntilTheSourceForgets(t *testing.T) {
	told := func(g *rig) bool {
		for _, m := range g.conn(0).sent {
			if m.Type == MsgSettle && m.Since == g.stored.Epoch {
				return true
			}
		}
		return false
	}
	mustWait := func(t *testing.T, g *rig) {
		t.Helper()
		g.settleDown(time.Second)
		if g.ended || g.stored.Primary == nil || !told(g) {
			t.Fatalf("ended %v, primary %v, told to forget: %v", g.ended, g.stored.Primary, told(g))
		}
	}
	released := func(t *testing.T, g *rig) {
		t.Helper()
		g.settleDown(5 * time.Second)
		if !g.ended || g.err != nil || g.stored.Primary != nil {
			t.Fatalf("it is not released: %+v", g.p.Status())
		}
	}
	begin := func(t *testing.T) *rig {
		g, want := candidate(t, nil)
		g.land(want)
		g.conn(0).holding(MsgSettle)
		g.p.OnSwap(g.stored.Clone(), nil)
		g.p.Release()
		mustWait(t, g)
		return g
	}
	t.Run("told", func(t *testing.T) {
		g := begin(t)
		g.conn(0).hold = map[MsgType]bool{}
		released(t, g)
	})
	t.Run("reconnected", func(t *testing.T) {
		g := begin(t)
		g.lost(0)
		g.greet(0, Welcome{})
		released(t, g)
	})
	t.Run("gone", func(t *testing.T) {
		g := begin(t)
		g.lost(1)
		g.conn(0).hold = map[MsgType]bool{}
		released(t, g)
	})
	t.Run("the last that lacked something is removed", func(t *testing.T) {
		g := served(t, states{in, in, stale}, nil)
		g.conn(0).holding(MsgSettle)
		g.p.Release()
		next := g.stored.Clone()
		next.Replicas = next.Replicas[:2]
		g.land(next) // the primary has not seen it
		mustWait(t, g)
		g.conn(0).hold = map[MsgType]bool{}
		released(t, g)
	})
	t.Run("its disk hangs, and another has all", func(t *testing.T) {
		g := begin(t)
		g.settleDown(DefaultConfig().IOTimeout + time.Second)
		if g.state(0) == in {
			t.Fatal("the source, which answers pings alone, is in sync")
		}
		released(t, g)
	})
	t.Run("the last one's disk hangs", func(t *testing.T) {
		g := served(t, states{in, stale}, nil)
		g.control(func(r *holdfast.Record) { r.Replicas = r.Replicas[:1] })
		g.conn(0).holding(MsgSettle)
		g.p.Release()
		mustWait(t, g)
		g.settleDown(DefaultConfig().IOTimeout + time.Second)
		released(t, g)
	})
	t.Run("not served", func(t *testing.T) {
		g := newRig(t, states{in, in}, nil)
		g.greet(0, Welcome{})
		g.p.Release()
		g.settleDown(time.Second)
		if told(g) {
			t.Fatal("a primary that has not made the replicas equal lets one forget")
		}
		released(t, g)
	})
}

// What was asked of a replica whose session broke is asked again when it is back.
func TestAReplicaThatReconnectsIsToldToForgetAgain(t *testing.T) {
	for name, kind := range map[string]func(*Message) bool{
		"repaired": func(m *Message) bool { return m.Type == MsgSettle && m.Since == 0 },
		"all":      func(m *Message) bool { return m.Type == MsgSettle && m.Since > 0 },
	} {
		t.Run(name, func(t *testing.T) {
			g, want := candidate(t, nil)
			g.land(want)
			g.conn(1).holding(MsgSettle)
			g.p.OnSwap(g.stored.Clone(), nil)
			g.settleDown(time.Second)
			g.lost(1)
			g.greet(1, Welcome{}).holding(MsgSettle)
			g.settleDown(time.Second)
			if g.state(1) != in || !slices.ContainsFunc(g.conn(1).sent, kind) {
				t.Fatalf("it is %s, and was sent %v", g.state(1), kinds(g.conn(1).sent))
			}
		})
	}
}
