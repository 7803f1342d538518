package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
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

// machine is one node, its daemon under a keeper, each in a process of its own. It is
// a cluster by itself, or has neighbours whose daemons have no keeper.
type machine struct {
	t      *testing.T
	dir    string
	cfg    daemon.Config
	cmd    *exec.Cmd
	log    bytes.Buffer
	logged sync.Mutex
	ended  chan error // gets how the service has ended
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
	p := ports(t, 4)
	m := prepared(t, 1, p)
	m.cfg.Etcd.Embedded = &daemon.EmbeddedEtcd{ClientPort: p[2], PeerPort: p[3]}
	m.start(change)
	t.Cleanup(func() { m.stop(); m.end() })
	m.ready(0)
	return m
}

// newMachines starts three nodes, each with a member of the etcd. Only the first one's
// daemon has a keeper. The others have addresses of their own, since the
// members' port is the same everywhere.
func newMachines(t *testing.T) []*machine {
	t.Helper()
	p := ports(t, 4)
	members := map[string]string{}
	var all []*machine
	for n := range 3 {
		m := prepared(t, n+1, p)
		members[m.cfg.Node] = m.cfg.Address
		m.cfg.Keeper = n == 0
		m.cfg.Etcd.Embedded = &daemon.EmbeddedEtcd{ClientPort: p[2], PeerPort: p[3], Members: members}
		all = append(all, m)
	}
	for _, m := range all {
		m.start(func(*exec.Cmd) {})
	}
	t.Cleanup(func() {
		for _, m := range all {
			m.stop()
		}
		for _, m := range all {
			m.end()
		}
	})
	all[0].ready(0)
	all[0].until("three pools are there", func() bool {
		out, err := all[0].command(t.Context(), "pool", "list", "-o", "json").Output()
		return err == nil && strings.Count(string(out), `"online"`) == len(all)
	})
	return all
}

// prepared is a node before it is started, with an address of its own.
func prepared(t *testing.T, number int, ports []int) *machine {
	t.Helper()
	dir, err := os.MkdirTemp("", "hf-test-survive-")
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{t: t, dir: dir, cfg: daemon.DefaultConfig(), ended: make(chan error, 1)}
	c := &m.cfg
	c.Node, c.Address, c.DataPort, c.NodePort, c.CSI = fmt.Sprint("n", number), fmt.Sprint("127.0.0.", number), ports[0], ports[1], ""
	c.API = []string{"unix://" + m.path("api.sock")}
	c.StateDir, c.RunDir = m.path("state"), m.path("run")
	c.Pools = []agent.PoolConfig{{Path: m.path("pool.img"), Format: true, ImageBytes: 2 << 30}}
	return m
}

// start starts the service.
func (m *machine) start(change func(*exec.Cmd)) {
	m.t.Helper()
	raw, err := yaml.Marshal(m.cfg)
	if err == nil {
		err = os.WriteFile(m.path("node.yaml"), raw, 0o600)
	}
	if err != nil {
		m.t.Fatal(err)
	}
	m.cmd = m.command(context.Background(), "node", "--config", m.path("node.yaml"))
	m.cmd.Stdout, m.cmd.Stderr = m, m
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	change(m.cmd)
	if err := m.cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	go func() { m.ended <- m.cmd.Wait() }()
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
	for deadline := time.Now().Add(5 * time.Minute); ; {
		s, err := keeper.ReadStatus(m.cfg.KeeperStatus())
		if err == nil && s.Ready && s.Daemon != not {
			return s
		}
		if time.Now().After(deadline) {
			m.fatalf("no daemon works after five minutes: %+v, %v", s, err)
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

// until waits for what takes seconds at most.
func (m *machine) until(what string, f func() bool) {
	m.t.Helper()
	for deadline := time.Now().Add(5 * time.Minute); !f(); {
		if time.Now().After(deadline) {
			m.fatalf("not after five minutes: %s", what)
		}
		<-time.After(20 * time.Millisecond)
	}
}

// stop asks the service to end.
func (m *machine) stop() {
	_ = exec.Command("umount", "-l", m.path("mnt")).Run()
	if m.cmd != nil && m.cmd.Process != nil {
		_ = m.cmd.Process.Signal(syscall.SIGTERM)
	}
}

// end waits for the end of the service and removes everything, also after a failure.
func (m *machine) end() {
	select {
	case err := <-m.ended:
		if err != nil {
			m.t.Errorf("the service ended with %v:\n%s", err, m.log.String())
		}
	case <-time.After(3 * time.Minute):
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

// attach makes a volume with so many replicas, attaches, formats and mounts it.
func (m *machine) attach(fsType string, replicas int) {
	m.t.Helper()
	ctx := m.t.Context()
	m.run(m.command(ctx, "volume", "create", "db", "--size", "512MiB", "--replicas", fmt.Sprint(replicas), "--fs", fsType))
	device := m.deviceOn("n1")
	m.run(exec.Command("mkfs."+fsType, "-q", device))
	if err := os.Mkdir(m.path("mnt"), 0o700); err != nil {
		m.t.Fatal(err)
	}
	m.run(exec.Command("mount", device, m.path("mnt")))
}

// deviceOn attaches the volume to a node and gives its device.
func (m *machine) deviceOn(node string) string {
	m.t.Helper()
	ctx := m.t.Context()
	m.run(m.command(ctx, "volume", "attach", "db", "--node", node))
	device := m.inspect().Live.DevicePath
	if device == "" {
		m.fatalf("no device on node %s", node)
	}
	return device
}

// volume is what the tests use of it.
type volume struct {
	ID       string
	Replicas []struct{ State string }
	Live     struct{ DevicePath string }
}

func (m *machine) inspect() (v volume) {
	m.t.Helper()
	raw := m.run(m.command(m.t.Context(), "volume", "inspect", "db", "-o", "json"))
	if err := json.Unmarshal([]byte(raw), &v); err != nil {
		m.fatalf("%v in %s", err, raw)
	}
	return v
}

// inSync counts the replicas in sync.
func (m *machine) inSync() (n int) {
	m.t.Helper()
	for _, r := range m.inspect().Replicas {
		if r.State == "in-sync" {
			n++
		}
	}
	return n
}

// said says whether the service's output has a text.
func (m *machine) said(text string) bool {
	m.logged.Lock()
	defer m.logged.Unlock()
	return strings.Contains(m.log.String(), text)
}

// metric reads a metric without labels of the daemon.
func (m *machine) metric(name string) string {
	m.t.Helper()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", m.path("api.sock"))
	}}
	defer transport.CloseIdleConnections()
	q, err := http.NewRequestWithContext(m.t.Context(), http.MethodGet, "http://localhost/metrics", nil)
	if err != nil {
		m.t.Fatal(err)
	}
	r, err := transport.RoundTrip(q)
	if err != nil {
		m.fatalf("%v", err)
	}
	defer r.Body.Close()
	page, err := io.ReadAll(r.Body)
	if err != nil {
		m.fatalf("%v", err)
	}
	for line := range strings.Lines(string(page)) {
		if v, ok := strings.CutPrefix(line, name+" "); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
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
