package csi_test

import (
	"context"
	"flag"
	"net"
	"os"
	"path/filepath"
	"testing"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/kubernetes-csi/csi-test/v5/pkg/sanity"
	"google.golang.org/grpc"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/controller/csi"
	"github.com/holdfast-storage/holdfast/controller/internal/fakes"
)

// nodeStub is as much of a node service as the controller's part of csi-sanity
// needs: target paths are directories.
type nodeStub struct {
	csipb.UnimplementedNodeServer
}

func (nodeStub) NodeGetInfo(context.Context, *csipb.NodeGetInfoRequest) (*csipb.NodeGetInfoResponse, error) {
	return &csipb.NodeGetInfoResponse{NodeId: "n1", AccessibleTopology: &csipb.Topology{Segments: map[string]string{holdfast.TopologyHost: "n1"}}}, nil
}

func (nodeStub) NodeGetCapabilities(context.Context, *csipb.NodeGetCapabilitiesRequest) (*csipb.NodeGetCapabilitiesResponse, error) {
	return &csipb.NodeGetCapabilitiesResponse{}, nil
}

func (nodeStub) NodePublishVolume(_ context.Context, q *csipb.NodePublishVolumeRequest) (*csipb.NodePublishVolumeResponse, error) {
	return &csipb.NodePublishVolumeResponse{}, os.MkdirAll(q.GetTargetPath(), 0o755)
}

func (nodeStub) NodeUnpublishVolume(_ context.Context, q *csipb.NodeUnpublishVolumeRequest) (*csipb.NodeUnpublishVolumeResponse, error) {
	return &csipb.NodeUnpublishVolumeResponse{}, os.RemoveAll(q.GetTargetPath())
}

// The controller's and the identity's part of csi-sanity; the node's part runs
// against real mounts elsewhere.
func TestSanityOfControllerAndIdentity(t *testing.T) {
	c := fakes.New(t)
	c.AddThree()
	c.TakeSnapshots(t)
	s := newServer(t, c, csi.Config{})
	dir := t.TempDir()
	sock := filepath.Join(dir, "csi.sock")
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	s.Register(g)
	csipb.RegisterNodeServer(g, nodeStub{})
	go func() { _ = g.Serve(l) }()
	t.Cleanup(g.Stop)

	cfg := sanity.NewTestConfig()
	cfg.Address = "unix://" + sock
	cfg.TargetPath, cfg.StagingPath = filepath.Join(dir, "target"), filepath.Join(dir, "staging")
	cfg.TestVolumeSize = 1<<30 + 1
	cfg.TestVolumeParameters = map[string]string{"replicas": "2"}
	cfg.TestVolumeMutableParameters = map[string]string{"replicas": "3", "iops": "1000"}
	if err := flag.Set("ginkgo.focus", `Controller Server|GroupController|Identity Service`); err != nil {
		t.Fatal(err)
	}
	sanity.Test(t, cfg)
	recs, err := c.Store.Volumes(t.Context())
	if err != nil || len(recs) != 0 {
		t.Errorf("csi-sanity left %d volumes, %v", len(recs), err)
	}
}
