package replication

import (
	"slices"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
)

// toldToForget says whether the source was told to forget its own suspects.
func (g *rig) toldToForget() bool {
	return slices.ContainsFunc(g.conn(0).sent, func(m *Message) bool { return m.Type == MsgSettle && m.Since == g.stored.Epoch })
}

func (g *rig) mustKeepGrant(t *testing.T) {
	t.Helper()
	g.settleDown(time.Second)
	if g.ended || g.stored.Primary == nil || !g.toldToForget() {
		t.Fatalf("ended %v, primary %v, told to forget: %v", g.ended, g.stored.Primary, g.toldToForget())
	}
}

func (g *rig) mustBeReleased(t *testing.T) {
	t.Helper()
	g.settleDown(5 * time.Second)
	if !g.ended || g.err != nil || g.stored.Primary != nil {
		t.Fatalf("it is not released: %+v", g.p.Status())
	}
}

// releaseUnsettled is a primary that is to release right after a repair, whose
// source does not answer that it has forgotten.
func releaseUnsettled(t *testing.T) *rig {
	t.Helper()
	g, want := candidate(t, nil)
	g.land(want)
	g.conn(0).holding(MsgSettle)
	g.p.OnSwap(g.stored.Clone(), nil)
	g.p.Release()
	g.mustKeepGrant(t)
	return g
}

// The source of a repair keeps what it may have lost itself until all are in sync.
// If the grant went back before it forgot that, the next primary would drop it,
// and compare all of it, with no need (chaos 9004, and 1 of 6916dc2).
func TestAReleaseWaitsUntilTheSourceForgets(t *testing.T) {
	t.Run("told", func(t *testing.T) {
		g := releaseUnsettled(t)
		g.conn(0).hold = map[MsgType]bool{}
		g.mustBeReleased(t)
	})
	t.Run("reconnected", func(t *testing.T) {
		g := releaseUnsettled(t)
		g.lost(0)
		g.greet(0, Welcome{})
		g.mustBeReleased(t)
	})
	t.Run("gone", func(t *testing.T) {
		g := releaseUnsettled(t)
		g.lost(1)
		g.conn(0).hold = map[MsgType]bool{}
		g.mustBeReleased(t)
	})
	t.Run("the last that lacked something is removed", func(t *testing.T) {
		g := served(t, states{in, in, stale}, nil)
		g.conn(0).holding(MsgSettle)
		g.p.Release()
		next := g.stored.Clone()
		next.Replicas = next.Replicas[:2]
		g.land(next) // the primary has not seen it
		g.mustKeepGrant(t)
		g.conn(0).hold = map[MsgType]bool{}
		g.mustBeReleased(t)
	})
	t.Run("not served", func(t *testing.T) {
		g := newRig(t, states{in, in}, nil)
		g.greet(0, Welcome{})
		g.p.Release()
		g.settleDown(time.Second)
		if g.toldToForget() {
			t.Fatal("a primary that has not made the replicas equal lets one forget")
		}
		g.mustBeReleased(t)
	})
}

// A disk that hangs while its process answers pings holds a release up for
// IOTimeout at most.
func TestAReleaseDoesNotWaitForADiskThatHangs(t *testing.T) {
	t.Run("its disk hangs, and another has all", func(t *testing.T) {
		g := releaseUnsettled(t)
		g.settleDown(DefaultConfig().IOTimeout + time.Second)
		if g.state(0) == in {
			t.Fatal("the source, which answers pings alone, is in sync")
		}
		g.mustBeReleased(t)
	})
	t.Run("the last one's disk hangs", func(t *testing.T) {
		g := served(t, states{in, stale}, nil)
		g.control(func(r *holdfast.Record) { r.Replicas = r.Replicas[:1] })
		g.conn(0).holding(MsgSettle)
		g.p.Release()
		g.mustKeepGrant(t)
		g.settleDown(DefaultConfig().IOTimeout + time.Second)
		g.mustBeReleased(t)
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
