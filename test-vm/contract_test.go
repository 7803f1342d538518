//go:build vm

package testvm

import (
	"context"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast/internal/vmtest"
)

// inner chooses tests of the suite inside the machine:
// make test-vm ARGS='-run TestContract/bookworm/nbd -vm.run TestContract/Grow'.
var inner = flag.String("vm.run", "^(TestContract|TestTakeOver)$", "the tests to run inside the machines")

// contractLimit bounds one machine's life.
const contractLimit = 50 * time.Minute

// programs are what the contract suite runs.
func programs() []string {
	return []string{"mkfs.xfs", "xfs_growfs", "xfs_repair", "mkfs.ext4", "fsck.ext4", "resize2fs", "fio", "blkdiscard", "fstrim",
		"mount", "umount", "mountpoint", "dd", "sync"}
}

// build makes a test program of a package that runs anywhere.
func build(t *testing.T, pkg string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "suite.test")
	cmd := exec.Command("go", "test", "-c", "-tags", "vm", "-o", to, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go test -c %s: %v\n%s", pkg, err, out)
	}
	return to
}

func kernel(t *testing.T, name string) *vmtest.Kernel {
	t.Helper()
	k, err := vmtest.OpenKernel("../build/vm", name)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// suite is one package's tests on one kernel.
type suite struct {
	kernel  string
	pkg     string
	modules []string
	run     string // -test.run
	limit   time.Duration
}

func (s suite) test(t *testing.T) {
	t.Helper()
	k := kernel(t, s.kernel)
	t.Logf("Linux %s", k.Release)
	ctx, cancel := context.WithTimeout(t.Context(), contractLimit)
	defer cancel()
	m, err := vmtest.Boot(ctx, vmtest.Config{Dir: t.TempDir(), MemoryMB: 3072, Guest: vmtest.Guest{
		Kernel: k, Modules: s.modules, Programs: programs(),
		Files:  map[string]string{"/suite.test": build(t, s.pkg), "/etc/mke2fs.conf": "/etc/mke2fs.conf"},
		Script: "cd /tmp && HOLDFAST_DEVICETEST_SLOW=20 exec /suite.test -test.v=test2json -test.timeout 45m -test.run '" + s.run + "'\n",
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Kill()
	vmtest.Report(t, m)
	if err := m.Wait(); err != nil {
		t.Error(err)
	}
}

// The front ends on every kernel that has what they need. 6.1 has no ublk; from
// 6.12 on there is one, which grows devices from 6.16 on only.
func TestContract(t *testing.T) {
	for _, s := range []suite{
		{kernel: "bookworm", pkg: "../node/device/fuseloop", modules: []string{"fuse", "loop", "xfs", "ext4"}},
		{kernel: "bookworm", pkg: "../node/device/nbd", modules: []string{"nbd", "xfs", "ext4"}},
		{kernel: "bookworm-backports", pkg: "../node/device/fuseloop", modules: []string{"fuse", "loop", "xfs", "ext4"}},
		{kernel: "bookworm-backports", pkg: "../node/device/nbd", modules: []string{"nbd", "xfs", "ext4"}},
		{kernel: "bookworm-backports", pkg: "../node/device/ublk", modules: []string{"ublk_drv", "xfs", "ext4"}},
		{kernel: "trixie-backports", pkg: "../node/device/nbd", modules: []string{"nbd", "xfs", "ext4"}},
		{kernel: "trixie-backports", pkg: "../node/device/ublk", modules: []string{"ublk_drv", "xfs", "ext4"}},
	} {
		s.run = *inner
		t.Run(s.kernel+"/"+filepath.Base(s.pkg), s.test)
	}
}
