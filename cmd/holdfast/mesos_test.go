package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast/internal/mountpoint"
)

func TestMesosForget(t *testing.T) {
	work, err := os.MkdirTemp("", "hf-test-mesos-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(work) })
	base := filepath.Join(work, "csi", "csi.holdfast.dev", "default")
	state := func(name string) string { return filepath.Join(base, "volumes", name, "volume.state") }
	for _, name := range []string{"hf-test-a%20b", "hf-test-keep"} {
		if err := os.MkdirAll(filepath.Dir(state(name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(state(name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	forget := func(args ...string) (int, string) {
		var out bytes.Buffer
		code := run(t.Context(), append([]string{"mesos", "forget", "--work-dir", work}, args...), strings.NewReader(""), &out, &out)
		return code, out.String()
	}
	if code, out := forget("nope", "-y"); code != exitNotFound || !strings.Contains(out, "it knows: hf-test-a b, hf-test-keep") {
		t.Errorf("an unknown volume: %d %s", code, out)
	}
	target := filepath.Join(base, "mounts", "hf-test-a%20b", "target")
	if err := os.MkdirAll(target, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("hf-test", target, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(target, unix.MNT_DETACH) })
	if code, out := forget("hf-test-a b", "-y"); code != exitConflict || !strings.Contains(out, target+" is mounted") {
		t.Errorf("while it is mounted: %d %s", code, out)
	}
	if err := unix.Unmount(target, 0); err != nil {
		t.Fatal(err)
	}
	guarded := mountpoint.Guard(target) == nil // not on a filesystem without such attributes
	t.Cleanup(func() { _ = mountpoint.ReleaseBelow(work) })
	if err := os.WriteFile(filepath.Join(target, "x"), nil, 0o600); guarded && err == nil {
		t.Fatal("the bare folder takes writes")
	}
	if code, out := forget("hf-test-a b"); code != exitUsage || !strings.Contains(out, "--yes") {
		t.Errorf("not confirmed: %d %s", code, out)
	}
	if _, err := os.Stat(state("hf-test-a%20b")); err != nil {
		t.Fatalf("it is gone already: %v", err)
	}
	code, out := forget("hf-test-a b", "-y")
	if _, err := os.Stat(filepath.Dir(state("hf-test-a%20b"))); code != exitOK || err == nil || !strings.Contains(out, "Restart the agent") {
		t.Errorf("forget: %d %s", code, out)
	}
	if err := os.RemoveAll(filepath.Dir(target)); err != nil {
		t.Errorf("the agent cannot remove the folder: %v", err)
	}
	if _, err := os.Stat(state("hf-test-keep")); err != nil {
		t.Errorf("another volume's state: %v", err)
	}
	if code, out := forget("hf-test-a b", "-y"); code != exitNotFound {
		t.Errorf("again: %d %s", code, out)
	}
}
