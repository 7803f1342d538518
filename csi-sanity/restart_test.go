package csisanity_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	csisanity "github.com/holdfast-storage/holdfast/csi-sanity"
)

// A daemon that ends under a mounted volume takes its device with it. The calls
// that orchestrators repeat must bring the volume back at the same paths with
// what was written durably, though a container still holds the dead mount.
func TestDaemonEndsUnderAMountedVolume(t *testing.T) {
	for _, how := range []string{"stopped", "killed"} {
		for _, block := range []bool{false, true} {
			name := how + map[bool]string{true: ", block", false: ", filesystem"}[block]
			t.Run(name, func(t *testing.T) { daemonEnds(t, how == "killed", block) })
		}
	}
}

// use is one volume on one node, as an orchestrator uses it without a controller.
type use struct {
	*testing.T
	node            csisanity.Node
	id              string
	staging, target string
	capability      *csi.VolumeCapability
}

func newUse(t *testing.T, env csisanity.Env, block bool) use {
	t.Helper()
	n := env.Nodes[0]
	u := use{T: t, node: n, staging: filepath.Join(n.Base, "staging"), target: filepath.Join(n.Base, "target")}
	u.id, _ = env.Static(t)
	u.capability = &csi.VolumeCapability{
		AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{}},
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
	}
	if block {
		u.capability.AccessType = &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}}
	}
	u.ok(os.Mkdir(u.staging, 0o755))
	return u
}

func (u use) ok(err error) {
	u.Helper()
	if err != nil {
		u.Fatal(err)
	}
}

func (u use) bring() {
	u.Helper()
	_, err := u.node.Node.NodeStageVolume(u.Context(), &csi.NodeStageVolumeRequest{VolumeId: u.id, StagingTargetPath: u.staging, VolumeCapability: u.capability})
	u.ok(err)
	_, err = u.node.Node.NodePublishVolume(u.Context(), &csi.NodePublishVolumeRequest{
		VolumeId: u.id, StagingTargetPath: u.staging, TargetPath: u.target, VolumeCapability: u.capability,
	})
	u.ok(err)
}

func (u use) takeAway() {
	u.Helper()
	_, err := u.node.Node.NodeUnpublishVolume(u.Context(), &csi.NodeUnpublishVolumeRequest{VolumeId: u.id, TargetPath: u.target})
	u.ok(err)
	_, err = u.node.Node.NodeUnstageVolume(u.Context(), &csi.NodeUnstageVolumeRequest{VolumeId: u.id, StagingTargetPath: u.staging})
	u.ok(err)
	if _, err := os.Lstat(u.target); !os.IsNotExist(err) {
		u.Errorf("the target is left: %v", err)
	}
}

// refusesWrites makes sure that what a task writes by path while the device is away
// is not taken by the host's own disk. A daemon that is killed leaves its mounts,
// which give errors, to its successor.
func (u use) refusesWrites(file string, unmounted bool) {
	u.Helper()
	mounted, err := mountinfo.Mounted(u.target)
	if err != nil || mounted && unmounted {
		u.Fatalf("mounted at %s: %v (%v)", u.target, mounted, err)
	}
	if mounted {
		return
	}
	if err := os.WriteFile(file, []byte("lost"), 0o600); !errors.Is(err, unix.EPERM) {
		u.Errorf("a write by path while the device is away: %v, want EPERM", err)
	}
}

func daemonEnds(t *testing.T, kill, block bool) {
	c := startCluster(t)
	u := newUse(t, c.env(t), block)
	u.bring()
	file := u.target
	if !block {
		file = filepath.Join(u.target, "precious")
	}
	// A container writes, and goes on holding what it has.
	held, err := os.OpenFile(file, os.O_CREATE|os.O_RDWR, 0o644)
	u.ok(err)
	defer func() { _ = held.Close() }()
	_, err = held.WriteAt([]byte("data"), 0)
	u.ok(err)
	u.ok(held.Sync())
	container := filepath.Join(u.node.Base, "container")
	if !block {
		u.ok(os.Mkdir(container, 0o755))
		u.ok(unix.Mount(u.target, container, "", unix.MS_BIND, ""))
		defer func() { _ = unix.Unmount(container, unix.MNT_DETACH) }()
	}

	if kill {
		c.Nodes[0].Kill()
	} else {
		c.Nodes[0].Stop()
	}
	// What the container writes now must not be acknowledged.
	_, err = held.WriteAt([]byte("lost"), 0)
	if err = errors.Join(err, held.Sync()); !errors.Is(err, unix.EIO) {
		t.Errorf("a write and sync by a file that was open: %v, want EIO", err)
	}
	u.refusesWrites(file+map[bool]string{false: "-new"}[block], !kill)
	c.Nodes[0].Start()

	u.bring()
	b := make([]byte, 4)
	again, err := os.Open(file)
	u.ok(err)
	if _, err := again.ReadAt(b, 0); err != nil || string(b) != "data" {
		t.Errorf("read %q (%v)", b, err)
	}
	u.ok(again.Close())
	// The container ends, and the volume goes.
	_ = held.Close()
	_ = unix.Unmount(container, unix.MNT_DETACH)
	u.takeAway()
	rec, err := c.DB.Volume(t.Context(), u.id)
	if err != nil || rec.AttachedTo() != "" {
		t.Errorf("the volume is attached to %q (%v)", rec.AttachedTo(), err)
	}
}
