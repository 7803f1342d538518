package replication

import (
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
)

// These tests put events in the orders that protocols break in.

type states = []holdfast.ReplicaState

var powerLoss = Welcome{Boot: "another boot", Suspects: []holdfast.Extent{blocks(0, 8)}}

// candidate brings replica 1 of {in, stale} to where its promotion is asked for.
func candidate(t *testing.T, change func(*Config)) (*rig, holdfast.Record) {
	t.Helper()
	g := served(t, states{in, stale}, change)
	g.greet(1, Welcome{})
	g.pass(100 * time.Millisecond)
	g.serve()
	g.commit() // rebuilding
	g.serve()
	want := g.swapped()
	if want.Replica(rigID(1)).State != in {
		t.Fatalf("the promotion is not asked for: %+v", want)
	}
	return g, want
}

func unknown() error { return holdfast.E("swap", holdfast.Unavailable, "no answer") }

// settleDown lets everything go on that can: swaps, answers, time.
func (g *rig) settleDown(d time.Duration) {
	for end := g.now + d; g.now < end; {
		g.serve()
		for len(g.swaps) > 0 {
			g.commit()
			g.serve()
		}
		if g.reads > 0 {
			g.reads--
			g.p.OnRead(g.stored.Clone(), nil)
		}
		g.pass(50 * time.Millisecond)
	}
}

func TestARemovedReplicaIsWaitedForUntilTheOthersKnow(t *testing.T) {
	g := served(t, states{in, in, in}, nil)
	g.conn(1).holding(MsgEpoch)
	g.conn(2).holding(MsgWrite)
	w := g.submit(OpWrite, blocks(3, 1))
	g.serve()
	g.lost(2)
	g.pass(time.Second)
	g.serve()
	g.commit()
	g.serve()
	g.control(func(r *holdfast.Record) { r.Replicas = r.Replicas[:2] })
	g.serve()
	g.mustWait(w, "a replica has not promised the epoch without the one dropped")
	g.conn(1).hold = map[MsgType]bool{}
	g.serve()
	g.must(w, "all have promised")
	w = g.submit(OpWrite, blocks(3, 1))
	g.serve()
	g.must(w, "a later write")
}

func TestACandidateThatLosesPowerIsNotKept(t *testing.T) {
	g, want := candidate(t, nil)
	g.land(want)
	g.p.OnSwap(holdfast.Record{}, unknown())
	g.lost(1)
	g.pass(200 * time.Millisecond)
	g.greet(1, powerLoss)
	g.settleDown(time.Second)
	if rep := g.stored.Replica(rigID(1)); rep.Since <= want.Epoch {
		t.Fatalf("it stays %s since epoch %d, though it lost acknowledged writes", rep.State, rep.Since)
	}
}

func TestAReplicaThatLostPowerIsDroppedThoughItReconnects(t *testing.T) {
	g := served(t, states{in, in}, nil)
	g.p.member.retryAt = g.now + 400*time.Millisecond // the metadata store was away a moment ago
	g.lost(1)
	g.greet(1, powerLoss)
	g.lost(1)
	g.greet(1, powerLoss)
	g.settleDown(time.Second)
	if rep := g.stored.Replica(rigID(1)); rep.Since == 1 {
		t.Fatalf("it stays %s since epoch %d, though it lost acknowledged writes", rep.State, rep.Since)
	}
}

func TestWhatMayBeLostIsNotForgottenBeforeItIsCompared(t *testing.T) {
	g, want := candidate(t, nil)
	g.land(want)
	g.conn(1).holding(MsgEpoch)
	g.p.OnSwap(g.stored.Clone(), nil)
	g.serve()
	g.lost(1)
	g.p.member.retryAt = g.now + 400*time.Millisecond
	g.greet(1, powerLoss)
	g.control(func(r *holdfast.Record) { r.Spec.Labels = map[string]string{"a": "b"} })
	g.serve()
	g.conn(1).holding(MsgSettle)
	g.control(func(r *holdfast.Record) { r.Spec.Labels = map[string]string{"a": "c"} })
	g.serve()
	if g.sent(1, MsgSettle) > 0 {
		t.Fatal("its suspects are forgotten while it is still to be dropped and repaired")
	}
}

// A repair fills its target's tail, which the next take-over would copy again
// before it serves: the grant goes back when that is forgotten, or the target gone.
func TestAReleaseWaitsForARepairedReplicaToForget(t *testing.T) {
	begin := func(t *testing.T) *rig {
		g, want := candidate(t, nil)
		g.land(want)
		g.conn(1).holding(MsgSettle)
		g.p.OnSwap(g.stored.Clone(), nil)
		g.p.Release()
		g.settleDown(time.Second)
		if g.ended || g.stored.Primary == nil || g.sent(1, MsgSettle) == 0 {
			t.Fatalf("ended %v, primary %v, told to forget %d times", g.ended, g.stored.Primary, g.sent(1, MsgSettle))
		}
		return g
	}
	released := func(t *testing.T, g *rig) {
		t.Helper()
		if !g.ended || g.err != nil || g.stored.Primary != nil {
			t.Fatalf("it is not released: %+v", g.p.Status())
		}
	}
	t.Run("told", func(t *testing.T) {
		g := begin(t)
		for g.sent(1, MsgSettle) > 0 {
			g.answer(1, g.take(1, MsgSettle), StatusOK)
		}
		g.settleDown(time.Second)
		released(t, g)
	})
	t.Run("reconnected", func(t *testing.T) {
		g := begin(t)
		g.lost(1)
		g.greet(1, Welcome{})
		g.settleDown(time.Second)
		released(t, g)
	})
	t.Run("gone", func(t *testing.T) {
		g := begin(t)
		g.lost(1)
		g.settleDown(5 * time.Second)
		released(t, g)
	})
}

func TestALateLocalReadDoesNotReachTheBuffer(t *testing.T) {
	g := served(t, states{in, in}, nil)
	g.conn(0).holding(MsgRead)
	r := g.submit(OpRead, blocks(3, 1))
	g.serve()
	late := g.take(0, MsgRead)
	g.lost(0)
	g.settleDown(time.Second)
	g.must(r, "the other replica answers")
	for i := range late.Buf.B {
		late.Buf.B[i] = 0xee // the disk is done at last
	}
	if r.r.Buf.B[0] == 0xee {
		t.Fatal("a dropped replica's old data is in the buffer of a read that was answered")
	}
	late.Buf.Release()
	r.r.Buf.Release()
}

func TestACandidateIsForgottenWhenARecordOvertakesTheSwap(t *testing.T) {
	g, _ := candidate(t, nil)
	g.control(func(r *holdfast.Record) { r.Spec.Labels = map[string]string{"a": "b"} })
	older := g.stored.Clone()
	g.control(func(r *holdfast.Record) { r.Spec.Labels = map[string]string{"a": "c"} })
	g.lost(1)
	g.p.OnSwap(older, holdfast.Busy)
	w := g.submit(OpWrite, blocks(3, 1))
	g.settleDown(time.Second)
	g.must(w, "the candidate is gone, and not in sync")
}

func TestReadsWaitForACandidateThatMayBeInSync(t *testing.T) {
	g, want := candidate(t, nil)
	g.land(want)
	g.p.OnSwap(holdfast.Record{}, unknown())
	g.lost(1) // another primary may be granted, with this replica alone
	r := g.submit(OpRead, blocks(3, 1))
	g.serve()
	g.mustWait(r, "a replica that may be in sync has not been heard")
	g.settleDown(3 * time.Second)
	g.must(r, "it was dropped")
}

func TestATakeOverLooksAgainAtWhoReconnects(t *testing.T) {
	g := newRig(t, states{in, in}, nil)
	g.greet(0, Welcome{Tail: []holdfast.Extent{blocks(1, 1)}})
	g.conn(0).holding(MsgAllocated)
	g.greet(1, Welcome{})
	g.lost(1)
	g.greet(1, powerLoss)
	g.conn(0).hold = map[MsgType]bool{}
	g.serve()
	for i := range 2 {
		if _, ok := g.dials[rigID(i)]; ok {
			g.greet(i, []Welcome{{}, powerLoss}[i])
		}
	}
	g.settleDown(2 * time.Second)
	if !g.serving || g.stored.Replica(rigID(1)).Since == 1 {
		t.Fatalf("it serves with a replica that lost power while the tails were made equal: %+v", g.p.Status())
	}
}

func TestARefusedRequestIsSentAgain(t *testing.T) {
	for name, op := range map[string]Op{"read": OpRead, "write": OpWrite} {
		kind := map[Op]MsgType{OpRead: MsgRead, OpWrite: MsgWrite}[op]
		g := served(t, states{in}, nil)
		g.conn(0).holding(kind)
		r := g.submit(op, blocks(3, 1))
		m := g.take(0, kind)
		g.answer(0, m, StatusFenced)
		g.pass(500 * time.Millisecond)
		g.p.OnRead(g.stored.Clone(), nil)
		g.pass(2 * time.Second)
		g.greet(0, Welcome{})
		g.settleDown(time.Second)
		g.must(r, name)
	}
}

func TestAReplicaThatAnswersPingsButNotIOIsDropped(t *testing.T) {
	for name, op := range map[string]Op{"read": OpRead, "flush": OpFlush} {
		t.Run(name, func(t *testing.T) {
			g := served(t, states{in, in}, nil)
			g.conn(0).holding(MsgRead, MsgFlush)
			r := g.submit(op, blocks(3, 1))
			g.settleDown(15 * time.Second)
			g.must(r, "the other replica is well")
		})
	}
	t.Run("take-over", func(t *testing.T) {
		g := newRig(t, states{in, in}, nil)
		g.greet(0, Welcome{Tail: []holdfast.Extent{blocks(1, 1)}})
		g.conn(0).holding(MsgAllocated)
		g.greet(1, Welcome{})
		g.settleDown(11 * time.Second)
		if _, ok := g.dials[rigID(1)]; ok {
			g.greet(1, Welcome{})
		}
		g.settleDown(3 * time.Second)
		if !g.serving {
			t.Fatalf("not serving: %+v", g.p.Status())
		}
	})
}

func TestGrowthIsAskedForAgain(t *testing.T) {
	const larger = 2 * rigBlocks << 12
	grow := func(r *holdfast.Record) { r.Spec.SizeBytes = larger }
	t.Run("a connection broke", func(t *testing.T) {
		g := served(t, states{in, in}, nil)
		g.conn(1).holding(MsgGrow)
		g.control(grow)
		g.serve()
		g.lost(1)
		g.greet(1, Welcome{})
		g.settleDown(3 * time.Second)
		if g.stored.SizeBytes != larger {
			t.Fatalf("it does not grow: %+v", g.p.Status())
		}
	})
	t.Run("before a repaired replica gets live writes", func(t *testing.T) {
		g := served(t, states{in, stale}, nil)
		g.greet(1, Welcome{}).holding(MsgGrow)
		g.settleDown(200 * time.Millisecond)
		g.control(grow)
		g.settleDown(200 * time.Millisecond)
		g.conn(1).hold = map[MsgType]bool{}
		g.settleDown(3 * time.Second)
		if g.stored.SizeBytes != larger || g.state(1) != in {
			t.Fatalf("it does not grow or is not repaired: %+v", g.p.Status())
		}
	})
	t.Run("during a repair", func(t *testing.T) {
		g := served(t, states{in, stale}, nil)
		g.greet(1, Welcome{}).holding(MsgFlush)
		g.settleDown(200 * time.Millisecond)
		g.control(grow)
		g.settleDown(200 * time.Millisecond)
		g.conn(1).hold = map[MsgType]bool{}
		g.settleDown(3 * time.Second)
		if g.stored.SizeBytes != larger || g.state(1) != in {
			t.Fatalf("it does not grow or is not repaired: %+v", g.p.Status())
		}
	})
}

func TestACandidateWithAFullPoolHoldsNobodyUp(t *testing.T) {
	g := served(t, states{in, stale}, nil)
	g.greet(1, Welcome{}).holding(MsgFlush, MsgWrite)
	g.settleDown(200 * time.Millisecond)
	w := g.submit(OpWrite, blocks(3, 1))
	g.serve()
	g.answer(1, g.take(1, MsgWrite), StatusNoSpace)
	g.settleDown(200 * time.Millisecond)
	g.must(w, "the candidate is not in sync")
}

func TestATakeOverLeavesOutAFullReplica(t *testing.T) {
	g := newRig(t, states{in, in}, nil)
	g.greet(0, Welcome{Tail: []holdfast.Extent{blocks(1, 1)}})
	g.greet(1, Welcome{}).holding(MsgTrim)
	g.serve()
	g.answer(1, g.take(1, MsgTrim), StatusNoSpace)
	for range 3 {
		for i := range 2 {
			if _, ok := g.dials[rigID(i)]; ok {
				g.greet(i, Welcome{Tail: []holdfast.Extent{blocks(1, 1)}}).holding(MsgTrim)
			}
		}
		g.settleDown(500 * time.Millisecond)
		if g.sent(1, MsgTrim) > 0 && !g.conn(1).closed {
			g.answer(1, g.take(1, MsgTrim), StatusNoSpace)
		}
	}
	g.settleDown(time.Second)
	if !g.serving {
		t.Fatalf("not serving: %+v", g.p.Status())
	}
}

func TestLeavingReplicasDoNotBreakMinInSync(t *testing.T) {
	g := served(t, states{in, in, in}, func(c *Config) { c.Record.Spec.MinInSync = 2 })
	g.control(func(r *holdfast.Record) { r.Replicas[1].Leaving, r.Replicas[2].Leaving = true, true })
	g.settleDown(time.Second)
	if n := len(g.stored.InSyncReplicas()); n != 2 {
		t.Fatalf("%d replicas are in sync", n)
	}
}

func TestALeavingReplicaIsDroppedWhenTheOthersAreBack(t *testing.T) {
	g := served(t, states{in, in}, nil)
	g.lost(1)
	g.control(func(r *holdfast.Record) { r.Replicas[0].Leaving = true })
	g.greet(1, Welcome{})
	g.settleDown(time.Second)
	if g.state(0) != stale {
		t.Fatal("it is not dropped")
	}
}

func TestWritesGoOnWhenADropIsTakenBack(t *testing.T) {
	g := served(t, states{in, in}, nil)
	g.p.member.retryAt = g.now + time.Hour
	g.lost(1)
	g.dialed(1)
	g.pass(3 * time.Second)
	w := g.submit(OpWrite, blocks(3, 1))
	g.mustWait(w, "a replica is being dropped")
	g.pass(time.Second)
	g.greet(1, Welcome{})
	g.serve()
	g.pass(100 * time.Millisecond)
	g.serve()
	g.must(w, "it is back in time")
}

func TestATakeOverThinksAgainWhenTheSurvivorGoes(t *testing.T) {
	g := newRig(t, states{in, in}, nil)
	g.greet(0, Welcome{})
	g.peer(1).attempt = 0
	g.pass(2100 * time.Millisecond)
	want := g.swapped() // without 1
	g.stored.Revision++ // somebody else was faster
	g.lost(0)
	g.peer(0).attempt = 0
	g.land(want)
	g.p.OnSwap(g.stored.Clone(), holdfast.Busy)
	g.pass(200 * time.Millisecond)
	g.greet(1, Welcome{})
	g.settleDown(5 * time.Second)
	if !g.serving {
		t.Fatalf("not serving: %+v", g.p.Status())
	}
}

func TestADiskFailureWaitsForTheOtherReplica(t *testing.T) {
	g := served(t, states{in, in}, nil)
	g.conn(0).holding(MsgWrite)
	w := g.submit(OpWrite, blocks(3, 1))
	g.serve()
	g.lost(1)
	g.answer(0, g.take(0, MsgWrite), StatusFailed)
	if g.ended {
		t.Fatalf("it ends (%v), though a good replica was there a moment ago", g.err)
	}
	g.greet(1, Welcome{})
	g.settleDown(time.Second)
	g.must(w, "the good replica is back")
	if g.state(0) != stale {
		t.Fatal("the failed replica stays in sync")
	}
}
