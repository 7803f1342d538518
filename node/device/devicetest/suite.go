// Package devicetest is the contract of device.FrontEnd as tests: whatever
// makes volumes block devices must pass Run. It uses the real kernel: devices,
// XFS and ext4, fio, and servers that are killed with SIGKILL.
//
// It promises that a test leaves no device, mount, descriptor, goroutine or
// process behind, and fails if the front end does. It needs root, and the
// programs that need lists. It does not measure speed. Goroutines: those of a
// test end with it.
package devicetest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/node/device"
)

// NewFrontEnd makes a front end that keeps what it needs on disk in dir. Two
// with the same dir, one after the other, are a daemon and its successor; two
// with different ones are two daemons on one machine. If it is an io.Closer it
// is closed when its devices are gone.
type NewFrontEnd func(dir string) (device.FrontEnd, error)

// Run runs the contract. The test binary's TestMain must call Child first.
func Run(t *testing.T, newFrontEnd NewFrontEnd) {
	suite{newFrontEnd: newFrontEnd}.run(t)
}

// RunSuccessor runs the contract for a front end whose devices outlive the
// process without anybody's help, and that of device.Successor.
func RunSuccessor(t *testing.T, newFrontEnd NewFrontEnd) {
	s := suite{newFrontEnd: newFrontEnd, outlives: true}
	s.run(t)
	s.runSuccessor(t)
}

// RunTakeOver runs the part of it in which servers are killed under I/O, and says
// how long that waits.
func RunTakeOver(t *testing.T, newFrontEnd NewFrontEnd) {
	s := suite{newFrontEnd: newFrontEnd, outlives: true}
	t.Run("AdoptAfterKills", s.testAdoptAfterKills)
	t.Run("AdoptMountedXFS", func(t *testing.T) { s.testAdoptMounted(t, "xfs") })
}

func (s suite) run(t *testing.T) {
	if growsExt4(t) {
		t.Run("GrowMountedExt4", func(t *testing.T) {
			leaks(t)
			s.growing(t, func(t *testing.T) { s.testGrowMounted(t, "ext4") })(t)
		})
	}
	need(t, "mkfs.xfs", "mkfs.ext4", "xfs_growfs", "fio", "blkdiscard", "fstrim", "mount", "umount", "dd")
	for _, c := range []struct {
		name string
		test func(*testing.T)
	}{
		{"Options", s.testOptions},
		{"Direct", s.testDirect},
		{"Buffered", s.testBuffered},
		{"SmallBlocks", s.testSmallBlocks},
		{"Flush", s.testFlush},
		{"FUA", s.testFUA},
		{"Discard", s.testDiscard},
		{"WriteZeroes", s.testWriteZeroes},
		{"Errors", s.testErrors},
		{"Depth", s.testDepth},
		{"FioVerify", s.testFioVerify},
		{"ReadOnly", s.testReadOnly},
		{"Grow", s.growing(t, s.testGrow)},
		{"GrowMounted", s.growing(t, func(t *testing.T) { s.testGrowMounted(t, "xfs") })},
		{"XFS", func(t *testing.T) { s.testFilesystem(t, "xfs") }},
		{"Ext4", func(t *testing.T) { s.testFilesystem(t, "ext4") }},
		{"CloseMounted", s.testCloseMounted},
		{"CloseOpen", s.testCloseOpen},
		{"CloseTwice", s.testCloseTwice},
		{"AbortHung", s.testAbortHung},
		{"AbortMounted", s.testAbortMounted},
		{"AbortDuringGrow", s.testAbortDuringGrow},
		{"Killed", s.testKilled},
		{"KilledMounted", s.testKilledMounted},
		{"KilledDuringGrow", s.testKilledDuringGrow},
		{"Neighbours", s.testNeighbours},
		{"TwentyAtOnce", s.testTwentyAtOnce},
	} {
		t.Run(c.name, func(t *testing.T) {
			leaks(t)
			c.test(t)
		})
	}
}

// growing is the test where devices can grow, else the one that they refuse to.
func (s suite) growing(t *testing.T, test func(*testing.T)) func(*testing.T) {
	if canGrow(s.frontEnd(t, t.TempDir())) {
		return test
	}
	return s.testGrowRefused
}

func need(t *testing.T, programs ...string) {
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Fatalf("this suite needs the program %s; install util-linux, coreutils, xfsprogs, e2fsprogs and fio", p)
		}
	}
	if os.Geteuid() != 0 {
		t.Fatal("this suite makes block devices and mounts; run it as root")
	}
}

type suite struct {
	newFrontEnd NewFrontEnd
	outlives    bool // devices wait for a successor
}

// rig is one device over a backend in memory.
type rig struct {
	*testing.T
	fe  device.FrontEnd
	mem *Memory
	dev device.Device
	opt device.Options
}

const mib = 1 << 20

func options(size int64) device.Options {
	return device.Options{Volume: holdfast.NewVolumeID(), SizeBytes: size, LogicalBlk: holdfast.BlockSize}
}

// frontEnd makes one that is closed at the end of the test.
func (s suite) frontEnd(t *testing.T, dir string) device.FrontEnd {
	t.Helper()
	fe, err := s.newFrontEnd(dir)
	if err != nil {
		t.Fatalf("no front end: %v", err)
	}
	t.Cleanup(func() {
		if c, ok := fe.(io.Closer); ok {
			if err := c.Close(); err != nil {
				t.Errorf("closing the front end: %v", err)
			}
		}
	})
	return fe
}

// device opens one in a front end of its own.
func (s suite) device(t *testing.T, o device.Options) *rig {
	t.Helper()
	return openIn(t, s.frontEnd(t, t.TempDir()), o)
}

func openIn(t *testing.T, fe device.FrontEnd, o device.Options) *rig {
	t.Helper()
	r := &rig{T: t, fe: fe, mem: NewMemory(o.SizeBytes), opt: o}
	var err error
	if r.dev, err = fe.Open(context.Background(), o, r.mem); err != nil {
		t.Fatalf("open: %v", err)
	}
	t.Cleanup(func() {
		if err := r.dev.Abort(); err != nil {
			t.Errorf("abort at the end: %v", err)
		}
		r.mem.Resume()
		eventually(t, "the device is gone", func() bool { return !serves(r.dev.Path(), o.Volume) })
		for _, w := range r.mem.Wrong() {
			t.Errorf("the front end broke a rule of device.Backend: %s", w)
		}
	})
	return r
}

// serves says whether the kernel's device of that path still serves the volume.
// Another process may have the path by now: a loop device's file tells.
func serves(path string, vol holdfast.VolumeID) bool {
	sys := filepath.Join("/sys/block", filepath.Base(path))
	if strings.HasPrefix(filepath.Base(path), "loop") {
		file, err := os.ReadFile(filepath.Join(sys, "loop/backing_file"))
		return err == nil && strings.Contains(string(file), string(vol))
	}
	size, err := os.ReadFile(filepath.Join(sys, "size"))
	return err == nil && strings.TrimSpace(string(size)) != "0"
}

// closed closes the device and expects that to work.
func (r *rig) closed() {
	r.Helper()
	if err := r.dev.Close(context.Background()); err != nil {
		r.Fatalf("close: %v", err)
	}
}

// wantKind fails the test unless err is of that kind and says something.
func wantKind(t *testing.T, err error, kind holdfast.Kind) {
	t.Helper()
	if !errors.Is(err, kind) || len(err.Error()) < 10 {
		t.Fatalf("the error is %q, wanted kind %q and an explanation", fmt.Sprint(err), kind)
	}
}

// patience bounds every wait for something that must come.
const patience = 20 * time.Second

// slowEnv is how many times as long everything may take: virtual machines that
// are emulated set it.
const slowEnv = "HOLDFAST_DEVICETEST_SLOW"

// slow is d for this machine.
func slow(d time.Duration) time.Duration {
	times, err := strconv.Atoi(os.Getenv(slowEnv))
	if err != nil || times < 1 {
		return d
	}
	return d * time.Duration(times)
}

// eventually waits until ok, looking again and again.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(slow(patience))
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Errorf("did not happen in %v: %s", patience, what)
			return
		}
	}
}

// within fails the test if f takes longer than d; it then returns without f.
func within(t *testing.T, d time.Duration, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(slow(d)):
		t.Errorf("took longer than %v: %s", d, what)
		<-done
	}
}

// run runs a program that must succeed and returns its output.
func run(t *testing.T, name string, arg ...string) string {
	t.Helper()
	out, err := exec.Command(name, arg...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(arg, " "), err, out)
	}
	return string(out)
}

// leaks compares descriptors and goroutines of now with those when the test and
// its clean-ups have ended, and looks for mounts in its directories. Of block
// devices each test looks at its own.
func leaks(t *testing.T) {
	fds, own := descriptors(), filepath.Dir(t.TempDir())
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() {
		eventually(t, "all descriptors are closed", func() bool { return len(descriptors()) <= len(fds) })
		if t.Failed() {
			t.Logf("descriptors before %v\nafter %v", fds, descriptors())
		}
		for _, m := range mountTable() {
			if strings.Contains(m, own) {
				t.Errorf("a mount is left: %s", m)
			}
		}
		if err := goleak.Find(before); err != nil {
			t.Errorf("goroutines are left: %v", err)
		}
	})
}

func descriptors() []string {
	fds, _ := filepath.Glob("/proc/self/fd/*")
	var open []string
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err == nil && !strings.HasPrefix(to, "/proc/") {
			open = append(open, to)
		}
	}
	return open
}

func mountTable() []string {
	raw, _ := os.ReadFile("/proc/self/mountinfo")
	return strings.Split(string(raw), "\n")
}
