package nodecsi

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/mountpoint"
)

// refuses makes sure that nobody can write at or below a bare path, and that
// nothing is there.
func (f *fixture) refuses(path string) {
	f.Helper()
	f.wantMounts(path, 0)
	fi, err := os.Lstat(path)
	f.ok(err)
	file := path
	if fi.IsDir() {
		file = path + "/file"
	}
	if err := os.WriteFile(file, []byte("acknowledged and lost"), 0o600); !errors.Is(err, unix.EPERM) {
		f.Errorf("a write by path into the bare %s: %v, want EPERM", path, err)
	}
	if names, _ := os.ReadDir(path); len(names) > 0 || fi.Mode().IsRegular() && fi.Size() > 0 {
		f.Errorf("the bare %s holds something", path)
	}
}

// takesWrites makes sure that a folder of the orchestrator's is as it was.
func (f *fixture) takesWrites(dir string) {
	f.Helper()
	f.write(dir+"/file", "")
	f.ok(os.Remove(dir+"/file"), os.Remove(dir), os.Mkdir(dir, 0o755))
}

// loseMounts is what happens when a device dies: its mounts are taken away lazily.
func (f *fixture) loseMounts(paths ...string) {
	f.Helper()
	for _, p := range paths {
		f.ok(unix.Unmount(p, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW))
	}
}

func (f *fixture) gone(path string) {
	f.Helper()
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		f.Errorf("%s is left: %v", path, err)
	}
}

func TestABareMountPointRefusesWrites(t *testing.T) {
	f := newFixture(t)
	id, st, tg, t2 := f.volume("xfs", 320*mib), f.staging("s"), f.target("t"), f.target("t2")
	f.ok(os.Mkdir(t2, 0o755)) // some orchestrators make it
	all := func() {
		f.ok(f.stage(id, st, mountCap()), f.publish(id, st, tg, mountCap(), false), f.publish(id, st, t2, mountCap(), false))
	}
	all()
	f.write(tg+"/x", "data")
	held, err := os.Create(tg + "/held")
	f.ok(err)
	defer func() { _ = held.Close() }()
	f.shutDown(st)
	f.vols.set(func() { f.vols.dead[id] = true })
	f.loseMounts(t2, tg, st)
	for _, p := range []string{st, tg, t2} {
		f.refuses(p)
	}
	f.restart()
	all()
	for _, p := range []string{st, tg, t2} {
		f.wantMounts(p, 1)
		f.wantFile(p+"/x", "data")
	}
	f.write(tg+"/y", "the volume itself takes writes")
	f.loseMounts(tg)
	f.refuses(tg)
	all() // a single one comes back too, while the device lives
	f.wantFile(tg+"/y", "the volume itself takes writes")

	f.ok(f.unpublish(id, tg), f.unpublish(id, t2), f.unpublish(id, t2))
	f.gone(tg)
	f.gone(t2)
	f.loseMounts(st)
	f.refuses(st)
	f.ok(f.unstage(id, st), f.unstage(id, st))
	f.takesWrites(st)
}

// The mounts are found dead and made again within one call, at all paths.
func TestAMountMadeAgainIsGuarded(t *testing.T) {
	f := newFixture(t)
	id, st, tg, t2 := f.volume("xfs", 320*mib), f.staging("s"), f.target("t"), f.target("t2")
	f.ok(f.stage(id, st, mountCap()), f.publish(id, st, tg, mountCap(), false), f.publish(id, st, t2, mountCap(), false))
	f.shutDown(st)
	f.ok(f.publish(id, st, tg, mountCap(), false))
	f.loseMounts(tg, t2, st)
	for _, p := range []string{st, tg, t2} {
		f.refuses(p)
	}
	f.ok(f.unpublish(id, tg), f.unpublish(id, t2), f.unstage(id, st))
	f.gone(tg)
	f.gone(t2)
	f.takesWrites(st)
}

func TestABareBlockTargetRefusesWrites(t *testing.T) {
	f := newFixture(t)
	id, st, tg := f.volume("", 16*mib), f.staging("s"), f.target("t")
	f.ok(f.stage(id, st, blockCap()), f.publish(id, st, tg, blockCap(), false))
	f.put(tg, 0, "data")
	f.loseMounts(tg)
	f.refuses(tg)
	f.ok(f.publish(id, st, tg, blockCap(), false))
	f.wantMounts(tg, 1)
	if b, err := os.ReadFile(f.vols.file(id)); err != nil || string(b[:4]) != "data" {
		t.Errorf("the volume holds %q (%v)", b[:4], err)
	}
	f.put(tg, 0, "more")
	f.loseMounts(tg)
	f.vols.set(func() { f.vols.dead[id] = true })
	f.ok(f.unpublish(id, tg), f.unstage(id, st))
	f.gone(tg)
	f.takesWrites(st)
}

func TestBarePathsOfVolumesThatNobodyKnows(t *testing.T) {
	f := newFixture(t)
	id, st, tg := f.volume("ext4", 64*mib), f.staging("s"), f.target("t")
	left := func() {
		f.ok(f.stage(id, st, mountCap()), f.publish(id, st, tg, mountCap(), false))
		f.loseMounts(tg, st)
		f.ok(f.states.remove(id))
		f.restart()
	}
	left()
	f.ok(f.unpublish(id, tg), f.unstage(id, st)) // the record is there, the state is not
	f.gone(tg)
	f.takesWrites(st)
	left()
	f.ok(f.unpublish("no-such-volume", tg), f.unstage("no-such-volume", st))
	f.gone(tg)
	f.takesWrites(st)

	// After a reboot the attribute is still there, and what was mounted is not.
	left()
	v := &volumeState{Version: stateVersion, Volume: id, BootID: "an earlier boot", Entries: []entry{{Path: tg, Role: published}}}
	f.ok(f.states.save(v), f.unpublish(id, tg), f.unstage(id, st))
	f.gone(tg)
	f.takesWrites(st)
}

// What a call made that failed does not refuse to be removed.
func TestAFailedCallLeavesNothingGuarded(t *testing.T) {
	f := newFixture(t)
	id, st, tg, t2 := f.volume("ext4", 64*mib), f.staging("s"), f.target("t"), f.target("t2")
	f.ok(os.Mkdir(t2, 0o755))
	bad := mountCap(flags("no-such-option"))
	for _, err := range []error{f.stage(id, st, bad), f.publish(id, "", tg, bad, false), f.publish(id, "", t2, bad, false)} {
		if err == nil {
			t.Fatal("a mount with an unknown option succeeded")
		}
	}
	f.gone(tg)
	f.takesWrites(st)
	f.takesWrites(t2)

	// A path in use stays guarded when it cannot be mounted again.
	f.ok(f.stage(id, st, mountCap()), f.publish(id, st, tg, mountCap(), false))
	f.loseMounts(tg, st)
	f.vols.set(func() { f.vols.dead[id], f.vols.held[id] = true, "node-2" })
	if err := f.publish(id, st, tg, mountCap(), false); err == nil {
		t.Fatal("a volume of another node was published")
	}
	f.refuses(st)
	f.refuses(tg)
	f.ok(f.unpublish(id, tg), f.unstage(id, st))
	f.gone(tg)
	f.takesWrites(st)
}

func TestDirectoriesWithFilesAreNotGuarded(t *testing.T) {
	f := newFixture(t)
	id, st, tg := f.volume("ext4", 64*mib), f.staging("s"), f.target("t")
	f.write(st+"/notes", "the orchestrator's")
	f.ok(f.stage(id, st, mountCap()))
	f.loseMounts(st)
	f.write(st+"/more", "")
	f.ok(f.unstage(id, st))
	f.wantFile(st+"/notes", "the orchestrator's")

	// Somebody's own directory, which he has made immutable, is neither removed nor changed.
	f.ok(os.Mkdir(tg, 0o755))
	f.write(tg+"/precious", "data")
	f.ok(exec.Command("chattr", "+i", tg).Run())
	defer func() { f.ok(exec.Command("chattr", "-i", tg).Run()) }()
	if err := f.unpublish(id, tg); err == nil {
		t.Error("unpublish of a directory with files answered OK")
	}
	if err := os.WriteFile(tg+"/x", nil, 0o600); !errors.Is(err, unix.EPERM) {
		t.Errorf("the attribute of somebody's directory was changed: %v", err)
	}
}

// Where the path's filesystem has no such attribute all works without.
func TestMountPointsThatCannotBeGuarded(t *testing.T) {
	for _, fsType := range []string{"ramfs", "tmpfs"} {
		f := newFixture(t)
		for _, d := range []string{"/staging", "/targets"} {
			f.ok(unix.Mount("hf-test", f.dir+d, fsType, 0, ""))
		}
		for _, c := range []struct {
			id    holdfast.VolumeID
			block bool
		}{{f.volume("ext4", 64*mib), false}, {f.volume("", 16*mib), true}} {
			st, tg, capability := f.staging("s"), f.target("t"), mountCap()
			if c.block {
				capability = blockCap()
			}
			for range 2 {
				f.ok(f.stage(c.id, st, capability), f.publish(c.id, st, tg, capability, false))
				f.loseMounts(tg)
				f.ok(f.publish(c.id, st, tg, capability, false), f.unpublish(c.id, tg), f.unstage(c.id, st))
				f.gone(tg)
				f.takesWrites(st)
			}
		}
	}
}

// The root of the volume is never made immutable, also when it holds nothing.
func TestTheVolumesOwnRootIsNotGuarded(t *testing.T) {
	f := newFixture(t)
	id, st, tg := f.volume("xfs", 320*mib), f.staging("s"), f.target("t")
	for range 2 { // mounted anew, bound again, republished
		f.ok(f.stage(id, st, mountCap()), f.stage(id, st, mountCap()))
		f.ok(f.publish(id, st, tg, mountCap(), false), f.publish(id, st, tg, mountCap(), false))
		f.write(tg+"/x", "")
		f.ok(os.Remove(tg + "/x"))
		if err := mountpoint.Release(tg); !errors.Is(err, holdfast.InUse) {
			t.Errorf("the root of the volume was touched: %v", err)
		}
		f.ok(f.unpublish(id, tg), f.unstage(id, st))
	}
}

// Where a mount point cannot be guarded an operator is told, once.
func TestAnUnguardedMountPointIsReportedOnce(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("hf-test", dir, "ramfs", 0, ""); err != nil { // which has no attributes
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	var log bytes.Buffer
	s := &Service{cfg: Config{Log: slog.New(slog.NewTextHandler(&log, nil))}}
	for _, name := range []string{"a", "b"} {
		if err := os.Mkdir(dir+"/"+name, 0o755); err != nil {
			t.Fatal(err)
		}
		s.guard(dir + "/" + name)
	}
	if n := strings.Count(log.String(), "level=WARN"); n != 1 || !strings.Contains(log.String(), "CAP_LINUX_IMMUTABLE") {
		t.Errorf("%d warnings: %s", n, log.String())
	}
}
