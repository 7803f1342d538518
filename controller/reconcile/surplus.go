package reconcile

import (
	"cmp"
	"slices"

	"github.com/holdfast-storage/holdfast"
)

// Removal is what a volume no longer needs.
type Removal struct {
	Record holdfast.Record
	Retire []holdfast.ReplicaID // not in sync: out of the record, with tombstones
	Leave  []holdfast.ReplicaID // in sync: marked, so that the primary drops them
}

// planSurplus removes replicas that a volume does not need: when as many as
// wanted are in sync on live nodes that stay, all that are not in sync, those on
// draining and dead nodes, and whatever is more than wanted. Nothing is removed
// before its successor is in sync. What has been marked and dropped by the
// primary is taken out.
func planSurplus(v *View) []Removal {
	var out []Removal
	for _, r := range v.Volumes {
		if r.Phase != holdfast.PhaseReady {
			continue
		}
		rm := Removal{Record: r}
		keep := v.keepers(r)
		enough := len(keep) >= r.Spec.Replicas
		for _, x := range r.Replicas {
			switch {
			case slices.Contains(keep, x.ID):
			case x.Leaving && x.State == holdfast.InSync: // the primary's turn
			case x.State != holdfast.InSync && (x.Leaving || enough):
				rm.Retire = append(rm.Retire, x.ID)
			case enough:
				rm.Leave = append(rm.Leave, x.ID)
			}
		}
		if len(keep) > r.Spec.Replicas {
			rm.Leave = append(rm.Leave, v.worst(r, keep))
		}
		if len(rm.Retire)+len(rm.Leave) > 0 {
			out = append(out, rm)
		}
	}
	return out
}

// keepers are the replicas that count: in sync, on a live node that stays.
func (v *View) keepers(r holdfast.Record) []holdfast.ReplicaID {
	var keep []holdfast.ReplicaID
	for _, x := range r.Replicas {
		if x.State == holdfast.InSync && !x.Leaving && v.alive(x) && !v.draining(x) {
			keep = append(keep, x.ID)
		}
	}
	return keep
}

// worst is the keeper to give up when there are too many: rather not the one
// where the volume is attached, rather one on a cordoned node, in the zone and
// rack with most of them, on the pool with least free.
func (v *View) worst(r holdfast.Record, keep []holdfast.ReplicaID) holdfast.ReplicaID {
	zones, racks := map[holdfast.Domain]int{}, map[holdfast.Domain]int{}
	at := func(id holdfast.ReplicaID) *holdfast.Node { return v.node(r.Replica(id).Node) }
	zone := func(n *holdfast.Node) holdfast.Domain {
		return holdfast.Domain{Region: n.Domain.Region, Zone: n.Domain.Zone}
	}
	rack := func(n *holdfast.Node) holdfast.Domain {
		return holdfast.Domain{Region: n.Domain.Region, Zone: n.Domain.Zone, Rack: n.Domain.Rack}
	}
	for _, id := range keep {
		zones[zone(at(id))]++
		racks[rack(at(id))]++
	}
	num := func(b bool) int {
		if b {
			return 1
		}
		return 0
	}
	return slices.MinFunc(keep, func(x, y holdfast.ReplicaID) int {
		a, b := at(x), at(y)
		return cmp.Or(
			cmp.Compare(num(a.ID == r.AttachedTo()), num(b.ID == r.AttachedTo())),
			cmp.Compare(num(b.Cordoned), num(a.Cordoned)),
			cmp.Compare(zones[zone(b)], zones[zone(a)]),
			cmp.Compare(racks[rack(b)], racks[rack(a)]),
			cmp.Compare(freeOf(a, r.Replica(x).Pool), freeOf(b, r.Replica(y).Pool)),
			cmp.Compare(x, y))
	})
}

func freeOf(n *holdfast.Node, pool holdfast.PoolID) int64 {
	for _, p := range n.Pools {
		if p.ID == pool {
			return p.FreeBytes
		}
	}
	return 0
}
