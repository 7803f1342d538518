package nodecsi

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/holdfast-storage/holdfast"
)

// The numbers are those of the list of what clients of the driver really do.

func wantCode(t *testing.T, err error, want codes.Code) {
	t.Helper()
	if got := status.Code(err); got != want {
		t.Errorf("code %v, want %v: %v", got, want, err)
	}
}

func TestGotcha01AttachesByItself(t *testing.T) {
	for _, fs := range []string{"xfs", "ext4"} {
		t.Run(fs, func(t *testing.T) {
			f := newFixture(t)
			id, st, tg := f.volume(fs, 320*mib), f.staging("s"), f.target("t")
			f.ok(f.stage(id, st, mountCap()), f.publish(id, st, tg, mountCap(), false))
			f.wantAttached(id, true)
			f.write(tg+"/file", "data")
			if m, err := readMounts(); err != nil || m.top(tg).FSType != fs {
				t.Errorf("mounted as %v (%v)", m.top(tg), err)
			}
			f.ok(f.unpublish(id, tg), f.unstage(id, st))
			f.wantAttached(id, false)
			f.wantMounts(f.dir, 0)
			if left, _ := os.ReadDir(f.cfg.StateDir); len(left) > 0 {
				t.Errorf("state is left: %v", left)
			}
			f.ok(f.stage(id, st, mountCap()), f.publish(id, st, tg, mountCap(), false))
			f.wantFile(tg+"/file", "data")
		})
	}
}

func TestGotcha01LeavesDetachingToTheController(t *testing.T) {
	f := newFixture(t)
	id, st := f.volume("ext4", 64*mib), f.staging("s")
	_, err := f.NodeStageVolume(t.Context(), &csi.NodeStageVolumeRequest{
		VolumeId: string(id), StagingTargetPath: st, VolumeCapability: mountCap(), PublishContext: map[string]string{"node": "node-1"},
	})
	f.ok(err)
	f.restart() // that a controller published it must be remembered
	f.ok(f.unstage(id, st))
	f.wantMounts(f.dir, 0)
	f.wantAttached(id, true)
}

func TestGotcha01FailureLeavesTheAttachmentOfOthers(t *testing.T) {
	f := newFixture(t)
	id, st := f.volume("ext4", 64*mib), f.staging("s")
	_, err := f.vols.Attach(t.Context(), id) // by a controller, or by hand
	f.ok(err)
	wantCode(t, f.stage(id, filepath.Join(f.dir, "absent"), mountCap()), codes.InvalidArgument)
	wantCode(t, f.stage(id, st, mountCap(flags("no-such-option"))), codes.InvalidArgument)
	f.wantAttached(id, true)
	f.wantMounts(f.dir, 0)
}

func TestGotcha02NeverStacksMounts(t *testing.T) {
	f := newFixture(t)
	id, st, tg := f.volume("xfs", 320*mib), f.staging("s"), f.target("t")
	for range 3 {
		f.ok(f.stage(id, st, mountCap()), f.publish(id, st, tg, mountCap(), false))
		f.restart()
	}
	f.wantMounts(st, 1)
	f.wantMounts(tg, 1)
	// A second container on the node, with another read-only flag (isolator).
	f.ok(f.stage(id, st, mountCap()), f.publish(id, st, tg, mountCap(), true))
	f.wantMounts(tg, 1)
	f.write(tg+"/still-writable", "x")
	f.ok(f.unpublish(id, tg), f.unstage(id, st))
	f.wantMounts(f.dir, 0)

	// A reader first, then a writer: the writer must be able to write.
	f.ok(f.stage(id, st, mountCap()), f.publish(id, st, tg, mountCap(), true))
	if err := os.WriteFile(tg+"/x", nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("writing to a read-only target: %v", err)
	}
	f.ok(f.stage(id, st, mountCap()), f.publish(id, st, tg, mountCap(), false))
	f.write(tg+"/x", "x")
	f.wantMounts(tg, 1)
	f.wantMounts(st, 1)
}

func TestGotcha02SameForBlock(t *testing.T) {
	f := newFixture(t)
	id, st, tg := f.volume("xfs", 16*mib), f.staging("s"), f.target("t")
	for range 3 {
		f.ok(f.stage(id, st, blockCap()), f.publish(id, st, tg, blockCap(), false))
	}
	f.wantMounts(tg, 1)
	f.wantMounts(st, 0)
	dev, err := rdevOf(tg)
	f.ok(err)
	if p, _ := f.vols.Attached(id); f.vols.devs[id] != p || devID(dev) != f.attachedDev(id) {
		t.Errorf("the target shows device %s, the volume is %s", devID(dev), f.attachedDev(id))
	}
	f.ok(os.WriteFile(tg, []byte("raw"), 0))
	f.ok(f.unpublish(id, tg))
	f.wantAttached(id, true) // still staged
	f.ok(f.unstage(id, st))
	f.wantAttached(id, false)
	if _, err := os.Lstat(tg); !os.IsNotExist(err) {
		t.Errorf("the target is left: %v", err)
	}
	b, err := os.ReadFile(f.vols.file(id))
	if err != nil || string(b[:3]) != "raw" {
		t.Errorf("what was written to the target is not on the volume: %q, %v", b[:3], err)
	}
}

func TestGotcha03UnpublishNeverLies(t *testing.T) {
	f := newFixture(t)
	id, st, tg := f.volume("ext4", 64*mib), f.staging("s"), f.target("t")
	f.ok(f.stage(id, st, mountCap()), f.publish(id, st, tg, mountCap(), false))
	f.write(tg+"/precious", "data")
	// Mounts stacked on the target, and one below it, made by somebody else.
	f.ok(os.Mkdir(tg+"/sub", 0o755), unix.Mount(st, tg, "", unix.MS_BIND, ""), unix.Mount("hf-test", tg+"/sub", "tmpfs", 0, ""))
	f.write(tg+"/sub/x", "tmpfs")

	// Something uses it: an error, nothing hidden, and the data stays.
	busy, err := os.Open(tg + "/sub/x")
	f.ok(err)
	err = f.unpublish(id, tg)
	wantCode(t, err, codes.FailedPrecondition)
	if f.mounts(tg) == 0 {
		t.Error("a busy mount was hidden")
	}
	f.ok(busy.Close())

	f.ok(f.unpublish(id, tg))
	f.wantMounts(tg, 0)
	if _, err := os.Lstat(tg); !os.IsNotExist(err) {
		t.Errorf("the target is left: %v", err)
	}
	// The same for staging, and then what Mesos does: delete the directory,
	// crossing mounts. The data must survive.
	f.ok(unix.Mount(st, st, "", unix.MS_BIND, ""))
	f.wantMounts(st, 2)
	f.ok(f.unstage(id, st))
	f.wantMounts(st, 0)
	f.ok(os.RemoveAll(filepath.Join(f.dir, "staging")), os.RemoveAll(filepath.Join(f.dir, "targets")))
	f.ok(os.Mkdir(filepath.Join(f.dir, "targets"), 0o755))
	f.ok(f.stage(id, f.staging("s"), mountCap()), f.publish(id, st, tg, mountCap(), false))
	f.wantFile(tg+"/precious", "data")
}

func TestGotcha03BusyUntilReleased(t *testing.T) {
	f := newFixture(t, func(c *Config) { c.BusyTimeout = 20 * time.Second })
	id, st, tg := f.volume("ext4", 64*mib), f.staging("s"), f.target("t")
	f.ok(f.stage(id, st, mountCap()), f.publish(id, st, tg, mountCap(), false))
	busy, err := os.Create(tg + "/open")
	f.ok(err)
	timer := time.AfterFunc(300*time.Millisecond, func() { _ = busy.Close() })
	defer timer.Stop()
	f.ok(f.unpublish(id, tg))
	f.wantMounts(tg, 0)
}

func TestGotcha03LeavesForeignMountsAlone(t *testing.T) {
	f := newFixture(t)
	id, other := f.volume("ext4", 64*mib), f.volume("ext4", 64*mib)
	tg := f.target("foreign")
	f.ok(os.Mkdir(tg, 0o755), unix.Mount("hf-test", tg, "tmpfs", 0, ""))
	f.write(tg+"/x", "theirs")
	for _, called := range []holdfast.VolumeID{id, "no-such-volume"} {
		wantCode(t, f.unpublish(called, tg), codes.FailedPrecondition)
		wantCode(t, f.unstage(called, tg), codes.FailedPrecondition)
	}
	wantCode(t, f.publish(id, f.staging("s"), tg, mountCap(), false), codes.AlreadyExists)
	f.wantAttached(id, false) // nothing half-made is left
	f.wantMounts(f.staging("s"), 0)
	f.wantFile(tg+"/x", "theirs")

	// One volume must not take another's path away, nor use it.
	s2, t2 := f.staging("s2"), f.target("t2")
	f.ok(f.stage(other, s2, mountCap()), f.publish(other, s2, t2, mountCap(), false))
	wantCode(t, f.unpublish(id, t2), codes.FailedPrecondition)
	wantCode(t, f.stage(id, s2, mountCap()), codes.AlreadyExists)
	f.wantMounts(t2, 1)
	f.wantMounts(s2, 1)
	f.wantAttached(id, false)
}

func TestGotcha03NeverRemovesFiles(t *testing.T) {
	f := newFixture(t)
	id, tg := f.volume("ext4", 64*mib), f.target("t")
	f.ok(os.Mkdir(tg, 0o755))
	f.write(tg+"/x", "theirs")
	wantCode(t, f.unpublish(id, tg), codes.FailedPrecondition)
	wantCode(t, f.publish(id, f.staging("s"), tg, mountCap(), false), codes.AlreadyExists)
	wantCode(t, f.unpublish(id, tg+"/x"), codes.FailedPrecondition)
	f.wantFile(tg+"/x", "theirs")
}

func TestGotcha04WritesNothingBesideItsPaths(t *testing.T) {
	f := newFixture(t)
	id, st, tg := f.volume("ext4", 64*mib), f.staging("s"), f.target("t")
	before, err := readMounts()
	f.ok(err, f.stage(id, st, mountCap()), f.publish(id, st, tg, mountCap(), false))
	after, err := readMounts()
	f.ok(err)
	if n := len(after.under(f.dir)) - len(before.under(f.dir)); n != 2 {
		t.Errorf("%d mounts were made, want 2: %s", n, after.under(f.dir))
	}
	for _, d := range []string{"staging", "targets"} {
		if in, _ := os.ReadDir(filepath.Join(f.dir, d)); len(in) != 1 {
			t.Errorf("in %s: %v", d, in)
		}
	}
	f.ok(f.unpublish(id, tg), f.unstage(id, st))
	if in, _ := os.ReadDir(filepath.Join(f.dir, "targets")); len(in) != 0 {
		t.Errorf("left in targets: %v", in)
	}
	if _, err := os.Stat(st); err != nil {
		t.Errorf("the staging directory is the orchestrator's, and was removed: %v", err)
	}
}

func TestGotcha05PublishesAgainAfterReboot(t *testing.T) {
	f := newFixture(t)
	id, st, tg := f.volume("ext4", 64*mib), f.staging("s"), f.target("t")
	f.ok(f.stage(id, st, mountCap()), f.publish(id, st, tg, mountCap(), false))
	f.write(tg+"/x", "before")
	// The host reboots: mounts and devices are gone, files stay.
	f.ok(unix.Unmount(tg, 0), unix.Unmount(st, 0), f.vols.Detach(t.Context(), id))
	file := filepath.Join(f.cfg.StateDir, string(id)+".json")
	b, err := os.ReadFile(file)
	f.ok(err, os.WriteFile(file, []byte(strings.ReplaceAll(string(b), f.states.boot, "an-earlier-boot")), 0o600))
	f.restart()
	// What was published before the reboot is not any more: it keeps nobody out.
	sole := mountCap(mode(csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER))
	f.ok(f.publish(id, st, f.target("other"), sole, false), f.unpublish(id, f.target("other")))
	f.ok(f.stage(id, st, mountCap()), f.publish(id, st, tg, mountCap(), false))
	f.wantFile(tg+"/x", "before")
	f.ok(f.unpublish(id, tg), f.unstage(id, st))
	f.wantAttached(id, false)
}

func TestGotcha05MovedOrDeletedMeanwhile(t *testing.T) {
	f := newFixture(t)
	id, st, tg := f.volume("ext4", 64*mib), f.staging("s"), f.target("t")
	f.vols.set(func() { f.vols.held[id] = "node-7" })
	for _, err := range []error{f.stage(id, st, mountCap()), f.publish(id, st, tg, mountCap(), false)} {
		wantCode(t, err, codes.FailedPrecondition)
		if err == nil || !strings.Contains(err.Error(), "node-7") {
			t.Errorf("the error does not name the holder: %v", err)
		}
	}
	wantCode(t, f.stage("deleted", st, mountCap()), codes.NotFound)
	f.vols.setSpec(id, func(r *holdfast.Record) { r.Phase = holdfast.PhaseDeleting })
	wantCode(t, f.stage(id, st, mountCap()), codes.NotFound)
	f.ok(f.unpublish("deleted", tg), f.unstage("deleted", st), f.unpublish(id, tg), f.unstage(id, st))
	if _, err := os.Lstat(tg); !os.IsNotExist(err) {
		t.Errorf("a failed publish left its target: %v", err)
	}
	if left, _ := os.ReadDir(f.cfg.StateDir); len(left) > 0 {
		t.Errorf("state is left: %v", left)
	}
}

func TestGotcha06LongWorkGoesOnAndIsJoined(t *testing.T) {
	f := newFixture(t)
	client := f.serve()
	id, st := f.volume("ext4", 64*mib), f.staging("s")
	gate := make(chan struct{})
	f.vols.set(func() { f.vols.gate = gate })
	req := &csi.NodeStageVolumeRequest{VolumeId: string(id), StagingTargetPath: st, VolumeCapability: mountCap()}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err := client.NodeStageVolume(ctx, req)
	if c := status.Code(err); c != codes.DeadlineExceeded && c != codes.Unavailable { // whichever side saw it first
		t.Errorf("code %v: %v", c, err)
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if _, err := client.NodeStageVolume(t.Context(), req); err != nil {
				t.Error(err)
			}
		})
	}
	close(gate)
	wg.Wait()
	f.wantMounts(st, 1)
}

func TestGotcha06WorkCompletesThoughNobodyAsksAgain(t *testing.T) {
	f := newFixture(t)
	id, st := f.volume("ext4", 64*mib), f.staging("s")
	gate := make(chan struct{})
	f.vols.set(func() { f.vols.gate = gate })
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := f.NodeStageVolume(ctx, &csi.NodeStageVolumeRequest{VolumeId: string(id), StagingTargetPath: st, VolumeCapability: mountCap()})
	wantCode(t, err, codes.Unavailable)
	close(gate)
	deadline := time.NewTimer(20 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for f.mounts(st) == 0 {
		select {
		case <-deadline.C:
			t.Fatal("the work did not go on")
		case <-tick.C:
		}
	}
	f.ok(f.unstage(id, st)) // waits for the work to end
	f.wantMounts(st, 0)
}

func TestGotcha07ConcurrentCallsWait(t *testing.T) {
	f := newFixture(t)
	id, st := f.volume("ext4", 64*mib), f.staging("s")
	f.ok(f.stage(id, st, mountCap()))
	var wg sync.WaitGroup
	for i := range 4 {
		tg := f.target(string(rune('a' + i)))
		wg.Go(func() {
			for range 2 {
				if err := errors.Join(f.publish(id, st, tg, mountCap(), i%2 == 0), f.unpublish(id, tg)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	f.wantMounts(filepath.Join(f.dir, "targets"), 0)
	f.ok(f.unstage(id, st))
	f.wantAttached(id, false)
}

func TestGotcha08ArbitrarySizes(t *testing.T) {
	f := newFixture(t)
	const first, second = 64*mib + 12345, 96*mib + 54321
	id, st, tg := f.volume("ext4", first), f.staging("s"), f.target("t")
	f.ok(f.stage(id, st, blockCap()), f.publish(id, st, tg, blockCap(), false))
	f.vols.setSpec(id, func(r *holdfast.Record) { r.Spec.SizeBytes = second })
	r, err := f.NodeExpandVolume(t.Context(), &csi.NodeExpandVolumeRequest{
		VolumeId: string(id), VolumePath: tg, CapacityRange: &csi.CapacityRange{RequiredBytes: second, LimitBytes: second},
	})
	f.ok(err)
	if r.GetCapacityBytes() != holdfast.RoundUp(second) {
		t.Errorf("capacity %d", r.GetCapacityBytes())
	}
}

func TestGotcha10NamesAndEmptyContexts(t *testing.T) {
	f := newFixture(t)
	id := f.volume("ext4", 64*mib)
	const name = "my volume é%20\\"
	f.vols.setSpec(id, func(r *holdfast.Record) { r.Name = name })
	st, tg := f.staging("my%20volume \\ é\tx"), f.target("t a\\rget")
	f.ok(f.stage(name, st, mountCap()), f.stage(id, st, mountCap()), f.publish(name, st, tg, mountCap(), false), f.publish(id, st, tg, mountCap(), false))
	f.wantMounts(st, 1)
	f.wantMounts(tg, 1)
	// The volume is renamed, and the metadata store is away: the name that the
	// caller used must still find it.
	f.vols.set(func() { f.vols.down = true })
	f.restart()
	f.ok(f.publish(name, st, tg, mountCap(), false))
	f.ok(f.unpublish(name, tg), f.unstage(name, st))
	f.wantMounts(f.dir, 0)
	f.wantAttached(id, false)
	wantCode(t, f.stage(name, st, mountCap()), codes.Unavailable)
}

func TestGotcha10NameThatIsUsedAgain(t *testing.T) {
	f := newFixture(t)
	first, second := f.volume("ext4", 64*mib), f.volume("ext4", 64*mib)
	rename := func(id holdfast.VolumeID, to string) {
		f.vols.setSpec(id, func(r *holdfast.Record) { r.Name = to })
	}
	rename(first, "db")
	f.ok(f.stage("db", f.staging("1"), mountCap()), f.publish("db", f.staging("1"), f.target("1"), mountCap(), false))
	rename(first, "db-old")
	rename(second, "db")
	f.ok(f.stage("db", f.staging("2"), mountCap()), f.publish("db", f.staging("2"), f.target("2"), mountCap(), false))
	for _, n := range []string{"2", "1"} {
		f.ok(f.unpublish("db", f.target(n)), f.unstage("db", f.staging(n)))
	}
	f.wantMounts(f.dir, 0)
	f.wantAttached(first, false)
	f.wantAttached(second, false)
}

func TestGotcha10SymbolicLinksInPaths(t *testing.T) {
	f := newFixture(t)
	id := f.volume("ext4", 64*mib)
	link := filepath.Join(f.dir, "link")
	f.ok(os.Symlink(f.dir, link))
	st, tg := link+"/staging/s", link+"/targets/t"
	f.staging("s")
	for range 2 {
		f.ok(f.stage(id, st, mountCap()), f.publish(id, st+"/", tg+"/", mountCap(), false))
	}
	f.wantMounts(f.dir, 2)
	f.ok(f.unpublish(id, tg), f.unstage(id, st))
	f.wantMounts(f.dir, 0)
	// A target that is itself a link would mount somewhere else.
	f.ok(os.Symlink(f.staging("elsewhere"), f.target("evil")))
	wantCode(t, f.publish(id, f.staging("s"), f.target("evil"), mountCap(), false), codes.InvalidArgument)
	f.wantMounts(f.dir, 0)
}

func TestGotcha12SecretsAreNeitherNeededNorKept(t *testing.T) {
	f := newFixture(t)
	id, st := f.volume("ext4", 64*mib), f.staging("s")
	_, err := f.NodeStageVolume(t.Context(), &csi.NodeStageVolumeRequest{
		VolumeId: string(id), StagingTargetPath: st, VolumeCapability: mountCap(), Secrets: map[string]string{"password": "hunter2"},
	})
	f.ok(err)
	b, err := os.ReadFile(filepath.Join(f.cfg.StateDir, string(id)+".json"))
	if err != nil || strings.Contains(string(b), "hunter2") {
		t.Errorf("a secret was stored: %s (%v)", b, err)
	}
}

func TestGotcha18UnknownContextIsIgnored(t *testing.T) {
	f := newFixture(t)
	id, st, tg := f.volume("ext4", 64*mib), f.staging("s"), f.target("t")
	context := map[string]string{"csi.storage.k8s.io/pod.name": "p", "csi.storage.k8s.io/ephemeral": "false", "other": "x"}
	_, err := f.NodeStageVolume(t.Context(), &csi.NodeStageVolumeRequest{
		VolumeId: string(id), StagingTargetPath: st, VolumeCapability: mountCap(), VolumeContext: context,
	})
	f.ok(err)
	_, err = f.NodePublishVolume(t.Context(), &csi.NodePublishVolumeRequest{
		VolumeId: string(id), StagingTargetPath: st, TargetPath: tg, VolumeCapability: mountCap(), VolumeContext: context,
	})
	f.ok(err)
	f.wantMounts(tg, 1)
}

func TestGotcha20ManyTargetsOfOneNode(t *testing.T) {
	f := newFixture(t)
	id, st := f.volume("ext4", 64*mib), f.staging("s")
	f.ok(f.stage(id, st, mountCap()))
	for i, m := range []csi.VolumeCapability_AccessMode_Mode{
		csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER, csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER,
		csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER,
	} {
		f.ok(f.publish(id, st, f.target(string(rune('a'+i))), mountCap(mode(m)), false))
	}
	sole := mountCap(mode(csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER))
	wantCode(t, f.publish(id, st, f.target("d"), sole, false), codes.FailedPrecondition)
	f.ok(f.unpublish(id, f.target("a")), f.unpublish(id, f.target("b")), f.unpublish(id, f.target("c")))
	f.ok(f.publish(id, st, f.target("d"), sole, false), f.publish(id, st, f.target("d"), sole, false))
	wantCode(t, f.publish(id, st, f.target("e"), sole, false), codes.FailedPrecondition)
	wantCode(t, f.publish(id, st, f.target("e"), mountCap(), false), codes.FailedPrecondition)
}

func TestGotcha21SeveralStagingPaths(t *testing.T) {
	f := newFixture(t)
	id := f.volume("xfs", 320*mib)
	reader := mountCap(mode(csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY))
	rw, ro := f.staging("vol/rw-file-system-single-node-writer"), f.staging("vol/ro-file-system-single-node-reader-only")
	f.ok(f.stage(id, rw, mountCap()), f.publish(id, rw, f.target("a"), mountCap(), false))
	f.ok(f.stage(id, ro, reader), f.publish(id, ro, f.target("b"), reader, true))
	f.write(f.target("a")+"/x", "one filesystem")
	f.wantFile(f.target("b")+"/x", "one filesystem")
	if err := os.WriteFile(f.target("b")+"/y", nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("writing through the reader's target: %v", err)
	}
	f.ok(f.unpublish(id, f.target("a")), f.unstage(id, rw))
	f.wantAttached(id, true)
	f.wantFile(f.target("b")+"/x", "one filesystem")
	f.ok(f.unpublish(id, f.target("b")), f.unstage(id, ro))
	f.wantAttached(id, false)

	// The other way round: the reader comes first, the writer must not be stuck.
	f.ok(f.stage(id, ro, reader), f.publish(id, ro, f.target("b"), reader, true))
	f.ok(f.stage(id, rw, mountCap()), f.publish(id, rw, f.target("a"), mountCap(), false))
	f.write(f.target("a")+"/z", "z")
	f.wantFile(f.target("b")+"/z", "z")
	if err := os.WriteFile(f.target("b")+"/y", nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("writing through the reader's target: %v", err)
	}
}
