package fuseloop

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
)

func TestParseMount(t *testing.T) {
	e, ok := parseMount(`44 27 0:40 /a\040b /mnt/x\134y rw,nosuid shared:5 master:7 - fuse.holdfast holdfast:1 rw`)
	if want := (mountEntry{Dev: "0:40", Root: "/a b", Point: `/mnt/x\y`, FSType: "fuse.holdfast", Source: "holdfast:1"}); !ok || e != want {
		t.Errorf("got %+v, %v", e, ok)
	}
	for _, bad := range []string{"", "44 27 0:40 / / rw", "44 27 0:40 / - fuse x", "1 2 3 4 5 6 -"} {
		if e, ok := parseMount(bad); ok {
			t.Errorf("%q became %+v", bad, e)
		}
	}
	for in, want := range map[string]string{`a\b`: `a\b`, `\04`: `\04`, `\040`: " ", `\999x`: `\999x`} {
		if got := unescape(in); got != want {
			t.Errorf("%q became %q", in, got)
		}
	}
}

func TestRootHasOneOwner(t *testing.T) {
	dir := t.TempDir()
	a, err := New(Config{Root: dir})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := New(Config{Root: dir}); holdfast.KindOf(err) != holdfast.InUse {
		t.Errorf("a second front end in the same root: %v", err)
	}
	owner := a.owner
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := New(Config{Root: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if b.owner != owner || len(owner) != 16 {
		t.Errorf("the successor's mark is %q, the predecessor's was %q", b.owner, owner)
	}
	if vol, ok := b.volumeOf(b.fileName("v")); !ok || vol != "v" {
		t.Errorf("a file's name does not lead back to its volume: %q", vol)
	}
	for _, foreign := range []string{"holdfast-v-0000000000000000", "disk.img", "holdfast-"} {
		if vol, ok := b.volumeOf(foreign); ok {
			t.Errorf("%s is taken for ours, volume %q", foreign, vol)
		}
	}
	if _, err := New(Config{}); holdfast.KindOf(err) != holdfast.Invalid {
		t.Errorf("no root: %v", err)
	}
}

// TestForeignFilesAreLeftAlone puts things into the root that are not ours.
func TestForeignFilesAreLeftAlone(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"file", "ABCDEF"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f, err := New(Config{Root: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if vols, err := f.CleanOrphans(t.Context()); err != nil || len(vols) != 0 {
		t.Errorf("cleaned %v, %v", vols, err)
	}
	if names, _ := filepath.Glob(dir + "/*"); len(names) != 3 {
		t.Errorf("left are %v", names)
	}
}

func TestDying(t *testing.T) {
	if dying(os.Getpid()) {
		t.Error("this process is taken for a dying one")
	}
	cmd := exec.Command("sleep", "100")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if dying(cmd.Process.Pid) {
		t.Error("a living process is taken for a dying one")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	var info unix.Siginfo
	if err := unix.Waitid(unix.P_PID, cmd.Process.Pid, &info, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	if !dying(cmd.Process.Pid) {
		t.Error("a zombie is taken for a living process")
	}
	_ = cmd.Wait()
	if !dying(cmd.Process.Pid) {
		t.Error("a process that does not exist is taken for a living one")
	}
}

// TestDeviceNodeIsMade as in a container, whose /dev is not the kernel's.
func TestDeviceNodeIsMade(t *testing.T) {
	names, _ := filepath.Glob("/sys/block/loop[0-9]*")
	if len(names) == 0 {
		t.Fatal("there is no loop device at all; load the loop module")
	}
	base := filepath.Base(names[0])
	l := loopDevice{Path: filepath.Join(t.TempDir(), base)}
	for range 2 { // the second time it is there
		if err := l.ensureNode(); err != nil {
			t.Fatal(err)
		}
	}
	var st unix.Stat_t
	if err := unix.Stat(l.Path, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK || devOf(st.Rdev) != l.Dev || !strings.HasPrefix(l.Dev, "7:") {
		t.Errorf("the node has mode %o, device %s: %v", st.Mode, devOf(st.Rdev), err)
	}
	wrong := loopDevice{Path: filepath.Join(t.TempDir(), base)}
	if err := os.WriteFile(wrong.Path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := wrong.ensureNode(); err == nil {
		t.Error("a file was taken for a device node")
	}
}
