package dataplane

import (
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
)

// TestRepairsShareTheNodesLimit: two volumes repaired on one node, at once or one
// after the other, keep to its limit together, and both end.
func TestRepairsShareTheNodesLimit(t *testing.T) {
	for _, atOnce := range []int{1, 2} {
		const rate = 16 << 20
		c := newCluster(t, 2)
		c.tune = func(cfg *Config) { cfg.RepairRate, cfg.Repairs, cfg.Primary.SmallRepair = rate, atOnce, 1 }
		rec := c.record()
		rec.Replicas[1].State, rec.Replicas[1].Since = holdfast.Rebuilding, 0 // made just now
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
		one := c.open(c.nodes[0], OpenOptions{})
		two, err := c.nodes[0].plane.Open(t.Context(), second.ID, OpenOptions{})
		if err != nil {
			t.Fatal(err)
		}
		fillAll(t, one, testSize)
		fillAll(t, two, testSize)
		began := time.Now()
		start(1)
		c.until("both volumes' replicas are in sync", func() bool {
			a, b := one.Record(), two.Record()
			return len(a.InSyncReplicas()) == 2 && len(b.InSyncReplicas()) == 2
		})
		took := time.Since(began)
		a, b := one.Status().Counters.RepairBytes, two.Status().Counters.RepairBytes
		if a != uint64(testSize) || b != uint64(testSize) {
			t.Errorf("%d and %d bytes were sent, want %d each", a, b, testSize)
		}
		// Besides its rate it may let through a burst and the piece that ends it.
		if most := rate*took.Seconds() + rate/100 + 512<<10; float64(a+b) > most {
			t.Errorf("%d at once: %d bytes in %v, more than %.0f", atOnce, a+b, took, most)
		}
	}
}
