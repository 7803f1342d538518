package csi

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/holdfast-storage/holdfast"
)

// domain reads a topology. Keys are compared without regard to case; a key that
// is not ours is an error of kind Invalid.
func domain(op string, t *csipb.Topology) (holdfast.Domain, error) {
	var d holdfast.Domain
	for _, k := range slices.Sorted(maps.Keys(t.GetSegments())) {
		v := t.GetSegments()[k]
		switch strings.ToLower(k) {
		case holdfast.TopologyHost:
			d.Host = v
		case holdfast.TopologyRack:
			d.Rack = v
		case holdfast.TopologyZone:
			d.Zone = v
		case holdfast.TopologyRegion:
			d.Region = v
		default:
			return d, invalid(op, "the topology key %q is unknown; there are %s, %s, %s and %s", k,
				holdfast.TopologyHost, holdfast.TopologyRack, holdfast.TopologyZone, holdfast.TopologyRegion)
		}
	}
	return d, nil
}

func domains(op string, ts []*csipb.Topology) ([]holdfast.Domain, error) {
	var ds []holdfast.Domain
	for _, t := range ts {
		d, err := domain(op, t)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(ds, d) {
			ds = append(ds, d)
		}
	}
	return ds, nil
}

// regions widens requirements that name hosts to the hosts' regions; the others
// are the user's own and stay. None means anywhere.
func regions(required []holdfast.Domain) []holdfast.Domain {
	var wide []holdfast.Domain
	for _, d := range required {
		if d.Host != "" {
			d = holdfast.Domain{Region: d.Region}
		}
		if d == (holdfast.Domain{}) {
			return nil
		}
		if !slices.Contains(wide, d) {
			wide = append(wide, d)
		}
	}
	return wide
}

// topology is a domain as CSI shows it, without what is unknown.
func topology(d holdfast.Domain) *csipb.Topology {
	t := &csipb.Topology{Segments: map[string]string{}}
	for k, v := range map[string]string{holdfast.TopologyHost: d.Host, holdfast.TopologyRack: d.Rack, holdfast.TopologyZone: d.Zone, holdfast.TopologyRegion: d.Region} {
		if v != "" {
			t.Segments[k] = v
		}
	}
	return t
}

// reachable are the domains from which a volume can be used: with required
// locality the hosts of its replicas, else the regions of its replicas; none
// means from everywhere.
func reachable(rec holdfast.Record, nodes []holdfast.Node) []holdfast.Domain {
	var ds []holdfast.Domain
	for _, x := range rec.Replicas {
		if x.Leaving {
			continue
		}
		i := slices.IndexFunc(nodes, func(n holdfast.Node) bool { return n.ID == x.Node })
		switch {
		case rec.Spec.Locality == holdfast.LocalityRequired && i < 0:
			ds = append(ds, holdfast.Domain{Host: string(x.Node)})
		case rec.Spec.Locality == holdfast.LocalityRequired:
			ds = append(ds, holdfast.Domain{Host: cmp.Or(nodes[i].Domain.Host, string(x.Node))})
		case i < 0 || nodes[i].Domain.Region == "":
			return nil
		default:
			ds = append(ds, holdfast.Domain{Region: nodes[i].Domain.Region})
		}
	}
	slices.SortFunc(ds, func(a, b holdfast.Domain) int {
		return cmp.Or(cmp.Compare(a.Region, b.Region), cmp.Compare(a.Host, b.Host))
	})
	return slices.Compact(ds)
}

func accessible(rec holdfast.Record, nodes []holdfast.Node) []*csipb.Topology {
	var ts []*csipb.Topology
	for _, d := range reachable(rec, nodes) {
		ts = append(ts, topology(d))
	}
	return ts
}

// reachableFrom says whether a volume can be used from one of the required
// domains, which are nodes' or larger ones.
func reachableFrom(rec holdfast.Record, nodes []holdfast.Node, required []holdfast.Domain) error {
	from := reachable(rec, nodes)
	if len(required) == 0 || len(from) == 0 {
		return nil
	}
	for _, n := range nodes {
		d := n.Domain
		d.Host = cmp.Or(d.Host, string(n.ID))
		includes := func(w holdfast.Domain) bool { return d.Includes(w) }
		if slices.ContainsFunc(from, includes) && slices.ContainsFunc(required, includes) {
			return nil
		}
	}
	return holdfast.E("", holdfast.Exists, fmt.Sprintf("a volume of this name exists, but it can be used only from %v", from))
}
