package csisanity_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"k8s.io/klog/v2"

	"github.com/holdfast-storage/holdfast"
	csisanity "github.com/holdfast-storage/holdfast/csi-sanity"
	"github.com/holdfast-storage/holdfast/internal/grpcstatus"
	"github.com/holdfast-storage/holdfast/internal/mountpoint"
	nodecsi "github.com/holdfast-storage/holdfast/node/csi"
)

// driver is as little of a cluster as the suites need to be tried themselves:
// the real node services over files on loop devices, and a controller that keeps
// its records in memory.
type driver struct {
	csi.UnimplementedControllerServer
	csi.UnimplementedIdentityServer
	dir string

	mu       sync.Mutex
	recs     map[holdfast.VolumeID]holdfast.Record
	holder   map[holdfast.VolumeID]holdfast.NodeID
	device   map[holdfast.VolumeID]string
	maxBytes int64
}

// nodeVolumes is one node's view.
type nodeVolumes struct {
	*driver
	id holdfast.NodeID
}

func (d *driver) find(idOrName string) (holdfast.Record, error) {
	for id, r := range d.recs {
		if string(id) == idOrName || r.Name == idOrName {
			return r.Clone(), nil
		}
	}
	return holdfast.Record{}, holdfast.E("find volume "+idOrName, holdfast.NotFound, "there is none")
}

func (d *driver) Lookup(_ context.Context, idOrName string) (holdfast.Record, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.find(idOrName)
}

func (n nodeVolumes) Node() holdfast.Node { return holdfast.Node{ID: n.id} }

func (n nodeVolumes) Attached(id holdfast.VolumeID) (string, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.device[id], n.holder[id] == n.id
}

func (n nodeVolumes) Attach(_ context.Context, id holdfast.VolumeID) (string, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch n.holder[id] {
	case n.id:
		return n.device[id], nil
	case "":
	default:
		return "", holdfast.E("attach", holdfast.InUse, "it is attached to "+string(n.holder[id]))
	}
	out, err := exec.Command("losetup", "-f", "--show", filepath.Join(n.dir, string(id))).Output()
	if err != nil {
		return "", holdfast.WrapKind("losetup", holdfast.Unavailable, err)
	}
	n.holder[id], n.device[id] = n.id, strings.TrimSpace(string(out))
	return n.device[id], nil
}

func (n nodeVolumes) Detach(_ context.Context, id holdfast.VolumeID) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.holder[id] != n.id {
		return nil
	}
	fd, err := unix.Open(n.device[id], unix.O_RDONLY|unix.O_EXCL, 0)
	if err != nil {
		return holdfast.WrapKind("detach", holdfast.InUse, err)
	}
	_ = unix.Close(fd)
	err = exec.Command("losetup", "-d", n.device[id]).Run()
	delete(n.holder, id)
	delete(n.device, id)
	return err
}

func (n nodeVolumes) WaitSize(_ context.Context, id holdfast.VolumeID, bytes int64) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := os.Truncate(filepath.Join(n.dir, string(id)), max(bytes, n.recs[id].SizeBytes)); err != nil {
		return err
	}
	return exec.Command("losetup", "-c", n.device[id]).Run()
}

// make adds a volume; the caller holds the lock.
func (d *driver) make(name string, bytes int64) (holdfast.Record, error) {
	r := holdfast.Record{ID: holdfast.NewVolumeID(), Name: name, Phase: holdfast.PhaseReady,
		SizeBytes: holdfast.RoundUp(bytes), Spec: holdfast.Spec{SizeBytes: bytes, FSType: "xfs"}}
	file := filepath.Join(d.dir, string(r.ID))
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		return r, err
	}
	d.recs[r.ID] = r
	return r, os.Truncate(file, r.SizeBytes)
}

func (d *driver) GetPluginInfo(context.Context, *csi.GetPluginInfoRequest) (*csi.GetPluginInfoResponse, error) {
	return &csi.GetPluginInfoResponse{Name: holdfast.DriverName}, nil
}

func (d *driver) Probe(context.Context, *csi.ProbeRequest) (*csi.ProbeResponse, error) {
	return &csi.ProbeResponse{}, nil
}

func (d *driver) GetPluginCapabilities(context.Context, *csi.GetPluginCapabilitiesRequest) (*csi.GetPluginCapabilitiesResponse, error) {
	return &csi.GetPluginCapabilitiesResponse{Capabilities: []*csi.PluginCapability{{Type: &csi.PluginCapability_Service_{
		Service: &csi.PluginCapability_Service{Type: csi.PluginCapability_Service_CONTROLLER_SERVICE},
	}}}}, nil
}

func (d *driver) ControllerGetCapabilities(context.Context, *csi.ControllerGetCapabilitiesRequest) (*csi.ControllerGetCapabilitiesResponse, error) {
	r := &csi.ControllerGetCapabilitiesResponse{}
	for _, t := range []csi.ControllerServiceCapability_RPC_Type{
		csi.ControllerServiceCapability_RPC_PUBLISH_UNPUBLISH_VOLUME, csi.ControllerServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
	} {
		r.Capabilities = append(r.Capabilities, &csi.ControllerServiceCapability{Type: &csi.ControllerServiceCapability_Rpc{Rpc: &csi.ControllerServiceCapability_RPC{Type: t}}})
	}
	return r, nil
}

func (d *driver) CreateVolume(_ context.Context, q *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	r, err := d.find(q.GetName())
	if err != nil {
		if r, err = d.make(q.GetName(), q.GetCapacityRange().GetRequiredBytes()); err != nil {
			return nil, err
		}
	}
	return &csi.CreateVolumeResponse{Volume: shown(r)}, nil
}

func shown(r holdfast.Record) *csi.Volume {
	return &csi.Volume{VolumeId: string(r.ID), CapacityBytes: r.Spec.SizeBytes, VolumeContext: map[string]string{"holdfast": "x"}}
}

func (d *driver) DeleteVolume(_ context.Context, q *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.recs, holdfast.VolumeID(q.GetVolumeId()))
	return &csi.DeleteVolumeResponse{}, nil
}

func (d *driver) ListVolumes(context.Context, *csi.ListVolumesRequest) (*csi.ListVolumesResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	r := &csi.ListVolumesResponse{}
	for _, id := range slices.Sorted(maps.Keys(d.recs)) {
		r.Entries = append(r.Entries, &csi.ListVolumesResponse_Entry{Volume: shown(d.recs[id])})
	}
	return r, nil
}

func (d *driver) GetCapacity(context.Context, *csi.GetCapacityRequest) (*csi.GetCapacityResponse, error) {
	return &csi.GetCapacityResponse{AvailableCapacity: d.maxBytes}, nil
}

func (d *driver) ValidateVolumeCapabilities(_ context.Context, q *csi.ValidateVolumeCapabilitiesRequest) (*csi.ValidateVolumeCapabilitiesResponse, error) {
	return &csi.ValidateVolumeCapabilitiesResponse{Confirmed: &csi.ValidateVolumeCapabilitiesResponse_Confirmed{
		VolumeContext: q.GetVolumeContext(), VolumeCapabilities: q.GetVolumeCapabilities(), Parameters: q.GetParameters(),
	}}, nil
}

func (d *driver) ControllerPublishVolume(ctx context.Context, q *csi.ControllerPublishVolumeRequest) (*csi.ControllerPublishVolumeResponse, error) {
	_, err := nodeVolumes{d, holdfast.NodeID(q.GetNodeId())}.Attach(ctx, holdfast.VolumeID(q.GetVolumeId()))
	return &csi.ControllerPublishVolumeResponse{PublishContext: map[string]string{"node": q.GetNodeId()}}, grpcstatus.To(err)
}

func (d *driver) ControllerUnpublishVolume(ctx context.Context, q *csi.ControllerUnpublishVolumeRequest) (*csi.ControllerUnpublishVolumeResponse, error) {
	err := nodeVolumes{d, holdfast.NodeID(q.GetNodeId())}.Detach(ctx, holdfast.VolumeID(q.GetVolumeId()))
	return &csi.ControllerUnpublishVolumeResponse{}, grpcstatus.To(err)
}

func (d *driver) ControllerExpandVolume(_ context.Context, q *csi.ControllerExpandVolumeRequest) (*csi.ControllerExpandVolumeResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	r := d.recs[holdfast.VolumeID(q.GetVolumeId())]
	r.Spec.SizeBytes = max(r.Spec.SizeBytes, q.GetCapacityRange().GetRequiredBytes())
	r.SizeBytes = holdfast.RoundUp(r.Spec.SizeBytes)
	d.recs[r.ID] = r
	return &csi.ControllerExpandVolumeResponse{CapacityBytes: r.Spec.SizeBytes, NodeExpansionRequired: true}, nil
}

// newEnv starts a driver with two nodes.
func newEnv(t *testing.T, noStaging bool) csisanity.Env {
	t.Helper()
	dir, err := os.MkdirTemp("", "hf-test-replay-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(mountpoint.ReleaseBelow(dir), os.RemoveAll(dir)); err != nil {
			t.Error(err)
		}
	})
	d := &driver{dir: dir, maxBytes: 1 << 40, recs: map[holdfast.VolumeID]holdfast.Record{},
		holder: map[holdfast.VolumeID]holdfast.NodeID{}, device: map[holdfast.VolumeID]string{}}
	t.Cleanup(func() {
		for id, dev := range d.device {
			t.Errorf("volume %s is left attached to %s as %s", id, d.holder[id], dev)
			_ = exec.Command("losetup", "-d", dev).Run()
		}
	})
	env := csisanity.Env{SizeBytes: 400 << 20}
	for _, id := range []holdfast.NodeID{"node-1", "node-2"} {
		conn := d.serve(t, id, noStaging)
		base := filepath.Join(dir, string(id)+"-base")
		if err := os.Mkdir(base, 0o755); err != nil {
			t.Fatal(err)
		}
		env.Nodes = append(env.Nodes, csisanity.Node{Identity: csi.NewIdentityClient(conn), Node: csi.NewNodeClient(conn), Base: base})
		env.Controller = csi.NewControllerClient(conn)
	}
	env.Static = func(t *testing.T) (id, name string) {
		d.mu.Lock()
		defer d.mu.Unlock()
		r, err := d.make("a volume, 100% mine "+string(holdfast.NewVolumeID()[:6]), env.SizeBytes)
		if err != nil {
			t.Fatal(err)
		}
		return string(r.ID), r.Name
	}
	return env
}

// serve offers one node's socket.
func (d *driver) serve(t *testing.T, id holdfast.NodeID, noStaging bool) *grpc.ClientConn {
	t.Helper()
	s, err := nodecsi.New(nodecsi.Config{
		Volumes: nodeVolumes{d, id}, StateDir: filepath.Join(d.dir, string(id)+"-state"), NoStaging: noStaging,
		BusyTimeout: 5 * time.Second, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	sock := filepath.Join(d.dir, string(id)+".sock")
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	csi.RegisterIdentityServer(g, d)
	csi.RegisterControllerServer(g, d)
	csi.RegisterNodeServer(g, s)
	done := make(chan struct{})
	go func() { defer close(done); _ = g.Serve(l) }()
	t.Cleanup(func() { g.Stop(); <-done })
	conn, err := grpc.NewClient("unix://"+sock, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func TestReplays(t *testing.T) {
	for name, noStaging := range map[string]bool{"staging": false, "without staging": true} {
		t.Run(name, func(t *testing.T) {
			t.Run("Mesos isolator", func(t *testing.T) { csisanity.ReplayMesosIsolator(t, newEnv(t, noStaging)) })
			t.Run("Mesos SLRP", func(t *testing.T) { csisanity.ReplaySLRP(t, newEnv(t, noStaging)) })
			t.Run("Nomad", func(t *testing.T) { csisanity.ReplayNomad(t, newEnv(t, noStaging)) })
		})
	}
	t.Run("kubelet", func(t *testing.T) { csisanity.ReplayKubelet(t, newEnv(t, false)) })
}

// TestMain keeps the mount helpers' own log out of the tests' output.
func TestMain(m *testing.M) {
	klog.LogToStderr(false)
	klog.SetOutput(io.Discard)
	os.Exit(m.Run())
}
