//go:build mutations

package sim

import (
	"flag"
	"slices"
	"testing"

	"github.com/holdfast-storage/holdfast/replication"
)

var only = flag.Uint("sim.mutation", 0, "try this one only")

// maxSeeds is within how many seeds every mutation must be caught.
const maxSeeds = 500

// byOrder need an order of events that seeds bring about too rarely: package
// replication tests them with that order (TestOrdersNoticeMutations).
var byOrder = []replication.Mutation{replication.Mutate2AckBeforePromise, replication.Mutate3NoWindow, replication.Mutate5SendTwice}

// TestMutations switches on one deliberate fault after the other. Each must make
// some seed fail; a fault that survives is a hole in the simulation.
func TestMutations(t *testing.T) {
	for m := replication.MutateNone + 1; m < replication.MutationEnd; m++ {
		if *only != 0 && m != replication.Mutation(*only) || *only == 0 && slices.Contains(byOrder, m) {
			continue
		}
		replication.Mutant = m
		caught := uint64(0)
		for s := uint64(1); s <= maxSeeds && caught == 0; s++ {
			if res := Run(Default(s)); res.Err != nil {
				caught = s
			}
		}
		if caught == 0 {
			t.Errorf("mutation %d survives %d seeds", m, maxSeeds)
			continue
		}
		t.Logf("mutation %d is caught by seed %d", m, caught)
	}
}
