package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
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
	out, err := r.cmd.StdoutPipe()
	if err == nil {
		r.cmd.Stderr = r.cmd.Stdout
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

// rest takes all lines that are still said.
func (r *running) rest() {
	for line := range r.lines {
		r.said = append(r.said, line)
	}
}

// endsBadly waits for its end, which must be with status 1 and everything removed.
func (r *running) endsBadly(t *testing.T) {
	t.Helper()
	r.until(t, "everything is removed")
	r.rest()
	if err := r.cmd.Wait(); r.cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("%v ends with %v, want status 1", r.cmd.Args, err)
	}
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

// Runs that are killed while a disk or daemons hang and everything works leave a
// lot; the next one removes it. One that is interrupted or fails removes what it
// made itself.
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
		} else if err := netcluster.Remove(base); err != nil {
			t.Error(err)
		}
	})
	run := func(more ...string) *running {
		return launch(t, chaos, append([]string{"-binary", daemon, "-prefix", n.Prefix, "-dir", dir, "-logs", filepath.Join(base, "logs"), "-seed", "1", "-wait", "10m", "-faults", "4s"}, more...)...)
	}
	gone := killedWhen(t, n, run("-keeper", "yes", "-only", "hang"), "hang m")
	interrupted := run("-keeper", "yes", "-only", "crash")
	interrupted.until(t, "the cluster is up")
	gone()
	if err := interrupted.cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	interrupted.endsBadly(t)
	nothingLeft(t, n, dir)

	gone = killedWhen(t, n, run("-keeper", "no", "-only", "stall"), "stall m")
	failing := run("-keeper", "yes", "-only", "move", "-rounds", "1")
	failing.until(t, "round 1")
	gone()
	aDaemonFails(t, n)
	failing.endsBadly(t)
	nothingLeft(t, n, dir)
	for _, want := range []string{"ended by itself and is started again", "exit status 2", "-seed 1 -keeper yes -binary="} {
		if said := strings.Join(failing.said, "\n"); !strings.Contains(said, want) {
			t.Errorf("a run whose daemon failed does not say %q:\n%s", want, said)
		}
	}
}

// killedWhen kills a run without warning when it has said a text. It may be gone
// only when the next one has cleaned up, which gone waits for: one of its threads
// may wait for a device whose daemon hangs.
func killedWhen(t *testing.T, n netcluster.Network, r *running, text string) (gone func()) {
	t.Helper()
	r.until(t, text)
	if err := r.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if len(n.Processes(t.Context())) == 0 {
		t.Error("the killed run has left no process: this test shows nothing")
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		r.rest()
		_ = r.cmd.Wait()
	}()
	return func() {
		t.Helper()
		select {
		case <-ended:
		case <-time.After(time.Minute):
			t.Error("the killed run still hangs, though the next one has cleaned up")
		}
	}
}

// aDaemonFails ends a daemon as a panic does, under its keeper.
func aDaemonFails(t *testing.T, n netcluster.Network) {
	t.Helper()
	ps := n.Processes(t.Context())
	for _, pid := range ps {
		stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		var state string
		var parent int
		_, rest, _ := strings.Cut(string(stat), "(holdfast) ")
		if _, err := fmt.Sscan(rest, &state, &parent); err == nil && slices.Contains(ps, parent) {
			if err := syscall.Kill(pid, syscall.SIGQUIT); err != nil {
				t.Fatal(err)
			}
			return
		}
	}
	t.Fatalf("none of the processes %v is a daemon under a keeper", ps)
}

// nothingLeft looks for all that a run makes.
func nothingLeft(t *testing.T, n netcluster.Network, dir string) {
	t.Helper()
	if ps := n.Processes(t.Context()); len(ps) > 0 {
		t.Errorf("processes are left: %v", ps)
	}
	if ns := n.Namespaces(); len(ns) > 0 {
		t.Errorf("namespaces are left: %v", ns)
	}
	if ms, err := netcluster.MountsBelow(filepath.Dir(dir)); err != nil || len(ms) > 0 {
		t.Errorf("mounts are left: %v, %v", ms, err)
	}
	if ls := netcluster.LoopsBelow(filepath.Dir(dir)); len(ls) > 0 {
		t.Errorf("loop devices are left: %v", ls)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the folder is left: %v", err)
	}
}
