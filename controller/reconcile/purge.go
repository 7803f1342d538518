package reconcile

import (
	"slices"

	"github.com/holdfast-storage/holdfast"
)

// planPurge names the live nodes for which tombstones wait. Those of nodes that
// are dead or forgotten stay, for the day when their disks return.
func planPurge(v *View) []holdfast.NodeID {
	var out []holdfast.NodeID
	for _, t := range v.Tombstones {
		if n := v.node(t.Node); n != nil && n.Alive && !slices.Contains(out, t.Node) {
			out = append(out, t.Node)
		}
	}
	slices.Sort(out)
	return out
}
