package csisanity_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"

	csisanity "github.com/holdfast-storage/holdfast/csi-sanity"
)

// staged is a volume that is mounted on a node.
type staged struct {
	t    *testing.T
	env  csisanity.Env
	node csisanity.Node
	id   string
	path string
}

func xfsCapability() *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{FsType: "xfs"}},
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
	}
}

// stage attaches and mounts a volume.
func stage(t *testing.T, env csisanity.Env, n csisanity.Node, id, name string) staged {
	t.Helper()
	s := staged{t, env, n, id, filepath.Join(n.Base, name)}
	if err := os.MkdirAll(s.path, 0o755); err != nil {
		t.Fatal(err)
	}
	info, err := n.Node.NodeGetInfo(t.Context(), &csi.NodeGetInfoRequest{})
	if err != nil {
		t.Fatal(err)
	}
	p, err := env.Controller.ControllerPublishVolume(t.Context(), &csi.ControllerPublishVolumeRequest{VolumeId: id, NodeId: info.GetNodeId(), VolumeCapability: xfsCapability()})
	if err != nil {
		t.Fatal(err)
	}
	_, err = n.Node.NodeStageVolume(t.Context(), &csi.NodeStageVolumeRequest{VolumeId: id, PublishContext: p.GetPublishContext(), StagingTargetPath: s.path, VolumeCapability: xfsCapability()})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (s staged) end() {
	s.t.Helper()
	if _, err := s.node.Node.NodeUnstageVolume(s.t.Context(), &csi.NodeUnstageVolumeRequest{VolumeId: s.id, StagingTargetPath: s.path}); err != nil {
		s.t.Fatal(err)
	}
	if _, err := s.env.Controller.ControllerUnpublishVolume(s.t.Context(), &csi.ControllerUnpublishVolumeRequest{VolumeId: s.id}); err != nil {
		s.t.Fatal(err)
	}
}

// write makes the content durable.
func (s staged) write(content string) {
	s.t.Helper()
	f, err := os.Create(filepath.Join(s.path, "file"))
	if err != nil {
		s.t.Fatal(err)
	}
	_, err = f.WriteString(content)
	if err == nil {
		err = unix.Syncfs(int(f.Fd()))
	}
	if err != nil {
		s.t.Error(err)
	}
	if err := f.Close(); err != nil {
		s.t.Error(err)
	}
}

func (s staged) want(content string) {
	s.t.Helper()
	if got, err := os.ReadFile(filepath.Join(s.path, "file")); err != nil || string(got) != content {
		s.t.Errorf("%s holds %q, %v; want %q", s.path, got, err, content)
	}
}

// A snapshot of a volume that is mounted, and volumes made of that and of the
// volume itself, which are mounted beside it: their filesystems have one UUID.
// They hold what was there at the time, on every node, also when everything that
// they were made of is deleted; and a larger one's filesystem has grown.
func TestXFSClonesMountBesideTheirSource(t *testing.T) {
	c := startCluster(t)
	env := c.env(t)
	ctx, n := t.Context(), env.Nodes[0]
	create := func(name string, bytes int64, of *csi.VolumeContentSource) string {
		t.Helper()
		r, err := env.Controller.CreateVolume(ctx, &csi.CreateVolumeRequest{Name: name, CapacityRange: &csi.CapacityRange{RequiredBytes: bytes},
			VolumeCapabilities: []*csi.VolumeCapability{xfsCapability()}, VolumeContentSource: of, Parameters: env.Parameters})
		if err != nil {
			t.Fatal(err)
		}
		return r.GetVolume().GetVolumeId()
	}
	remove := func(ids ...string) {
		t.Helper()
		for _, id := range ids {
			if _, err := env.Controller.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: id}); err != nil {
				t.Error(err)
			}
		}
	}
	source := create("source", 320<<20, nil)
	src := stage(t, env, n, source, "source")
	src.write("before")
	snap, err := env.Controller.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{SourceVolumeId: source, Name: "snap"})
	if err != nil {
		t.Fatal(err)
	}
	id := snap.GetSnapshot().GetSnapshotId()
	src.write("after")
	larger := create("larger", 640<<20, &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: id}}})
	clone := create("clone", 320<<20, &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Volume{Volume: &csi.VolumeContentSource_VolumeSource{VolumeId: source}}})
	old, now := stage(t, env, n, larger, "larger"), stage(t, env, n, clone, "clone")
	old.want("before")
	now.want("after")
	var fs unix.Statfs_t
	if err := unix.Statfs(old.path, &fs); err != nil || int64(fs.Blocks)*fs.Bsize < 500<<20 {
		t.Errorf("the larger clone's filesystem has %d bytes, %v", int64(fs.Blocks)*fs.Bsize, err)
	}
	now.write("the clone's")
	src.want("after")
	src.end()
	if _, err := env.Controller.DeleteSnapshot(ctx, &csi.DeleteSnapshotRequest{SnapshotId: id}); err != nil {
		t.Error(err)
	}
	remove(source)
	old.end()
	now.end()
	for i, n := range env.Nodes {
		for volume, content := range map[string]string{larger: "before", clone: "the clone's"} {
			x := stage(t, env, n, volume, "again")
			x.want(content)
			x.end()
		}
		t.Logf("the same on node %d", i)
	}
	remove(larger, clone)
	c.wantEmpty(t)
}
