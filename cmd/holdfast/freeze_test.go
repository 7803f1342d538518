package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast/internal/grpcstatus"
	"github.com/holdfast-storage/holdfast/internal/rpc"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

// node is the daemon's service for other nodes.
func (m *machine) node() holdfastv1.NodeServiceClient {
	m.t.Helper()
	conns := rpc.NewConns(rpc.Config{CallTimeout: 30 * time.Second})
	m.t.Cleanup(func() { _ = conns.Close() })
	cc, err := conns.Conn(fmt.Sprintf("%s:%d", m.cfg.Address, m.cfg.NodePort))
	if err != nil {
		m.fatalf("%v", err)
	}
	return holdfastv1.NewNodeServiceClient(cc)
}

// write begins to write a file on the volume; the channel is closed when it is
// done. It is a process of its own, as it may wait for a long time.
func (m *machine) write(name string) chan struct{} {
	done := make(chan struct{})
	cmd := exec.Command("sh", "-ec", `echo "$1" > "$2"`, "sh", name, filepath.Join(m.path("mnt"), name))
	go func() {
		defer close(done)
		if out, err := cmd.CombinedOutput(); err != nil {
			m.t.Errorf("write %s: %v: %s", name, err, out)
		}
	}()
	return done
}

func (m *machine) mustWait(done chan struct{}) {
	m.t.Helper()
	select {
	case <-done:
		m.fatalf("a write to a frozen filesystem is done")
	case <-time.After(200 * time.Millisecond):
	}
}

func (m *machine) mustEnd(done chan struct{}) {
	m.t.Helper()
	select {
	case <-done:
	case <-time.After(40 * time.Second):
		m.fatalf("a write still waits")
	}
}

// shows mounts a clone of a snapshot without repairing anything, and says whether a
// file is there.
func (m *machine) shows(snapshot, fsType, file string) bool {
	m.t.Helper()
	ctx, clone := m.t.Context(), "clone-of-"+snapshot
	m.run(m.command(ctx, "volume", "create", clone, "--from-snapshot", snapshot))
	m.run(m.command(ctx, "volume", "attach", clone, "--node", "n1"))
	var v struct{ Live struct{ DevicePath string } }
	if err := json.Unmarshal([]byte(m.run(m.command(ctx, "volume", "inspect", clone, "-o", "json"))), &v); err != nil {
		m.fatalf("%v", err)
	}
	dir := m.path(clone)
	if err := os.Mkdir(dir, 0o700); err != nil {
		m.fatalf("%v", err)
	}
	options := map[string]string{"xfs": "ro,norecovery,nouuid", "ext4": "ro,noload"}[fsType]
	m.run(exec.Command("mount", "-o", options, v.Live.DevicePath, dir))
	text, err := exec.Command("cat", filepath.Join(dir, file)).Output()
	m.run(exec.Command("umount", dir))
	m.run(m.command(ctx, "volume", "detach", clone))
	return err == nil && strings.TrimSpace(string(text)) == file
}

// TestFreeze: a snapshot of a mounted filesystem under load is one of a clean
// filesystem if that is asked for; and the filesystem goes on when the daemon is
// killed while it is frozen, and when nobody thaws it.
func TestFreeze(t *testing.T) {
	for _, fsType := range []string{"xfs", "ext4"} {
		t.Run(fsType, func(t *testing.T) {
			m := newMachine(t)
			status := m.ready(0)
			m.attach(fsType, 1)
			t.Cleanup(func() { _ = exec.Command("umount", "-l", m.path("clone-of-frozen")).Run() })
			m.mustEnd(m.write("unsynced")) // nobody flushes it
			out := m.run(m.command(t.Context(), "snapshot", "create", "db", "frozen", "--freeze"))
			if !strings.Contains(out, "filesystem-consistent") {
				t.Errorf("it says %q", out)
			}
			m.mustEnd(m.write("afterwards"))
			if !m.shows("frozen", fsType, "unsynced") {
				t.Error("what was written before is not in the snapshot")
			}
			v := m.inspect()
			m.killedWhileFrozen(v.ID, status.Daemon)
			m.forgotten(v.ID)
		})
	}
}

// killedWhileFrozen kills the daemon, which nobody else can thaw for.
func (m *machine) killedWhileFrozen(volume string, daemon int) {
	m.t.Helper()
	r, err := m.node().Freeze(m.t.Context(), &holdfastv1.FreezeRequest{VolumeId: volume, Token: "killed", LimitMillis: 60_000})
	if err != nil || !r.GetFrozen() {
		m.fatalf("frozen %v, %v", r.GetFrozen(), err)
	}
	w := m.write("while the daemon is killed")
	m.mustWait(w)
	if err := syscall.Kill(daemon, syscall.SIGKILL); err != nil {
		m.fatalf("%v", err)
	}
	m.mustEnd(w) // long before the limit
	m.ready(daemon)
}

// forgotten freezes, and never thaws.
func (m *machine) forgotten(volume string) {
	m.t.Helper()
	n := m.node()
	freeze := func() error {
		r, err := n.Freeze(m.t.Context(), &holdfastv1.FreezeRequest{VolumeId: volume, Token: "forgotten", LimitMillis: 1000})
		if err == nil && !r.GetFrozen() {
			m.fatalf("it is mounted, and was not frozen")
		}
		return grpcstatus.From(err)
	}
	for err := freeze(); err != nil; err = freeze() { // once the next daemon serves it
		select {
		case <-time.After(50 * time.Millisecond):
		case <-m.t.Context().Done():
			m.fatalf("%v", err)
		}
	}
	m.mustEnd(m.write("while nobody thaws"))
	if _, err := n.Thaw(m.t.Context(), &holdfastv1.ThawRequest{VolumeId: volume, Token: "forgotten"}); err == nil {
		m.t.Error("the freeze was held, it says")
	}
}
