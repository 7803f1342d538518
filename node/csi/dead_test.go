package nodecsi

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/mountpoint"
)

// shutDown makes the XFS at path answer EIO to everything, as it does when its
// device dies.
func (f *fixture) shutDown(path string) {
	f.Helper()
	f.ok(exec.Command("sync", "-f", path).Run())
	if out, err := exec.Command("xfs_io", "-x", "-c", "shutdown -f", path).CombinedOutput(); err != nil {
		f.Fatalf("xfs_io: %v: %s", err, out)
	}
	if !isDead(path) {
		f.Fatal("the filesystem still works")
	}
}

func TestDeadFilesystemIsMountedAgain(t *testing.T) {
	f := newFixture(t)
	id, st, tg, t2, t3 := f.volume("xfs", 320*mib), f.staging("s"), f.target("t"), f.target("t2"), f.target("t3")
	f.ok(f.stage(id, st, mountCap()), f.publish(id, st, tg, mountCap(), false), f.publish(id, st, t2, mountCap(), true))
	f.ok(f.publish(id, st, t3, mountCap(), false), f.publish(id, st, t3, mountCap(), true)) // stays writable
	f.write(tg+"/x", "data")
	f.shutDown(st)
	if r, err := f.health(id); err != nil || !strings.Contains(r, "MountDead") {
		t.Errorf("health: %q, %v", r, err)
	}
	// Publish alone must be enough: Mesos and kubelet may go on from there.
	f.ok(f.publish(id, st, tg, mountCap(), false))
	for _, p := range []string{st, tg, t2, t3} {
		f.wantMounts(p, 1)
		f.wantFile(p+"/x", "data")
	}
	if err := os.WriteFile(t2+"/y", nil, 0o600); err == nil {
		t.Error("a read-only target became writable")
	}
	f.write(t3+"/y", "still writable")
	if r, err := f.health(id); err != nil || r != "" {
		t.Errorf("health: %q, %v", r, err)
	}
	f.ok(f.unpublish(id, tg), f.unpublish(id, t2), f.unpublish(id, t3), f.unstage(id, st))
	f.wantMounts(f.dir, 0)
	f.wantAttached(id, false)
}

func TestDeadFilesystemThatIsHeldOpen(t *testing.T) {
	f := newFixture(t)
	id, st, tg := f.volume("xfs", 320*mib), f.staging("s"), f.target("t")
	f.ok(f.stage(id, st, mountCap()), f.publish(id, st, tg, mountCap(), false))
	held, err := os.Create(tg + "/held")
	f.ok(err)
	defer func() { _ = held.Close() }()
	f.shutDown(st)
	// The same device: the kernel gives the dead filesystem again. Not OK then.
	wantCode(t, f.stage(id, st, mountCap()), codes.Unavailable)
	f.ok(held.Close())
	f.ok(f.stage(id, st, mountCap()), f.publish(id, st, tg, mountCap(), false))
	f.write(tg+"/works", "again")
}

func TestDeadDeviceIsReplacedWhileAContainerHoldsTheOldOne(t *testing.T) {
	f := newFixture(t)
	id, st, tg := f.volume("xfs", 320*mib), f.staging("s"), f.target("t")
	f.ok(f.stage(id, st, mountCap()), f.publish(id, st, tg, mountCap(), false))
	f.write(tg+"/x", "data")
	held, err := os.Create(tg + "/held")
	f.ok(err)
	defer func() { _ = held.Close() }()
	f.shutDown(st)
	f.vols.set(func() { f.vols.dead[id] = true })
	old := f.attachedDev(id)
	f.ok(f.stage(id, st, mountCap()), f.publish(id, st, tg, mountCap(), false))
	if now := f.attachedDev(id); now == old {
		t.Fatal("the test did not replace the device")
	}
	f.wantFile(tg+"/x", "data")
	f.wantMounts(tg, 1)
	f.wantMounts(st, 1)
	f.ok(f.unpublish(id, tg), f.unstage(id, st))
	f.wantMounts(f.dir, 0)
}

func TestDeadDeviceOfABlockVolume(t *testing.T) {
	f := newFixture(t)
	id, st, tg := f.volume("", 16*mib), f.staging("s"), f.target("t")
	f.ok(f.stage(id, st, blockCap()), f.publish(id, st, tg, blockCap(), false))
	f.vols.set(func() { f.vols.dead[id] = true })
	f.ok(f.publish(id, st, tg, blockCap(), false))
	f.wantMounts(tg, 1)
	if rdev, err := rdevOf(tg); err != nil || devID(rdev) != f.attachedDev(id) {
		t.Errorf("the target shows %s, the device is %s (%v)", devID(rdev), f.attachedDev(id), err)
	}
	// Unpublish of a target whose device has died meanwhile, held open by somebody.
	held, err := os.Open(tg)
	f.ok(err)
	defer func() { _ = held.Close() }()
	f.vols.set(func() { f.vols.dead[id] = true })
	if _, err := f.vols.Attach(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	f.ok(f.unpublish(id, tg), f.unstage(id, st))
	f.wantMounts(f.dir, 0)
}

func TestDeviceThatIsGoneIsUnmountedThoughHeldOpen(t *testing.T) {
	f := newFixture(t)
	// The volume's device lies on a filesystem that shuts down: then it gives errors.
	pool, st, tg := f.volume("xfs", 640*mib), f.staging("s"), f.target("t")
	f.ok(f.stage(pool, f.staging("pool"), mountCap()))
	for _, fs := range []string{"ext4", "xfs"} {
		id := f.volume(fs, 320*mib)
		backing := f.staging("pool") + "/" + fs
		f.ok(exec.Command("mv", f.vols.file(id), backing).Run(), os.Symlink(backing, f.vols.file(id)))
		f.ok(f.stage(id, st, mountCap()), f.publish(id, st, tg, mountCap(), false))
		held, err := os.Create(tg + "/held")
		f.ok(err)
		defer func() { _ = held.Close() }()
		if fs == "ext4" {
			// Held, but alive: it must not be unmounted behind its user's back.
			wantCode(t, f.unpublish(id, tg), codes.FailedPrecondition)
			f.ok(held.Close(), f.unpublish(id, tg), f.unstage(id, st))
			continue
		}
		f.shutDown(f.staging("pool"))
		loop := f.vols.devs[id]
		f.vols.set(func() { delete(f.vols.devs, id) }) // the agent gave it up
		if _, err := f.stats(id, tg); err == nil {
			t.Error("statistics of a dead mount")
		}
		f.ok(f.unpublish(id, tg), f.unstage(id, st))
		f.wantMounts(tg, 0)
		f.wantMounts(st, 0)
		f.ok(held.Close(), exec.Command("losetup", "-d", loop).Run())
	}
}

// What a daemon that is killed may leave behind at each point must be completed
// or undone by the calls that an orchestrator repeats.
func TestKilledAnywhere(t *testing.T) {
	type point struct {
		name  string
		leave func(f *fixture, id holdfast.VolumeID, st, tg string)
	}
	save := func(f *fixture, id holdfast.VolumeID, es ...entry) {
		v := &volumeState{Version: stateVersion, Volume: id, BootID: f.states.boot, Entries: es}
		f.ok(f.states.save(v))
	}
	for _, p := range []point{
		{"attached, nothing written", func(f *fixture, id holdfast.VolumeID, _, _ string) {
			_, err := f.vols.Attach(f.Context(), id)
			f.ok(err)
		}},
		{"staged by the state only", func(f *fixture, id holdfast.VolumeID, st, _ string) {
			_, err := f.vols.Attach(f.Context(), id)
			f.ok(err)
			save(f, id, entry{Path: st, Role: staged, Device: f.attachedDev(id)})
		}},
		{"staged, target made", func(f *fixture, id holdfast.VolumeID, st, tg string) {
			f.ok(f.stage(id, st, mountCap()), os.Mkdir(tg, 0o750))
		}},
		{"published by the state only", func(f *fixture, id holdfast.VolumeID, st, tg string) {
			f.ok(f.stage(id, st, mountCap()), f.publish(id, st, tg, mountCap(), false), unix.Unmount(tg, 0))
		}},
		{"unmounted, target removed", func(f *fixture, id holdfast.VolumeID, st, tg string) {
			f.ok(f.stage(id, st, mountCap()), f.publish(id, st, tg, mountCap(), false), unix.Unmount(tg, 0), mountpoint.Release(tg), os.Remove(tg))
		}},
		{"unmounted, target takes writes again", func(f *fixture, id holdfast.VolumeID, st, tg string) {
			f.ok(f.stage(id, st, mountCap()), f.publish(id, st, tg, mountCap(), false), unix.Unmount(tg, 0), mountpoint.Release(tg))
		}},
		{"unstaged but for the state", func(f *fixture, id holdfast.VolumeID, st, _ string) {
			f.ok(f.stage(id, st, mountCap()), unix.Unmount(st, 0))
		}},
		{"state lost", func(f *fixture, id holdfast.VolumeID, st, tg string) {
			f.ok(f.stage(id, st, mountCap()), f.publish(id, st, tg, mountCap(), false), f.states.remove(id))
		}},
		{"temporary state file", func(f *fixture, id holdfast.VolumeID, _, _ string) {
			f.write(filepath.Join(f.cfg.StateDir, string(id)+".json.tmp"), "{")
		}},
	} {
		for _, repeat := range []bool{false, true} {
			name := p.name + map[bool]string{true: ", repeated", false: ", undone"}[repeat]
			t.Run(name, func(t *testing.T) {
				f := newFixture(t)
				id, st, tg := f.volume("ext4", 64*mib), f.staging("s"), f.target("t")
				p.leave(f, id, st, tg)
				f.restart()
				if repeat {
					f.ok(f.stage(id, st, mountCap()), f.publish(id, st, tg, mountCap(), false))
					f.wantMounts(st, 1)
					f.wantMounts(tg, 1)
				}
				f.ok(f.unpublish(id, tg), f.unstage(id, st))
				f.wantMounts(f.dir, 0)
				f.wantAttached(id, false)
				if _, err := os.Lstat(tg); !os.IsNotExist(err) {
					t.Errorf("the target is left: %v", err)
				}
			})
		}
	}
}

func TestDetachesNeverWhileMounted(t *testing.T) {
	f := newFixture(t)
	id, st, tg := f.volume("ext4", 64*mib), f.staging("s"), f.target("t")
	f.ok(f.stage(id, st, mountCap()), f.publish(id, st, tg, mountCap(), false))
	f.ok(f.unstage(id, st)) // in the wrong order: the target is still there
	f.wantAttached(id, true)
	f.write(tg+"/x", "works")
	f.ok(f.unpublish(id, tg))
	f.wantAttached(id, false)

	// Somebody else's mount of the device keeps it attached; the next call tries again.
	f.ok(f.stage(id, st, mountCap()))
	other := f.staging("other")
	f.ok(unix.Mount(st, other, "", unix.MS_BIND, ""), f.unstage(id, st))
	f.wantAttached(id, true)
	f.ok(unix.Unmount(other, 0), f.unstage(id, st))
	f.wantAttached(id, false)
}

func TestCorruptStateIsNamed(t *testing.T) {
	f := newFixture(t)
	id, st := f.volume("ext4", 64*mib), f.staging("s")
	file := filepath.Join(f.cfg.StateDir, string(id)+".json")
	f.write(file, "{not json")
	err := f.stage(id, st, mountCap())
	wantCode(t, err, codes.DataLoss)
	if !strings.Contains(err.Error(), file) {
		t.Errorf("the error does not name the file: %v", err)
	}
	f.wantAttached(id, false)
}
