package csisanity_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/holdfast-storage/holdfast"
	controllercsi "github.com/holdfast-storage/holdfast/controller/csi"
	"github.com/holdfast-storage/holdfast/controller/lifecycle"
	"github.com/holdfast-storage/holdfast/controller/reconcile"
	csisanity "github.com/holdfast-storage/holdfast/csi-sanity"
	"github.com/holdfast-storage/holdfast/internal/mountpoint"
	"github.com/holdfast-storage/holdfast/internal/rpc"
	"github.com/holdfast-storage/holdfast/internal/testcluster"
	"github.com/holdfast-storage/holdfast/metadata"
	"github.com/holdfast-storage/holdfast/node"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

// clients finds nodes as a daemon does.
type clients struct {
	nodes metadata.Nodes
	conns *rpc.Conns
}

func (c clients) Client(ctx context.Context, id holdfast.NodeID) (holdfastv1.NodeServiceClient, error) {
	n, err := c.nodes.Node(ctx, id)
	if err != nil {
		return nil, err
	}
	conn, err := c.conns.Conn(n.APIAddr)
	if err != nil {
		return nil, err
	}
	return holdfastv1.NewNodeServiceClient(conn), nil
}

// cluster is three nodes, each with its CSI socket and a controller candidate.
type cluster struct {
	*testcluster.Cluster
	life  *lifecycle.Service // of the test itself
	socks []string
	base  string
}

func startCluster(t *testing.T) *cluster {
	t.Helper()
	base, err := os.MkdirTemp("", "hf-test-sanity-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(mountpoint.ReleaseBelow(base), os.RemoveAll(base)); err != nil {
			t.Error(err)
		}
	})
	c := &cluster{base: base}
	conns := rpc.NewConns(rpc.Config{})
	t.Cleanup(func() { _ = conns.Close() })
	running := map[holdfast.NodeID]*lifecycle.Service{}
	c.Cluster = testcluster.Start(t, testcluster.Options{
		PoolBytes: 8 << 30,
		Configure: func(n *testcluster.Node, nc *node.Config) {
			life := newLifecycle(t, n.Store, n.ID, conns)
			server, err := controllercsi.New(controllercsi.Config{Lifecycle: life, Release: "test", Log: nc.Log})
			if err != nil {
				t.Fatal(err)
			}
			sock := filepath.Join(base, string(n.ID)+".sock")
			nc.CSIEndpoint, nc.RegisterCSI = "unix://"+sock, func(g *grpc.Server) { server.Register(g) }
			if !slices.Contains(c.socks, "unix://"+sock) { // not a restart
				c.socks = append(c.socks, "unix://"+sock)
			}
			running[n.ID] = life
		},
		Run: func(ctx context.Context, n *testcluster.Node) error {
			rc, err := reconcile.New(reconcile.Config{Store: n.Store, Lifecycle: running[n.ID], Nodes: clients{n.Store, conns}, Candidate: string(n.ID), Log: n.Config.Log})
			if err != nil {
				return err
			}
			rc.Run(ctx)
			return nil
		},
	})
	c.life = running[c.Nodes[0].ID]
	return c
}

func newLifecycle(t *testing.T, store metadata.Store, self holdfast.NodeID, conns *rpc.Conns) *lifecycle.Service {
	t.Helper()
	life, err := lifecycle.New(lifecycle.Config{Store: store, Nodes: clients{store, conns}, Self: self})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(life.Close)
	return life
}

// env connects to every node's socket.
func (c *cluster) env(t *testing.T) csisanity.Env {
	t.Helper()
	env := csisanity.Env{SizeBytes: 320 << 20, Parameters: map[string]string{"replicas": "2"}}
	for i, sock := range c.socks {
		conn, err := grpc.NewClient(sock, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		base := filepath.Join(c.base, string(c.Nodes[i].ID))
		if err := os.MkdirAll(base, 0o755); err != nil {
			t.Fatal(err)
		}
		env.Nodes = append(env.Nodes, csisanity.Node{Identity: csi.NewIdentityClient(conn), Node: csi.NewNodeClient(conn), Base: base})
		env.Controller = csi.NewControllerClient(conn)
	}
	env.Static = func(t *testing.T) (id, name string) {
		t.Helper()
		r, err := env.Controller.CreateVolume(t.Context(), &csi.CreateVolumeRequest{
			Name: "a volume, 100% mine " + string(holdfast.NewVolumeID()[:6]), CapacityRange: &csi.CapacityRange{RequiredBytes: env.SizeBytes},
			VolumeCapabilities: []*csi.VolumeCapability{{
				AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{}},
				AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
			}},
		})
		if err != nil {
			t.Fatal(err)
		}
		id = r.GetVolume().GetVolumeId()
		t.Cleanup(func() {
			if _, err := env.Controller.DeleteVolume(context.WithoutCancel(t.Context()), &csi.DeleteVolumeRequest{VolumeId: id}); err != nil {
				t.Errorf("delete the static volume: %v", err)
			}
		})
		rec, err := c.DB.Volume(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		return id, rec.Name
	}
	return env
}

// wantEmpty checks that nothing was left half-made.
func (c *cluster) wantEmpty(t *testing.T) {
	t.Helper()
	recs, err := c.DB.Volumes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var errs []error
	for _, r := range recs {
		errs = append(errs, errors.New("volume "+r.Name+" is left"))
	}
	if err := errors.Join(errs...); err != nil {
		t.Error(err)
	}
}

func TestReplaysAgainstACluster(t *testing.T) {
	c := startCluster(t)
	env := c.env(t)
	t.Run("Mesos isolator", func(t *testing.T) { csisanity.ReplayMesosIsolator(t, env) })
	t.Run("Mesos SLRP", func(t *testing.T) { csisanity.ReplaySLRP(t, env) })
	t.Run("kubelet", func(t *testing.T) { csisanity.ReplayKubelet(t, env) })
	t.Run("Nomad", func(t *testing.T) { csisanity.ReplayNomad(t, env) })
	c.wantEmpty(t)
}
