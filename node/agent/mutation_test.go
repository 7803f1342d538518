//go:build mutations

package agent_test

import (
	"testing"

	"github.com/holdfast-storage/holdfast/node/agent"
)

// TestRemovalsNoticeMutations switches on one deliberate fault after the other.
func TestRemovalsNoticeMutations(t *testing.T) {
	t.Cleanup(func() { agent.Mutant = agent.MutateNone })
	for m, broken := range map[agent.Mutation]string{
		agent.Mutate8InTheRecord: "InTheRecord: a tombstone removes a replica that a record names too",
		agent.Mutate8Unnamed:     "Unnamed: a replica that no record names is removed without a tombstone",
	} {
		agent.Mutant = m
		if removals(t) == nil {
			t.Errorf("invariant 8  %s: it is not noticed", broken)
			continue
		}
		t.Logf("invariant 8  caught at once: %s", broken)
	}
}
