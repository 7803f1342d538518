package placement

import (
	"fmt"
	"slices"
	"strings"

	"github.com/holdfast-storage/holdfast"
)

// why classes the reasons for which a node was left out.
type why int

const (
	down       why = iota // comes back perhaps
	notAllowed            // by the spec
	taken                 // cordoned, avoided, or holds a replica already
	tooFull
)

// exclusion is a node that was left out, and why.
type exclusion struct {
	node holdfast.Node
	why  why
	text string
}

// candidates are the nodes that can take a replica, and those that cannot.
type candidates struct {
	can      []candidate
	excluded []exclusion
}

// candidates sorts the nodes that have pools; storageless ones do not count.
func (r Request) candidates() *candidates {
	c := &candidates{}
	taken := map[string]bool{}
	for _, n := range r.Nodes {
		for _, x := range r.Existing {
			if x.Node == n.ID {
				taken[hostOf(n)] = true
			}
		}
	}
	for _, n := range r.Nodes {
		if len(n.Pools) == 0 {
			continue
		}
		if x, out := r.exclude(n, taken[hostOf(n)]); out {
			c.excluded = append(c.excluded, x)
			continue
		}
		pool, room := r.roomiest(n)
		c.can = append(c.can, candidate{node: n, pool: pool, room: room})
	}
	return c
}

// exclude says whether a node with pools cannot be used, and why. Reasons that
// last come before those that pass.
func (r Request) exclude(n holdfast.Node, hostTaken bool) (exclusion, bool) {
	size := holdfast.RoundUp(r.Spec.SizeBytes)
	no := func(w why, format string, a ...any) (exclusion, bool) {
		return exclusion{node: n, why: w, text: fmt.Sprintf(format, a...)}, true
	}
	s := r.Spec
	switch {
	case len(s.Requisite) > 0 && rank(n, s.Requisite) == len(s.Requisite):
		return no(notAllowed, "is outside the required topology")
	case len(s.Racks) > 0 && !slices.Contains(s.Racks, n.Domain.Rack):
		return no(notAllowed, "is in rack %q, not in %s", n.Domain.Rack, strings.Join(s.Racks, ", "))
	case len(s.Zones) > 0 && !slices.Contains(s.Zones, n.Domain.Zone):
		return no(notAllowed, "is in zone %q, not in %s", n.Domain.Zone, strings.Join(s.Zones, ", "))
	case hostTaken:
		return no(taken, "has a replica already")
	case r.Avoid[n.ID] != "":
		return no(taken, "%s", r.Avoid[n.ID])
	case n.Draining:
		return no(taken, "is draining")
	case n.Cordoned:
		return no(taken, "is cordoned")
	case !n.Alive:
		return no(down, "is down")
	}
	_, room := r.roomiest(n)
	if room > 0 && room >= size {
		return exclusion{}, false
	}
	if !slices.ContainsFunc(n.Pools, func(p holdfast.Pool) bool { return p.State == holdfast.PoolOnline }) {
		return no(tooFull, "has no pool that is online (%s)", n.Pools[0].State)
	}
	if !slices.ContainsFunc(n.Pools, func(p holdfast.Pool) bool { return p.State == holdfast.PoolOnline && len(p.Failed) == 0 }) {
		return no(tooFull, "has no pool without failed replicas")
	}
	return no(tooFull, "has room for %s, %s are needed", Bytes(room), Bytes(size))
}

// hosts counts distinct hosts among the candidates.
func (c *candidates) hosts() int {
	seen := map[string]bool{}
	for _, x := range c.can {
		seen[hostOf(x.node)] = true
	}
	return len(seen)
}

// best is the best candidate whose host is free; nil if there is none.
func (c *candidates) best(s *spread) *candidate {
	var best *candidate
	for i := range c.can {
		x := &c.can[i]
		if !s.hosts[hostOf(x.node)] && (best == nil || s.less(*x, *best)) {
			best = x
		}
	}
	return best
}

// tooFew is the error when there are fewer usable hosts than needed.
func (c *candidates) tooFew(r Request) error {
	all, whenBack := map[string]bool{}, map[string]bool{}
	for _, x := range c.can {
		all[hostOf(x.node)], whenBack[hostOf(x.node)] = true, true
	}
	for _, x := range c.excluded {
		all[hostOf(x.node)] = true
		if x.why == down {
			whenBack[hostOf(x.node)] = true
		}
	}
	kind := holdfast.NoSpace
	switch {
	case len(all) < r.Count+len(r.Existing):
		kind = holdfast.Invalid
	case len(whenBack) >= r.Count:
		kind = holdfast.Unavailable
	}
	msg := fmt.Sprintf("%s needed on distinct hosts, %s take one", count(r.Count, "replica is", "replicas are"), count(c.hosts(), "host can", "hosts can"))
	if len(all) == 0 {
		msg += "; no node has a pool"
	}
	return holdfast.E("place replicas", kind, msg+c.reasons()+remedy(kind))
}

// noAnchor is the error when replicas fit, but none where one has to be.
func (c *candidates) noAnchor(r Request) error {
	kind := holdfast.NoSpace
	for _, x := range c.excluded {
		if x.why == down && rank(x.node, r.Spec.Preferred) < len(r.Spec.Preferred) {
			kind = holdfast.Unavailable
		}
	}
	return holdfast.E("place replicas", kind, "locality is required, but no node of the wanted topology can take a replica"+c.reasons()+remedy(kind))
}

// maxReasons bounds an error's length in a large cluster.
const maxReasons = 10

// reasons lists why nodes were left out: "; node a is down; node b is cordoned".
func (c *candidates) reasons() string {
	var b strings.Builder
	for i, x := range c.excluded {
		if i == maxReasons {
			fmt.Fprintf(&b, "; and %d more", len(c.excluded)-i)
			break
		}
		fmt.Fprintf(&b, "; node %s %s", x.node.ID, x.text)
	}
	return b.String()
}

func remedy(k holdfast.Kind) string {
	switch k {
	case holdfast.Invalid:
		return ". Ask for fewer replicas or add nodes with pools"
	case holdfast.Unavailable:
		return ". Bring the nodes that are down back, or ask for fewer replicas"
	}
	return ". Free or add space, or ask for less"
}

func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// Bytes shows a number of bytes as people read it: "1.5 GiB".
func Bytes(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"}
	f, i := float64(n), 0
	for f >= 1024 && i < len(units)-1 {
		f, i = f/1024, i+1
	}
	if i == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", f, units[i])
}
