package netcluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/mountpoint"
)

// pair is a network of two nodes.
func pair(t *testing.T, prefix string) (n Network, a, b Place) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("run the tests as root: they make namespaces")
	}
	n = Network{Prefix: prefix}
	dir := filepath.Join(t.TempDir(), "run")
	clean := func() error { return Clean(context.Background(), n, dir) }
	if err := clean(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := clean(); err != nil {
			t.Error(err)
		}
	})
	if err := n.Up(t.Context(), []string{"a", "b"}); err != nil {
		t.Fatal(err)
	}
	return n, Place{"a", 0}, Place{"b", 1}
}

// socket is a UDP socket on a node.
func socket(t *testing.T, n Network, p Place) net.PacketConn {
	t.Helper()
	var c net.PacketConn
	err := n.Inside(n.Node(p.ID), func() error {
		var err error
		c, err = net.ListenPacket("udp4", n.Address(p.Number)+":7000")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// arrives says whether a packet gets from one to the other; it tries until the
// answer is the wanted one.
func arrives(t *testing.T, from, to net.PacketConn, want bool) bool {
	t.Helper()
	got := !want
	_ = Until(t.Context(), 5*time.Second, "send", func(context.Context) (bool, error) {
		if _, err := from.WriteTo([]byte("x"), to.LocalAddr()); err != nil {
			got = false
			return got == want, err
		}
		_ = to.SetReadDeadline(time.Now().Add(150 * time.Millisecond))
		_, _, err := to.ReadFrom(make([]byte, 10))
		got = err == nil
		return got == want, err
	})
	return got
}

func TestDeafIsOneWay(t *testing.T) {
	n, a, b := pair(t, "hf-test-net-")
	sa, sb := socket(t, n, a), socket(t, n, b)
	expect := func(when string, ab, ba bool) {
		t.Helper()
		if arrives(t, sa, sb, ab) != ab || arrives(t, sb, sa, ba) != ba {
			t.Errorf("%s: wanted a to b %v, b to a %v", when, ab, ba)
		}
	}
	expect("at first", true, true)
	for _, step := range []struct {
		name   string
		do     func(context.Context) error
		ab, ba bool
	}{
		{"b is deaf to a", func(ctx context.Context) error { return n.Deafen(ctx, a, b) }, false, true},
		{"healed", func(ctx context.Context) error { return n.Hear(ctx, a, b) }, true, true},
		{"a is deaf to b", func(ctx context.Context) error { return n.Deafen(ctx, b, a) }, true, false},
		{"healed again", func(ctx context.Context) error { return n.Hear(ctx, b, a) }, true, true},
		{"cut", func(ctx context.Context) error { return n.Cut(ctx, "a") }, false, false},
		{"mended", func(ctx context.Context) error { return n.Mend(ctx, "a") }, true, true},
	} {
		if err := step.do(t.Context()); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		expect(step.name, step.ab, step.ba)
	}
}

// TestLinksOfANodeWithoutPower: the commands that change a node's links are in its
// namespace for a moment, where a power cut ends all that runs.
func TestLinksOfANodeWithoutPower(t *testing.T) {
	n, a, b := pair(t, "hf-test-cut-")
	ctx, cancel := context.WithCancel(t.Context())
	cuts := make(chan error, 1)
	go func() {
		var err error
		for pace := time.NewTicker(15 * time.Millisecond); ctx.Err() == nil && err == nil; <-pace.C {
			for _, pid := range ProcessesIn(ctx, n.Node("a")) {
				if err = unix.Kill(pid, unix.SIGKILL); errors.Is(err, unix.ESRCH) {
					err = nil
				}
			}
		}
		cuts <- err
	}()
	for range 25 {
		if err := errors.Join(n.Deafen(ctx, a, b), n.Hear(ctx, a, b), n.Lose(ctx, "a", 5), n.Keep(ctx, "a"), n.Slow(ctx, "a"), n.Hurry(ctx, "a")); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	if err := <-cuts; err != nil {
		t.Error(err)
	}
}

func TestBadLinks(t *testing.T) {
	n, a, b := pair(t, "hf-test-bad-")
	sa, sb := socket(t, n, a), socket(t, n, b)
	ctx := t.Context()
	for range 2 { // twice the end of each is fine
		if err := errors.Join(n.Keep(ctx, "b"), n.Hurry(ctx, "a")); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.Lose(ctx, "b", 99); err != nil {
		t.Fatal(err)
	}
	if arrives(t, sa, sb, false) || !arrives(t, sb, sa, true) {
		t.Error("b loses what reaches it, and nothing else")
	}
	if err := errors.Join(n.Keep(ctx, "b"), n.Slow(ctx, "a"), n.Slow(ctx, "a")); err != nil {
		t.Fatal(err)
	}
	if !arrives(t, sa, sb, true) {
		t.Error("nothing arrives by a slow link")
	}
	if err := n.Hurry(ctx, "a"); err != nil {
		t.Fatal(err)
	}
}

func TestLockIsTakenOnceAndFreedByAnEndedHolder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	never := func() error { return errors.New("nothing is to be cleaned for a holder that lives") }
	unlock, err := Lock(path, never)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Lock(path, never); !errors.Is(err, holdfast.InUse) {
		t.Errorf("got %v while it is held, want InUse", err)
	}
	unlock()
	unlock, err = Lock(path, never)
	if err != nil {
		t.Errorf("got %v when it is free", err)
	}
	unlock()
}

// A holder that was killed, but hangs, is a zombie with threads that hold files:
// here the one is a zombie, and the other one this test.
func TestLockOfAKilledHolderIsTakenAfterCleaning(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	dead := exec.Command("true")
	if err := dead.Start(); err != nil {
		t.Fatal(err)
	}
	var info unix.Siginfo
	if err := unix.Waitid(unix.P_PID, dead.Process.Pid, &info, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dead.Wait() }()
	holder, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Close()
	if err := errors.Join(writeAtStart(holder, fmt.Sprintln(dead.Process.Pid)), unix.Flock(int(holder.Fd()), unix.LOCK_EX)); err != nil {
		t.Fatal(err)
	}
	cleaned := false
	unlock, err := Lock(path, func() error {
		cleaned = true
		return unix.Flock(int(holder.Fd()), unix.LOCK_UN)
	})
	if err != nil || !cleaned {
		t.Fatalf("cleaned %v, %v", cleaned, err)
	}
	unlock()
}

// A pool's disk that stalls, breaks, or loses what was not synced.
func TestDisksStallBreakAndForget(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("run the tests as root: they mount filesystems")
	}
	dir := t.TempDir()
	image, mount := filepath.Join(dir, "pool.img"), filepath.Join(dir, "n1/run/pools/p")
	t.Cleanup(func() {
		if err := Forget(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.MkdirAll(mount, 0o755); err != nil {
		t.Fatal(err)
	}
	mustRun(t, "truncate", "-s", "320M", image)
	mustRun(t, "mkfs.xfs", "-q", image)
	mustRun(t, "mount", "-o", "loop", image, mount)
	pools, err := PoolsBelow(dir)
	if err != nil || len(pools) != 1 || pools[0] != mount {
		t.Fatalf("pools %v, %v", pools, err)
	}
	mustRun(t, "sh", "-c", "echo kept >"+mount+"/synced; sync")
	if err := StallDisk(mount); err != nil {
		t.Fatal(err)
	}
	wrote := make(chan error, 1)
	go func() { wrote <- os.WriteFile(filepath.Join(mount, "late"), nil, 0o600) }()
	select {
	case err := <-wrote:
		t.Errorf("a write while it stalls ended: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	if err := thawBelow(dir); err != nil {
		t.Fatal(err)
	}
	if err := <-wrote; err != nil {
		t.Fatal(err)
	}
	mustRun(t, "sh", "-c", "echo lost >"+mount+"/not-synced")
	if err := UnplugDisk(mount); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(mount, "x"), nil, 0o600); !errors.Is(err, unix.EIO) {
		t.Errorf("a write without power gives %v", err)
	}
	mustRun(t, "umount", mount)
	mustRun(t, "mount", "-o", "loop", image, mount)
	if raw, err := os.ReadFile(filepath.Join(mount, "synced")); err != nil || string(raw) != "kept\n" {
		t.Errorf("what was synced: %q, %v", raw, err)
	}
	if raw, err := os.ReadFile(filepath.Join(mount, "not-synced")); err == nil && len(raw) > 0 {
		t.Errorf("what was not synced is there: %q", raw)
	}
	if err := BreakDisk(mount); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(mount, "x"), nil, 0o600); !errors.Is(err, unix.EIO) {
		t.Errorf("a write to a broken disk gives %v", err)
	}
	if err := ThawDisk(mount); err != nil {
		t.Errorf("thaw a broken one: %v", err)
	}
}

func mustRun(t *testing.T, name string, args ...string) {
	t.Helper()
	if _, err := Command(t.Context(), name, args...); err != nil {
		t.Fatal(err)
	}
}

// A daemon that was killed leaves the folders guarded on which it had mounted
// volumes; they must not stop the next run.
func TestCleanRemovesBareMountPoints(t *testing.T) {
	dir, err := os.MkdirTemp("/var/tmp", "hf-test-bare-")
	if err != nil {
		t.Fatal(err)
	}
	target, block := filepath.Join(dir, "n1/pods/db/data"), filepath.Join(dir, "n1/pods/raw")
	err = errors.Join(os.MkdirAll(target, 0o755), os.WriteFile(block, nil, 0o600), mountpoint.Guard(target), mountpoint.Guard(block))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(dir); err == nil {
		t.Fatal("the test proves nothing: guarded folders were removed")
	}
	if err := Clean(context.Background(), Network{Prefix: "hf-test-bare-"}, dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder is left: %v", err)
	}
}
