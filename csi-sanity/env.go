package csisanity

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Node is the driver on one node.
type Node struct {
	Identity csi.IdentityClient // of the node's socket
	Node     csi.NodeClient
	Base     string // existing directory for staging and target paths
}

// Env is a driver to replay calls against.
type Env struct {
	Controller csi.ControllerClient // nil where only a node service is offered
	Nodes      []Node               // one at least; with two, volumes move

	// Static makes a volume out of band and returns its id and its name, by both
	// of which node calls must find it (static provisioning). ReplayMesosIsolator
	// needs it.
	Static func(t *testing.T) (id, name string)

	SizeBytes  int64             // of volumes, at least 320 MiB for xfs; default 512 MiB
	Parameters map[string]string // of CreateVolume
}

func (e Env) size() int64 {
	if e.SizeBytes == 0 {
		return 512 << 20
	}
	return e.SizeBytes
}

// client is an orchestrator: its calls have its deadline, and their errors end
// the test.
type client struct {
	*testing.T
	env      Env
	deadline time.Duration
}

// must makes one call and ends the test when it fails.
func must[Q, R any](c client, call func(context.Context, Q) (R, error), q Q) R {
	c.Helper()
	r, err := try(c, call, q)
	if err != nil {
		c.Fatalf("%T: %v", q, err)
	}
	return r
}

// try makes one call. A code outside gRPC's list makes Mesos abort.
func try[Q, R any](c client, call func(context.Context, Q) (R, error), q Q) (R, error) {
	c.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.Context()), c.deadline)
	defer cancel()
	r, err := call(ctx, q)
	if code := status.Code(err); code > codes.Unauthenticated {
		c.Errorf("%T: code %d is none of gRPC's", q, code)
	}
	return r, err
}

// bare leaves out a client's call options, which these suites never use.
func bare[Q, R, O any](call func(context.Context, Q, ...O) (R, error)) func(context.Context, Q) (R, error) {
	return func(ctx context.Context, q Q) (R, error) { return call(ctx, q) }
}

// refuse makes one call that must fail, and gives the code.
func refuse[Q, R any](c client, call func(context.Context, Q) (R, error), q Q) codes.Code {
	c.Helper()
	_, err := try(c, call, q)
	if err == nil {
		c.Errorf("%T: OK, an error was expected", q)
	}
	return status.Code(err)
}

func mountCapability(mode csi.VolumeCapability_AccessMode_Mode, fsType string, flags ...string) *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: mode},
		AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{FsType: fsType, MountFlags: flags}},
	}
}

func blockCapability(mode csi.VolumeCapability_AccessMode_Mode) *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: mode},
		AccessType: &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}},
	}
}

// uuid is a random name as the clients make them.
func uuid() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails since Go 1.24
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// percent encodes an id as Mesos does for its paths.
func percent(id string) string { return strings.ReplaceAll(url.QueryEscape(id), "+", "%20") }

// makeDir is what the client makes before a call.
func (c client) makeDir(path string) string {
	c.Helper()
	if err := os.MkdirAll(path, 0o750); err != nil {
		c.Fatal(err)
	}
	return path
}

// mounts lists what is mounted at or below a path.
func (c client) mounts(path string) []string {
	c.Helper()
	path, err := filepath.EvalSymlinks(path)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		c.Fatal(err)
	}
	var at []string
	_, err = mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		if m.Mountpoint == path || strings.HasPrefix(m.Mountpoint, path+"/") {
			at = append(at, m.Mountpoint)
		}
		return true, false
	})
	if err != nil {
		c.Fatal(err)
	}
	return at
}

// wantMounts checks that exactly n mounts are at or below a path: none stacked.
func (c client) wantMounts(path string, n int) {
	c.Helper()
	if at := c.mounts(path); len(at) != n {
		c.Errorf("%d mounts at or below %s, want %d: %v", len(at), path, n, at)
	}
}

// wantPresent and wantGone are what Mesos checks after publish and unpublish.
func (c client) wantPresent(path string) {
	c.Helper()
	if _, err := os.Stat(path); err != nil {
		c.Fatalf("target path %s not created: %v", path, err)
	}
}

func (c client) wantGone(path string) {
	c.Helper()
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		c.Fatalf("target path %s not removed: %v", path, err)
	}
}

// removeAll deletes a directory recursively, across mounts, as Mesos does; but
// only after it made sure that no data can be lost, which Mesos does not.
func (c client) removeAll(path string) {
	c.Helper()
	if at := c.mounts(path); len(at) > 0 {
		c.Fatalf("the client would now delete %s with the data of what is mounted there: %v", path, at)
	}
	if err := os.RemoveAll(path); err != nil {
		c.Fatal(err)
	}
}

// undoMounts unmounts, at the end of the test, what a failed suite left.
func (c client) undoMounts(path string) {
	c.Cleanup(func() {
		for range 50 {
			at := c.mounts(path)
			if len(at) == 0 {
				return
			}
			_ = unix.Unmount(at[len(at)-1], unix.MNT_DETACH)
		}
	})
}

// container binds a target into a container's tree as runtimes do, and returns
// where, with the call that ends the container.
func (c client) container(target string, readOnly bool) (path string, end func()) {
	c.Helper()
	path, err := os.MkdirTemp(c.TempDir(), "container-")
	if err != nil {
		c.Fatal(err)
	}
	if err := unix.Mount(target, path, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		c.Fatal(err)
	}
	if readOnly {
		if err := unix.Mount("", path, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
			c.Fatal(err)
		}
	}
	c.undoMounts(path)
	return path, func() {
		if err := unix.Unmount(path, 0); err != nil {
			c.Errorf("end of a container: %v", err)
		}
	}
}

func (c client) write(path, content string) {
	c.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		c.Fatal(err)
	}
}

func (c client) wantFile(path, content string) {
	c.Helper()
	if b, err := os.ReadFile(path); err != nil || string(b) != content {
		c.Fatalf("%s holds %q (%v), want %q", path, b, err, content)
	}
}

// nodeCan says whether a node service announces a capability.
func (c client) nodeCan(n Node, want csi.NodeServiceCapability_RPC_Type) bool {
	c.Helper()
	for _, x := range must(c, bare(n.Node.NodeGetCapabilities), &csi.NodeGetCapabilitiesRequest{}).GetCapabilities() {
		if x.GetRpc().GetType() == want {
			return true
		}
	}
	return false
}

// controllerCan says whether the controller service announces a capability.
func (c client) controllerCan(want csi.ControllerServiceCapability_RPC_Type) bool {
	c.Helper()
	for _, x := range must(c, bare(c.env.Controller.ControllerGetCapabilities), &csi.ControllerGetCapabilitiesRequest{}).GetCapabilities() {
		if x.GetRpc().GetType() == want {
			return true
		}
	}
	return false
}

// deleteAtEnd deletes a volume after a failed suite.
func (c client) deleteAtEnd(id string) {
	c.Cleanup(func() {
		_, _ = try(c, bare(c.env.Controller.ControllerUnpublishVolume), &csi.ControllerUnpublishVolumeRequest{VolumeId: id})
		if _, err := try(c, bare(c.env.Controller.DeleteVolume), &csi.DeleteVolumeRequest{VolumeId: id}); err != nil {
			c.Errorf("volume %s is left: %v", id, err)
		}
	})
}
