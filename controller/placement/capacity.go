package placement

import (
	"slices"

	"github.com/holdfast-storage/holdfast"
)

// Capacity is how much could be created now with a spec's replicas and
// constraints: total is the largest sum of sizes of such volumes, largest the
// size of the largest single one. Both are 0 when there are too few hosts.
//
// A sum of n-fold replicated volumes fits hosts with rooms r exactly if it is an
// X with sum(min(r, X)) >= n*X, since no volume has two replicas on one host.
func Capacity(c Cluster, spec holdfast.Spec) (total, largest int64) {
	n := max(spec.Replicas, 1)
	spec.SizeBytes = holdfast.MinVolumeBytes // whatever has the least room counts
	byHost := map[string]int64{}
	for _, x := range (Request{Cluster: c, Spec: spec}).candidates().can {
		// A host's pools add up, but one replica needs one pool.
		var sum int64
		for _, p := range x.node.Pools {
			sum += c.Policy.Room(p, c.Provisioned[p.ID])
		}
		byHost[hostOf(x.node)] += sum
	}
	rooms := make([]int64, 0, len(byHost))
	for _, r := range byHost {
		rooms = append(rooms, r)
	}
	return sumOfVolumes(rooms, n), largestVolume(c, spec, n)
}

// sumOfVolumes is the largest X with sum(min(room, X)) >= n*X.
func sumOfVolumes(rooms []int64, n int) int64 {
	if len(rooms) < n {
		return 0
	}
	slices.Sort(rooms)
	// With the k largest rooms capped at X, the rest must carry (n-k)*X.
	var rest int64
	for _, r := range rooms {
		rest += r
	}
	best := rest / int64(n)
	for k := 1; k < n; k++ {
		rest -= rooms[len(rooms)-k]
		best = min(best, rest/int64(n-k))
	}
	return best
}

// largestVolume is the room of the n-th roomiest host.
func largestVolume(c Cluster, spec holdfast.Spec, n int) int64 {
	byHost := map[string]int64{}
	for _, x := range (Request{Cluster: c, Spec: spec}).candidates().can {
		byHost[hostOf(x.node)] = max(byHost[hostOf(x.node)], x.room)
	}
	if len(byHost) < n {
		return 0
	}
	rooms := make([]int64, 0, len(byHost))
	for _, r := range byHost {
		rooms = append(rooms, r)
	}
	slices.Sort(rooms)
	return min(rooms[len(rooms)-n], holdfast.MaxVolumeBytes)
}

// Within widens topology requirements that name single hosts until they hold
// enough hosts for the replicas: first the host is left out, then the rack, then
// the zone; never the region. Orchestrators name one host ("the task will run here") and mean that
// the volume must be reachable there, not that all its replicas be there.
// Requirements without a host are the user's own and stay as they are.
func Within(required []holdfast.Domain, nodes []holdfast.Node, replicas int) []holdfast.Domain {
	wide := slices.Clone(required)
	widen := []func(*holdfast.Domain){
		func(d *holdfast.Domain) { d.Host = "" },
		func(d *holdfast.Domain) { d.Rack = "" },
		func(d *holdfast.Domain) { d.Zone = "" },
	}
	for _, step := range widen {
		if len(wide) == 0 || hostsIn(wide, nodes) >= replicas {
			break
		}
		for i := range wide {
			if required[i].Host != "" {
				step(&wide[i])
			}
		}
	}
	if slices.Contains(wide, holdfast.Domain{}) {
		return nil // anywhere
	}
	return slices.Compact(wide)
}

// hostsIn counts the distinct hosts with pools in any of the domains.
func hostsIn(ds []holdfast.Domain, nodes []holdfast.Node) int {
	seen := map[string]bool{}
	for _, n := range nodes {
		if len(n.Pools) > 0 && rank(n, ds) < len(ds) {
			seen[hostOf(n)] = true
		}
	}
	return len(seen)
}
