package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast/node/keeper"
)

// surviveFor is how long each load of TestApplicationsDoNotNoticeThatTheDaemonIsKilled
// goes on.
var surviveFor = flag.Duration("survive.for", 0, "the whole test, each load for so long; 0: a part of it, 5 s each")

// TestApplicationsDoNotNoticeThatTheDaemonIsKilled: a verifying load on a mounted
// volume sees no error while the daemon is killed again and again, also while it
// starts, and upgraded; with all of the metadata in it, and as one of three nodes.
func TestApplicationsDoNotNoticeThatTheDaemonIsKilled(t *testing.T) {
	for i, c := range []struct {
		fsType   string
		replicas int
		depth    int // 1: with one processor, so that the daemon looks for requests before it sleeps
	}{{"xfs", 1, 16}, {"ext4", 3, 1}, {"ext4", 1, 1}, {"xfs", 3, 16}} {
		if i >= 2 && *surviveFor == 0 {
			break
		}
		t.Run(fmt.Sprintf("%s,%d,%d", c.fsType, c.replicas, c.depth), func(t *testing.T) {
			if c.depth == 1 {
				t.Setenv("GOMAXPROCS", "1")
			}
			if c.replicas == 1 {
				survive(newMachine(t), c.fsType, c.replicas, c.depth)
			} else {
				survive(newMachines(t)[0], c.fsType, c.replicas, c.depth)
			}
		})
	}
}

func survive(m *machine, fsType string, replicas, depth int) {
	t := m.t
	m.attach(fsType, replicas)
	load := max(*surviveFor, 5*time.Second)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	fio := exec.CommandContext(ctx, "fio", "--name=verify", "--directory="+m.path("mnt"), "--size=64m", "--rw=randwrite", "--bs=4k", "--ioengine=libaio",
		"--iodepth="+strconv.Itoa(depth), "--direct=1", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--loops=100000", "--time_based", fmt.Sprintf("--runtime=%dms", load.Milliseconds()), "--fsync=64", "--thread")
	fio.Dir = m.dir // where it leaves its state
	var out bytes.Buffer
	fio.Stdout, fio.Stderr = &out, &out
	if err := fio.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- fio.Wait() }()
	kills, upgrades := 0, 0
	for ended := false; !ended; {
		if kills%4 == 3 && upgrades < kills/3 {
			m.upgrade()
			upgrades++
		} else {
			kills += m.kill(kills%4 == 1)
		}
		select {
		case err := <-done:
			ended = true
			if err != nil {
				m.fatalf("fio: %v\n%s", err, out.String())
			}
		case <-time.After(time.Duration(300+400*(kills%4)) * time.Millisecond): // the daemon is to have worked for a while, or not
		}
	}
	t.Logf("%d kills and %d upgrades in %v\n%s", kills, upgrades, load, grep(out.String(), "clat (", "lat (", "iops"))
	if want := int(*surviveFor / (3 * time.Second)); kills < want {
		t.Errorf("the daemon was killed %d times only, want %d", kills, want)
	}
	m.verify(fsType, replicas)
}

// kill kills the daemon, and its successor as well while that starts, if twice is set.
// It waits until one works, and says how many were killed.
func (m *machine) kill(twice bool) (kills int) {
	m.t.Helper()
	s := m.ready(0)
	if err := syscall.Kill(s.Daemon, syscall.SIGKILL); err != nil {
		m.t.Fatal(err)
	}
	kills = 1
	if twice {
		before := s.Daemon
		m.until("the keeper starts a successor", func() bool {
			now, err := keeper.ReadStatus(m.cfg.KeeperStatus())
			s = now
			return err == nil && now.Daemon != before
		})
		if !s.Ready && syscall.Kill(s.Daemon, syscall.SIGKILL) == nil {
			kills++
		} else {
			s.Daemon = before
		}
	}
	m.ready(s.Daemon)
	return kills
}

func (m *machine) upgrade() {
	m.t.Helper()
	s := m.ready(0)
	if got := m.run(m.command(m.t.Context(), "node", "upgrade", "--config", m.path("node.yaml"))); !strings.Contains(got, fmt.Sprint(s.Daemon)) {
		m.t.Errorf("upgrade said %q", got)
	}
}

// verify checks that the filesystem is whole, that all replicas are the same, and that
// what is in the file is the same wherever the volume is attached. fio has verified
// what it wrote.
func (m *machine) verify(fsType string, replicas int) {
	t := m.t
	t.Helper()
	file := filepath.Join(m.path("mnt"), "verify.0.0")
	want := m.run(exec.Command("sha256sum", file))
	m.run(exec.Command("umount", m.path("mnt")))
	m.until("all replicas are in sync", func() bool { return m.inSync() == replicas })
	if replicas > 1 {
		m.run(m.command(t.Context(), "volume", "scrub", "db", "--watch"))
	}
	for n := range replicas {
		m.run(m.command(t.Context(), "volume", "detach", "db"))
		device := m.deviceOn(fmt.Sprint("n", n+1))
		m.check(fsType, device)
		m.run(exec.Command("mount", device, m.path("mnt")))
		if got := m.run(exec.Command("sha256sum", file)); got != want {
			t.Errorf("on node %d the file has another content:\n%s%s", n+1, got, want)
		}
		m.run(exec.Command("umount", m.path("mnt")))
	}
	m.run(m.command(t.Context(), "volume", "detach", "db"))
}

// TestAKeeperDoesNotHideABadStart: the service ends as the daemon does.
func TestAKeeperDoesNotHideABadStart(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "node.yaml")
	if err := os.WriteFile(path, []byte(fmt.Sprintf("node: n1\nstateDir: %s/s\nrunDir: %s/r\npools: [{path: %s/none.img}]\netcd: {endpoints: [\"http://127.0.0.1:1\"], username: u, passwordFile: /nonexistent}\n", dir, dir, dir)), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe", "node", "--config", path)
	cmd.Env = append(os.Environ(), asProgram+"=1")
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != exitUsage || strings.Count(string(out), "/nonexistent") == 0 {
		t.Errorf("exit %v:\n%s", err, out)
	}
}

// TestTheLossOfTheKeeperIsReported, at once, in log and metrics; the daemon goes on,
// and is not replaced, as nobody would start another one.
func TestTheLossOfTheKeeperIsReported(t *testing.T) {
	m := newMachine(t)
	m.attach("xfs", 1)
	s := m.ready(0)
	if got := m.metric("holdfast_node_kept"); got != "1" {
		t.Errorf("holdfast_node_kept is %q with a keeper", got)
	}
	if err := syscall.Kill(s.Keeper, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // before the others: nobody else ends the daemon
		_ = exec.Command("umount", m.path("mnt")).Run()
		_ = syscall.Kill(s.Daemon, syscall.SIGTERM)
		<-m.ended // with the output, which the daemon has, too
		m.ended <- nil
	})
	m.until("the daemon reports it", func() bool { return m.said("the keeper is gone") })
	if got := m.metric("holdfast_node_kept"); got != "0" {
		t.Errorf("holdfast_node_kept is %q without one", got)
	}
	m.run(exec.Command("dd", "if=/dev/urandom", "of="+filepath.Join(m.path("mnt"), "after"), "bs=1M", "count=8", "conv=fsync"))
	out, err := m.command(t.Context(), "node", "upgrade", "--config", m.path("node.yaml")).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "is gone") {
		t.Errorf("an upgrade says %q, %v", out, err)
	}
	out, err = m.command(t.Context(), "node", "--config", m.path("node.yaml")).CombinedOutput()
	if err == nil || !strings.Contains(string(out), fmt.Sprintf("process %d", s.Daemon)) {
		t.Errorf("a second service says %q, %v: it is to name the process", out, err)
	}
}

// TestAStoppedServiceLeavesCleanFilesystems: what is mounted and used by nobody, as at
// the shutdown of a node, is unmounted in order before its device goes.
func TestAStoppedServiceLeavesCleanFilesystems(t *testing.T) {
	for _, fsType := range []string{"xfs", "ext4"} {
		t.Run(fsType, func(t *testing.T) {
			m := newMachine(t)
			m.attach(fsType, 1)
			file := filepath.Join(m.path("mnt"), "unsynced")
			if err := os.WriteFile(file, bytes.Repeat([]byte("x"), 1<<20), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := m.cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			if err := <-m.ended; err != nil {
				m.fatalf("the service ended with %v", err)
			}
			m.start(func(*exec.Cmd) {})
			m.ready(0)
			m.until("it answers again", func() bool {
				return m.command(t.Context(), "volume", "attach", "db", "--node", "n1").Run() == nil
			})
			device := m.deviceOn("n1")
			m.check(fsType, device)
			m.run(exec.Command("mount", device, m.path("mnt")))
			if raw, err := os.ReadFile(file); err != nil || len(raw) != 1<<20 {
				t.Errorf("%d bytes are left, %v", len(raw), err)
			}
			m.run(exec.Command("umount", m.path("mnt")))
			m.run(m.command(t.Context(), "volume", "detach", "db"))
		})
	}
}

// TestAStopDoesNotWaitForIOThatHangs: what cannot be unmounted is cut off, as the
// machine is to go down.
func TestAStopDoesNotWaitForIOThatHangs(t *testing.T) {
	all := newMachines(t)
	m := all[0]
	m.attach("xfs", 3)
	m.run(exec.Command("sync", "-f", m.path("mnt")))
	for _, o := range all[1:] {
		if err := o.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = o.cmd.Process.Signal(syscall.SIGCONT) })
	}
	// No write ends now: one replica is there, and nobody to agree on that with.
	if err := os.WriteFile(filepath.Join(m.path("mnt"), "unsynced"), bytes.Repeat([]byte("x"), 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := m.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	err := <-m.ended // the test's own limit is enough
	if m.ended <- err; err != nil {
		m.fatalf("the service ended with %v", err)
	}
	if !m.said("the next one attaches it again") {
		m.fatalf("it does not say what became of the volume")
	}
}

// check fails for a filesystem that was not unmounted in order, or is damaged.
func (m *machine) check(fsType, device string) {
	m.t.Helper()
	if fsType == "xfs" {
		m.run(exec.Command("xfs_repair", "-n", device))
		if log := m.run(exec.Command("xfs_logprint", "-t", device)); !strings.Contains(log, "<CLEAN>") {
			m.t.Errorf("the log is to be replayed:\n%s", grep(log, "state"))
		}
		return
	}
	m.run(exec.Command("e2fsck", "-fn", device))
	if head := m.run(exec.Command("dumpe2fs", "-h", device)); strings.Contains(head, "needs_recovery") {
		m.t.Errorf("the journal is to be replayed:\n%s", grep(head, "features", "state"))
	}
}
