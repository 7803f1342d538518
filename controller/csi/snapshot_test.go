package csi_test

import (
	"testing"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/holdfast-storage/holdfast/controller/csi"
)

func ofSnapshot(id string) func(*csipb.CreateVolumeRequest) {
	return func(q *csipb.CreateVolumeRequest) {
		q.VolumeContentSource = &csipb.VolumeContentSource{Type: &csipb.VolumeContentSource_Snapshot{Snapshot: &csipb.VolumeContentSource_SnapshotSource{SnapshotId: id}}}
	}
}

func ofVolume(id string) func(*csipb.CreateVolumeRequest) {
	return func(q *csipb.CreateVolumeRequest) {
		q.VolumeContentSource = &csipb.VolumeContentSource{Type: &csipb.VolumeContentSource_Volume{Volume: &csipb.VolumeContentSource_VolumeSource{VolumeId: id}}}
	}
}

func TestSnapshotsAndClones(t *testing.T) {
	c, cl := three(t, csi.Config{})
	c.TakeSnapshots(t)
	ctx := t.Context()
	v := cl.mustCreate(t, create("db", gib, params("logicalBlockSize", "512", "replicas", "2")))
	take := func(volume, name string) (*csipb.CreateSnapshotResponse, error) {
		return cl.CreateSnapshot(ctx, &csipb.CreateSnapshotRequest{SourceVolumeId: volume, Name: name})
	}
	r, err := take(v.GetVolumeId(), "monday")
	if err != nil || !r.GetSnapshot().GetReadyToUse() || r.GetSnapshot().GetSizeBytes() != gib || r.GetSnapshot().GetSourceVolumeId() != v.GetVolumeId() {
		t.Fatalf("taken is %v, %v", r, err)
	}
	id := r.GetSnapshot().GetSnapshotId()
	if again, err := take(v.GetVolumeId(), "monday"); err != nil || !proto.Equal(again, r) {
		t.Errorf("again: %v, %v", again, err)
	}
	if got, err := cl.GetSnapshot(ctx, &csipb.GetSnapshotRequest{SnapshotId: id}); err != nil || !proto.Equal(got.GetSnapshot(), r.GetSnapshot()) {
		t.Errorf("got %v, %v", got, err)
	}
	small := create("small", gib/2, ofSnapshot(id))
	_, err = cl.CreateVolume(ctx, small)
	wantCode(t, "smaller", err, codes.OutOfRange, "less than")
	_, err = cl.CreateVolume(ctx, create("none", gib, ofSnapshot("nothing")))
	wantCode(t, "no snapshot", err, codes.NotFound)
	_, err = cl.CreateVolume(ctx, create("none", gib, func(q *csipb.CreateVolumeRequest) { q.VolumeContentSource = &csipb.VolumeContentSource{} }))
	wantCode(t, "neither", err, codes.InvalidArgument)

	larger := cl.mustCreate(t, create("larger", 2*gib, ofSnapshot(id)))
	if larger.GetCapacityBytes() != 2*gib || larger.GetContentSource().GetSnapshot().GetSnapshotId() != id {
		t.Errorf("made is %v", larger)
	}
	same := create("same", gib, ofVolume("db"))
	same.CapacityRange = nil
	clone := cl.mustCreate(t, same)
	if clone.GetCapacityBytes() != gib || clone.GetContentSource().GetVolume().GetVolumeId() != v.GetVolumeId() {
		t.Errorf("made is %v", clone)
	}
	_, err = cl.CreateVolume(ctx, create("same", gib))
	wantCode(t, "not empty", err, codes.AlreadyExists)

	l, err := cl.ListSnapshots(ctx, &csipb.ListSnapshotsRequest{})
	if err != nil || len(l.GetEntries()) != 1 || l.GetEntries()[0].GetSnapshot().GetSnapshotId() != id {
		t.Errorf("listed are %v, %v", l, err)
	}
	_, err = cl.DeleteVolume(ctx, &csipb.DeleteVolumeRequest{VolumeId: v.GetVolumeId()})
	wantCode(t, "volume with snapshots", err, codes.FailedPrecondition, "snapshots")
	for range 2 {
		if _, err := cl.DeleteSnapshot(ctx, &csipb.DeleteSnapshotRequest{SnapshotId: id}); err != nil {
			t.Error(err)
		}
	}
	if _, err := cl.DeleteVolume(ctx, &csipb.DeleteVolumeRequest{VolumeId: v.GetVolumeId()}); err != nil {
		t.Error(err)
	}
	if again := cl.mustCreate(t, create("larger", 2*gib, ofSnapshot(id))); again.GetVolumeId() != larger.GetVolumeId() {
		t.Error("another one was made")
	}
	_, err = cl.GetSnapshot(ctx, &csipb.GetSnapshotRequest{SnapshotId: id})
	wantCode(t, "deleted", err, codes.NotFound)
	c.Check()
}
