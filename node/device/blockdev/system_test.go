package blockdev

import (
	"errors"
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
	if want := (Mount{Dev: "0:40", Root: "/a b", Point: `/mnt/x\y`, FSType: "fuse.holdfast", Source: "holdfast:1"}); !ok || e != want {
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

func TestDying(t *testing.T) {
	if Dying(os.Getpid()) {
		t.Error("this process is taken for a dying one")
	}
	cmd := exec.Command("sleep", "100")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if Dying(cmd.Process.Pid) {
		t.Error("a living process is taken for a dying one")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	var info unix.Siginfo
	if err := unix.Waitid(unix.P_PID, cmd.Process.Pid, &info, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	if !Dying(cmd.Process.Pid) {
		t.Error("a zombie is taken for a living process")
	}
	_ = cmd.Wait()
	if !Dying(cmd.Process.Pid) {
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
	n := Node{Path: filepath.Join(t.TempDir(), base)}
	for range 2 { // the second time it is there
		if err := n.Ensure(); err != nil {
			t.Fatal(err)
		}
	}
	var st unix.Stat_t
	if err := unix.Stat(n.Path, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK || devOf(st.Rdev) != n.Dev || !strings.HasPrefix(n.Dev, "7:") {
		t.Errorf("the node has mode %o, device %s: %v", st.Mode, devOf(st.Rdev), err)
	}
	wrong := Node{Path: filepath.Join(t.TempDir(), base)}
	if err := os.WriteFile(wrong.Path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := wrong.Ensure(); err == nil {
		t.Error("a file was taken for a device node")
	}
}

// TestEveryKindHasAnErrno walks the closed set through this edge's table.
func TestEveryKindHasAnErrno(t *testing.T) {
	for _, k := range holdfast.Kinds() {
		e, ok := errnos[k]
		if !ok {
			t.Errorf("%v has no errno", k)
		}
		switch e {
		case 0, unix.ENOSYS, unix.EAGAIN, unix.EINTR:
			t.Errorf("%v is %v, which the kernel takes as something else than a failed request", k, e)
		}
		if e >= 512 {
			t.Errorf("%v is %d; the kernel refuses an answer with that", k, e)
		}
		if got := Errno(holdfast.Wrap("outer", holdfast.E("inner", k, "why"))); got != e {
			t.Errorf("%v wrapped is %v, not %v", k, got, e)
		}
	}
	if len(errnos) != len(holdfast.Kinds()) {
		t.Error("the table has kinds that do not exist")
	}
	if Errno(nil) != 0 || Errno(errors.New("some error")) != unix.EIO {
		t.Error("no error is not 0, or an unknown one not EIO")
	}
}
