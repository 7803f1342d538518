package nodecsi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
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
	"github.com/holdfast-storage/holdfast/internal/mountpoint"
)

const mib = 1 << 20

// fakeVolumes is a node whose volumes are sparse files on loop devices.
type fakeVolumes struct {
	t    *testing.T
	dir  string
	node holdfast.Node

	mu       sync.Mutex
	recs     map[holdfast.VolumeID]holdfast.Record
	devs     map[holdfast.VolumeID]string
	held     map[holdfast.VolumeID]string // by another node
	dead     map[holdfast.VolumeID]bool   // Attach makes a new device
	down     bool                         // the metadata store does not answer
	attaches int
	detaches int
	gate     chan struct{} // when not nil, Attach waits for it
}

func (f *fakeVolumes) Lookup(_ context.Context, idOrName string) (holdfast.Record, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down {
		return holdfast.Record{}, holdfast.E("read record", holdfast.Unavailable, "the metadata store does not answer")
	}
	for id, r := range f.recs {
		if string(id) == idOrName || r.Name == idOrName {
			return r.Clone(), nil
		}
	}
	return holdfast.Record{}, holdfast.E("read record", holdfast.NotFound, "no volume "+idOrName)
}

func (f *fakeVolumes) file(id holdfast.VolumeID) string { return filepath.Join(f.dir, string(id)) }

func (f *fakeVolumes) Attach(ctx context.Context, id holdfast.VolumeID) (string, error) {
	f.mu.Lock()
	f.attaches++
	gate := f.gate
	f.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if by := f.held[id]; by != "" {
		return "", holdfast.E("attach volume "+string(id), holdfast.InUse, "it is attached to node "+by)
	}
	if d := f.devs[id]; d != "" && !f.dead[id] {
		return d, nil
	}
	delete(f.dead, id)
	out, err := exec.Command("losetup", "-f", "--show", f.file(id)).Output()
	if err != nil {
		return "", holdfast.WrapKind("losetup", holdfast.Unavailable, err)
	}
	f.devs[id] = strings.TrimSpace(string(out))
	return f.devs[id], nil
}

func (f *fakeVolumes) Detach(_ context.Context, id holdfast.VolumeID) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	d := f.devs[id]
	if d == "" {
		return nil
	}
	// An exclusive open fails while the device is mounted, as a real front end does.
	fd, err := unix.Open(d, unix.O_RDONLY|unix.O_EXCL, 0)
	if err != nil {
		return holdfast.WrapKind("detach", holdfast.InUse, err)
	}
	_ = unix.Close(fd)
	f.detaches++
	delete(f.devs, id)
	return holdfast.WrapKind("losetup -d", holdfast.Other, exec.Command("losetup", "-d", d).Run())
}

func (f *fakeVolumes) Attached(id holdfast.VolumeID) (string, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	d, ok := f.devs[id]
	return d, ok
}

func (f *fakeVolumes) WaitSize(_ context.Context, id holdfast.VolumeID, bytes int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	fi, err := os.Stat(f.file(id))
	if err != nil {
		return err
	}
	if fi.Size() < bytes {
		if err := os.Truncate(f.file(id), bytes); err != nil {
			return err
		}
	}
	if d := f.devs[id]; d != "" {
		return exec.Command("losetup", "-c", d).Run()
	}
	return nil
}

func (f *fakeVolumes) Node() holdfast.Node { return f.node }

// setSpec is what a controller does when a volume is expanded.
func (f *fakeVolumes) setSpec(id holdfast.VolumeID, change func(*holdfast.Record)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := f.recs[id].Clone()
	change(&r)
	f.recs[id] = r
}

func (f *fakeVolumes) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

// fixture is a service over fake volumes in a directory of its own.
type fixture struct {
	*testing.T
	*Service
	vols *fakeVolumes
	dir  string
	cfg  Config
}

func newFixture(t *testing.T, change ...func(*Config)) *fixture {
	t.Helper()
	dir, err := os.MkdirTemp("", "hf-test-csi-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cleanUp(t, dir) })
	for _, d := range []string{"volumes", "state", "staging", "targets"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	f := &fixture{T: t, dir: dir, vols: &fakeVolumes{
		t: t, dir: filepath.Join(dir, "volumes"), node: holdfast.Node{ID: "node-1"},
		recs: map[holdfast.VolumeID]holdfast.Record{}, devs: map[holdfast.VolumeID]string{},
		held: map[holdfast.VolumeID]string{}, dead: map[holdfast.VolumeID]bool{},
	}}
	f.cfg = Config{Volumes: f.vols, StateDir: filepath.Join(dir, "state"), BusyTimeout: 2 * time.Second,
		Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
	for _, c := range change {
		c(&f.cfg)
	}
	f.restart()
	return f
}

// restart is a daemon that was killed and started again.
func (f *fixture) restart() {
	f.Helper()
	s, err := New(f.cfg)
	if err != nil {
		f.Fatal(err)
	}
	f.Service = s
}

// cleanUp removes every mount, loop device and file of a fixture.
func cleanUp(t *testing.T, dir string) {
	t.Helper()
	for range 100 {
		m, err := readMounts()
		if err != nil {
			t.Error(err)
			return
		}
		left := m.under(dir)
		if len(left) == 0 {
			break
		}
		_ = unix.Unmount(left[len(left)-1].Mountpoint, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
	}
	out, _ := exec.Command("losetup", "-n", "-O", "NAME,BACK-FILE").Output()
	for line := range strings.Lines(string(out)) {
		if name, file, ok := strings.Cut(strings.TrimSpace(line), " "); ok && strings.HasPrefix(strings.TrimSpace(file), dir+"/") {
			_ = exec.Command("losetup", "-d", name).Run()
		}
	}
	if m, err := readMounts(); err != nil || len(m.under(dir)) > 0 {
		t.Errorf("mounts are left below %s (%v)", dir, err)
		return
	}
	if err := errors.Join(mountpoint.ReleaseBelow(dir), os.RemoveAll(dir)); err != nil {
		t.Error(err)
	}
}

// volume makes a volume of that size and filesystem.
func (f *fixture) volume(fsType string, size int64) holdfast.VolumeID {
	f.Helper()
	id := holdfast.NewVolumeID()
	file, err := os.Create(f.vols.file(id))
	if err == nil {
		err = file.Truncate(holdfast.RoundUp(size))
	}
	if err == nil {
		err = file.Close()
	}
	if err != nil {
		f.Fatal(err)
	}
	f.vols.set(func() {
		f.vols.recs[id] = holdfast.Record{
			Version: holdfast.RecordVersion, ID: id, Name: "vol-" + string(id[:8]), Phase: holdfast.PhaseReady,
			SizeBytes: holdfast.RoundUp(size), Spec: holdfast.Spec{SizeBytes: size, FSType: fsType, Replicas: 1},
			Replicas: []holdfast.Replica{{ID: "r", Node: "node-1", State: holdfast.InSync}},
		}
	})
	return id
}

func (f *fixture) staging(name string) string {
	f.Helper()
	p := filepath.Join(f.dir, "staging", name)
	if err := os.MkdirAll(p, 0o755); err != nil {
		f.Fatal(err)
	}
	return p
}

func (f *fixture) target(name string) string { return filepath.Join(f.dir, "targets", name) }

// mounts counts what is mounted at or below a path.
func (f *fixture) mounts(path string) int {
	f.Helper()
	m, err := readMounts()
	if err != nil {
		f.Fatal(err)
	}
	return len(m.under(path))
}

func (f *fixture) wantMounts(path string, n int) {
	f.Helper()
	if got := f.mounts(path); got != n {
		f.Errorf("%d mounts at or below %s, want %d", got, path, n)
	}
}

func (f *fixture) wantAttached(id holdfast.VolumeID, want bool) {
	f.Helper()
	if _, got := f.vols.Attached(id); got != want {
		f.Errorf("volume %s attached: %v, want %v", id, got, want)
	}
}

func (f *fixture) write(path, content string) {
	f.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		f.Error(err)
	}
}

func (f *fixture) wantFile(path, content string) {
	f.Helper()
	b, err := os.ReadFile(path)
	if err != nil || string(b) != content {
		f.Errorf("%s holds %q (%v), want %q", path, b, err, content)
	}
}

type modeOption func(*csi.VolumeCapability)

func fsType(s string) modeOption {
	return func(c *csi.VolumeCapability) { c.GetMount().FsType = s }
}

func flags(s ...string) modeOption {
	return func(c *csi.VolumeCapability) { c.GetMount().MountFlags = s }
}

func group(gid int) modeOption {
	return func(c *csi.VolumeCapability) { c.GetMount().VolumeMountGroup = fmt.Sprint(gid) }
}

func mode(m csi.VolumeCapability_AccessMode_Mode) modeOption {
	return func(c *csi.VolumeCapability) { c.AccessMode.Mode = m }
}

func mountCap(opts ...modeOption) *csi.VolumeCapability {
	c := &csi.VolumeCapability{
		AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{}},
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
	}
	for _, o := range opts {
		o(c)
	}
	return c
}

func blockCap(opts ...modeOption) *csi.VolumeCapability {
	c := mountCap()
	c.AccessType = &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}}
	for _, o := range opts {
		o(c)
	}
	return c
}

func (f *fixture) stage(id holdfast.VolumeID, staging string, c *csi.VolumeCapability) error {
	_, err := f.NodeStageVolume(f.Context(), &csi.NodeStageVolumeRequest{VolumeId: string(id), StagingTargetPath: staging, VolumeCapability: c})
	return err
}

func (f *fixture) publish(id holdfast.VolumeID, staging, target string, c *csi.VolumeCapability, readOnly bool) error {
	_, err := f.NodePublishVolume(f.Context(), &csi.NodePublishVolumeRequest{
		VolumeId: string(id), StagingTargetPath: staging, TargetPath: target, VolumeCapability: c, Readonly: readOnly,
	})
	return err
}

func (f *fixture) unpublish(id holdfast.VolumeID, target string) error {
	_, err := f.NodeUnpublishVolume(f.Context(), &csi.NodeUnpublishVolumeRequest{VolumeId: string(id), TargetPath: target})
	return err
}

func (f *fixture) unstage(id holdfast.VolumeID, staging string) error {
	_, err := f.NodeUnstageVolume(f.Context(), &csi.NodeUnstageVolumeRequest{VolumeId: string(id), StagingTargetPath: staging})
	return err
}

// ok fails the test at once on an error.
func (f *fixture) ok(errs ...error) {
	f.Helper()
	for _, err := range errs {
		if err != nil {
			f.Fatal(err)
		}
	}
}

// serve offers the service on a unix socket and connects to it.
func (f *fixture) serve() csi.NodeClient {
	f.Helper()
	sock := filepath.Join(f.dir, "csi.sock")
	l, err := net.Listen("unix", sock)
	f.ok(err)
	srv := grpc.NewServer()
	csi.RegisterNodeServer(srv, f.Service)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(l)
	}()
	f.Cleanup(func() { srv.Stop(); <-done })
	conn, err := grpc.NewClient("unix://"+sock, grpc.WithTransportCredentials(insecure.NewCredentials()))
	f.ok(err)
	f.Cleanup(func() { _ = conn.Close() })
	return csi.NewNodeClient(conn)
}

// TestMain keeps the mount helpers' own log out of the tests' output.
func TestMain(m *testing.M) {
	klog.LogToStderr(false)
	klog.SetOutput(io.Discard)
	os.Exit(m.Run())
}
