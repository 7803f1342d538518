package csisanity_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/holdfast-storage/holdfast"
)

// What csi-test leaves out: a group snapshot of filesystems that are mounted on
// three nodes, volumes made of its members, and volumes that are modified while they
// are mounted.
func TestGroupsAndModifiedVolumesThatAreMounted(t *testing.T) {
	c := startCluster(t)
	env := c.env(t)
	ctx := t.Context()
	conn, err := grpc.NewClient(c.socks[0], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	groups := csi.NewGroupControllerClient(conn)
	create := func(name string, of *csi.VolumeContentSource) string {
		t.Helper()
		r, err := env.Controller.CreateVolume(ctx, &csi.CreateVolumeRequest{Name: name, CapacityRange: &csi.CapacityRange{RequiredBytes: 320 << 20},
			VolumeCapabilities: []*csi.VolumeCapability{xfsCapability()}, VolumeContentSource: of, Parameters: env.Parameters, MutableParameters: map[string]string{"iops": "100000"}})
		if err != nil {
			t.Fatal(err)
		}
		return r.GetVolume().GetVolumeId()
	}
	var ids []string
	var mounted []staged
	for i, n := range env.Nodes {
		id := create(fmt.Sprint("vol-", i), nil)
		s := stage(t, env, n, id, "vol")
		s.write(id)
		ids, mounted = append(ids, id), append(mounted, s)
	}
	r, err := groups.CreateVolumeGroupSnapshot(ctx, &csi.CreateVolumeGroupSnapshotRequest{Name: "group", SourceVolumeIds: ids})
	g := r.GetGroupSnapshot()
	if err != nil || !g.GetReadyToUse() || len(g.GetSnapshots()) != len(ids) {
		t.Fatalf("taken is %v, %v", g, err)
	}
	for _, s := range mounted {
		s.write("after")
	}
	for i, id := range ids {
		if _, err := env.Controller.ControllerModifyVolume(ctx, &csi.ControllerModifyVolumeRequest{VolumeId: id, MutableParameters: map[string]string{"replicas": "3", "iops": "0"}}); err != nil {
			t.Fatal(err)
		}
		c.Eventually("it has a third replica", func() bool {
			rec := c.Record(holdfast.VolumeID(id))
			return len(rec.InSyncReplicas()) == 3
		})
		mounted[i].want("after")
	}
	var members []string
	for i, x := range g.GetSnapshots() {
		members = append(members, x.GetSnapshotId())
		clone := create(fmt.Sprint("clone-", i), &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: x.GetSnapshotId()}}})
		s := stage(t, env, env.Nodes[(i+1)%len(env.Nodes)], clone, "clone")
		s.want(x.GetSourceVolumeId())
		s.end()
		ids = append(ids, clone)
	}
	_, err = env.Controller.DeleteSnapshot(ctx, &csi.DeleteSnapshotRequest{SnapshotId: members[0]})
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("a member is deleted alone: %v", err)
	}
	if _, err := groups.DeleteVolumeGroupSnapshot(ctx, &csi.DeleteVolumeGroupSnapshotRequest{GroupSnapshotId: g.GetGroupSnapshotId(), SnapshotIds: members}); err != nil {
		t.Error(err)
	}
	for _, s := range mounted {
		s.end()
	}
	for _, id := range ids {
		if _, err := env.Controller.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: id}); err != nil {
			t.Error(err)
		}
	}
	c.wantEmpty(t)
}

// A group whose filesystems are frozen has what was written to them and not yet to
// their volumes, and they take writes afterwards.
func TestAGroupOfFrozenFilesystems(t *testing.T) {
	c := startCluster(t)
	env := c.env(t)
	ctx := t.Context()
	conn, err := grpc.NewClient(c.socks[0], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	var ids []string
	var mounted []staged
	for i, n := range env.Nodes[:2] {
		r, err := env.Controller.CreateVolume(ctx, &csi.CreateVolumeRequest{Name: fmt.Sprint("vol-", i), CapacityRange: &csi.CapacityRange{RequiredBytes: 320 << 20},
			VolumeCapabilities: []*csi.VolumeCapability{xfsCapability()}, Parameters: env.Parameters})
		if err != nil {
			t.Fatal(err)
		}
		s := stage(t, env, n, r.GetVolume().GetVolumeId(), "vol")
		s.write("before")
		if err := os.WriteFile(filepath.Join(s.path, "file"), []byte("unsynced"), 0o600); err != nil {
			t.Fatal(err)
		}
		ids, mounted = append(ids, s.id), append(mounted, s)
	}
	r, err := csi.NewGroupControllerClient(conn).CreateVolumeGroupSnapshot(ctx,
		&csi.CreateVolumeGroupSnapshotRequest{Name: "frozen", SourceVolumeIds: ids, Parameters: map[string]string{"freeze": "true"}})
	if err != nil || len(r.GetGroupSnapshot().GetSnapshots()) != len(ids) {
		t.Fatalf("taken is %v, %v", r, err)
	}
	for _, s := range mounted {
		s.write("after")
		if xs := c.Record(holdfast.VolumeID(s.id)).Snapshots; len(xs) != 1 || !xs[0].Frozen {
			t.Errorf("snapshots %+v, want one of a frozen filesystem", xs)
		}
	}
	for i, x := range r.GetGroupSnapshot().GetSnapshots() {
		clone, err := env.Controller.CreateVolume(ctx, &csi.CreateVolumeRequest{Name: fmt.Sprint("clone-", i), CapacityRange: &csi.CapacityRange{RequiredBytes: 320 << 20},
			VolumeCapabilities: []*csi.VolumeCapability{xfsCapability()}, Parameters: env.Parameters,
			VolumeContentSource: &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: x.GetSnapshotId()}}}})
		if err != nil {
			t.Fatal(err)
		}
		s := stage(t, env, env.Nodes[2], clone.GetVolume().GetVolumeId(), fmt.Sprint("clone-", i))
		s.want("unsynced")
		s.end()
	}
	for _, s := range mounted {
		s.want("after")
		s.end()
	}
}
