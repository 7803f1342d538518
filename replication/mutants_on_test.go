//go:build mutations

package replication

import "testing"

func TestOrdersNoticeMutations(t *testing.T) {
	defer func() { Mutant = MutateNone }()
	for m, order := range orders {
		Mutant = m
		if err := order(t); err == nil {
			t.Errorf("mutation %d is not noticed", m)
		}
	}
}
