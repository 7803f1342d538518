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
	say := Problem{Text: "a replica cannot be moved off its draining node",
		Remedy: "add a storage node or free space elsewhere; or use the node again: holdfast node undrain"}
	return planAdditions(v, say, volumes,
		func(x holdfast.Replica) bool { return !v.lost(x) && !v.draining(x) })
}
