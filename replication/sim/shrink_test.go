//go:build mutations

package sim

import (
	"testing"

	"github.com/holdfast-storage/holdfast/replication"
)

// A deliberate fault's failing run is shrunk to a few choices, which still fail in
// the same way, and always so.
func TestShrink(t *testing.T) {
	const most = 50
	for _, m := range []replication.Mutation{replication.Mutate4FlushNothing, replication.Mutate6NoReconcile, replication.Mutate7NoMarks} {
		replication.Mutant = m
		sum := Campaign{Seed: *seed, Runs: 500}.Do()
		if sum.Failed == nil {
			t.Errorf("mutation %d is not noticed", m)
			continue
		}
		s := Shrink(*sum.Failed, nil, 2000)
		t.Logf("mutation %d, seed %d: %d choices of %d after %d tries, %d lines: %v", m, s.Config.Seed, s.To, s.From, s.Tries, len(s.Result.Trace), s.Result.Err)
		if s.To > most || breachOf(s.Result.Err) != breachOf(sum.Failed.Result.Err) {
			t.Errorf("mutation %d: %d choices are left, more than %d, or it fails in another way: %v", m, s.To, most, s.Result.Err)
		}
		if again := Run(s.Config); again.Err == nil || again.Err.Error() != s.Result.Err.Error() {
			t.Errorf("mutation %d: the shrunk run fails with %v, then with %v", m, s.Result.Err, again.Err)
		}
	}
	replication.Mutant = replication.MutateNone
}
