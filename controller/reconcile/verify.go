package reconcile

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/holdfast-storage/holdfast"
)

// Found is a replica that a node says it stores.
type Found struct {
	Node    holdfast.NodeID
	Volume  holdfast.VolumeID
	Replica holdfast.ReplicaID
}

// planVerify compares what live nodes store with what records and tombstones
// name. answered are the nodes whose list is complete. It only reports: nothing
// is removed because a record is missing (invariant 8).
func planVerify(v *View, found []Found, answered map[holdfast.NodeID]bool) []Problem {
	named := map[holdfast.ReplicaID]bool{}
	for _, t := range v.Tombstones {
		named[t.Replica] = true
	}
	stored := map[holdfast.ReplicaID]bool{}
	for _, f := range found {
		stored[f.Replica] = true
	}
	var out []Problem
	for _, r := range v.Volumes {
		for _, x := range r.Replicas {
			named[x.ID] = true
			if _, gone := v.PoolGone[x.Pool]; gone {
				continue // that is said elsewhere
			}
			if x.State != holdfast.New && answered[x.Node] && !stored[x.ID] {
				out = append(out, Problem{Volume: r.Name, Node: x.Node,
					Text:   fmt.Sprintf("replica %s is %s in the record, but the node does not have it; pool %s is not there, or lost it", x.ID, x.State, x.Pool),
					Remedy: "see that the pool's disk is there: holdfast node inspect " + string(x.Node)})
			}
		}
	}
	for _, f := range found {
		if !named[f.Replica] {
			out = append(out, Problem{Node: f.Node,
				Text:   fmt.Sprintf("it stores replica %s of volume %s, which no record and no tombstone names; it is left alone", f.Replica, f.Volume),
				Remedy: "it only takes space; was the metadata restored from an old backup, or the disk brought from another cluster?"})
		}
	}
	slices.SortFunc(out, func(a, b Problem) int { return cmp.Compare(a.String(), b.String()) })
	return out
}
