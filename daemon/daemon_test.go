package daemon_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/daemon"
	"github.com/holdfast-storage/holdfast/internal/rpc"
	"github.com/holdfast-storage/holdfast/node/agent"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

// freePorts reserves n ports on loopback for a moment.
func freePorts(t *testing.T, n int) []int {
	t.Helper()
	var out []int
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = l.Close() }()
		out = append(out, l.Addr().(*net.TCPAddr).Port)
	}
	return out
}

// oneNode is the configuration of a cluster of one with a pool in a file.
func oneNode(t *testing.T, dir string) daemon.Config {
	t.Helper()
	p := freePorts(t, 5)
	c := daemon.DefaultConfig()
	c.Node, c.Address, c.DataPort, c.NodePort = "n1", "127.0.0.1", p[0], p[1]
	c.API = []string{fmt.Sprintf("127.0.0.1:%d", p[2]), "unix://" + filepath.Join(dir, "sockets", "api.sock")}
	c.CSI = "unix://" + filepath.Join(dir, "sockets", "csi.sock")
	c.StateDir, c.RunDir = filepath.Join(dir, "state"), filepath.Join(dir, "run")
	c.Etcd.Embedded = &daemon.EmbeddedEtcd{ClientPort: p[3], PeerPort: p[4]}
	c.Pools = []agent.PoolConfig{{Path: filepath.Join(dir, "pool.img"), Format: true, ImageBytes: 2 << 30}}
	return c
}

// start runs a daemon until the function that it returns is called, which gives
// its error.
func start(t *testing.T, c daemon.Config) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() {
		done <- daemon.Run(ctx, c, daemon.Options{Release: "test", Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Ready: func() { close(ready) }})
	}()
	var ended bool
	stop = func() error {
		if ended {
			return nil
		}
		ended = true
		cancel()
		return <-done
	}
	t.Cleanup(func() { _ = stop() })
	select {
	case <-ready:
	case err := <-done:
		ended = true
		t.Fatalf("the daemon ended: %v", err)
	case <-time.After(time.Minute):
		t.Fatal("the daemon is not ready after a minute")
	}
	return stop
}

func TestADaemonServesEverythingAndComesBack(t *testing.T) {
	dir, err := os.MkdirTemp("", "hf-test-daemon-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	c := oneNode(t, dir)
	stop := start(t, c)
	conns := rpc.NewConns(rpc.Config{CallTimeout: 20 * time.Second})
	t.Cleanup(func() { _ = conns.Close() })

	v := create(t, conns, c)
	checkREST(t, c)
	checkCSI(t, conns, c.CSI)
	if err := daemon.Run(t.Context(), c, daemon.Options{Log: slog.New(slog.DiscardHandler)}); !errors.Is(err, holdfast.InUse) {
		t.Errorf("a second daemon on the same folder: %v, want in use", err)
	}
	if err := stop(); err != nil {
		t.Errorf("stopping: %v", err)
	}
	if mounts, err := os.ReadFile("/proc/mounts"); err != nil || strings.Contains(string(mounts), dir) {
		t.Errorf("something is mounted after the daemon's end: %v", err)
	}

	stop = start(t, c)
	cc, err := conns.Conn(c.API[1])
	if err != nil {
		t.Fatal(err)
	}
	again, err := holdfastv1.NewVolumeServiceClient(cc).GetVolume(t.Context(), &holdfastv1.GetVolumeRequest{Volume: "v1"})
	if err != nil || again.GetId() != v.GetId() || again.GetHealth() != "healthy" {
		t.Errorf("after a restart: %v, %v", again, err)
	}
	if err := stop(); err != nil {
		t.Errorf("stopping again: %v", err)
	}
}

func create(t *testing.T, conns *rpc.Conns, c daemon.Config) *holdfastv1.Volume {
	t.Helper()
	cc, err := conns.Conn(c.API[0])
	if err != nil {
		t.Fatal(err)
	}
	v, err := holdfastv1.NewVolumeServiceClient(cc).CreateVolume(t.Context(), &holdfastv1.CreateVolumeRequest{Name: "v1", SizeBytes: 64 << 20, Replicas: 1})
	if err != nil || v.GetHealth() != "healthy" {
		t.Fatalf("create: %v, %v", v, err)
	}
	return v
}

func checkREST(t *testing.T, c daemon.Config) {
	t.Helper()
	for path, want := range map[string]string{"/healthz": "ok", "/v1/volumes/v1": `"name":"v1"`, "/v1/status": `"leader":"n1"`, "/openapi.json": "swagger"} {
		q, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+c.API[0]+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r, err := http.DefaultClient.Do(q)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(r.Body)
		_ = r.Body.Close()
		if err != nil || r.StatusCode != http.StatusOK || !strings.Contains(strings.ReplaceAll(string(body), " ", ""), want) {
			t.Errorf("%s: %d %.300s, %v", path, r.StatusCode, body, err)
		}
	}
}

// checkCSI asks each of the three services on the one socket.
func checkCSI(t *testing.T, conns *rpc.Conns, socket string) {
	t.Helper()
	cc, err := conns.Conn(socket)
	if err != nil {
		t.Fatal(err)
	}
	if r, err := csi.NewIdentityClient(cc).GetPluginInfo(t.Context(), &csi.GetPluginInfoRequest{}); err != nil || r.GetName() != holdfast.DriverName || r.GetVendorVersion() != "test" {
		t.Errorf("identity: %v, %v", r, err)
	}
	if r, err := csi.NewControllerClient(cc).ListVolumes(t.Context(), &csi.ListVolumesRequest{}); err != nil || len(r.GetEntries()) != 1 {
		t.Errorf("controller: %v, %v", r, err)
	}
	if r, err := csi.NewNodeClient(cc).NodeGetInfo(t.Context(), &csi.NodeGetInfoRequest{}); err != nil || r.GetNodeId() != "n1" {
		t.Errorf("node: %v, %v", r, err)
	}
	checkModes(t, csi.NewControllerClient(cc), csi.NewNodeClient(cc))
}

// checkModes asks controller and node for a volume that is not there, in every
// access mode: they agree which there are.
func checkModes(t *testing.T, controller csi.ControllerClient, node csi.NodeClient) {
	t.Helper()
	good := []csi.VolumeCapability_AccessMode_Mode{
		csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER, csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY,
		csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER, csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER,
	}
	for n := range csi.VolumeCapability_AccessMode_Mode_name {
		mode := csi.VolumeCapability_AccessMode_Mode(n)
		c := &csi.VolumeCapability{AccessMode: &csi.VolumeCapability_AccessMode{Mode: mode}, AccessType: &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}}}
		want := holdfast.Invalid
		if slices.Contains(good, mode) {
			want = holdfast.NotFound
		}
		_, cerr := controller.ControllerPublishVolume(t.Context(), &csi.ControllerPublishVolumeRequest{VolumeId: "nope", NodeId: "n1", VolumeCapability: c})
		_, nerr := node.NodeStageVolume(t.Context(), &csi.NodeStageVolumeRequest{VolumeId: "nope", StagingTargetPath: t.TempDir(), VolumeCapability: c})
		if !errors.Is(cerr, want) || !errors.Is(nerr, want) {
			t.Errorf("access mode %v: the controller says %v, the node %v; want both %v", mode, cerr, nerr, want)
		}
	}
}

func TestADaemonThatCannotStartSaysWhy(t *testing.T) {
	dir := t.TempDir()
	c := oneNode(t, dir)
	taken, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", c.Etcd.Embedded.ClientPort))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	err = daemon.Run(t.Context(), c, daemon.Options{Log: slog.New(slog.DiscardHandler)})
	if err == nil || !strings.Contains(err.Error(), fmt.Sprint(c.Etcd.Embedded.ClientPort)) {
		t.Errorf("a port in use: got %v, want its number", err)
	}
	_ = taken.Close()
	c.Replication.Congestion = "wishful"
	err = daemon.Run(t.Context(), c, daemon.Options{Log: slog.New(slog.DiscardHandler)})
	if err == nil || !strings.Contains(err.Error(), "wishful") {
		t.Errorf("a congestion control that the kernel does not have: got %v, want its name", err)
	}
	c.Replication.Congestion = ""
	c.Etcd = daemon.Etcd{Endpoints: []string{"http://127.0.0.1:1"}}
	ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
	defer cancel()
	if err := daemon.Run(ctx, c, daemon.Options{Log: slog.New(slog.DiscardHandler)}); err != nil {
		t.Errorf("an etcd that does not answer is waited for until the end, which is no error: %v", err)
	}
}
