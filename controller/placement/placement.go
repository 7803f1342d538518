// Package placement decides on which pools replicas go, and how much room there
// is for more.
//
// It promises pure functions: the same input gives the same choice. Replicas of
// one volume are always on distinct hosts, in the racks, zones and topology that
// its spec allows, spread over zones and then racks as far as there are enough,
// on the pools with most room; they stay in one region where that has enough
// hosts. An error says how many hosts are missing and why each other was left out.
// It reads and changes nothing, and owns no goroutine.
package placement

import (
	"cmp"
	"slices"

	"github.com/holdfast-storage/holdfast"
)

// Policy says how far pools may be filled.
type Policy struct {
	// Overcommit is how many bytes may be promised to thin volumes for each byte
	// a pool has. 1 promises only what is there.
	Overcommit float64
	// MinFreeBytes is what a pool must have free to take a new replica.
	MinFreeBytes int64
}

// DefaultPolicy promises four times a pool's size, and nothing on a pool with
// less than 64 MiB free.
func DefaultPolicy() Policy { return Policy{Overcommit: 4, MinFreeBytes: 64 << 20} }

// Validate checks a policy; the error is of kind Invalid.
func (p Policy) Validate() error {
	const op = "validate placement policy"
	if !(p.Overcommit >= 1) { // also refuses NaN
		return holdfast.E(op, holdfast.Invalid, "the overcommit factor must be 1 or more")
	}
	if p.MinFreeBytes < 0 {
		return holdfast.E(op, holdfast.Invalid, "the minimum of free bytes must not be negative")
	}
	return nil
}

// Provisioned is, for each pool, the bytes promised to the volumes that have a
// replica there.
func Provisioned(records []holdfast.Record) map[holdfast.PoolID]int64 {
	p := map[holdfast.PoolID]int64{}
	for _, r := range records {
		for _, x := range r.Replicas {
			p[x.Pool] += max(r.SizeBytes, holdfast.RoundUp(r.Spec.SizeBytes))
		}
	}
	return p
}

// Room is the size in bytes of the largest new replica that a pool may take,
// given what is promised on it already; 0 when it may take none, as one on which
// replicas failed: its disk is in doubt.
func (p Policy) Room(pool holdfast.Pool, provisioned int64) int64 {
	if pool.State != holdfast.PoolOnline || len(pool.Failed) > 0 || pool.FreeBytes <= 0 || pool.FreeBytes < p.MinFreeBytes {
		return 0
	}
	byPromise := float64(pool.TotalBytes)*p.Overcommit - float64(provisioned)
	// Neither may a pool that is filled already be promised many times what is left.
	byFree := float64(pool.FreeBytes) * p.Overcommit
	room := min(byPromise, byFree, float64(holdfast.MaxVolumeBytes))
	if room < holdfast.BlockSize {
		return 0
	}
	return int64(room) / holdfast.BlockSize * holdfast.BlockSize
}

// Cluster is what placement decides on: the nodes, and what is promised already.
type Cluster struct {
	Nodes       []holdfast.Node
	Provisioned map[holdfast.PoolID]int64
	Policy      Policy
}

// Request asks for pools for new replicas of one volume.
type Request struct {
	Cluster
	Spec     holdfast.Spec
	Count    int                        // how many new ones
	Existing []holdfast.Replica         // replicas that stay: their hosts are taken, and count for the spread
	Avoid    map[holdfast.NodeID]string // nodes not to use, with the reason
	From     holdfast.NodeID            // node that asks; gets the first replica if it can; may be ""
}

// Choice is where one replica goes.
type Choice struct {
	Node holdfast.NodeID
	Pool holdfast.PoolID
}

// Choose picks Count pools. Errors: Invalid when the cluster has fewer hosts
// than the replicas need at all; Unavailable when enough would do if nodes that
// are down came back; else NoSpace.
func Choose(r Request) ([]Choice, error) {
	if r.Count <= 0 {
		return nil, nil
	}
	c := r.candidates()
	if c.hosts() < r.Count {
		return nil, c.tooFew(r)
	}
	s := newSpread(r)
	picked := make([]Choice, 0, r.Count)
	for len(picked) < r.Count {
		best := c.best(s)
		if best == nil {
			return nil, c.tooFew(r)
		}
		if len(picked) == 0 && s.mustAnchor && !s.anchors(best.node) {
			return nil, c.noAnchor(r)
		}
		picked = append(picked, Choice{Node: best.node.ID, Pool: best.pool})
		s.add(best.node.Domain, hostOf(best.node))
		s.first = false
	}
	return picked, nil
}

// candidate is a node that can take a replica, with its roomiest pool.
type candidate struct {
	node holdfast.Node
	pool holdfast.PoolID
	room int64
}

// hostOf is the failure domain that no two replicas share.
func hostOf(n holdfast.Node) string {
	if n.Domain.Host != "" {
		return n.Domain.Host
	}
	return string(n.ID)
}

// roomiest is the node's pool with most room; ties go to the lower id.
func (c Cluster) roomiest(n holdfast.Node) (pool holdfast.PoolID, room int64) {
	for _, p := range n.Pools {
		r := c.Policy.Room(p, c.Provisioned[p.ID])
		if r > room || r == room && (pool == "" || p.ID < pool) {
			pool, room = p.ID, r
		}
	}
	return pool, room
}

// spread is what has been chosen so far, by failure domain.
type spread struct {
	req          Request
	first        bool // the next one is the first of a new volume
	mustAnchor   bool // the first one has to be where the volume must be reachable
	hosts        map[string]bool
	zones, racks map[string]int
	regions      map[string]bool
}

func newSpread(r Request) *spread {
	s := &spread{req: r, first: true, hosts: map[string]bool{}, zones: map[string]int{}, racks: map[string]int{}, regions: map[string]bool{}}
	byID := map[holdfast.NodeID]holdfast.Node{}
	for _, n := range r.Nodes {
		byID[n.ID] = n
	}
	anchored := false
	for _, x := range r.Existing {
		n, ok := byID[x.Node]
		if !ok {
			n = holdfast.Node{ID: x.Node}
		}
		s.add(n.Domain, hostOf(n))
		anchored = anchored || s.anchors(n)
	}
	s.first = len(r.Existing) == 0 || !anchored
	s.mustAnchor = r.Spec.Locality == holdfast.LocalityRequired && len(r.Spec.Preferred) > 0 && !anchored
	return s
}

// anchors says whether a replica on n makes the volume reachable where it is
// wanted.
func (s *spread) anchors(n holdfast.Node) bool {
	return rank(n, s.req.Spec.Preferred) < len(s.req.Spec.Preferred)
}

func zoneOf(d holdfast.Domain) string { return d.Region + "/" + d.Zone }
func rackOf(d holdfast.Domain) string { return zoneOf(d) + "/" + d.Rack }

func (s *spread) add(d holdfast.Domain, host string) {
	s.hosts[host] = true
	s.zones[zoneOf(d)]++
	s.racks[rackOf(d)]++
	s.regions[d.Region] = true
}

// rank is the index of the first domain that includes the node, or len(want).
func rank(n holdfast.Node, want []holdfast.Domain) int {
	d := n.Domain
	d.Host = hostOf(n)
	for i, w := range want {
		if d.Includes(w) {
			return i
		}
	}
	return len(want)
}

// withoutHosts widens domains to what is larger than a host. Only the first
// replica follows preferred hosts; orchestrators list every host, in an order
// that means nothing for the others.
func withoutHosts(ds []holdfast.Domain) []holdfast.Domain {
	wide := make([]holdfast.Domain, len(ds))
	for i, d := range ds {
		d.Host = ""
		wide[i] = d
	}
	return wide
}

// less says whether a is a better next choice than b.
func (s *spread) less(a, b candidate) bool { return s.compare(a, b) < 0 }

func (s *spread) compare(a, b candidate) int {
	flag := func(x bool) int {
		if x {
			return 0
		}
		return 1
	}
	var order []int
	if s.first {
		if s.mustAnchor {
			order = append(order, cmp.Compare(flag(s.anchors(a.node)), flag(s.anchors(b.node))))
		}
		order = append(order,
			cmp.Compare(flag(a.node.ID == s.req.From), flag(b.node.ID == s.req.From)),
			cmp.Compare(rank(a.node, s.req.Spec.Preferred), rank(b.node, s.req.Spec.Preferred)))
	}
	inRegion := func(c candidate) int { return flag(len(s.regions) == 0 || s.regions[c.node.Domain.Region]) }
	wide := withoutHosts(s.req.Spec.Preferred)
	order = append(order,
		cmp.Compare(inRegion(a), inRegion(b)),
		cmp.Compare(s.zones[zoneOf(a.node.Domain)], s.zones[zoneOf(b.node.Domain)]),
		cmp.Compare(s.racks[rackOf(a.node.Domain)], s.racks[rackOf(b.node.Domain)]),
		cmp.Compare(rank(a.node, wide), rank(b.node, wide)),
		cmp.Compare(b.room, a.room),
		cmp.Compare(a.node.ID, b.node.ID))
	if i := slices.IndexFunc(order, func(c int) bool { return c != 0 }); i >= 0 {
		return order[i]
	}
	return 0
}
