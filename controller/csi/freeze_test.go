package csi_test

import (
	"testing"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/controller/csi"
)

// The parameter of a VolumeSnapshotClass has the filesystem frozen.
func TestFreezeParameter(t *testing.T) {
	c, cl := three(t, csi.Config{})
	c.TakeSnapshots(t)
	v := cl.mustCreate(t, create("db", gib))
	if _, err := cl.ControllerPublishVolume(t.Context(), publish(v.GetVolumeId(), "n1")); err != nil {
		t.Fatal(err)
	}
	id := holdfast.VolumeID(v.GetVolumeId())
	c.Node("n1").Mount(id, true)
	for value, want := range map[string]bool{"true": true, "false": false} {
		_, err := cl.CreateSnapshot(t.Context(), &csipb.CreateSnapshotRequest{SourceVolumeId: v.GetVolumeId(), Name: value, Parameters: map[string]string{
			"freeze": value, "csi.storage.k8s.io/volumesnapshot/name": "x"}})
		if err != nil {
			t.Fatal(err)
		}
		rec, err := c.Store.Volume(t.Context(), "db")
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range rec.Snapshots {
			if x.Name == value && x.Frozen != want {
				t.Errorf("freeze %s: %+v", value, x)
			}
		}
	}
	if got := c.Frozen(id); got != "" {
		t.Errorf("frozen by %s", got)
	}
	for key, value := range map[string]string{"freeze": "perhaps", "Freeze": "true"} {
		_, err := cl.CreateSnapshot(t.Context(), &csipb.CreateSnapshotRequest{SourceVolumeId: v.GetVolumeId(), Name: "x", Parameters: map[string]string{key: value}})
		wantCode(t, key+"="+value, err, codes.InvalidArgument, "freeze")
	}
}
