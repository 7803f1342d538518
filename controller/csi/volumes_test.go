package csi_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/controller/csi"
	"github.com/holdfast-storage/holdfast/controller/internal/fakes"
	"github.com/holdfast-storage/holdfast/controller/lifecycle"
)

func publish(volume, node string) *csipb.ControllerPublishVolumeRequest {
	return &csipb.ControllerPublishVolumeRequest{VolumeId: volume, NodeId: node, VolumeCapability: mountCap("")}
}

func TestPublishAndUnpublish(t *testing.T) {
	c, cl := three(t, csi.Config{})
	ctx := t.Context()
	v := cl.mustCreate(t, create("db", gib))
	id := v.GetVolumeId()
	for range 2 {
		r, err := cl.ControllerPublishVolume(ctx, publish(id, "n1"))
		if err != nil || r.GetPublishContext()["node"] != "n1" {
			t.Fatalf("got %v, %v", r, err)
		}
	}
	if r, err := cl.ControllerPublishVolume(ctx, publish("db", "n1")); err != nil || len(r.GetPublishContext()) == 0 {
		t.Errorf("by name: %v, %v", r, err)
	}
	_, err := cl.ControllerPublishVolume(ctx, publish(id, "n2"))
	wantCode(t, "on another live node", err, codes.FailedPrecondition, "node n1")
	_, err = cl.ControllerPublishVolume(ctx, publish(id, "n9"))
	wantCode(t, "unknown node", err, codes.NotFound, "n9")
	_, err = cl.ControllerPublishVolume(ctx, publish("nothing", "n1"))
	wantCode(t, "unknown volume", err, codes.NotFound)
	_, err = cl.ControllerPublishVolume(ctx, publish(id, ""))
	wantCode(t, "no node", err, codes.InvalidArgument)
	many := publish(id, "n1")
	many.VolumeCapability = withMode(csipb.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER)
	_, err = cl.ControllerPublishVolume(ctx, many)
	wantCode(t, "many writers", err, codes.InvalidArgument)
	ro := publish(id, "n1")
	ro.Readonly = true
	if r, err := cl.ControllerPublishVolume(ctx, ro); err != nil || r.GetPublishContext()["readonly"] != "true" {
		t.Errorf("readonly: %v, %v", r, err)
	}
	_, err = cl.DeleteVolume(ctx, &csipb.DeleteVolumeRequest{VolumeId: id})
	wantCode(t, "delete while published", err, codes.FailedPrecondition, "node n1")

	unpublish := func(volume, node string) error {
		_, err := cl.ControllerUnpublishVolume(ctx, &csipb.ControllerUnpublishVolumeRequest{VolumeId: volume, NodeId: node})
		return err
	}
	attached := func() holdfast.NodeID { r, _ := c.Store.Volume(ctx, id); return r.AttachedTo() }
	for _, x := range [][2]string{{"nothing", "n1"}, {"a/b", "n1"}, {id, "n2"}, {id, "n9"}} {
		if err := unpublish(x[0], x[1]); err != nil || attached() != "n1" {
			t.Errorf("unpublish %v: %v, then attached to %q", x, err, attached())
		}
	}
	c.Node("n1").Mount(holdfast.VolumeID(id), true)
	wantCode(t, "unpublish while mounted", unpublish(id, "n1"), codes.FailedPrecondition, "mounted")
	c.Node("n1").Mount(holdfast.VolumeID(id), false)
	if err := unpublish(id, ""); err != nil || attached() != "" {
		t.Errorf("unpublish from everywhere: %v, then attached to %q", err, attached())
	}
	if err := unpublish(id, "n1"); err != nil {
		t.Errorf("unpublish again: %v", err)
	}
	wantCode(t, "no volume", unpublish("", "n1"), codes.InvalidArgument)
}

func TestPublishAfterTheNodeDied(t *testing.T) {
	c, cl := three(t, csi.Config{})
	v := cl.mustCreate(t, create("db", gib))
	if _, err := cl.ControllerPublishVolume(t.Context(), publish(v.GetVolumeId(), "n1")); err != nil {
		t.Fatal(err)
	}
	c.Node("n1").Kill()
	if _, err := cl.ControllerPublishVolume(t.Context(), publish(v.GetVolumeId(), "n2")); err != nil {
		t.Errorf("elsewhere: %v", err)
	}
	_, err := cl.ControllerPublishVolume(t.Context(), publish(v.GetVolumeId(), "n1"))
	wantCode(t, "on the dead node", err, codes.Unavailable, "n1")
	if _, err := cl.ControllerUnpublishVolume(t.Context(), &csipb.ControllerUnpublishVolumeRequest{VolumeId: v.GetVolumeId(), NodeId: "n1"}); err != nil {
		t.Errorf("unpublish from the dead node: %v", err)
	}
	if r, _ := c.Store.Volume(t.Context(), v.GetVolumeId()); r.AttachedTo() != "n2" {
		t.Errorf("attached to %q", r.AttachedTo())
	}
}

func TestExpand(t *testing.T) {
	c, cl := three(t, csi.Config{})
	v := cl.mustCreate(t, create("db", gib))
	expand := func(required, limit int64, vc *csipb.VolumeCapability) (*csipb.ControllerExpandVolumeResponse, error) {
		return cl.ControllerExpandVolume(t.Context(), &csipb.ControllerExpandVolumeRequest{VolumeId: v.GetVolumeId(),
			CapacityRange: &csipb.CapacityRange{RequiredBytes: required, LimitBytes: limit}, VolumeCapability: vc})
	}
	if r, err := expand(2*gib+1, 0, mountCap("xfs")); err != nil || r.GetCapacityBytes() != 2*gib+1 || !r.GetNodeExpansionRequired() {
		t.Errorf("by an odd number: %v, %v", r, err)
	}
	if r, err := expand(2*gib+1, 2*gib+1, nil); err != nil || r.GetCapacityBytes() != 2*gib+1 || !r.GetNodeExpansionRequired() {
		t.Errorf("again, usage unsaid: %v, %v", r, err)
	}
	if r, err := expand(gib, 0, blockCap()); err != nil || r.GetCapacityBytes() != 2*gib+1 || r.GetNodeExpansionRequired() {
		t.Errorf("smaller: %v, %v", r, err)
	}
	_, err := expand(gib, 2*gib, nil)
	wantCode(t, "limit below the size", err, codes.OutOfRange, "never shrink")
	_, err = expand(65<<40, 0, nil)
	wantCode(t, "huge", err, codes.OutOfRange)
	_, err = expand(500*gib, 0, nil)
	wantCode(t, "no room", err, codes.ResourceExhausted)
	_, err = expand(0, 0, nil)
	wantCode(t, "no size", err, codes.InvalidArgument)
	_, err = cl.ControllerExpandVolume(t.Context(), &csipb.ControllerExpandVolumeRequest{VolumeId: "nothing", CapacityRange: &csipb.CapacityRange{RequiredBytes: gib}})
	wantCode(t, "unknown volume", err, codes.NotFound)

	if _, err := cl.ControllerPublishVolume(t.Context(), publish(v.GetVolumeId(), "n1")); err != nil {
		t.Fatal(err)
	}
	_, err = cl.ControllerExpandVolume(background(t, 30*time.Millisecond), &csipb.ControllerExpandVolumeRequest{VolumeId: v.GetVolumeId(), CapacityRange: &csipb.CapacityRange{RequiredBytes: 3 * gib}})
	if err == nil {
		t.Error("it answered before the node had grown it")
	}
	c.Settle()
	if r, err := expand(3*gib, 0, nil); err != nil || r.GetCapacityBytes() != 3*gib {
		t.Errorf("attached: %v, %v", r, err)
	}
}

func TestValidateEchoesExactly(t *testing.T) {
	c, cl := three(t, csi.Config{})
	v := cl.mustCreate(t, create("db", gib, params("replicas", "2")))
	single := withMode(csipb.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER)
	single.GetMount().MountFlags = []string{"noatime"}
	q := &csipb.ValidateVolumeCapabilitiesRequest{VolumeId: v.GetVolumeId(), VolumeContext: v.GetVolumeContext(),
		Parameters: map[string]string{"Replicas": "2", "csi.storage.k8s.io/x": "y"}, VolumeCapabilities: []*csipb.VolumeCapability{mountCap("xfs"), blockCap(), single}}
	r, err := cl.ValidateVolumeCapabilities(t.Context(), q)
	want := &csipb.ValidateVolumeCapabilitiesResponse_Confirmed{VolumeContext: q.VolumeContext, VolumeCapabilities: q.VolumeCapabilities, Parameters: q.Parameters}
	if err != nil || !proto.Equal(r.GetConfirmed(), want) {
		t.Errorf("got %v, %v", r, err)
	}
	bare := &csipb.ValidateVolumeCapabilitiesRequest{VolumeId: "db", VolumeCapabilities: []*csipb.VolumeCapability{mountCap("")}}
	if r, err := cl.ValidateVolumeCapabilities(t.Context(), bare); err != nil || r.GetConfirmed() == nil || r.GetConfirmed().GetVolumeContext() != nil {
		t.Errorf("with nothing sent: %v, %v", r, err)
	}
	for what, change := range map[string]func(*csipb.ValidateVolumeCapabilitiesRequest){
		"mode": func(q *csipb.ValidateVolumeCapabilitiesRequest) {
			q.VolumeCapabilities = []*csipb.VolumeCapability{withMode(5)}
		},
		"filesystem": func(q *csipb.ValidateVolumeCapabilitiesRequest) {
			q.VolumeCapabilities = []*csipb.VolumeCapability{mountCap("ext4")}
		},
		"parameters": func(q *csipb.ValidateVolumeCapabilitiesRequest) { q.Parameters = map[string]string{"replicas": "3"} },
		"unknown":    func(q *csipb.ValidateVolumeCapabilitiesRequest) { q.Parameters = map[string]string{"repl": "3"} },
		"context": func(q *csipb.ValidateVolumeCapabilitiesRequest) {
			q.VolumeContext = map[string]string{"csi.holdfast.dev/name": "web"}
		},
	} {
		bad := proto.CloneOf(q)
		change(bad)
		if r, err := cl.ValidateVolumeCapabilities(t.Context(), bad); err != nil || r.GetConfirmed() != nil || r.GetMessage() == "" {
			t.Errorf("%s: %v, %v", what, r, err)
		}
	}
	c.CheckClean()
}

func TestListVolumesInPages(t *testing.T) {
	_, cl := three(t, csi.Config{})
	want := map[string]bool{}
	for i := range 7 {
		want[cl.mustCreate(t, create(fmt.Sprint("v", i), gib)).GetVolumeId()] = true
	}
	var seen []string
	token := ""
	for pages := 0; ; pages++ {
		r, err := cl.ListVolumes(t.Context(), &csipb.ListVolumesRequest{MaxEntries: 3, StartingToken: token})
		if err != nil || len(r.GetEntries()) > 3 {
			t.Fatalf("got %v, %v", r, err)
		}
		for _, e := range r.GetEntries() {
			seen = append(seen, e.GetVolume().GetVolumeId())
		}
		if token = r.GetNextToken(); token == "" {
			break
		}
		if pages == 0 { // the last of a page goes: the token still stands
			id := seen[len(seen)-1]
			if _, err := cl.DeleteVolume(t.Context(), &csipb.DeleteVolumeRequest{VolumeId: id}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if len(seen) != 7 || !slices.IsSorted(seen) {
		t.Errorf("saw %v", seen)
	}
	for _, token := range []string{"7", "after-", "invalid-token"} {
		_, err := cl.ListVolumes(t.Context(), &csipb.ListVolumesRequest{StartingToken: token})
		wantCode(t, token, err, codes.Aborted)
	}
	_, err := cl.ListVolumes(t.Context(), &csipb.ListVolumesRequest{MaxEntries: -1})
	wantCode(t, "negative", err, codes.InvalidArgument)
}

func TestListVolumesShowsWhereTheyArePublished(t *testing.T) {
	_, cl := three(t, csi.Config{})
	v := cl.mustCreate(t, create("db", gib))
	if _, err := cl.ControllerPublishVolume(t.Context(), publish(v.GetVolumeId(), "n2")); err != nil {
		t.Fatal(err)
	}
	r, err := cl.ListVolumes(t.Context(), &csipb.ListVolumesRequest{})
	if err != nil || !slices.Equal(r.GetEntries()[0].GetStatus().GetPublishedNodeIds(), []string{"n2"}) {
		t.Errorf("got %v, %v", r, err)
	}
	g, err := cl.ControllerGetVolume(t.Context(), &csipb.ControllerGetVolumeRequest{VolumeId: v.GetVolumeId()})
	if err != nil || !slices.Equal(g.GetStatus().GetPublishedNodeIds(), []string{"n2"}) {
		t.Errorf("got %v, %v", g, err)
	}
	_, err = cl.ControllerGetVolume(t.Context(), &csipb.ControllerGetVolumeRequest{VolumeId: "nothing"})
	wantCode(t, "unknown", err, codes.NotFound)
}

// Each Mesos agent takes the volumes that it is shown for its own.
func TestTheViewOfOneAgent(t *testing.T) {
	c := fakes.New(t)
	c.AddThree()
	a, b := dial(t, newServer(t, c, csi.Config{Agent: "n1"})), dial(t, newServer(t, c, csi.Config{Agent: "n2"}))
	whole := dial(t, newServer(t, c, csi.Config{}))
	mine := a.mustCreate(t, create("mine", gib))
	theirs := b.mustCreate(t, create("theirs", gib))
	nobodys := whole.mustCreate(t, create("nobodys", gib))
	list := func(cl client) []string {
		r, err := cl.ListVolumes(t.Context(), &csipb.ListVolumesRequest{})
		if err != nil {
			t.Fatal(err)
		}
		var ids []string
		for _, e := range r.GetEntries() {
			ids = append(ids, e.GetVolume().GetVolumeId())
		}
		return ids
	}
	if got := list(a); !slices.Equal(got, []string{mine.GetVolumeId()}) {
		t.Errorf("agent n1 sees %v", got)
	}
	if _, err := whole.ControllerPublishVolume(t.Context(), publish(mine.GetVolumeId(), "n2")); err != nil {
		t.Fatal(err)
	}
	if _, err := whole.ControllerPublishVolume(t.Context(), publish(nobodys.GetVolumeId(), "n2")); err != nil {
		t.Fatal(err)
	}
	want := []string{theirs.GetVolumeId(), nobodys.GetVolumeId()}
	slices.Sort(want)
	if got := list(b); !slices.Equal(got, want) {
		t.Errorf("agent n2 sees %v, want %v", got, want)
	}
	if got := list(a); !slices.Equal(got, []string{mine.GetVolumeId()}) {
		t.Errorf("agent n1 sees %v, attached elsewhere or not", got)
	}
	if len(list(whole)) != 3 {
		t.Error("the whole view is not whole")
	}
	if rec, _ := c.Store.Volume(t.Context(), "theirs"); rec.Replicas[0].Node != "n2" {
		t.Errorf("the agent's own node is not the first: %v", rec.Replicas)
	}
}

func TestHealth(t *testing.T) {
	c, cl := three(t, csi.Config{})
	v := cl.mustCreate(t, create("db", gib, params("minInSync", "2")))
	id := v.GetVolumeId()
	if _, err := cl.ControllerPublishVolume(t.Context(), publish(id, "n1")); err != nil {
		t.Fatal(err)
	}
	check := func(when string, want ...string) {
		t.Helper()
		r, err := cl.ControllerGetVolumeHealth(t.Context(), &csipb.ControllerGetVolumeHealthRequest{VolumeId: id})
		if err != nil || r.GetVolumeHealth().GetVolumeId() != id {
			t.Fatalf("%s: %v, %v", when, r, err)
		}
		var got []string
		for _, h := range r.GetVolumeHealth().GetHealthStatuses() {
			got = append(got, h.GetStatus().String()+" "+h.GetReason())
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", when, got, want)
		}
		l, err := cl.ControllerListVolumeHealth(t.Context(), &csipb.ControllerListVolumeHealthRequest{})
		if err != nil || (len(l.GetEntries()) > 0) != (len(want) > 0) {
			t.Errorf("%s the list is %v, %v", when, l, err)
		}
	}
	check("all well")
	c.Node("n3").Kill()
	check("one node down", "DEGRADED TooFewReplicas")
	c.Node("n2").Kill()
	check("two nodes down", "INACCESSIBLE BelowMinInSync")
	c.Node("n1").Kill()
	check("all down", "INACCESSIBLE NoReplicaInSync", "INACCESSIBLE NodeDown")
	_, err := cl.ControllerGetVolumeHealth(t.Context(), &csipb.ControllerGetVolumeHealthRequest{VolumeId: "nothing"})
	wantCode(t, "unknown", err, codes.NotFound)
}

// Mesos' resource providers stop for good when one of these fails.
func TestListsAndCapacitiesOutlastAnOutage(t *testing.T) {
	c := fakes.New(t)
	c.AddThree()
	store := c.Store.Client()
	life, err := lifecycle.New(lifecycle.Config{Store: store, Nodes: c})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(life.Close)
	cl := dial(t, newServer(t, c, csi.Config{Lifecycle: life}))
	cl.mustCreate(t, create("db", gib))
	store.SetOutage(true)
	probe, err := cl.Probe(t.Context(), &csipb.ProbeRequest{})
	if err != nil || probe.GetReady().GetValue() {
		t.Errorf("probe in an outage: %v, %v", probe, err)
	}
	timer := time.AfterFunc(150*time.Millisecond, func() { store.SetOutage(false) })
	defer timer.Stop()
	if r, err := cl.ListVolumes(t.Context(), &csipb.ListVolumesRequest{}); err != nil || len(r.GetEntries()) != 1 {
		t.Errorf("list: %v, %v", r, err)
	}
	if r, err := cl.GetCapacity(t.Context(), &csipb.GetCapacityRequest{}); err != nil || r.GetAvailableCapacity() == 0 {
		t.Errorf("capacity: %v, %v", r, err)
	}
	store.SetOutage(true)
	_, err = dial(t, newServer(t, c, csi.Config{Lifecycle: life, Patience: 20 * time.Millisecond})).ListVolumes(t.Context(), &csipb.ListVolumesRequest{})
	wantCode(t, "when patience ends", err, codes.Unavailable)
}

func TestCapabilitiesWithAndWithoutPublish(t *testing.T) {
	has := func(cl client, want csipb.ControllerServiceCapability_RPC_Type) bool {
		r, err := cl.ControllerGetCapabilities(t.Context(), &csipb.ControllerGetCapabilitiesRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(r.GetCapabilities(), func(c *csipb.ControllerServiceCapability) bool { return c.GetRpc().GetType() == want })
	}
	_, with := three(t, csi.Config{})
	_, without := three(t, csi.Config{WithoutPublish: true})
	for _, k := range []csipb.ControllerServiceCapability_RPC_Type{csipb.ControllerServiceCapability_RPC_PUBLISH_UNPUBLISH_VOLUME,
		csipb.ControllerServiceCapability_RPC_LIST_VOLUMES_PUBLISHED_NODES} {
		if !has(with, k) || has(without, k) {
			t.Errorf("%v: with %v, without %v", k, has(with, k), has(without, k))
		}
	}
	info, err := with.GetPluginInfo(t.Context(), &csipb.GetPluginInfoRequest{})
	if err != nil || info.GetName() != "csi.holdfast.dev" || info.GetVendorVersion() != "test" {
		t.Errorf("info %v, %v", info, err)
	}
	if p, err := with.Probe(t.Context(), &csipb.ProbeRequest{}); err != nil || !p.GetReady().GetValue() {
		t.Errorf("probe %v, %v", p, err)
	}
	if _, err := csi.New(csi.Config{}); err == nil {
		t.Error("a server without a lifecycle was made")
	}
}
