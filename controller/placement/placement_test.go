package placement

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/holdfast-storage/holdfast"
)

const gib = int64(1) << 30

// node is a live node with one pool of the given GiB, half of it free unless
// changed; where is "zone/rack".
func node(id, where string, gibs int64, change ...func(*holdfast.Node)) holdfast.Node {
	zone, rack, _ := strings.Cut(where, "/")
	n := holdfast.Node{ID: holdfast.NodeID(id), Alive: true, Domain: holdfast.Domain{Host: id, Zone: zone, Rack: rack},
		Pools: []holdfast.Pool{{ID: holdfast.PoolID("p-" + id), State: holdfast.PoolOnline, TotalBytes: gibs * gib, FreeBytes: gibs * gib}}}
	for _, f := range change {
		f(&n)
	}
	return n
}

func dead(n *holdfast.Node)     { n.Alive = false }
func cordoned(n *holdfast.Node) { n.Cordoned = true }
func draining(n *holdfast.Node) { n.Draining = true }
func failed(n *holdfast.Node)   { n.Pools[0].State = holdfast.PoolFailed }
func free(gibs int64) func(*holdfast.Node) {
	return func(n *holdfast.Node) { n.Pools[0].FreeBytes = gibs * gib }
}
func host(h string) func(*holdfast.Node)   { return func(n *holdfast.Node) { n.Domain.Host = h } }
func region(r string) func(*holdfast.Node) { return func(n *holdfast.Node) { n.Domain.Region = r } }
func noPools(n *holdfast.Node)             { n.Pools = nil }

func spec(change ...func(*holdfast.Spec)) holdfast.Spec {
	s := holdfast.Spec{SizeBytes: gib}.WithDefaults()
	for _, f := range change {
		f(&s)
	}
	return s
}

func names(cs []Choice) string {
	var out []string
	for _, c := range cs {
		out = append(out, string(c.Node))
	}
	return strings.Join(out, " ")
}

func TestChoose(t *testing.T) {
	inZones := func(zs ...string) []holdfast.Domain {
		var ds []holdfast.Domain
		for _, z := range zs {
			ds = append(ds, holdfast.Domain{Zone: z})
		}
		return ds
	}
	for name, c := range map[string]struct {
		nodes    []holdfast.Node
		spec     holdfast.Spec
		count    int
		existing []holdfast.Replica
		avoid    map[holdfast.NodeID]string
		from     holdfast.NodeID
		used     map[holdfast.PoolID]int64
		want     string
	}{
		"most room first": {nodes: []holdfast.Node{node("a", "", 10), node("b", "", 30), node("c", "", 20)}, count: 2, want: "b c"},
		"what is promised counts": {nodes: []holdfast.Node{node("a", "", 10), node("b", "", 10), node("c", "", 10)}, count: 2,
			used: map[holdfast.PoolID]int64{"p-a": 5 * gib}, want: "b c"},
		"what is written counts": {nodes: []holdfast.Node{node("a", "", 10, free(2)), node("b", "", 10), node("c", "", 10)}, count: 2, want: "b c"},
		"the asking node first":  {nodes: []holdfast.Node{node("a", "", 10), node("b", "", 30), node("c", "", 20)}, count: 2, from: "a", want: "a b"},
		"the asking node without room": {nodes: []holdfast.Node{node("a", "", 10, free(0)), node("b", "", 30), node("c", "", 20)},
			count: 2, from: "a", want: "b c"},
		"an asking node without pools": {nodes: []holdfast.Node{node("a", "", 10, noPools), node("b", "", 30), node("c", "", 20)},
			count: 2, from: "a", want: "b c"},
		"zones before room": {nodes: []holdfast.Node{node("a", "z1", 50), node("b", "z1", 40), node("c", "z2", 10), node("d", "z3", 10)}, count: 3, want: "a c d"},
		"racks when zones are used up": {nodes: []holdfast.Node{node("a", "z1/r1", 50), node("b", "z1/r1", 40), node("c", "z2/r1", 30), node("d", "z2/r2", 10), node("e", "z1/r2", 5)},
			count: 4, want: "a c d e"},
		"racks of the same name in two zones differ": {nodes: []holdfast.Node{node("a", "z1/r", 30), node("b", "z2/r", 20), node("c", "z2/q", 10)}, count: 2, want: "a b"},
		"zones are shared when there are too few":    {nodes: []holdfast.Node{node("a", "z1", 30), node("b", "z1", 20), node("c", "z2", 10)}, count: 3, want: "a c b"},
		"one host with two daemons counts once":      {nodes: []holdfast.Node{node("a", "", 30, host("h")), node("b", "", 20, host("h")), node("c", "", 10)}, count: 2, want: "a c"},
		"cordoned, draining, dead and failed are left out": {nodes: []holdfast.Node{node("a", "", 90, cordoned), node("b", "", 80, draining), node("c", "", 70, dead),
			node("d", "", 60, failed), node("e", "", 10)}, count: 1, want: "e"},
		"existing replicas take their hosts and zones": {nodes: []holdfast.Node{node("a", "z1", 30), node("b", "z1", 20), node("c", "z2", 10)}, count: 1,
			existing: []holdfast.Replica{{Node: "a"}}, want: "c"},
		"a host with a replica under another node's name is taken": {nodes: []holdfast.Node{node("a", "", 30, host("h")), node("b", "", 20, host("h")), node("c", "", 10)},
			count: 1, existing: []holdfast.Replica{{Node: "b"}}, want: "c"},
		"avoided nodes": {nodes: []holdfast.Node{node("a", "", 30), node("b", "", 20)}, count: 1, avoid: map[holdfast.NodeID]string{"a": "failed"}, want: "b"},
		"requisite topology": {nodes: []holdfast.Node{node("a", "z1", 30), node("b", "z2", 20), node("c", "z3", 10)}, count: 2,
			spec: spec(func(s *holdfast.Spec) { s.Requisite = inZones("z2", "z3") }), want: "b c"},
		"preferred zones in order, then room": {nodes: []holdfast.Node{node("a", "z1", 30), node("b", "z2", 20), node("c", "z3", 10)}, count: 2,
			spec: spec(func(s *holdfast.Spec) { s.Preferred = inZones("z3", "z2") }), want: "c b"},
		"a preferred host leads only the first": {nodes: []holdfast.Node{node("a", "", 30), node("b", "", 20), node("c", "", 10)}, count: 2,
			spec: spec(func(s *holdfast.Spec) {
				s.Preferred = []holdfast.Domain{{Host: "c"}, {Host: "b"}, {Host: "a"}}
			}), want: "c a"},
		"racks and zones of the spec": {nodes: []holdfast.Node{node("a", "z1/r1", 30), node("b", "z1/r2", 20), node("c", "z2/r2", 10)}, count: 1,
			spec: spec(func(s *holdfast.Spec) { s.Racks, s.Zones = []string{"r2"}, []string{"z2"} }), want: "c"},
		"required locality comes before the asking node": {nodes: []holdfast.Node{node("a", "", 30), node("b", "", 20), node("c", "", 10)}, count: 2, from: "a",
			spec: spec(func(s *holdfast.Spec) {
				s.Locality, s.Preferred = holdfast.LocalityRequired, []holdfast.Domain{{Host: "c"}}
			}), want: "c a"},
		"one region where it is enough": {nodes: []holdfast.Node{node("a", "z1", 30, region("x")), node("b", "z1", 25, region("y")), node("c", "z1", 10, region("x"))}, count: 2, want: "a c"},
		"the same room: by id":          {nodes: []holdfast.Node{node("c", "", 10), node("a", "", 10), node("b", "", 10)}, count: 2, want: "a b"},
		"the roomiest pool of a node": {nodes: []holdfast.Node{node("a", "", 1, func(n *holdfast.Node) {
			n.Pools = append(n.Pools, holdfast.Pool{ID: "big", State: holdfast.PoolOnline, TotalBytes: 99 * gib, FreeBytes: 99 * gib})
		}), node("b", "", 50)}, count: 1, want: "a"},
		"nothing to do": {count: 0, want: ""},
	} {
		t.Run(name, func(t *testing.T) {
			if c.spec.SizeBytes == 0 {
				c.spec = spec()
			}
			r := Request{Cluster: Cluster{Nodes: c.nodes, Provisioned: c.used, Policy: Policy{Overcommit: 1, MinFreeBytes: gib}},
				Spec: c.spec, Count: c.count, Existing: c.existing, Avoid: c.avoid, From: c.from}
			got, err := Choose(r)
			if err != nil || names(got) != c.want {
				t.Fatalf("chose %q, %v; want %q", names(got), err, c.want)
			}
			slices.Reverse(r.Nodes)
			if again, _ := Choose(r); !slices.Equal(got, again) {
				t.Errorf("the order of the nodes changes the choice: %q, then %q", names(got), names(again))
			}
		})
	}
}

func TestChooseErrorsSayWhatIsMissing(t *testing.T) {
	required := func(h string) holdfast.Spec {
		return spec(func(s *holdfast.Spec) {
			s.Locality, s.Preferred = holdfast.LocalityRequired, []holdfast.Domain{{Host: h}}
		})
	}
	for name, c := range map[string]struct {
		nodes []holdfast.Node
		spec  holdfast.Spec
		count int
		kind  holdfast.Kind
		words []string
	}{
		"no nodes at all": {count: 3, kind: holdfast.Invalid, words: []string{"3 replicas are needed", "0 hosts can", "no node has a pool"}},
		"fewer hosts than replicas": {nodes: []holdfast.Node{node("a", "", 9), node("b", "", 9), node("s", "", 9, noPools)}, count: 3,
			kind: holdfast.Invalid, words: []string{"2 hosts can", "fewer replicas"}},
		"one down": {nodes: []holdfast.Node{node("a", "", 9), node("b", "", 9, dead)}, count: 2, kind: holdfast.Unavailable, words: []string{"node b is down"}},
		"one full": {nodes: []holdfast.Node{node("a", "", 9), node("b", "", 9, free(0))}, count: 2, kind: holdfast.NoSpace, words: []string{"node b has room for 0 B, 1.0 GiB are needed"}},
		"cordoned and outside": {nodes: []holdfast.Node{node("a", "z1", 9, cordoned), node("b", "z2", 9)}, count: 2, kind: holdfast.NoSpace,
			spec: spec(func(s *holdfast.Spec) { s.Zones = []string{"z1"} }), words: []string{"node a is cordoned", `node b is in zone "z2", not in z1`}},
		"the pool failed": {nodes: []holdfast.Node{node("a", "", 9, failed)}, count: 1, kind: holdfast.NoSpace, words: []string{"no pool that is online (failed)"}},
		"required locality, the node is full": {nodes: []holdfast.Node{node("a", "", 9), node("b", "", 9, free(0))}, count: 1, kind: holdfast.NoSpace,
			spec: required("b"), words: []string{"locality is required", "node b has room"}},
		"required locality, the node is down": {nodes: []holdfast.Node{node("a", "", 9), node("b", "", 9, dead)}, count: 1, kind: holdfast.Unavailable,
			spec: required("b"), words: []string{"locality is required"}},
	} {
		t.Run(name, func(t *testing.T) {
			if c.spec.SizeBytes == 0 {
				c.spec = spec()
			}
			_, err := Choose(Request{Cluster: Cluster{Nodes: c.nodes, Policy: Policy{Overcommit: 1, MinFreeBytes: gib}}, Spec: c.spec, Count: c.count})
			if !errors.Is(err, c.kind) {
				t.Fatalf("got %v of kind %v, want %v", err, holdfast.KindOf(err), c.kind)
			}
			for _, w := range c.words {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%q does not say %q", err, w)
				}
			}
		})
	}
}

func TestRoom(t *testing.T) {
	p := holdfast.Pool{State: holdfast.PoolOnline, TotalBytes: 10 * gib, FreeBytes: 10 * gib}
	pol := Policy{Overcommit: 2, MinFreeBytes: gib}
	with := func(f func(*holdfast.Pool)) holdfast.Pool { q := p; f(&q); return q }
	for name, c := range map[string]struct {
		pool holdfast.Pool
		used int64
		want int64
	}{
		"empty":                  {p, 0, 20 * gib},
		"promised":               {p, 15 * gib, 5 * gib},
		"promised beyond":        {p, 25 * gib, 0},
		"nearly full":            {with(func(q *holdfast.Pool) { q.FreeBytes = 2 * gib }), 0, 4 * gib},
		"below the minimum":      {with(func(q *holdfast.Pool) { q.FreeBytes = gib - 1 }), 0, 0},
		"full":                   {with(func(q *holdfast.Pool) { q.State = holdfast.PoolFull }), 0, 0},
		"failed":                 {with(func(q *holdfast.Pool) { q.State = holdfast.PoolFailed }), 0, 0},
		"less than a block left": {p, 20*gib - 4095, 0},
		"whole blocks":           {p, 20*gib - 4097, 4096},
	} {
		if got := pol.Room(c.pool, c.used); got != c.want {
			t.Errorf("%s: room %d, want %d", name, got, c.want)
		}
	}
}

func TestCapacity(t *testing.T) {
	pol := Policy{Overcommit: 1, MinFreeBytes: 0}
	for name, c := range map[string]struct {
		nodes          []holdfast.Node
		replicas       int
		total, largest int64
	}{
		"equal hosts":                          {[]holdfast.Node{node("a", "", 10), node("b", "", 10), node("c", "", 10)}, 3, 10 * gib, 10 * gib},
		"more hosts than replicas":             {[]holdfast.Node{node("a", "", 10), node("b", "", 10), node("c", "", 10)}, 2, 15 * gib, 10 * gib},
		"one large host does not count double": {[]holdfast.Node{node("a", "", 100), node("b", "", 10), node("c", "", 5)}, 2, 15 * gib, 10 * gib},
		"one replica":                          {[]holdfast.Node{node("a", "", 100), node("b", "", 10)}, 1, 110 * gib, 100 * gib},
		"too few hosts":                        {[]holdfast.Node{node("a", "", 100), node("b", "", 10)}, 3, 0, 0},
		"the dead do not count":                {[]holdfast.Node{node("a", "", 10), node("b", "", 10, dead), node("c", "", 10)}, 2, 10 * gib, 10 * gib},
		"no nodes":                             {nil, 1, 0, 0},
	} {
		total, largest := Capacity(Cluster{Nodes: c.nodes, Policy: pol}, holdfast.Spec{Replicas: c.replicas})
		if total != c.total || largest != c.largest {
			t.Errorf("%s: %s, largest %s; want %s, %s", name, Bytes(total), Bytes(largest), Bytes(c.total), Bytes(c.largest))
		}
	}
}

// What Capacity promises can be created, volume by volume, and the largest volume
// is the largest indeed.
func TestCapacityAgreesWithChoose(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var nodes []holdfast.Node
		for i := range rapid.IntRange(1, 6).Draw(t, "nodes") {
			nodes = append(nodes, node(fmt.Sprint("n", i), "", rapid.Int64Range(1, 20).Draw(t, "gib")))
		}
		s := spec(func(s *holdfast.Spec) { s.Replicas = rapid.IntRange(1, 4).Draw(t, "replicas") })
		c := Cluster{Nodes: nodes, Policy: Policy{Overcommit: 1}, Provisioned: map[holdfast.PoolID]int64{}}
		total, largest := Capacity(c, s)
		try := func(size int64) ([]Choice, error) {
			s.SizeBytes = size
			return Choose(Request{Cluster: c, Spec: s, Count: s.Replicas})
		}
		if largest > 0 {
			if _, err := try(largest); err != nil {
				t.Fatalf("the largest volume of %s cannot be placed: %v", Bytes(largest), err)
			}
		}
		if _, err := try(largest + holdfast.BlockSize); err == nil {
			t.Fatalf("more than the largest volume of %s can be placed", Bytes(largest))
		}
		var made int64
		for range 1000 {
			cs, err := try(gib / 4)
			if err != nil {
				break
			}
			made += gib / 4
			hosts := map[holdfast.NodeID]bool{}
			for _, x := range cs {
				c.Provisioned[x.Pool] += gib / 4
				hosts[x.Node] = true
			}
			if len(hosts) != s.Replicas {
				t.Fatalf("replicas share a host: %v", cs)
			}
		}
		if made > total || total-made > gib {
			t.Fatalf("capacity %s was promised, %s could be made", Bytes(total), Bytes(made))
		}
	})
}

func TestWithin(t *testing.T) {
	nodes := []holdfast.Node{node("a", "z1/r1", 1), node("b", "z1/r1", 1), node("c", "z1/r2", 1), node("d", "z2/r3", 1)}
	full := func(h, z, r string) holdfast.Domain { return holdfast.Domain{Host: h, Zone: z, Rack: r} }
	for name, c := range map[string]struct {
		in       []holdfast.Domain
		replicas int
		want     []holdfast.Domain
	}{
		"one replica stays on its host":  {[]holdfast.Domain{full("a", "z1", "r1")}, 1, []holdfast.Domain{full("a", "z1", "r1")}},
		"two fit its rack":               {[]holdfast.Domain{full("a", "z1", "r1")}, 2, []holdfast.Domain{full("", "z1", "r1")}},
		"three fit its zone":             {[]holdfast.Domain{full("a", "z1", "r1")}, 3, []holdfast.Domain{full("", "z1", "")}},
		"four need everything":           {[]holdfast.Domain{full("a", "z1", "r1")}, 4, nil},
		"as many hosts as needed":        {[]holdfast.Domain{{Host: "a"}, {Host: "d"}}, 2, []holdfast.Domain{{Host: "a"}, {Host: "d"}}},
		"a zone the user named is kept":  {[]holdfast.Domain{{Zone: "z2"}}, 3, []holdfast.Domain{{Zone: "z2"}}},
		"nothing required stays nothing": {nil, 3, nil},
	} {
		if got := Within(c.in, nodes, c.replicas); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

func TestPolicyValidate(t *testing.T) {
	if err := DefaultPolicy().Validate(); err != nil {
		t.Error(err)
	}
	for _, p := range []Policy{{}, {Overcommit: 0.5}, {Overcommit: 1, MinFreeBytes: -1}} {
		if !errors.Is(p.Validate(), holdfast.Invalid) {
			t.Errorf("%+v was accepted", p)
		}
	}
}

func TestProvisionedCountsEveryReplicaWithTheLargerSize(t *testing.T) {
	got := Provisioned([]holdfast.Record{
		{SizeBytes: 8192, Spec: holdfast.Spec{SizeBytes: 5000}, Replicas: []holdfast.Replica{{Pool: "a"}, {Pool: "b"}}},
		{SizeBytes: 4096, Spec: holdfast.Spec{SizeBytes: 10000}, Replicas: []holdfast.Replica{{Pool: "b"}}},
	})
	if got["a"] != 8192 || got["b"] != 8192+12288 {
		t.Errorf("got %v", got)
	}
}
