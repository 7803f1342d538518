package csi_test

import (
	"testing"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/holdfast-storage/holdfast/controller/csi"
)

func TestGroupSnapshots(t *testing.T) {
	c, cl := three(t, csi.Config{})
	c.TakeSnapshots(t)
	ctx, gc := t.Context(), cl
	var ids []string
	for _, name := range []string{"data", "log", "other"} {
		ids = append(ids, cl.mustCreate(t, create(name, gib)).GetVolumeId())
	}
	take := func(name string, volumes ...string) (*csipb.CreateVolumeGroupSnapshotResponse, error) {
		return gc.CreateVolumeGroupSnapshot(ctx, &csipb.CreateVolumeGroupSnapshotRequest{Name: name, SourceVolumeIds: volumes})
	}
	for what, bad := range map[string][]string{"no name": {"", ids[0]}, "no volumes": {"g"}, "an empty volume": {"g", ""}, "one twice": {"g", ids[0], ids[0]}} {
		_, err := take(bad[0], bad[1:]...)
		wantCode(t, what, err, codes.InvalidArgument)
	}
	_, err := take("g", ids[0], "nowhere")
	wantCode(t, "no such volume", err, codes.NotFound)
	badGroupParameters(t, gc, ids)

	r, err := gc.CreateVolumeGroupSnapshot(ctx, &csipb.CreateVolumeGroupSnapshotRequest{Name: "g", SourceVolumeIds: []string{ids[1], ids[0]}, Parameters: map[string]string{"freeze": "true"}})
	g := r.GetGroupSnapshot()
	if err != nil || !g.GetReadyToUse() || len(g.GetSnapshots()) != 2 || g.GetGroupSnapshotId() == "" || g.GetCreationTime() == nil {
		t.Fatalf("taken is %v, %v", r, err)
	}
	var members []string
	for _, x := range g.GetSnapshots() {
		members = append(members, x.GetSnapshotId())
		if !x.GetReadyToUse() || x.GetGroupSnapshotId() != g.GetGroupSnapshotId() || x.GetSizeBytes() != gib {
			t.Errorf("member %v", x)
		}
	}
	if again, err := take("g", ids[0], ids[1]); err != nil || !proto.Equal(again, r) {
		t.Errorf("again: %v, %v", again, err)
	}
	_, err = take("g", ids...)
	wantCode(t, "other volumes", err, codes.AlreadyExists)
	get := func(id string, members ...string) (*csipb.GetVolumeGroupSnapshotResponse, error) {
		return gc.GetVolumeGroupSnapshot(ctx, &csipb.GetVolumeGroupSnapshotRequest{GroupSnapshotId: id, SnapshotIds: members})
	}
	for _, ms := range [][]string{members, {members[1], members[0]}, nil} {
		if got, err := get(g.GetGroupSnapshotId(), ms...); err != nil || !proto.Equal(got.GetGroupSnapshot(), g) {
			t.Errorf("got %v, %v", got, err)
		}
	}
	_, err = get(g.GetGroupSnapshotId(), members[0], "x.y")
	wantCode(t, "not a member", err, codes.InvalidArgument)
	_, err = get(g.GetGroupSnapshotId(), members[0])
	wantCode(t, "not all members", err, codes.InvalidArgument)
	_, err = get("g")
	wantCode(t, "by name", err, codes.NotFound)

	_, err = gc.DeleteSnapshot(ctx, &csipb.DeleteSnapshotRequest{SnapshotId: members[0]})
	wantCode(t, "a member alone", err, codes.InvalidArgument, "group snapshot g")
	ls, err := gc.ListSnapshots(ctx, &csipb.ListSnapshotsRequest{})
	if err != nil || len(ls.GetEntries()) != 2 {
		t.Errorf("listed are %v, %v", ls, err)
	}
	if clone := cl.mustCreate(t, create("clone", gib, ofSnapshot(members[0]))); clone.GetContentSource().GetSnapshot().GetSnapshotId() != members[0] {
		t.Errorf("made is %v", clone)
	}
	drop := func(id string, members ...string) error {
		_, err := gc.DeleteVolumeGroupSnapshot(ctx, &csipb.DeleteVolumeGroupSnapshotRequest{GroupSnapshotId: id, SnapshotIds: members})
		return err
	}
	wantCode(t, "delete another's", drop(g.GetGroupSnapshotId(), "x.y"), codes.InvalidArgument)
	if err := drop("g"); err != nil { // no id of any group
		t.Error(err)
	}
	if _, err := get(g.GetGroupSnapshotId()); err != nil {
		t.Fatalf("deleted by its name: %v", err)
	}
	for range 2 {
		if err := drop(g.GetGroupSnapshotId(), members...); err != nil {
			t.Fatal(err)
		}
	}
	_, err = get(g.GetGroupSnapshotId())
	wantCode(t, "deleted", err, codes.NotFound)
}

func badGroupParameters(t *testing.T, gc csipb.GroupControllerClient, ids []string) {
	t.Helper()
	for key, named := range map[string]string{"x": `"x"`, "freeze": `"y"`} {
		_, err := gc.CreateVolumeGroupSnapshot(t.Context(), &csipb.CreateVolumeGroupSnapshotRequest{Name: "g", SourceVolumeIds: ids, Parameters: map[string]string{key: "y"}})
		wantCode(t, "parameter "+key, err, codes.InvalidArgument, named)
	}
}
