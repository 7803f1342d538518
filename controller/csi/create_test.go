package csi_test

import (
	"strings"
	"sync"
	"testing"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/controller/csi"
	"github.com/holdfast-storage/holdfast/controller/internal/fakes"
)

const gib = int64(1) << 30

func wantCode(t *testing.T, what string, err error, code codes.Code, words ...string) {
	t.Helper()
	if status.Code(err) != code {
		t.Errorf("%s: got %v, want %v", what, err, code)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%s: %q does not say %q", what, err, w)
		}
	}
}

func params(kv ...string) func(*csipb.CreateVolumeRequest) {
	return func(q *csipb.CreateVolumeRequest) {
		q.Parameters = map[string]string{}
		for i := 0; i < len(kv); i += 2 {
			q.Parameters[kv[i]] = kv[i+1]
		}
	}
}

func caps(cs ...*csipb.VolumeCapability) func(*csipb.CreateVolumeRequest) {
	return func(q *csipb.CreateVolumeRequest) { q.VolumeCapabilities = cs }
}

func capRange(required, limit int64) func(*csipb.CreateVolumeRequest) {
	return func(q *csipb.CreateVolumeRequest) {
		q.CapacityRange = &csipb.CapacityRange{RequiredBytes: required, LimitBytes: limit}
	}
}

func withMode(m csipb.VolumeCapability_AccessMode_Mode) *csipb.VolumeCapability {
	c := mountCap("")
	c.AccessMode.Mode = m
	return c
}

func three(t *testing.T, cfg csi.Config) (*fakes.Cluster, client) {
	c := fakes.New(t)
	c.AddThree()
	return c, dial(t, newServer(t, c, cfg))
}

func TestCreateVolumeRefuses(t *testing.T) {
	c, cl := three(t, csi.Config{})
	neither := mountCap("")
	neither.AccessType = nil
	noMode := mountCap("")
	noMode.AccessMode = nil
	for name, x := range map[string]struct {
		q     *csipb.CreateVolumeRequest
		code  codes.Code
		words string
	}{
		"no name":                  {create("", gib), codes.InvalidArgument, "name"},
		"slash":                    {create("a/b", gib), codes.InvalidArgument, "slashes"},
		"control character":        {create("a\nb", gib), codes.InvalidArgument, "control"},
		"129 bytes":                {create(strings.Repeat("n", 129), gib), codes.InvalidArgument, "128"},
		"no capabilities":          {create("v", gib, caps()), codes.InvalidArgument, "volume_capabilities"},
		"neither block nor mount":  {create("v", gib, caps(neither)), codes.InvalidArgument, "neither block nor mount"},
		"no access mode":           {create("v", gib, caps(noMode)), codes.InvalidArgument, "access_mode"},
		"many writers":             {create("v", gib, caps(withMode(csipb.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER))), codes.InvalidArgument, "MULTI_NODE_MULTI_WRITER"},
		"many readers":             {create("v", gib, caps(withMode(csipb.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY))), codes.InvalidArgument, "one node"},
		"btrfs":                    {create("v", gib, caps(mountCap("btrfs"))), codes.InvalidArgument, "btrfs"},
		"two filesystems":          {create("v", gib, caps(mountCap("xfs"), mountCap("ext4"))), codes.InvalidArgument, "two filesystems"},
		"filesystems disagree":     {create("v", gib, caps(mountCap("xfs")), params("fsType", "ext4")), codes.InvalidArgument, "make them the same"},
		"negative size":            {create("v", 0, capRange(-1, 0)), codes.InvalidArgument, "negative"},
		"limit below required":     {create("v", 0, capRange(2*gib, gib)), codes.InvalidArgument, "more than limit_bytes"},
		"tiny":                     {create("v", 0, capRange(1, 1)), codes.OutOfRange, "1 MiB"},
		"huge":                     {create("v", 65<<40), codes.OutOfRange, "64 TiB"},
		"small xfs":                {create("v", 100<<20, caps(mountCap("xfs"))), codes.OutOfRange, "300.0 MiB"},
		"no room":                  {create("v", 500*gib), codes.ResourceExhausted, "room"},
		"four on three":            {create("v", gib, params("replicas", "4")), codes.InvalidArgument, "3 hosts"},
		"replicas none":            {create("v", gib, params("replicas", "0")), codes.InvalidArgument, "replicas"},
		"replicas text":            {create("v", gib, params("replicas", "many")), codes.InvalidArgument, "many"},
		"minInSync too large":      {create("v", gib, params("replicas", "2", "minInSync", "3")), codes.InvalidArgument, "minInSync"},
		"locality":                 {create("v", gib, params("locality", "near")), codes.InvalidArgument, "near"},
		"block size":               {create("v", gib, params("logicalBlockSize", "1024")), codes.InvalidArgument, "512 or 4096"},
		"unknown parameter":        {create("v", gib, params("repl", "2")), codes.InvalidArgument, "replicas, minInSync"},
		"a zone that is not there": {create("v", gib, params("zones", "z9")), codes.ResourceExhausted, "z9"},
		"content source": {create("v", gib, func(q *csipb.CreateVolumeRequest) {
			q.VolumeContentSource = &csipb.VolumeContentSource{Type: &csipb.VolumeContentSource_Volume{Volume: &csipb.VolumeContentSource_VolumeSource{VolumeId: "x"}}}
		}), codes.NotFound, "volume x"},
		"mutable parameters": {create("v", gib, func(q *csipb.CreateVolumeRequest) { q.MutableParameters = map[string]string{"iops": "1"} }), codes.InvalidArgument, "mutable parameter iops"},
		"foreign topology":   {create("v", gib, topo(map[string]string{"kubernetes.io/hostname": "n1"})), codes.InvalidArgument, "kubernetes.io/hostname"},
	} {
		_, err := cl.CreateVolume(t.Context(), x.q)
		wantCode(t, name, err, x.code, x.words)
	}
	if recs, _ := c.Store.Volumes(t.Context()); len(recs) != 0 {
		t.Errorf("left %v", recs)
	}
	c.CheckClean()
}

// Mesos asks for an odd number of bytes with required equal to limit, and takes
// a size or context that differs later for another volume.
func TestSizesAndContextsAreExactAndStable(t *testing.T) {
	c, cl := three(t, csi.Config{})
	const odd = 25<<20 + 7
	q := create("0d9e5b1c-9d5e-4c7e-8d8f-000000000001", 0, capRange(odd, odd), params("replicas", "2", "csi.storage.k8s.io/pvc/name", "x"))
	v := cl.mustCreate(t, q)
	if v.GetCapacityBytes() != odd {
		t.Errorf("capacity %d", v.GetCapacityBytes())
	}
	if again := cl.mustCreate(t, q); !proto.Equal(v, again) {
		t.Errorf("again: %v, first %v", again, v)
	}
	look := func(when string) {
		t.Helper()
		l, err := cl.ListVolumes(t.Context(), &csipb.ListVolumesRequest{})
		if err != nil || len(l.GetEntries()) != 1 || l.GetNextToken() != "" || !proto.Equal(l.GetEntries()[0].GetVolume(), v) {
			t.Errorf("%s the list is %v, %v", when, l, err)
		}
		g, err := cl.ControllerGetVolume(t.Context(), &csipb.ControllerGetVolumeRequest{VolumeId: v.GetVolumeId()})
		if err != nil || !proto.Equal(g.GetVolume(), v) {
			t.Errorf("%s the volume is %v, %v", when, g, err)
		}
	}
	look("at first")
	if _, err := cl.ControllerPublishVolume(t.Context(), &csipb.ControllerPublishVolumeRequest{VolumeId: v.GetVolumeId(), NodeId: "n1", VolumeCapability: mountCap("")}); err != nil {
		t.Fatal(err)
	}
	look("attached")
	c.Node("n1").Kill()
	c.Settle()
	look("with a node dead")
}

func TestTheSameNameWithSomethingElseExists(t *testing.T) {
	_, cl := three(t, csi.Config{})
	v := cl.mustCreate(t, create("db", gib))
	for what, q := range map[string]*csipb.CreateVolumeRequest{
		"larger":       create("db", 2*gib),
		"too large":    create("db", 0, capRange(gib/2, gib-1)),
		"replicas":     create("db", gib, params("replicas", "2")),
		"filesystem":   create("db", gib, caps(mountCap("ext4"))),
		"locality":     create("db", gib, params("locality", "none")),
		"block size":   create("db", gib, params("logicalBlockSize", "512")),
		"the id of it": create(v.GetVolumeId(), gib),
	} {
		_, err := cl.CreateVolume(t.Context(), q)
		wantCode(t, what, err, codes.AlreadyExists)
	}
	for what, q := range map[string]*csipb.CreateVolumeRequest{
		"smaller, no limit": create("db", 100<<20),
		"a range":           create("db", 0, capRange(gib/2, 2*gib)),
		"no size":           create("db", 0),
		"defaults said":     create("db", gib, params("Replicas", "3", "FSTYPE", "xfs", "locality", "preferred")),
	} {
		r, err := cl.CreateVolume(t.Context(), q)
		if err != nil || r.GetVolume().GetVolumeId() != v.GetVolumeId() {
			t.Errorf("%s: %v, %v", what, r, err)
		}
	}
}

func TestParametersReachTheRecord(t *testing.T) {
	c := fakes.New(t)
	for _, n := range []holdfast.NodeID{"a", "b", "c", "d"} {
		c.Add(n, holdfast.Domain{Rack: "r-" + string(n), Zone: "z1"}, 100*gib)
	}
	cl := dial(t, newServer(t, c, csi.Config{}))
	v := cl.mustCreate(t, create("db", gib, caps(blockCap(), mountCap("")),
		params("replicas", "2", "minInSync", "2", "fsType", "ext4", "locality", "none", "racks", "r-b, r-d", "zones", "z1;z2", "logicalBlockSize", "512",
			"iops", "500", "bandwidth", "50Mi", "burst", "10s")))
	rec, err := c.Store.Volume(t.Context(), v.GetVolumeId())
	if err != nil {
		t.Fatal(err)
	}
	s := rec.Spec
	if s.Replicas != 2 || s.MinInSync != 2 || s.FSType != "ext4" || s.Locality != "none" || s.LogicalBlk != 512 || len(s.Zones) != 2 || s.Parameters["racks"] != "r-b, r-d" {
		t.Errorf("spec %+v", s)
	}
	if s.Limits != (holdfast.Limits{IOPS: 500, Bandwidth: 50 << 20, BurstMillis: 10000}) || rec.Version != holdfast.RecordVersionLimits {
		t.Errorf("limits %+v, version %d", s.Limits, rec.Version)
	}
	if rec.On("b") == nil || rec.On("d") == nil {
		t.Errorf("replicas %+v", rec.Replicas)
	}
}

func TestTheFilesystemIsChosenBySizeWhenNobodyCares(t *testing.T) {
	c, cl := three(t, csi.Config{})
	for name, x := range map[string]struct {
		bytes int64
		want  string
	}{"small": {25 << 20, "ext4"}, "large": {300 << 20, "xfs"}} {
		cl.mustCreate(t, create(name, x.bytes))
		if rec, _ := c.Store.Volume(t.Context(), name); rec.Spec.FSType != x.want {
			t.Errorf("%s: %s", name, rec.Spec.FSType)
		}
	}
}

func TestUnknownParametersCanBeIgnored(t *testing.T) {
	_, cl := three(t, csi.Config{IgnoreUnknownParameters: true})
	cl.mustCreate(t, create("db", gib, params("repl", "2", "io_priority", "high")))
}

// Repeated calls while one is under way join it: never ABORTED.
func TestRepeatedCallsJoin(t *testing.T) {
	c, cl := three(t, csi.Config{})
	ids := make([]string, 30)
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() {
			r, err := cl.CreateVolume(t.Context(), create("db", gib))
			if err != nil {
				t.Error(err)
			}
			ids[i] = r.GetVolume().GetVolumeId()
		})
	}
	wg.Wait()
	for _, id := range ids {
		if id != ids[0] {
			t.Fatalf("several volumes: %v", ids)
		}
	}
	for _, f := range []func() error{
		func() error {
			_, err := cl.ControllerPublishVolume(t.Context(), &csipb.ControllerPublishVolumeRequest{VolumeId: ids[0], NodeId: "n1", VolumeCapability: mountCap("")})
			return err
		},
		func() error {
			_, err := cl.ControllerUnpublishVolume(t.Context(), &csipb.ControllerUnpublishVolumeRequest{VolumeId: ids[0], NodeId: "n1"})
			return err
		},
		func() error {
			_, err := cl.ControllerExpandVolume(t.Context(), &csipb.ControllerExpandVolumeRequest{VolumeId: ids[0], CapacityRange: &csipb.CapacityRange{RequiredBytes: 2 * gib}})
			return err
		},
		func() error {
			_, err := cl.DeleteVolume(t.Context(), &csipb.DeleteVolumeRequest{VolumeId: ids[0]})
			return err
		},
	} {
		for range 10 {
			wg.Go(func() {
				if err := f(); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	c.Check()
}

func TestACreationThatOutlivesItsCallIsJoined(t *testing.T) {
	c, cl := three(t, csi.Config{})
	entered, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	c.SetFault(func(n holdfast.NodeID, method string, after bool) error {
		if method == "CreateReplica" {
			once.Do(func() { close(entered) })
			<-release
		}
		return nil
	})
	short, cancel := contextWithCancel(t)
	got := make(chan error, 1)
	go func() {
		_, err := cl.CreateVolume(short, create("db", gib))
		got <- err
	}()
	<-entered
	cancel()
	if err := <-got; status.Code(err) != codes.Canceled {
		t.Errorf("the caller that left got %v", err)
	}
	close(release)
	v := cl.mustCreate(t, create("db", gib))
	if rec, err := c.Store.Volume(t.Context(), v.GetVolumeId()); err != nil || !rec.Healthy() {
		t.Errorf("got %+v, %v", rec, err)
	}
	c.CheckClean()
}
