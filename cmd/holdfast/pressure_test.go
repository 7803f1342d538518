package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// memoryGroup is a cgroup with a limit on memory, of either version.
type memoryGroup struct {
	t     *testing.T
	dir   string
	peak  string // the file with the most that was used
	event string // the file that counts kills
}

func newMemoryGroup(t *testing.T, name string, limit int64) memoryGroup {
	t.Helper()
	g, limitFile := memoryGroup{t: t, peak: "memory.max_usage_in_bytes", event: "memory.oom_control"}, "memory.limit_in_bytes"
	root := "/sys/fs/cgroup/memory"
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		root, limitFile = "/sys/fs/cgroup", "memory.max"
		g.peak, g.event = "memory.peak", "memory.events"
		if err := os.WriteFile(root+"/cgroup.subtree_control", []byte("+memory"), 0); err != nil {
			t.Fatal(err)
		}
	}
	g.dir = filepath.Join(root, "hf-test-"+name+"-"+strconv.Itoa(os.Getpid()))
	if err := os.Mkdir(g.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// The last process may be on its way out.
		for range 200 {
			if err := os.Remove(g.dir); err == nil || os.IsNotExist(err) {
				return
			}
			<-time.After(10 * time.Millisecond)
		}
		t.Errorf("%s cannot be removed", g.dir)
	})
	g.write(limitFile, limit)
	return g
}

func (g memoryGroup) write(file string, value int64) {
	g.t.Helper()
	if err := os.WriteFile(filepath.Join(g.dir, file), []byte(strconv.FormatInt(value, 10)), 0); err != nil {
		g.t.Fatal(err)
	}
}

// kills is how many processes were ended for want of memory.
func (g memoryGroup) kills() string {
	raw, _ := os.ReadFile(filepath.Join(g.dir, g.event))
	for line := range strings.Lines(string(raw)) {
		if n, ok := strings.CutPrefix(line, "oom_kill "); ok {
			return strings.TrimSpace(n)
		}
	}
	return "unknown"
}

func (g memoryGroup) most() string {
	raw, _ := os.ReadFile(filepath.Join(g.dir, g.peak)) // memory.peak is of Linux 5.19
	n, _ := strconv.ParseInt(strings.TrimSpace(string(raw)), 10, 64)
	return strconv.FormatInt(n>>20, 10) + " MiB"
}

// enter has a command enter the group before its program begins.
func (g memoryGroup) enter(cmd *exec.Cmd) {
	g.t.Helper()
	program, err := filepath.EvalSymlinks(cmd.Path) // /proc/self/exe would be the shell
	if err != nil {
		g.t.Fatal(err)
	}
	cmd.Args = append([]string{"sh", "-c", `echo $$ >"$0" && exec "$@"`, filepath.Join(g.dir, "cgroup.procs"), program}, cmd.Args[1:]...)
	cmd.Path = "/bin/sh"
}

// TestWritesGoOnUnderMemoryPressure: a writer dirties many times its memory limit
// in the page cache of a filesystem on a volume, so that each of its pages waits
// for the daemon, whose memory is limited as well, and does its work in time.
func TestWritesGoOnUnderMemoryPressure(t *testing.T) {
	for _, fsType := range []string{"xfs", "ext4"} {
		t.Run(fsType, func(t *testing.T) {
			daemon, writer := newMemoryGroup(t, "daemon", daemonMemory), newMemoryGroup(t, "writer", 24<<20)
			m := newMachineBy(t, daemon.enter)
			m.attach(fsType, 1)
			before := m.ready(0)
			// What is not done after two minutes hangs: this takes seconds.
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			fio := exec.CommandContext(ctx, "fio", "--name=pressure", "--directory="+m.path("mnt"), "--size=192m", "--rw=randwrite", "--bs=64k", "--ioengine=psync",
				"--direct=0", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--loops=2", "--end_fsync=1", "--thread")
			fio.Dir = m.dir // where it leaves its state
			fio.WaitDelay = 10 * time.Second
			writer.enter(fio)
			m.run(fio)
			if after := m.ready(0); after.Daemon != before.Daemon {
				t.Errorf("the daemon %d was followed by %d", before.Daemon, after.Daemon)
			}
			t.Logf("most memory: daemon and keeper %s, writer %s", daemon.most(), writer.most())
			for _, g := range []memoryGroup{daemon, writer} {
				if n := g.kills(); n != "0" {
					t.Errorf("%s: %s processes were killed for want of memory", g.dir, n)
				}
			}
			m.run(exec.Command("umount", m.path("mnt")))
			m.run(m.command(t.Context(), "volume", "detach", "db"))
		})
	}
}

// TestServiceIsProtectedFromReclaim: daemon and keeper have their memory locked,
// and the log says so if one of them is no I/O flusher.
func TestServiceIsProtectedFromReclaim(t *testing.T) {
	m := newMachine(t)
	s := m.ready(0)
	for who, pid := range map[string]int{"keeper": s.Keeper, "daemon": s.Daemon} {
		raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
		if err != nil {
			t.Fatal(err)
		}
		if line := strings.Fields(grep(string(raw), "VmLck:")); len(line) < 2 || line[1] == "0" {
			t.Errorf("the %s's memory is not locked: %v", who, line)
		}
	}
}
