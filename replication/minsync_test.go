package replication

import (
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
)

func TestARepairGoesOnThoughWritesWaitForMinInSync(t *testing.T) {
	two := func(c *Config) { c.Record.Spec.MinInSync = 2 }
	back := func(t *testing.T) (*rig, *result) {
		g := served(t, states{in, in}, two)
		g.conn(1).holding(MsgWrite)
		w := g.submit(OpWrite, blocks(3, 1))
		g.serve()
		g.lost(1)
		g.pass(time.Second)
		g.commit()
		g.serve()
		g.mustWait(w, "too few are in sync")
		g.changes[rigID(0)] = []holdfast.Extent{blocks(3, 1)}
		return g, w
	}
	t.Run("serving", func(t *testing.T) {
		g, w := back(t)
		g.greet(1, Welcome{})
		g.settleDown(3 * time.Second)
		g.must(w, "two are in sync again")
	})
	t.Run("releasing", func(t *testing.T) {
		g, w := back(t)
		g.p.Release()
		g.greet(1, Welcome{})
		g.settleDown(3 * time.Second)
		g.must(w, "two are in sync again")
		if !g.ended || g.err != nil {
			t.Fatalf("it is not released: %+v", g.p.Status())
		}
	})
	t.Run("lowered", func(t *testing.T) {
		g, w := back(t)
		g.control(func(r *holdfast.Record) { r.Spec.MinInSync = 1 })
		g.must(w, "one is enough now")
	})
}

// A flush tells of durability on minInSync replicas, as a write does, also one that
// was under way when a replica was lost.
func TestARunningFlushWaitsForMinInSync(t *testing.T) {
	begun := func(t *testing.T) (*rig, *result, *result) {
		g := served(t, states{in, in}, func(c *Config) { c.Record.Spec.MinInSync = 2 })
		w := g.submit(OpWrite, blocks(3, 1))
		g.serve()
		g.must(w, "two are in sync")
		g.conn(1).holding(MsgFlush)
		f, next := g.submit(OpFlush, holdfast.Extent{}), g.submit(OpFlush, holdfast.Extent{})
		g.serve()
		g.lost(1)
		g.pass(time.Second)
		g.commit()
		g.pass(time.Second)
		g.mustWait(f, "one replica is left of two that must have it durable")
		g.mustWait(next, "it comes after the first")
		g.changes[rigID(0)] = []holdfast.Extent{blocks(3, 1)}
		return g, f, next
	}
	t.Run("serving", func(t *testing.T) {
		g, f, next := begun(t)
		g.greet(1, Welcome{})
		g.settleDown(3 * time.Second)
		g.must(f, "two are in sync again")
		g.must(next, "two are in sync again")
	})
	t.Run("releasing", func(t *testing.T) {
		g, f, next := begun(t)
		g.p.Release()
		g.greet(1, Welcome{})
		g.settleDown(3 * time.Second)
		g.must(f, "two are in sync again")
		g.must(next, "two are in sync again")
		if !g.ended || g.err != nil {
			t.Fatalf("it is not released: %+v", g.p.Status())
		}
	})
	t.Run("lowered", func(t *testing.T) {
		g, f, _ := begun(t)
		g.control(func(r *holdfast.Record) { r.Spec.MinInSync = 1 })
		g.must(f, "one is enough now")
	})
	t.Run("ended", func(t *testing.T) {
		g, f, next := begun(t)
		g.p.Abort()
		if !f.done || f.err == nil || !next.done || next.err == nil {
			t.Fatalf("%+v %+v", f, next)
		}
	})
}
