package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/holdfast-storage/holdfast/daemon"
	"github.com/holdfast-storage/holdfast/node/agent"
	"github.com/holdfast-storage/holdfast/node/keeper"
)

// asProgram makes the test binary the program itself.
const asProgram = "HOLDFAST_TEST_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
	}
	os.Exit(m.Run())
}

// machine is a cluster of one, its daemon under a keeper in processes of their own.
type machine struct {
	t      *testing.T
	dir    string
	cfg    daemon.Config
	cmd    *exec.Cmd
	log    bytes.Buffer
	logged sync.Mutex
}

// Write implements io.Writer for the daemon's output.
func (m *machine) Write(p []byte) (int, error) {
	m.logged.Lock()
	defer m.logged.Unlock()
	return m.log.Write(p)
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	return newMachineBy(t, func(*exec.Cmd) {})
}

// newMachineBy starts the service by a command that the caller may change.
func newMachineBy(t *testing.T, change func(*exec.Cmd)) *machine {
	t.Helper()
	dir, err := os.MkdirTemp("", "hf-test-survive-")
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{t: t, dir: dir, cfg: daemon.DefaultConfig()}
	p := ports(t, 4)
	c := &m.cfg
	c.Node, c.DataPort, c.NodePort, c.CSI = "n1", p[0], p[1], ""
	c.API = []string{"unix://" + m.path("api.sock")}
	c.StateDir, c.RunDir = m.path("state"), m.path("run")
	c.Etcd.Embedded = &daemon.EmbeddedEtcd{ClientPort: p[2], PeerPort: p[3]}
	c.Pools = []agent.PoolConfig{{Path: m.path("pool.img"), Format: true, ImageBytes: 2 << 30}}
	raw, err := yaml.Marshal(m.cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(m.path("node.yaml"), raw, 0o600); err != nil {
		t.Fatal(err)
	}
	m.cmd = m.command(context.Background(), "node", "--config", m.path("node.yaml"))
	m.cmd.Stdout, m.cmd.Stderr = m, m
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	change(m.cmd)
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.end)
	m.ready(0)
	return m
}

func ports(t *testing.T, n int) []int {
	t.Helper()
	var all []int
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		all = append(all, l.Addr().(*net.TCPAddr).Port)
	}
	return all
}

func (m *machine) path(name string) string { return filepath.Join(m.dir, name) }

func (m *machine) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), asProgram+"=1", "HOLDFAST_ENDPOINT="+m.cfg.API[0])
	return cmd
}

// ready waits for a daemon that works and is another one than this process.
func (m *machine) ready(not int) keeper.Status {
	m.t.Helper()
	for deadline := time.Now().Add(time.Minute); ; {
		s, err := keeper.ReadStatus(m.cfg.KeeperStatus())
		if err == nil && s.Ready && s.Daemon != not {
			return s
		}
		if time.Now().After(deadline) {
			m.fatalf("no daemon works after a minute: %+v, %v", s, err)
		}
		<-time.After(5 * time.Millisecond)
	}
}

func (m *machine) fatalf(format string, a ...any) {
	m.t.Helper()
	m.logged.Lock()
	defer m.logged.Unlock()
	m.t.Fatalf(format+"\n%s", append(a, m.log.String())...)
}

// run runs a command and returns its output.
func (m *machine) run(cmd *exec.Cmd) string {
	m.t.Helper()
	out, err := cmd.CombinedOutput()
	if err != nil {
		m.fatalf("%v: %v\n%s", cmd.Args, err, out)
	}
	return string(out)
}

// end stops everything and removes it, also after a failure.
func (m *machine) end() {
	_ = exec.Command("umount", "-l", m.path("mnt")).Run()
	_ = m.cmd.Process.Signal(syscall.SIGTERM)
	ended := make(chan error, 1)
	go func() { ended <- m.cmd.Wait() }()
	select {
	case err := <-ended:
		if err != nil {
			m.t.Errorf("the service ended with %v:\n%s", err, m.log.String())
		}
	case <-time.After(time.Minute):
		if s, err := keeper.ReadStatus(m.cfg.KeeperStatus()); err == nil {
			_ = syscall.Kill(s.Daemon, syscall.SIGQUIT) // which says what it is at
			<-time.After(3 * time.Second)
			_ = syscall.Kill(s.Daemon, syscall.SIGKILL)
		}
		_ = m.cmd.Process.Kill()
		m.logged.Lock()
		defer m.logged.Unlock()
		m.t.Errorf("the service does not end:\n%s", m.log.String())
	}
	if mounts, _ := os.ReadFile("/proc/mounts"); strings.Contains(string(mounts), m.dir) {
		m.t.Errorf("still mounted:\n%s", mounts)
	}
	_ = os.RemoveAll(m.dir)
}

// attach makes a volume, attaches, formats and mounts it.
func (m *machine) attach(fsType string) (device string) {
	m.t.Helper()
	ctx := m.t.Context()
	m.run(m.command(ctx, "volume", "create", "db", "--size", "512MiB", "--replicas", "1", "--fs", fsType))
	m.run(m.command(ctx, "volume", "attach", "db", "--node", "n1"))
	var v struct{ Live struct{ DevicePath string } }
	raw := m.run(m.command(ctx, "volume", "inspect", "db", "-o", "json"))
	if err := json.Unmarshal([]byte(raw), &v); err != nil {
		m.fatalf("%v in %s", err, raw)
	}
	if device = v.Live.DevicePath; device == "" {
		m.fatalf("no device in %s", raw)
	}
	m.run(exec.Command("mkfs."+fsType, "-q", device))
	if err := os.Mkdir(m.path("mnt"), 0o700); err != nil {
		m.t.Fatal(err)
	}
	m.run(exec.Command("mount", device, m.path("mnt")))
	return device
}

// TestApplicationsDoNotNoticeThatTheDaemonIsKilled: a verifying load on a mounted
// volume sees no error while the daemon, with all of the metadata in it, is killed
// again and again, and upgraded.
func TestApplicationsDoNotNoticeThatTheDaemonIsKilled(t *testing.T) {
	for _, fsType := range []string{"xfs", "ext4"} {
		t.Run(fsType, func(t *testing.T) {
			m := newMachine(t)
			m.attach(fsType)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			fio := exec.CommandContext(ctx, "fio", "--name=verify", "--directory="+m.path("mnt"), "--size=64m", "--rw=randwrite", "--bs=4k", "--ioengine=libaio",
				"--iodepth=16", "--direct=1", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--loops=1000", "--time_based", "--runtime=5", "--fsync=64", "--thread")
			fio.Dir = m.dir // where it leaves its state
			var out bytes.Buffer
			fio.Stdout, fio.Stderr = &out, &out
			if err := fio.Start(); err != nil {
				t.Fatal(err)
			}
			done := make(chan error, 1)
			go func() { done <- fio.Wait() }()
			kills := 0
			for ended := false; !ended; kills++ {
				s := m.ready(0)
				if kills%4 == 3 {
					if got := m.run(m.command(t.Context(), "node", "upgrade", "--config", m.path("node.yaml"))); !strings.Contains(got, fmt.Sprint(s.Daemon)) {
						t.Errorf("upgrade said %q", got)
					}
				} else if err := syscall.Kill(s.Daemon, syscall.SIGKILL); err != nil {
					t.Fatal(err)
				} else {
					m.ready(s.Daemon)
				}
				select {
				case err := <-done:
					ended = true
					if err != nil {
						m.fatalf("fio: %v\n%s", err, out.String())
					}
				case <-time.After(300 * time.Millisecond):
				}
			}
			t.Logf("%d ends of the daemon\n%s", kills, grep(out.String(), "clat (", "lat (", "iops"))
			m.run(exec.Command("umount", m.path("mnt")))
			m.run(m.command(t.Context(), "volume", "detach", "db"))
		})
	}
}

func grep(text string, words ...string) string {
	var out strings.Builder
	for line := range strings.Lines(text) {
		for _, w := range words {
			if strings.Contains(line, w) {
				out.WriteString(line)
				break
			}
		}
	}
	return out.String()
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
