package reconcile

import "github.com/holdfast-storage/holdfast"

// Making is a replica that its node is asked to make.
type Making struct {
	Record  holdfast.Record
	Replica holdfast.Replica
}

// planMake names the new replicas of ready volumes on live nodes, but for those
// that this leader has seen made. Asking for one again is fine.
func planMake(v *View) []Making {
	var out []Making
	for _, r := range v.Volumes {
		if r.Phase != holdfast.PhaseReady {
			continue
		}
		for _, x := range r.Replicas {
			if x.State == holdfast.New && !x.Leaving && !v.Made[x.ID] && v.alive(x) {
				out = append(out, Making{r, x})
			}
		}
	}
	return out
}
