package nodecsi

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"github.com/holdfast-storage/holdfast"
)

// health is the reasons that the health call gives.
func (f *fixture) health(id holdfast.VolumeID) (string, error) {
	r, err := f.NodeGetVolumeHealth(f.Context(), &csi.NodeGetVolumeHealthRequest{VolumeId: string(id)})
	var reasons []string
	for _, e := range r.GetVolumeHealth().GetHealthStatuses() {
		reasons = append(reasons, e.GetReason())
	}
	return strings.Join(reasons, ","), err
}

func (f *fixture) expand(id holdfast.VolumeID, path string, required int64) (int64, error) {
	r, err := f.NodeExpandVolume(f.Context(), &csi.NodeExpandVolumeRequest{
		VolumeId: string(id), VolumePath: path, CapacityRange: &csi.CapacityRange{RequiredBytes: required},
	})
	return r.GetCapacityBytes(), err
}

func (f *fixture) stats(id holdfast.VolumeID, path string) ([]*csi.VolumeUsage, error) {
	r, err := f.NodeGetVolumeStats(f.Context(), &csi.NodeGetVolumeStatsRequest{VolumeId: string(id), VolumePath: path})
	return r.GetUsage(), err
}

func TestInfoNamesEveryFailureDomain(t *testing.T) {
	f := newFixture(t)
	r, err := f.NodeGetInfo(t.Context(), nil)
	f.ok(err)
	if r.GetNodeId() != "node-1" || r.GetMaxVolumesPerNode() != 0 || !maps.Equal(r.GetAccessibleTopology().GetSegments(), map[string]string{holdfast.TopologyHost: "node-1"}) {
		t.Errorf("info: %v", r)
	}
	f.vols.node.Domain = holdfast.Domain{Host: "h", Rack: "r", Zone: "z", Region: "g"}
	r, err = f.NodeGetInfo(t.Context(), nil)
	f.ok(err)
	want := map[string]string{holdfast.TopologyHost: "h", holdfast.TopologyRack: "r", holdfast.TopologyZone: "z", holdfast.TopologyRegion: "g"}
	if !maps.Equal(r.GetAccessibleTopology().GetSegments(), want) {
		t.Errorf("topology: %v", r.GetAccessibleTopology())
	}
}

func TestCapabilitiesFollowTheConfiguration(t *testing.T) {
	for _, noStaging := range []bool{false, true} {
		f := newFixture(t, func(c *Config) { c.NoStaging = noStaging })
		r, err := f.NodeGetCapabilities(t.Context(), nil)
		f.ok(err)
		has := map[csi.NodeServiceCapability_RPC_Type]bool{}
		for _, c := range r.GetCapabilities() {
			has[c.GetRpc().GetType()] = true
		}
		if has[csi.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME] == noStaging {
			t.Errorf("NoStaging %v: %v", noStaging, has)
		}
		for _, c := range []csi.NodeServiceCapability_RPC_Type{
			csi.NodeServiceCapability_RPC_GET_VOLUME_STATS, csi.NodeServiceCapability_RPC_EXPAND_VOLUME,
			csi.NodeServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER, csi.NodeServiceCapability_RPC_VOLUME_MOUNT_GROUP,
			csi.NodeServiceCapability_RPC_GET_VOLUME_HEALTH, csi.NodeServiceCapability_RPC_GET_STORAGE_HEALTH,
		} {
			if !has[c] {
				t.Errorf("%v is not announced", c)
			}
		}
	}
}

func TestWithoutStaging(t *testing.T) {
	f := newFixture(t, func(c *Config) { c.NoStaging = true })
	id, a, b := f.volume("xfs", 320*mib), f.target("a"), f.target("b")
	f.ok(f.publish(id, "", a, mountCap(), true), f.publish(id, "", b, mountCap(), false), f.publish(id, "", b, mountCap(), false))
	f.wantMounts(f.dir, 2)
	f.write(b+"/x", "data")
	f.wantFile(a+"/x", "data")
	if err := os.WriteFile(a+"/y", nil, 0o600); err == nil {
		t.Error("a read-only target is writable")
	}
	f.ok(f.unpublish(id, a))
	f.wantAttached(id, true)
	f.ok(f.unpublish(id, b), f.unpublish(id, b))
	f.wantAttached(id, false)
	f.wantMounts(f.dir, 0)
}

func TestBadRequests(t *testing.T) {
	f := newFixture(t)
	id, st, tg := f.volume("ext4", 64*mib), f.staging("s"), f.target("t")
	f.write(filepath.Join(f.dir, "file"), "")
	modes := csi.VolumeCapability_AccessMode_Mode_value
	noType, noMode := mountCap(), mountCap()
	noType.AccessType, noMode.AccessMode = nil, nil
	stage := func(id, path string, c *csi.VolumeCapability) error { return f.stage(holdfast.VolumeID(id), path, c) }
	publish := func(id, path string, c *csi.VolumeCapability) error {
		return f.publish(holdfast.VolumeID(id), st, path, c, false)
	}
	for name, call := range map[string]func(id, path string, c *csi.VolumeCapability) error{"stage": stage, "publish": publish} {
		path := map[string]string{"stage": st, "publish": tg}[name]
		for what, err := range map[string]error{
			"no id":               call("", path, mountCap()),
			"no path":             call(string(id), "", mountCap()),
			"relative path":       call(string(id), "some/path", mountCap()),
			"root":                call(string(id), "/", mountCap()),
			"dots":                call(string(id), path+"/../x", mountCap()),
			"path that is absent": call(string(id), filepath.Join(f.dir, "absent", "x"), mountCap()),
			"a file":              call(string(id), filepath.Join(f.dir, "file"), mountCap()),
			"no capability":       call(string(id), path, nil),
			"no access type":      call(string(id), path, noType),
			"no access mode":      call(string(id), path, noMode),
			"unknown mode":        call(string(id), path, mountCap(mode(csi.VolumeCapability_AccessMode_UNKNOWN))),
			"future mode":         call(string(id), path, mountCap(mode(99))),
			"many writers":        call(string(id), path, mountCap(mode(csi.VolumeCapability_AccessMode_Mode(modes["MULTI_NODE_MULTI_WRITER"])))),
			"writer and readers":  call(string(id), path, blockCap(mode(csi.VolumeCapability_AccessMode_Mode(modes["MULTI_NODE_SINGLE_WRITER"])))),
			"filesystem":          call(string(id), path, mountCap(fsType("btrfs"))),
			"group":               call(string(id), path, mountCap(func(c *csi.VolumeCapability) { c.GetMount().VolumeMountGroup = "staff" })),
			"flag bind":           call(string(id), path, mountCap(flags("bind"))),
			"flag remount":        call(string(id), path, mountCap(flags("remount"))),
			"flag offset":         call(string(id), path, mountCap(flags("offset=4096"))),
			"flag x-":             call(string(id), path, mountCap(flags("X-mount.mkdir"))),
			"two flags in one":    call(string(id), path, mountCap(flags("noatime,bind"))),
			"contradiction":       call(string(id), path, mountCap(flags("exec", "noexec"))),
			"ro and rw":           call(string(id), path, mountCap(flags("ro", "rw"))),
			"rw for readers":      call(string(id), path, mountCap(flags("rw"), mode(csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY))),
			"unknown flag":        call(string(id), path, mountCap(flags("no-such-option"))),
		} {
			t.Run(name+" "+what, func(t *testing.T) { wantCode(t, err, codes.InvalidArgument) })
		}
		wantCode(t, call("no-such-volume", path, mountCap()), codes.NotFound)
	}
	for _, err := range []error{
		f.unpublish("", tg), f.unpublish(id, ""), f.unpublish(id, "x"), f.unpublish(id, "/"), f.unstage("", st), f.unstage(id, ""), f.unstage(id, "/a/../b"),
	} {
		wantCode(t, err, codes.InvalidArgument)
	}
	f.wantMounts(f.dir, 0)
	f.wantAttached(id, false)
	if left, _ := os.ReadDir(f.cfg.StateDir); len(left) > 0 {
		t.Errorf("state is left: %v", left)
	}
	if _, err := os.Lstat(tg); !os.IsNotExist(err) {
		t.Errorf("the target is left: %v", err)
	}
}

func TestNeverFormatsSomebodysData(t *testing.T) {
	for name, put := range map[string]func(f *fixture, file string){
		"partition table": func(f *fixture, file string) { f.put(file, 510, "\x55\xaa") },
		"swap":            func(f *fixture, file string) { f.ok(exec.Command("mkswap", file).Run()) },
		"raw data":        func(f *fixture, file string) { f.put(file, 70_000, "a database without a signature") },
		"data at the end": func(f *fixture, file string) { f.put(file, 64*mib-100, "x") },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			id, st := f.volume("ext4", 64*mib), f.staging("s")
			put(f, f.vols.file(id))
			before, err := os.ReadFile(f.vols.file(id))
			f.ok(err)
			wantCode(t, f.stage(id, st, mountCap()), codes.FailedPrecondition)
			after, err := os.ReadFile(f.vols.file(id))
			f.ok(err)
			if string(before) != string(after) {
				t.Error("the data was changed")
			}
			f.wantAttached(id, false)
			f.ok(f.stage(id, st, blockCap())) // it is still a block volume
		})
	}
}

func (f *fixture) put(file string, off int64, data string) {
	f.Helper()
	h, err := os.OpenFile(file, os.O_WRONLY, 0)
	f.ok(err)
	_, err = h.WriteAt([]byte(data), off)
	f.ok(err, h.Close())
}

func TestFormatsWhatIsEmptyOrHalfFormatted(t *testing.T) {
	f := newFixture(t)
	wantCode(t, f.stage(f.volume("xfs", 64*mib), f.staging("small"), mountCap()), codes.OutOfRange)
	// The node lost its power in mkfs.xfs: the filesystem says so itself.
	id := f.volume("xfs", 320*mib)
	f.ok(exec.Command("mkfs.xfs", "-q", f.vols.file(id)).Run())
	f.put(f.vols.file(id), 126, "\x01")
	f.ok(f.stage(id, f.staging("a"), mountCap()))
	// The daemon was killed in mkfs.ext4: the state says so.
	id = f.volume("ext4", 64*mib)
	f.put(f.vols.file(id), 5000, "half an ext4")
	f.ok(f.states.save(&volumeState{Version: stateVersion, Volume: id, BootID: f.states.boot, Formatting: true}))
	f.ok(f.stage(id, f.staging("b"), mountCap()))
	// The volume's own type is the default, what is on it decides, a contradiction is refused.
	id = f.volume("ext4", 64*mib)
	f.ok(f.stage(id, f.staging("c"), mountCap(fsType("ext4"))), f.unstage(id, f.staging("c")))
	wantCode(t, f.stage(id, f.staging("c"), mountCap(fsType("xfs"))), codes.InvalidArgument)
	// A reader cannot format.
	id = f.volume("ext4", 64*mib)
	wantCode(t, f.stage(id, f.staging("d"), mountCap(mode(csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY))), codes.FailedPrecondition)
}

func TestUnreadableDeviceIsNotTakenForAnEmptyOne(t *testing.T) {
	f := newFixture(t)
	// A device whose backing file lies on a filesystem that has shut down.
	pool, st := f.volume("xfs", 320*mib), f.staging("pool")
	f.ok(f.stage(pool, st, mountCap()))
	id := f.volume("ext4", 64*mib)
	f.ok(exec.Command("mkfs.ext4", "-q", f.vols.file(id)).Run(),
		exec.Command("cp", "--sparse=always", f.vols.file(id), st+"/backing").Run(),
		os.Remove(f.vols.file(id)), os.Symlink(st+"/backing", f.vols.file(id)))
	_, err := f.vols.Attach(t.Context(), id)
	f.ok(err)
	f.shutDown(st)
	wantCode(t, f.stage(id, f.staging("s"), mountCap()), codes.Unavailable)
	f.wantMounts(f.staging("s"), 0)
	if dev, ok := f.vols.Attached(id); ok {
		f.ok(exec.Command("losetup", "-d", dev).Run())
	}
}

func TestMountFlagsAreHonoured(t *testing.T) {
	f := newFixture(t)
	id, st, tg := f.volume("ext4", 64*mib), f.staging("s"), f.target("t")
	c := mountCap(flags("noatime", "nodev", "noatime", "data=writeback"))
	f.ok(f.stage(id, st, c), f.publish(id, st, tg, c, true))
	m, err := readMounts()
	f.ok(err)
	for _, p := range []string{st, tg} {
		i := m.top(p)
		if !hasOption(i.Options, "noatime") || !hasOption(i.Options, "nodev") || !hasOption(i.VFSOptions, "data=writeback") {
			t.Errorf("%s is mounted with %s, %s", p, i.Options, i.VFSOptions)
		}
	}
	// A second staging has its own flags.
	s2 := f.staging("s2")
	f.ok(f.stage(id, s2, mountCap(flags("noexec"))))
	m, err = readMounts()
	f.ok(err)
	if i := m.top(s2); !hasOption(i.Options, "noexec") || hasOption(m.top(st).Options, "noexec") {
		t.Errorf("staged a second time with %s, the first has %s", i.Options, m.top(st).Options)
	}
}

func TestMountGroup(t *testing.T) {
	f := newFixture(t)
	id, st, tg := f.volume("ext4", 64*mib), f.staging("s"), f.target("t")
	f.ok(f.stage(id, st, mountCap()), f.publish(id, st, tg, mountCap(), false))
	f.ok(os.Mkdir(tg+"/dir", 0o700), os.Symlink("/etc/passwd", tg+"/link"))
	f.write(tg+"/dir/file", "x")
	passwd, err := os.Stat("/etc/passwd")
	f.ok(err, f.unpublish(id, tg), f.unstage(id, st))
	const gid = 4242
	f.ok(f.stage(id, st, mountCap(group(gid))), f.publish(id, st, tg, mountCap(group(gid)), false))
	for path, want := range map[string]uint32{"": unix.S_ISGID | 0o770, "/dir": unix.S_ISGID | 0o770, "/dir/file": 0o660} {
		var s unix.Stat_t
		f.ok(unix.Stat(tg+path, &s))
		if s.Gid != gid || s.Mode&want != want {
			t.Errorf("%q: group %d, mode %o, want at least %o", path, s.Gid, s.Mode, want)
		}
	}
	now, err := os.Stat("/etc/passwd")
	if err != nil || now.Sys() == nil || now.Mode() != passwd.Mode() {
		t.Errorf("a symbolic link was followed: %v, %v", now.Mode(), err)
	}
	f.write(tg+"/new", "")
	var s unix.Stat_t
	f.ok(unix.Stat(tg+"/new", &s))
	if s.Gid != gid {
		t.Errorf("a new file has group %d", s.Gid)
	}
}

func TestExpandMountedXFS(t *testing.T) {
	f := newFixture(t)
	id, st, tg := f.volume("xfs", 320*mib), f.staging("s"), f.target("t")
	f.ok(f.stage(id, st, mountCap()), f.publish(id, st, tg, mountCap(), false))
	_, err := f.expand(id, tg, 640*mib)
	wantCode(t, err, codes.OutOfRange) // the controller was not asked
	f.vols.setSpec(id, func(r *holdfast.Record) { r.Spec.SizeBytes = 640 * mib })
	for _, path := range []string{tg, tg, st} {
		size, err := f.expand(id, path, 640*mib)
		f.ok(err)
		if got, err := xfsBytes(tg); size != 640*mib || err != nil || got < 639*mib {
			t.Errorf("capacity %d, filesystem %d (%v)", size, got, err)
		}
	}
	size, err := f.expand(id, tg, 0)
	if err != nil || size != 640*mib {
		t.Errorf("without a range: %d, %v", size, err)
	}
	_, err = f.expand(id, tg+"/nothing", 640*mib)
	wantCode(t, err, codes.NotFound)
	_, err = f.expand("no-such-volume", "some/path", 640*mib)
	wantCode(t, err, codes.NotFound)
	_, err = f.expand("", tg, 0)
	wantCode(t, err, codes.InvalidArgument)
	_, err = f.expand(id, "", 0)
	wantCode(t, err, codes.InvalidArgument)
	_, err = f.NodeExpandVolume(t.Context(), &csi.NodeExpandVolumeRequest{
		VolumeId: string(id), VolumePath: tg, CapacityRange: &csi.CapacityRange{RequiredBytes: 2, LimitBytes: 1},
	})
	wantCode(t, err, codes.InvalidArgument)
}

// Where the sandbox lacks CAP_SYS_RESOURCE, a mounted ext4 cannot grow; the
// error must say so, and staging again must grow it.
func TestExpandExt4(t *testing.T) {
	f := newFixture(t)
	id, st, tg := f.volume("ext4", 64*mib), f.staging("s"), f.target("t")
	f.ok(f.stage(id, st, mountCap()), f.publish(id, st, tg, mountCap(), false))
	f.write(tg+"/x", "data")
	f.vols.setSpec(id, func(r *holdfast.Record) { r.Spec.SizeBytes = 128 * mib })
	_, err := f.expand(id, tg, 128*mib)
	if maySysResource() {
		f.ok(err)
	} else {
		wantCode(t, err, codes.PermissionDenied)
		if err == nil || !strings.Contains(err.Error(), "CAP_SYS_RESOURCE") {
			t.Errorf("the error does not say what is missing: %v", err)
		}
	}
	f.ok(f.unpublish(id, tg), f.unstage(id, st), f.stage(id, st, mountCap()), f.publish(id, st, tg, mountCap(), false))
	dev, err := openDev(f.vols.devs[id])
	f.ok(err)
	if got, err := dev.ext4Bytes(); err != nil || got != 128*mib {
		t.Errorf("the filesystem has %d bytes (%v)", got, err)
	}
	f.wantFile(tg+"/x", "data")
	_, err = f.expand(id, tg, 128*mib) // nothing left to do: no error, whatever the capabilities
	f.ok(err)
}

func TestStageGrowsAnXFSThatIsSmallerThanItsDevice(t *testing.T) {
	f := newFixture(t)
	id, st := f.volume("xfs", 320*mib), f.staging("s")
	f.ok(f.stage(id, st, mountCap()), f.unstage(id, st))
	f.ok(os.Truncate(f.vols.file(id), 640*mib))
	f.ok(f.stage(id, st, mountCap()))
	if got, err := xfsBytes(st); err != nil || got < 639*mib {
		t.Errorf("the filesystem has %d bytes (%v)", got, err)
	}
}

func TestStats(t *testing.T) {
	f := newFixture(t)
	id, st, tg := f.volume("ext4", 64*mib), f.staging("s"), f.target("t")
	_, err := f.stats(id, tg)
	wantCode(t, err, codes.NotFound)
	f.ok(f.stage(id, st, mountCap()), f.publish(id, st, tg, mountCap(), false))
	for _, p := range []string{st, tg} {
		u, err := f.stats(id, p)
		if err != nil || len(u) != 2 || u[0].GetTotal() < 32*mib || u[0].GetUsed() <= 0 || u[0].GetAvailable() <= 0 || u[1].GetTotal() == 0 {
			t.Errorf("statistics of %s: %v, %v", p, u, err)
		}
	}
	for _, p := range []string{tg + "/x", "some/path", "/tmp", "/proc"} {
		_, err = f.stats(id, p)
		wantCode(t, err, codes.NotFound)
	}
	_, err = f.stats("unknown", tg)
	wantCode(t, err, codes.NotFound)
	_, err = f.stats("", tg)
	wantCode(t, err, codes.InvalidArgument)
	_, err = f.stats(id, "")
	wantCode(t, err, codes.InvalidArgument)

	raw, rs, rt := f.volume("", 16*mib), f.staging("r"), f.target("r")
	f.ok(f.stage(raw, rs, blockCap()), f.publish(raw, rs, rt, blockCap(), false))
	u, err := f.stats(raw, rt)
	if err != nil || len(u) != 1 || u[0].GetTotal() != 16*mib || u[0].GetUnit() != csi.VolumeUsage_BYTES {
		t.Errorf("statistics of a block volume: %v, %v", u, err)
	}
	_, err = f.stats(raw, tg) // another volume's path
	wantCode(t, err, codes.NotFound)
}

func TestHealth(t *testing.T) {
	f := newFixture(t)
	id := f.volume("ext4", 64*mib)
	for want, change := range map[string]func(*holdfast.Record){
		"":                func(*holdfast.Record) {},
		"ReplicasMissing": func(r *holdfast.Record) { r.Spec.Replicas = 2 },
		"NoReplicaInSync": func(r *holdfast.Record) { r.Replicas[0].State = holdfast.Stale },
	} {
		f.vols.setSpec(id, func(r *holdfast.Record) { r.Spec.Replicas, r.Replicas[0].State = 1, holdfast.InSync; change(r) })
		if got, err := f.health(id); got != want || err != nil {
			t.Errorf("health %q, %v, want %q", got, err, want)
		}
	}
	_, err := f.health("unknown")
	wantCode(t, err, codes.NotFound)
	_, err = f.health("")
	wantCode(t, err, codes.InvalidArgument)
	f.vols.node.Pools = []holdfast.Pool{{ID: "p", State: holdfast.PoolOnline}, {ID: "q", State: holdfast.PoolFailed, Message: "EIO"}}
	r, err := f.NodeGetStorageHealth(t.Context(), nil)
	if err != nil || len(r.GetBackendHealth()) != 1 || r.GetBackendHealth()[0].GetReason() != "PoolFailed" {
		t.Errorf("storage health: %v, %v", r, err)
	}
}

func TestReadOnlyBlock(t *testing.T) {
	f := newFixture(t)
	id, st, a, b := f.volume("", 16*mib), f.staging("s"), f.target("a"), f.target("b")
	f.ok(f.stage(id, st, blockCap()), f.publish(id, st, a, blockCap(), true))
	if h, err := os.OpenFile(a, os.O_WRONLY, 0); err == nil {
		if _, err := h.WriteAt([]byte("x"), 0); err == nil && h.Sync() == nil {
			t.Error("a read-only block target takes writes")
		}
		_ = h.Close()
	}
	wantCode(t, f.publish(id, st, b, blockCap(), false), codes.FailedPrecondition)
	f.ok(f.unpublish(id, a), f.publish(id, st, b, blockCap(), false))
	f.ok(os.WriteFile(b, []byte("writable"), 0))
	wantCode(t, f.publish(id, st, a, blockCap(), true), codes.FailedPrecondition)
	// From block to mount: another access type at the same path is refused.
	wantCode(t, f.stage(id, st, mountCap()), codes.AlreadyExists)
}

func TestReadOnlyDeviceIsMountedWithoutRecovery(t *testing.T) {
	f := newFixture(t)
	reader := mountCap(mode(csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY))
	for i, fs := range []string{"xfs", "ext4"} {
		id, st, tg := f.volume(fs, 320*mib), f.staging(fmt.Sprint(i)), f.target(fmt.Sprint(i))
		f.ok(f.stage(id, st, mountCap()))
		f.write(st+"/x", "data")
		if fs == "xfs" {
			f.shutDown(st) // it leaves a log that is not empty
		}
		f.ok(f.unstage(id, st))
		path, err := f.vols.Attach(t.Context(), id)
		f.ok(err)
		dev, err := openDev(path)
		f.ok(err, dev.setReadOnly(true))
		f.ok(f.stage(id, st, reader), f.publish(id, st, tg, reader, false))
		if fs == "ext4" { // without its log, the XFS need not have the file yet
			f.wantFile(tg+"/x", "data")
		}
		if err := os.WriteFile(tg+"/y", nil, 0o600); err == nil {
			t.Error("a reader can write")
		}
		f.ok(f.unpublish(id, tg), f.unstage(id, st))
	}
}
