package dataplane

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
)

func TestTurnsEndWhenTheyAreNotUsed(t *testing.T) {
	x := &turns{most: 2, running: map[holdfast.ReplicaID]time.Duration{}}
	now := time.Duration(0)
	must := func(id holdfast.ReplicaID, want bool, why string) {
		t.Helper()
		if got := x.turn(id, now); got != want {
			t.Fatalf("at %v: turn of %s is %v: %s", now, id, got, why)
		}
	}
	must("a", true, "nobody is there")
	must("b", true, "two may at once")
	must("c", false, "two are there")
	must("d", false, "likewise")
	for range 60 { // a and b go on, c and d keep asking
		now += turnAsk
		must("a", true, "it has its turn")
		must("c", false, "two are there")
		must("d", false, "likewise")
		if now < time.Second {
			must("b", true, "it has its turn")
		}
		if now > turnHeld {
			break
		}
	}
	for now <= time.Second+turnHeld { // b has ended without a word
		now += turnAsk
		must("a", true, "it has its turn")
		if now-900*time.Millisecond <= turnHeld {
			must("d", false, "c was first, and b may still go on")
			must("c", false, "b may still go on")
		}
	}
	must("d", false, "c was first")
	must("c", true, "b has ended")
	// d has given up; e comes later than f, which has not.
	now += turnQueued + turnAsk
	must("a", true, "it has its turn")
	must("c", true, "it has its turn")
	must("f", false, "two are there")
	must("e", false, "two are there")
	if len(x.queue) != 2 {
		t.Fatalf("the queue is %v", x.queue)
	}
}

// TestATargetsLimitHoldsForAllPrimaries: two volumes served by two other nodes are
// repaired onto a third one, which bounds them together; the primaries say so.
func TestATargetsLimitHoldsForAllPrimaries(t *testing.T) {
	const rate = 4 << 20
	c := newCluster(t, 3)
	c.tune = func(cfg *Config) {
		if cfg.Self == "n2" {
			cfg.RepairRate, cfg.Repairs = rate, 1
		}
		cfg.Primary.SmallRepair = 1
	}
	rec := c.record()
	rec.Replicas = rec.Replicas[:3]
	rec.Replicas[2].State, rec.Replicas[2].Since = holdfast.Rebuilding, 0 // made just now
	if _, err := c.store.SwapVolume(t.Context(), rec); err != nil {
		t.Fatal(err)
	}
	second := rec.Clone()
	second.ID, second.Name, second.Revision = holdfast.NewVolumeID(), "db-2", 0
	for i := range second.Replicas {
		second.Replicas[i].ID = holdfast.NewReplicaID()
	}
	if _, err := c.store.CreateVolume(t.Context(), second); err != nil {
		t.Fatal(err)
	}
	start := func(i int) {
		c.nodes[i].start()
		if err := c.nodes[i].plane.addReplica(second.ID, second.Replicas[i].ID, newMemBacking(testSize)); err != nil {
			t.Fatal(err)
		}
	}
	start(0)
	start(1)
	one := c.open(c.nodes[0], OpenOptions{})
	two, err := c.nodes[1].plane.Open(t.Context(), second.ID, OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	fillAll(t, one, testSize)
	fillAll(t, two, testSize)
	began := time.Now()
	start(2)
	seen := map[string]bool{}
	c.until("both volumes' replicas are in sync", func() bool {
		done := true
		for i, h := range []*Volume{one, two} {
			s := h.Status()
			done = done && len(s.Record.InSyncReplicas()) == 3
			if strings.Contains(s.Peers[2].WaitingFor, "node n2 to have room") {
				seen[fmt.Sprint(i)] = true
			}
		}
		return done
	})
	took := time.Since(began)
	a, b := one.Status().Counters.RepairBytes, two.Status().Counters.RepairBytes
	if a != uint64(testSize) || b != uint64(testSize) {
		t.Errorf("%d and %d bytes were sent, want %d each", a, b, testSize)
	}
	// Besides its rate it may let through a burst, and what each asks for ahead.
	if most := rate*took.Seconds() + rate/100 + 2*2<<20; float64(a+b) > most {
		t.Errorf("%d bytes in %v, more than %.0f", a+b, took, most)
	}
	if len(seen) == 0 {
		t.Error("neither primary shows that it waits for the target")
	}
}
