package reconcile

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/controller/placement"
)

// Addition is new replicas for one volume.
type Addition struct {
	Record  holdfast.Record
	Choices []placement.Choice
}

// planReplace adds replicas where fewer are left than wanted: nodes or pools are
// gone for too long, were forgotten, or more replicas are wanted now. The old
// ones stay in the record: if their node returns, the better of both wins, and
// planSurplus drops the other.
func planReplace(v *View) ([]Addition, []Problem) {
	say := Problem{Text: "a replica is lost, and another cannot be made",
		Remedy: "bring the lost node or disk back, add a storage node, or free space: holdfast node list, holdfast pool list"}
	return planAdditions(v, say, v.Volumes, func(x holdfast.Replica) bool { return !v.lost(x) })
}

// additions is a plan in the making.
type additions struct {
	v           *View
	trouble     Problem // what to say when it cannot be done
	adds        []Addition
	problems    []Problem
	rebuilding  map[holdfast.NodeID]int
	total       int
	provisioned map[holdfast.PoolID]int64
}

// planAdditions adds replicas to volumes that have fewer of those that stay than
// are wanted, the volumes in most danger first.
func planAdditions(v *View, trouble Problem, volumes []holdfast.Record, stays func(holdfast.Replica) bool) ([]Addition, []Problem) {
	a := &additions{v: v, trouble: trouble, rebuilding: map[holdfast.NodeID]int{}, provisioned: placement.Provisioned(v.Volumes)}
	for _, r := range v.Volumes {
		for _, x := range r.Replicas {
			if x.State != holdfast.InSync && !x.Leaving && v.alive(x) {
				a.rebuilding[x.Node]++
				a.total++
			}
		}
	}
	order := slices.Clone(volumes)
	slices.SortStableFunc(order, func(x, y holdfast.Record) int { return cmp.Compare(v.sources(x), v.sources(y)) })
	for _, r := range order {
		if r.Phase != holdfast.PhaseReady || v.sources(r) == 0 {
			continue // nothing to build from now
		}
		var existing []holdfast.Replica
		for _, x := range r.Replicas {
			if !x.Leaving && stays(x) {
				existing = append(existing, x)
			}
		}
		if need := r.Spec.Replicas - len(existing); need > 0 {
			a.add(r, existing, need)
		}
	}
	return a.adds, a.problems
}

// sources counts the replicas that a new one can be built from now.
func (v *View) sources(r holdfast.Record) int {
	n := 0
	for _, x := range r.Replicas {
		if x.State == holdfast.InSync && v.alive(x) {
			n++
		}
	}
	return n
}

// add chooses as many as are needed, or as can be had.
func (a *additions) add(r holdfast.Record, existing []holdfast.Replica, need int) {
	spec := r.Spec
	if spec.Locality == holdfast.LocalityRequired {
		spec.Locality = holdfast.LocalityPreferred // a copy elsewhere is better than none
	}
	q := placement.Request{Spec: spec, Existing: existing, Avoid: a.avoid(r),
		Cluster: placement.Cluster{Nodes: a.v.Nodes, Provisioned: a.provisioned, Policy: a.v.Policy}}
	for q.Count = min(need, a.v.Limits.Rebuilds-a.total); q.Count > 0; q.Count-- {
		now := q
		now.Avoid = a.busy(q.Avoid)
		choices, err := placement.Choose(now)
		if err != nil {
			continue
		}
		a.adds = append(a.adds, Addition{Record: r, Choices: choices})
		for _, c := range choices {
			a.rebuilding[c.Node]++
			a.total++
			a.provisioned[c.Pool] += max(r.SizeBytes, holdfast.RoundUp(r.Spec.SizeBytes))
		}
		break
	}
	// It is a problem only when waiting for others' repairs would not help.
	q.Count = need
	if _, err := placement.Choose(q); err != nil {
		a.problems = append(a.problems, Problem{Volume: r.Name, Text: a.trouble.Text + ": " + err.Error(), Remedy: a.trouble.Remedy})
	}
}

// avoid are the nodes that this volume's new replicas must not be on, and why.
func (a *additions) avoid(r holdfast.Record) map[holdfast.NodeID]string {
	avoid := map[holdfast.NodeID]string{}
	for n, until := range a.v.Refused {
		if a.v.Now.Before(until) {
			avoid[n] = "could not make a replica lately"
		}
	}
	for _, x := range r.Replicas {
		avoid[x.Node] = "has a replica of the volume"
	}
	return avoid
}

// busy adds the nodes that build as many replicas as they may.
func (a *additions) busy(avoid map[holdfast.NodeID]string) map[holdfast.NodeID]string {
	all := maps.Clone(avoid)
	for n, k := range a.rebuilding {
		if k >= a.v.Limits.RebuildsPerNode {
			all[n] = fmt.Sprintf("builds %d replicas already", k)
		}
	}
	return all
}

// planMakeRoom gives up replicas that are lost on nodes which live, when their
// successor can be made nowhere but there, on another disk: a volume has at most
// one replica on a node. That is how an exchanged disk fills again in a cluster
// with as many nodes as replicas. One is given up only while another is in sync.
func planMakeRoom(v *View) []Removal {
	provisioned := placement.Provisioned(v.Volumes)
	a := &additions{v: v}
	var out []Removal
	for _, r := range v.Volumes {
		if r.Phase != holdfast.PhaseReady || v.sources(r) == 0 {
			continue
		}
		avoid := a.avoid(r)
		var stay []holdfast.Replica
		var lost []holdfast.Replica
		for _, x := range r.Replicas {
			switch n := v.node(x.Node); {
			case !x.Leaving && !v.lost(x):
				stay = append(stay, x)
			case !x.Leaving && n != nil && n.Alive:
				lost = append(lost, x)
			}
		}
		spec := r.Spec
		if spec.Locality == holdfast.LocalityRequired {
			spec.Locality = holdfast.LocalityPreferred
		}
		q := placement.Request{Spec: spec, Existing: stay, Avoid: avoid, Count: r.Spec.Replicas - len(stay),
			Cluster: placement.Cluster{Nodes: v.Nodes, Provisioned: provisioned, Policy: v.Policy}}
		if _, err := placement.Choose(q); q.Count <= 0 || len(lost) == 0 || err == nil {
			continue
		}
		rm := Removal{Record: r}
		for _, x := range lost {
			delete(avoid, x.Node)
			q.Count = 1
			if _, err := placement.Choose(q); err != nil {
				avoid[x.Node] = "has a replica of the volume"
				continue
			}
			if x.State == holdfast.InSync {
				rm.Leave = append(rm.Leave, x.ID)
			} else {
				rm.Retire = append(rm.Retire, x.ID)
			}
			break // one at a time
		}
		if len(rm.Retire)+len(rm.Leave) > 0 {
			out = append(out, rm)
		}
	}
	return out
}
