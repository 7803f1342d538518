package reconcile

import (
	"github.com/holdfast-storage/holdfast"
)

// planFinish names the volumes whose creation or deletion nobody seems to be at
// any more.
func planFinish(v *View) []holdfast.Record {
	var out []holdfast.Record
	for _, r := range v.Volumes {
		switch r.Phase {
		case holdfast.PhaseDeleting:
			out = append(out, r)
		case holdfast.PhaseCreating:
			if v.Now.Sub(r.Created) >= v.Limits.FinishAfter {
				out = append(out, r)
			}
		}
	}
	return out
}
