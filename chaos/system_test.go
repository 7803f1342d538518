package main

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast/internal/netcluster"
)

// running is a chaos run as a process of its own.
type running struct {
	cmd   *exec.Cmd
	lines chan string
	said  []string
}

// programs builds what is run.
func programs(t *testing.T) (chaos, daemon string) {
	t.Helper()
	dir := t.TempDir()
	chaos, daemon = filepath.Join(dir, "chaos"), filepath.Join(dir, "holdfast")
	for to, pkg := range map[string]string{chaos: ".", daemon: "../cmd/holdfast"} {
		cmd := exec.Command("go", "build", "-o", to, pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build %s: %v\n%s", pkg, err, out)
		}
	}
	return chaos, daemon
}

func launch(t *testing.T, program string, args ...string) *running {
	t.Helper()
	r := &running{cmd: exec.Command(program, args...), lines: make(chan string, 10_000)}
	r.cmd.Stderr = os.Stderr
	out, err := r.cmd.StdoutPipe()
	if err == nil {
		err = r.cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.cmd.Process.Kill() })
	go func() {
		defer close(r.lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			r.lines <- s.Text()
		}
	}()
	return r
}

// until waits for a line that contains a text.
func (r *running) until(t *testing.T, text string) {
	t.Helper()
	for late := time.After(5 * time.Minute); ; {
		select {
		case line, ok := <-r.lines:
			r.said = append(r.said, line)
			if !ok {
				t.Fatalf("it ended before it said %q:\n%s", text, strings.Join(r.said, "\n"))
			}
			if strings.Contains(line, text) {
				return
			}
		case <-late:
			t.Fatalf("it has not said %q:\n%s", text, strings.Join(r.said, "\n"))
		}
	}
}

// A run that is killed while a disk stalls and everything works leaves a lot; the
// next one removes it, and one that is interrupted removes what it made itself.
func TestNothingIsLeftByRunsThatAreKilledOrInterrupted(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("run the tests as root: chaos makes namespaces and mounts")
	}
	chaos, daemon := programs(t)
	// The same folder each time, so that a killed test is cleaned up as well.
	const base = "/var/tmp/hf-test-chaos-killed"
	n, dir := netcluster.Network{Prefix: "hf-test-chaos-"}, filepath.Join(base, "run")
	if err := os.MkdirAll(base, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netcluster.Clean(context.Background(), n, dir); err != nil {
			t.Error(err)
		} else if err := os.RemoveAll(base); err != nil {
			t.Error(err)
		}
	})
	args := []string{"-binary", daemon, "-prefix", n.Prefix, "-dir", dir, "-logs", filepath.Join(base, "logs"), "-seed", "1", "-only", "stall", "-wait", "10m"}
	killed := launch(t, chaos, args...)
	killed.until(t, "stall m")
	if err := killed.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if len(n.Processes(t.Context())) == 0 {
		t.Error("the killed run has left no process: this test shows nothing")
	}
	interrupted := launch(t, chaos, args...)
	interrupted.until(t, "the cluster is up")
	if err := interrupted.cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	interrupted.until(t, "everything is removed")
	if err := interrupted.cmd.Wait(); interrupted.cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("an interrupted run ends with %v, want status 1", err)
	}
	_ = killed.cmd.Wait()
	if ps := n.Processes(t.Context()); len(ps) > 0 {
		t.Errorf("processes are left: %v", ps)
	}
	if ns := n.Namespaces(); len(ns) > 0 {
		t.Errorf("namespaces are left: %v", ns)
	}
	if ms, err := netcluster.MountsBelow(base); err != nil || len(ms) > 0 {
		t.Errorf("mounts are left: %v, %v", ms, err)
	}
	if ls := netcluster.LoopsBelow(base); len(ls) > 0 {
		t.Errorf("loop devices are left: %v", ls)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the folder is left: %v", err)
	}
}
