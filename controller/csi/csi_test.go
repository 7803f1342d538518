package csi_test

import (
	"context"
	"net"
	"path/filepath"
	"testing"
	"time"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/holdfast-storage/holdfast/controller/csi"
	"github.com/holdfast-storage/holdfast/controller/internal/fakes"
	"github.com/holdfast-storage/holdfast/controller/lifecycle"
)

func newServer(t *testing.T, c *fakes.Cluster, cfg csi.Config) *csi.Server {
	t.Helper()
	if cfg.Lifecycle == nil {
		life, err := lifecycle.New(lifecycle.Config{Store: c.Store, Nodes: c, Poll: time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(life.Close)
		cfg.Lifecycle = life
	}
	cfg.Release = "test"
	s, err := csi.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// client is a real connection to a server.
type client struct {
	csipb.ControllerClient
	csipb.GroupControllerClient
	csipb.IdentityClient
}

func dial(t *testing.T, s *csi.Server) client {
	t.Helper()
	sock := filepath.Join(t.TempDir(), "csi.sock")
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	s.Register(g)
	go func() { _ = g.Serve(l) }()
	t.Cleanup(g.Stop)
	conn, err := grpc.NewClient("unix://"+sock, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return client{csipb.NewControllerClient(conn), csipb.NewGroupControllerClient(conn), csipb.NewIdentityClient(conn)}
}

func mountCap(fs string) *csipb.VolumeCapability {
	return &csipb.VolumeCapability{
		AccessMode: &csipb.VolumeCapability_AccessMode{Mode: csipb.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
		AccessType: &csipb.VolumeCapability_Mount{Mount: &csipb.VolumeCapability_MountVolume{FsType: fs}},
	}
}

func blockCap() *csipb.VolumeCapability {
	c := mountCap("")
	c.AccessType = &csipb.VolumeCapability_Block{Block: &csipb.VolumeCapability_BlockVolume{}}
	return c
}

func create(name string, bytes int64, change ...func(*csipb.CreateVolumeRequest)) *csipb.CreateVolumeRequest {
	q := &csipb.CreateVolumeRequest{Name: name, CapacityRange: &csipb.CapacityRange{RequiredBytes: bytes},
		VolumeCapabilities: []*csipb.VolumeCapability{mountCap("")}}
	for _, f := range change {
		f(q)
	}
	return q
}

func (c client) mustCreate(t *testing.T, q *csipb.CreateVolumeRequest) *csipb.Volume {
	t.Helper()
	r, err := c.CreateVolume(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	return r.GetVolume()
}

func background(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}
