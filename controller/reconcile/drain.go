package reconcile

import (
	"slices"

	"github.com/holdfast-storage/holdfast"
)

// planDrain adds replicas elsewhere for those on draining nodes. When they are in
// sync, planSurplus lets the old ones leave.
func planDrain(v *View) ([]Addition, []Problem) {
	var volumes []holdfast.Record
	for _, r := range v.Volumes {
		if slices.ContainsFunc(r.Replicas, v.draining) {
			volumes = append(volumes, r)
		}
	}
	return planAdditions(v, "a replica cannot be moved off its draining node", volumes,
		func(x holdfast.Replica) bool { return !v.lost(x) && !v.draining(x) })
}
