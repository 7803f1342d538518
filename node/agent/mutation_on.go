//go:build mutations

package agent

import (
	"context"

	"github.com/holdfast-storage/holdfast"
)

// Mutant is the deliberate fault that is switched on, before an Agent is made.
var Mutant Mutation

// mutant says whether a deliberate fault is switched on.
func mutant(m Mutation) bool { return Mutant == m }

// absent are the replicas here that no record names.
func (a *Agent) absent(ctx context.Context) (ts []holdfast.Tombstone) {
	if !mutant(Mutate8Unnamed) {
		return nil
	}
	for _, p := range a.openedPools() {
		stored, err := p.pool.Replicas(Named{})
		if err != nil {
			continue
		}
		for _, s := range stored {
			if rec, err := a.deps.Store.Volume(ctx, string(s.Volume)); err != nil || rec.Replica(s.Replica) == nil {
				ts = append(ts, holdfast.Tombstone{Replica: s.Replica, Volume: s.Volume, Node: a.cfg.ID, Pool: p.id})
			}
		}
	}
	return ts
}
