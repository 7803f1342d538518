package csi_test

import (
	"context"
	"slices"
	"testing"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/controller/csi"
	"github.com/holdfast-storage/holdfast/controller/internal/fakes"
)

func contextWithCancel(t *testing.T) (context.Context, context.CancelFunc) {
	return context.WithCancel(t.Context())
}

// topo requires topologies, given by their segments.
func topo(segments ...map[string]string) func(*csipb.CreateVolumeRequest) {
	return func(q *csipb.CreateVolumeRequest) {
		if q.AccessibilityRequirements == nil {
			q.AccessibilityRequirements = &csipb.TopologyRequirement{}
		}
		for _, s := range segments {
			q.AccessibilityRequirements.Requisite = append(q.AccessibilityRequirements.Requisite, &csipb.Topology{Segments: s})
		}
	}
}

func preferred(segments ...map[string]string) func(*csipb.CreateVolumeRequest) {
	return func(q *csipb.CreateVolumeRequest) {
		topo()(q)
		for _, s := range segments {
			q.AccessibilityRequirements.Preferred = append(q.AccessibilityRequirements.Preferred, &csipb.Topology{Segments: s})
		}
	}
}

// segments are a node's own, as its node service tells them.
func segments(host, zone string) map[string]string {
	return map[string]string{holdfast.TopologyHost: host, holdfast.TopologyZone: zone, holdfast.TopologyRegion: "eu"}
}

// zones is a cluster of nodes a1 a2 in zone a, b1 b2 in zone b, c1 in zone c, and
// us1 in another region.
func zones(t *testing.T) (*fakes.Cluster, client) {
	c := fakes.New(t)
	for i, n := range []holdfast.NodeID{"a1", "a2", "b1", "b2", "c1"} {
		c.Add(n, holdfast.Domain{Zone: string(n[:1]), Region: "eu"}, int64(100+i)*gib)
	}
	c.Add("us1", holdfast.Domain{Zone: "u", Region: "us"}, 50*gib)
	return c, dial(t, newServer(t, c, csi.Config{}))
}

func on(t *testing.T, c *fakes.Cluster, volume string) []string {
	t.Helper()
	rec, err := c.Store.Volume(t.Context(), volume)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, x := range rec.Replicas {
		out = append(out, string(x.Node))
	}
	slices.Sort(out)
	return out
}

func TestTopologyInAndOut(t *testing.T) {
	eu := &csipb.Topology{Segments: map[string]string{holdfast.TopologyRegion: "eu"}}
	host := func(hs ...string) (ts []*csipb.Topology) {
		for _, h := range hs {
			ts = append(ts, &csipb.Topology{Segments: map[string]string{holdfast.TopologyHost: h}})
		}
		return ts
	}
	all := []map[string]string{segments("a1", "a"), segments("a2", "a"), segments("b1", "b"), segments("b2", "b"), segments("c1", "c")}
	for name, x := range map[string]struct {
		change []func(*csipb.CreateVolumeRequest)
		on     []string
		out    []*csipb.Topology
	}{
		"nothing asked": {nil, []string{"a2", "b2", "c1"}, []*csipb.Topology{eu}},
		"every node allowed, one preferred": {[]func(*csipb.CreateVolumeRequest){topo(all...), preferred(all[0], all[1], all[2])},
			[]string{"a1", "b2", "c1"}, []*csipb.Topology{eu}},
		"one node only (strict topology): its zone is too small, its region will do": {[]func(*csipb.CreateVolumeRequest){topo(all[0])},
			[]string{"a1", "b2", "c1"}, []*csipb.Topology{eu}},
		"a zone asked for": {[]func(*csipb.CreateVolumeRequest){params("replicas", "2"), topo(map[string]string{holdfast.TopologyZone: "b"})},
			[]string{"b1", "b2"}, []*csipb.Topology{eu}},
		"keys in capitals": {[]func(*csipb.CreateVolumeRequest){params("replicas", "1"), topo(map[string]string{"TOPOLOGY.csi.holdfast.dev/Zone": "c"})},
			[]string{"c1"}, []*csipb.Topology{eu}},
		"required locality": {[]func(*csipb.CreateVolumeRequest){params("locality", "required", "replicas", "2"), topo(all...), preferred(all[1])},
			[]string{"a2", "b2"}, host("a2", "b2")},
		"required locality on one node": {[]func(*csipb.CreateVolumeRequest){params("locality", "required", "replicas", "2"), topo(all[2])},
			[]string{"b1", "b2"}, host("b1", "b2")},
	} {
		t.Run(name, func(t *testing.T) {
			c, cl := zones(t)
			v := cl.mustCreate(t, create("db", gib, x.change...))
			if got := on(t, c, "db"); !slices.Equal(got, x.on) {
				t.Errorf("replicas on %v, want %v", got, x.on)
			}
			if !slices.EqualFunc(v.GetAccessibleTopology(), x.out, func(a, b *csipb.Topology) bool { return proto.Equal(a, b) }) {
				t.Errorf("accessible from %v, want %v", v.GetAccessibleTopology(), x.out)
			}
		})
	}
}

func TestTopologyThatCannotBe(t *testing.T) {
	c, cl := zones(t)
	for what, q := range map[string]*csipb.CreateVolumeRequest{
		"three in a zone of two":    create("v", gib, topo(map[string]string{holdfast.TopologyZone: "b"})),
		"a node that is not there":  create("v", gib, topo(map[string]string{holdfast.TopologyZone: "x", holdfast.TopologyHost: "x1", holdfast.TopologyRegion: "mars"})),
		"three in the other region": create("v", gib, topo(map[string]string{holdfast.TopologyHost: "us1", holdfast.TopologyZone: "u", holdfast.TopologyRegion: "us"})),
	} {
		_, err := cl.CreateVolume(t.Context(), q)
		wantCode(t, what, err, codes.ResourceExhausted)
	}
	c.Node("c1").Kill()
	_, err := cl.CreateVolume(t.Context(), create("v", gib, params("locality", "required"), topo(segments("c1", "c"))))
	wantCode(t, "required locality on a dead node", err, codes.Unavailable, "locality is required")
	c.CheckClean()
}

// A volume that can be used from its whole region need not be where the pod runs.
func TestAFullNodeIsNoReasonToRefuseAVolumeThatIsReachableFromThere(t *testing.T) {
	c := fakes.New(t)
	c.Add("small", holdfast.Domain{Region: "eu"}, gib)
	c.Add("large", holdfast.Domain{Region: "eu"}, 100*gib)
	c.Add("far", holdfast.Domain{Region: "us"}, 900*gib)
	cl := dial(t, newServer(t, c, csi.Config{}))
	at := topo(map[string]string{holdfast.TopologyHost: "small", holdfast.TopologyRegion: "eu"})
	cl.mustCreate(t, create("db", 50*gib, params("replicas", "1"), at))
	if got := on(t, c, "db"); !slices.Equal(got, []string{"large"}) {
		t.Errorf("on %v", got)
	}
	_, err := cl.CreateVolume(t.Context(), create("near", 50*gib, params("replicas", "1", "locality", "required"), at))
	wantCode(t, "required locality", err, codes.ResourceExhausted, "small")
	_, err = cl.CreateVolume(t.Context(), create("more", 500*gib, params("replicas", "1"), at))
	wantCode(t, "more than the region has", err, codes.ResourceExhausted, "outside the required topology")
	c.CheckClean()
}

// A pod that is moved to another node asks for its volume again, with another
// topology.
func TestRepeatedWithAnotherTopology(t *testing.T) {
	_, cl := zones(t)
	v := cl.mustCreate(t, create("db", gib, topo(segments("a1", "a"))))
	if again := cl.mustCreate(t, create("db", gib, topo(segments("b1", "b")))); again.GetVolumeId() != v.GetVolumeId() {
		t.Error("another volume was made")
	}
	cl.mustCreate(t, create("near", gib, params("locality", "required", "replicas", "1"), topo(segments("a1", "a"))))
	_, err := cl.CreateVolume(t.Context(), create("near", gib, params("locality", "required", "replicas", "1"), topo(segments("b1", "b"))))
	wantCode(t, "required locality elsewhere", err, codes.AlreadyExists, "only from")
}

func TestGetCapacity(t *testing.T) {
	c := fakes.New(t)
	for _, n := range []holdfast.NodeID{"n1", "n2", "n3"} {
		c.Add(n, holdfast.Domain{Zone: "z-" + string(n)}, 10*gib+12345)
	}
	c.Add("s1", holdfast.Domain{}, 0)
	s := newServer(t, c, csi.Config{})
	cl := dial(t, s)
	capacity := func(cl client, q *csipb.GetCapacityRequest) (total, largest int64) {
		t.Helper()
		r, err := cl.GetCapacity(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		if r.GetAvailableCapacity()%(1<<20) != 0 {
			t.Errorf("capacity %d is no multiple of 1 MiB", r.GetAvailableCapacity())
		}
		return r.GetAvailableCapacity(), r.GetMaximumVolumeSize().GetValue()
	}
	p := func(kv ...string) *csipb.GetCapacityRequest {
		q := &csipb.CreateVolumeRequest{}
		params(kv...)(q)
		return &csipb.GetCapacityRequest{Parameters: q.Parameters}
	}
	three, largest := capacity(cl, p())
	if three != 10*gib || largest != 10*gib {
		t.Errorf("three replicas: %d, largest %d", three, largest)
	}
	if one, _ := capacity(cl, p("replicas", "1")); one != 30*gib {
		t.Errorf("one replica: %d", one)
	}
	if four, _ := capacity(cl, p("replicas", "4")); four != 0 {
		t.Errorf("four replicas: %d", four)
	}
	if z, _ := capacity(cl, p("replicas", "1", "zones", "z-n1")); z != 10*gib {
		t.Errorf("one zone: %d", z)
	}
	near := p("replicas", "1", "locality", "required")
	near.AccessibleTopology = &csipb.Topology{Segments: map[string]string{holdfast.TopologyHost: "n2"}}
	if n, _ := capacity(cl, near); n != 10*gib {
		t.Errorf("required locality on a node: %d", n)
	}
	far := p("replicas", "1")
	far.AccessibleTopology = near.AccessibleTopology
	if n, _ := capacity(cl, far); n != 30*gib {
		t.Errorf("preferred locality on a node: %d", n)
	}
	if n, _ := capacity(cl, &csipb.GetCapacityRequest{VolumeCapabilities: []*csipb.VolumeCapability{withMode(csipb.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER)}}); n != 0 {
		t.Errorf("volumes that cannot be made: %d", n)
	}
	promising := dial(t, newServer(t, c, csi.Config{ReportedOvercommit: 100}))
	if n, _ := capacity(promising, p()); n != 40*gib { // no more than placement promises
		t.Errorf("reported with overcommit: %d", n)
	}
	cl.mustCreate(t, create("db", 4*gib))
	if after, _ := capacity(cl, p()); after != 6*gib { // thin, nothing is written, but promised
		t.Errorf("after a volume of 4 GiB: %d", after)
	}
	if after, _ := capacity(promising, p()); after != 36*gib {
		t.Errorf("after a volume of 4 GiB, with overcommit: %d", after)
	}
	local := dial(t, newServer(t, c, csi.Config{Agent: "n1"}))
	if n, _ := capacity(local, p()); n != 6*gib/4 { // four nodes are alive
		t.Errorf("one agent's view: %d", n)
	}
	cl.mustCreate(t, create("large", 20*gib)) // more than is reported, and possible as it is thin
	if n, largest := capacity(cl, p()); n != 0 || largest != 0 {
		t.Errorf("more than there is was promised already: %d, largest %d", n, largest)
	}
	_, err := cl.GetCapacity(t.Context(), p("repl", "1"))
	wantCode(t, "unknown parameter", err, codes.InvalidArgument)
}
