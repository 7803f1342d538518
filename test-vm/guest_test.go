//go:build vm

package testvm

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/holdfast-storage/holdfast/daemon"
)

// daemonModules are what the daemon needs of the kernel, with the front end
// fuseloop and disks of the machine.
func daemonModules() []string {
	return []string{"virtio_blk", "virtio_pci", "fuse", "loop", "xfs", "ext4"}
}

// daemonPrograms are what it runs, and scripts do.
func daemonPrograms() []string {
	return append(programs(), "blkid", "losetup", "wipefs", "blockdev")
}

// daemonFiles are the programs and the daemons' configurations.
func daemonFiles(t *testing.T, nodes []daemon.Config) map[string]string {
	t.Helper()
	dir := t.TempDir()
	files := map[string]string{"/etc/mke2fs.conf": "/etc/mke2fs.conf"}
	for name, pkg := range map[string]string{"holdfast": "../cmd/holdfast", "litmus": "./litmus"} {
		files["/usr/bin/"+name] = filepath.Join(dir, name)
		cmd := exec.Command("go", "build", "-o", filepath.Join(dir, name), pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("go build %s: %v\n%s", pkg, err, out)
		}
	}
	for _, cfg := range nodes {
		// Emulated, everything takes long: nobody is to be called dead for it.
		cfg.Times.Lease *= 6
		cfg.Replication.SilentAfter = daemon.Duration(20 * time.Second)
		text, err := yaml.Marshal(cfg)
		if err != nil {
			t.Fatal(err)
		}
		at := filepath.Join(dir, cfg.Node+".yaml")
		if err := os.WriteFile(at, text, 0o600); err != nil {
			t.Fatal(err)
		}
		files["/etc/holdfast/"+cfg.Node+".yaml"] = at
	}
	return files
}
