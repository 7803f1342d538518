package reconcile

import "github.com/holdfast-storage/holdfast"

// planGrants names the volumes whose holder is lost. While the grant stands,
// nobody else does maintenance on the volume; it is left to a node that returns
// for as long as a replica would be, so that a daemon that only restarts finds
// its mounted volumes again.
func planGrants(v *View) []holdfast.Record {
	var out []holdfast.Record
	for _, r := range v.Volumes {
		if p := r.Primary; p != nil && v.lost(holdfast.Replica{Node: p.Node}) {
			if n := v.node(p.Node); n == nil || !n.Alive {
				out = append(out, r)
			}
		}
	}
	return out
}
