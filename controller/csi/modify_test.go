package csi_test

import (
	"maps"
	"testing"
	"time"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/controller/csi"
)

func mutable(kv ...string) func(*csipb.CreateVolumeRequest) {
	m := map[string]string{}
	for i := 0; i < len(kv); i += 2 {
		m[kv[i]] = kv[i+1]
	}
	return func(q *csipb.CreateVolumeRequest) { q.MutableParameters = m }
}

func TestModifyVolume(t *testing.T) {
	c, cl := three(t, csi.Config{IgnoreUnknownParameters: true})
	ctx := t.Context()
	v := cl.mustCreate(t, create("db", gib, params("replicas", "2", "iops", "500")))
	modify := func(kv ...string) error {
		m := map[string]string{}
		for i := 0; i < len(kv); i += 2 {
			m[kv[i]] = kv[i+1]
		}
		_, err := cl.ControllerModifyVolume(ctx, &csipb.ControllerModifyVolumeRequest{VolumeId: v.GetVolumeId(), MutableParameters: m})
		return err
	}
	spec := func() holdfast.Spec {
		rec, err := c.Store.Volume(ctx, v.GetVolumeId())
		if err != nil {
			t.Fatal(err)
		}
		return rec.Spec
	}
	for range 2 {
		if err := modify("replicas", "3", "bandwidth", "50Mi", "burst", "10s", "locality", "Required", "minInSync", "2", "ioTimeout", "30s", "slowReplicas", "drop", "csi.storage.k8s.io/pvc/name", "x"); err != nil {
			t.Fatal(err)
		}
	}
	got := spec()
	if got.Replicas != 3 || got.MinInSync != 2 || got.Locality != holdfast.LocalityRequired || got.IOTimeout() != 30*time.Second || got.SlowReplicas != holdfast.SlowDrop ||
		got.Limits != (holdfast.Limits{IOPS: 500, Bandwidth: 50 << 20, BurstMillis: 10000}) {
		t.Errorf("it is %+v", got)
	}
	rev := func() int64 { rec, _ := c.Store.Volume(ctx, v.GetVolumeId()); return rec.Revision }
	before := rev()
	for what, bad := range map[string]struct {
		kv    []string
		words string
	}{
		"unknown":           {[]string{"colour", "red"}, "there are replicas, minInSync, locality"},
		"immutable":         {[]string{"fsType", "ext4"}, `"fsType" cannot be changed; there are replicas`},
		"one of two":        {[]string{"iops", "1000", "zones", "a"}, `"zones" cannot be changed`},
		"too many":          {[]string{"replicas", "4"}, "4 replicas"},
		"no number":         {[]string{"replicas", "many"}, "positive number"},
		"fewer than needed": {[]string{"replicas", "1"}, "minInSync 2 is not possible with 1 replicas"},
		"too slow":          {[]string{"iops", "3"}, "0: no limit"},
		"no quantity":       {[]string{"bandwidth", "50M"}, "such as 100Mi"},
		"no such locality":  {[]string{"locality", "near"}, "required, preferred or none"},
	} {
		err := modify(bad.kv...)
		if what == "too many" {
			bad.words = "host"
		}
		wantCode(t, what, err, codes.InvalidArgument, bad.words)
	}
	if rev() != before {
		t.Error("a refused call has changed the volume")
	}
	if err := modify("replicas", "1", "minInSync", "1", "iops", "0", "bandwidth", "0", "ioTimeout", "0"); err != nil {
		t.Fatal(err)
	}
	if got := spec(); got.Replicas != 1 || got.Limits != (holdfast.Limits{}) || got.IOTimeoutMillis != 0 || got.SlowReplicas != holdfast.SlowDrop {
		t.Errorf("it is %+v", got)
	}
	if err := modify(); err != nil { // nothing is to be changed
		t.Error(err)
	}
	_, err := cl.ControllerModifyVolume(ctx, &csipb.ControllerModifyVolumeRequest{MutableParameters: map[string]string{"replicas": "1"}})
	wantCode(t, "no id", err, codes.InvalidArgument)
	_, err = cl.ControllerModifyVolume(ctx, &csipb.ControllerModifyVolumeRequest{VolumeId: "nowhere", MutableParameters: map[string]string{"replicas": "1"}})
	wantCode(t, "no volume", err, codes.NotFound)
}

// What creates a volume again answers with the one that was changed meanwhile;
// mutable parameters take precedence over parameters.
func TestCreateWithMutableParameters(t *testing.T) {
	c, cl := three(t, csi.Config{})
	ctx := t.Context()
	q := create("db", gib, params("replicas", "3", "fsType", "ext4"), mutable("replicas", "2", "iops", "1000"))
	v := cl.mustCreate(t, q)
	rec, err := c.Store.Volume(ctx, v.GetVolumeId())
	if err != nil || rec.Spec.Replicas != 2 || rec.Spec.Limits.IOPS != 1000 || rec.Spec.FSType != "ext4" {
		t.Fatalf("made is %+v, %v", rec.Spec, err)
	}
	if _, err := cl.ControllerModifyVolume(ctx, &csipb.ControllerModifyVolumeRequest{VolumeId: v.GetVolumeId(), MutableParameters: map[string]string{"replicas": "1"}}); err != nil {
		t.Fatal(err)
	}
	if again := cl.mustCreate(t, q); again.GetVolumeId() != v.GetVolumeId() {
		t.Errorf("again made is %v", again)
	}
	_, err = cl.CreateVolume(ctx, create("db", gib, params("replicas", "3", "fsType", "ext4"), mutable("replicas", "3", "iops", "1000")))
	wantCode(t, "other parameters", err, codes.AlreadyExists, "replicas 1, not 3")
	cl.mustCreate(t, create("db", gib, params("replicas", "3", "fsType", "ext4"), mutable("replicas", "1"))) // as it is now
	plain := create("plain", gib)
	p := cl.mustCreate(t, plain)
	if _, err := cl.ControllerModifyVolume(ctx, &csipb.ControllerModifyVolumeRequest{VolumeId: p.GetVolumeId(), MutableParameters: map[string]string{"replicas": "2"}}); err != nil {
		t.Fatal(err)
	}
	cl.mustCreate(t, plain)
	_, err = cl.CreateVolume(ctx, create("other", gib, mutable("fsType", "ext4")))
	wantCode(t, "immutable", err, codes.InvalidArgument, "cannot be changed")
	_, err = cl.CreateVolume(ctx, create("other", gib, mutable("colour", "red")))
	wantCode(t, "unknown", err, codes.InvalidArgument, "is unknown")

	validate := func(m map[string]string) *csipb.ValidateVolumeCapabilitiesResponse {
		r, err := cl.ValidateVolumeCapabilities(ctx, &csipb.ValidateVolumeCapabilitiesRequest{VolumeId: v.GetVolumeId(), VolumeCapabilities: q.GetVolumeCapabilities(), MutableParameters: m})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	is := map[string]string{"replicas": "1", "iops": "1000"}
	if r := validate(is); !maps.Equal(r.GetConfirmed().GetMutableParameters(), is) {
		t.Errorf("confirmed is %v", r)
	}
	for _, no := range []map[string]string{{"replicas": "2"}, {"iops": "0"}, {"colour": "red"}} {
		if r := validate(no); r.GetConfirmed() != nil || r.GetMessage() == "" {
			t.Errorf("%v is confirmed: %v", no, r)
		}
	}
}
