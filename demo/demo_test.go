package demo

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
)

func TestTimelineShowsEventsInOrderAndAgainAtTheEnd(t *testing.T) {
	var b bytes.Buffer
	tl := newTimeline(&b, false)
	tl.note("one %d", 1)
	tl.watch(func() string { return "live" })
	tl.note("two")
	tl.close()
	if got := tl.summary(); strings.Count(got, "\n") != 2 || !strings.Contains(got, "one 1") || strings.Index(got, "one") > strings.Index(got, "two") {
		t.Errorf("summary:\n%s", got)
	}
	if strings.Contains(b.String(), "live") {
		t.Errorf("the live line is drawn although this is no terminal:\n%s", b.String())
	}
}

func newTestLedger(t *testing.T) *ledger {
	t.Helper()
	l, err := newLedger(filepath.Join(t.TempDir(), "ledger"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.close)
	return l
}

func TestLedgerNoticesLostRowsAndMeasuresStalls(t *testing.T) {
	l := newTestLedger(t)
	start := time.Unix(1000, 0)
	l.watchStall(start)
	for i, at := range []time.Duration{0, 10 * time.Millisecond, 3 * time.Second, 3010 * time.Millisecond} {
		if n := l.take(); n != int64(i+1) {
			t.Fatalf("row %d is numbered %d", i+1, n)
		}
		if err := l.ack(int64(i+1), start.Add(at)); err != nil {
			t.Fatal(err)
		}
	}
	if got := l.stall(start.Add(4 * time.Second)); got != 2990*time.Millisecond {
		t.Errorf("stall %v, want 2.99 s", got)
	}
	if got := l.stall(start.Add(10 * time.Second)); got != 6990*time.Millisecond {
		t.Errorf("the present stall does not count: %v", got)
	}
	missing, unacked, err := l.compare("1\n2\n4\n5\n")
	if err != nil || len(missing) != 1 || missing[0] != 3 || unacked != 1 {
		t.Errorf("missing %v, unacknowledged %d, %v; want [3], 1", missing, unacked, err)
	}
	if _, _, err := l.compare("x"); err == nil {
		t.Error("nonsense is accepted as rows")
	}
}

func TestParseMount(t *testing.T) {
	m, ok := parseMount(`36 35 0:51 / /mnt/a\040b rw,nosuid shared:1 - fuse.holdfast hold\134fast rw,user_id=0`)
	if !ok || m.point != "/mnt/a b" || m.dev != "0:51" || m.fsType != "fuse.holdfast" || m.source != `hold\fast` {
		t.Errorf("got %+v, %v", m, ok)
	}
	if _, ok := parseMount("nonsense"); ok {
		t.Error("nonsense is accepted")
	}
}

// Everything that a killed run leaves: namespaces with processes in them, a loop
// device with a mounted filesystem, a nested mount.
func TestCleanRemovesWhatAKilledRunLeft(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("run the tests as root: they make namespaces and mounts")
	}
	n := network{prefix: "hf-test-demo-"}
	dir := filepath.Join(t.TempDir(), "run")
	ctx := context.Background()
	t.Cleanup(func() { _ = clean(ctx, n, dir) })
	if err := clean(ctx, n, dir); err != nil {
		t.Fatalf("nothing to clean: %v", err)
	}
	if err := n.up(ctx, []string{"a", "b"}); err != nil {
		t.Fatal(err)
	}
	p, err := n.startIn("a", exec.Command("sleep", "1000"))
	if err != nil {
		t.Fatal(err)
	}
	mnt := leaveMounts(t, dir)
	if got := n.processes(ctx); len(got) != 1 || got[0] != p.cmd.Process.Pid {
		t.Errorf("processes in the namespaces: %v, want %d", got, p.cmd.Process.Pid)
	}
	if loops := loopsBelow(dir); len(loops) != 1 {
		t.Errorf("loop devices: %v, want one", loops)
	}
	if err := clean(ctx, n, dir); err != nil {
		t.Fatal(err)
	}
	<-p.done
	if ns, loops := n.namespaces(), loopsBelow(dir); len(ns) > 0 || len(loops) > 0 {
		t.Errorf("left: namespaces %v, loop devices %v", ns, loops)
	}
	if _, err := os.Stat(mnt); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder is still there: %v", err)
	}
}

// leaveMounts mounts an XFS in an image file, with a bind mount of a part of it.
func leaveMounts(t *testing.T, dir string) string {
	t.Helper()
	mnt, bind, img := filepath.Join(dir, "n1", "mnt"), filepath.Join(dir, "n1", "bind"), filepath.Join(dir, "n1", "img")
	for _, d := range []string{mnt, bind} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, args := range [][]string{{"truncate", "-s", "400M", img}, {"mkfs.xfs", "-q", img}, {"mount", "-o", "loop", img, mnt}, {"mount", "--bind", mnt, bind}} {
		if _, err := command(t.Context(), args[0], args[1:]...); err != nil {
			t.Fatal(err)
		}
	}
	return mnt
}

func TestTheNetworkCarriesAndCuts(t *testing.T) {
	n := network{prefix: "hf-test-net-"}
	ctx := context.Background()
	t.Cleanup(func() {
		_ = killAll(ctx, func() []int { return n.processes(ctx) })
		if err := n.down(ctx); err != nil {
			t.Error(err)
		}
	})
	if err := n.down(ctx); err != nil {
		t.Fatal(err)
	}
	if err := n.up(ctx, []string{"a", "b"}); err != nil {
		t.Fatal(err)
	}
	reach := func() bool { return n.inside(n.node("a"), func() error { return dialOnce(n.address(1)) }) == nil }
	// A closed port answers at once with a refusal: that is reachability.
	reachable := func(context.Context) (bool, error) { return reach(), nil }
	if err := until(ctx, 10*time.Second, "reach b from a", reachable); err != nil { // links come up within a moment
		t.Fatal(err)
	}
	if err := n.cut(ctx, "b"); err != nil {
		t.Fatal(err)
	}
	if reach() {
		t.Error("b is reached although its link is cut")
	}
	if err := n.mend(ctx, "b"); err != nil {
		t.Fatal(err)
	}
	if err := until(ctx, 10*time.Second, "reach b again", reachable); err != nil {
		t.Error(err)
	}
}

// dialOnce is nil when somebody at the address answers within 300 ms, if only
// with a refusal.
func dialOnce(ip string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	tv := unix.NsecToTimeval((300 * time.Millisecond).Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv); err != nil {
		return err
	}
	sa := &unix.SockaddrInet4{Port: 9}
	copy(sa.Addr[:], parse4(ip))
	err = unix.Connect(fd, sa)
	if errors.Is(err, unix.ECONNREFUSED) {
		return nil
	}
	return err
}

func parse4(s string) []byte {
	out := make([]byte, 4)
	for i, p := range strings.Split(s, ".") {
		for _, c := range p {
			out[i] = out[i]*10 + byte(c-'0')
		}
	}
	return out
}

// The database and its writer on an ordinary folder: rows are acknowledged,
// survive SIGKILL, and a lost database ends the writer with an error.
func TestDatabaseAndWriter(t *testing.T) {
	dir, err := os.MkdirTemp("/var/tmp", "hf-test-db-") // not t.TempDir: its parents are root's only
	if err != nil {
		t.Fatal(err)
	}
	n := network{prefix: "hf-test-db-"}
	ctx := context.Background()
	t.Cleanup(func() {
		_ = killAll(ctx, func() []int { return n.processes(ctx) })
		_ = n.down(ctx)
		_ = os.RemoveAll(dir)
	})
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	pg, err := findPostgres(dir, filepath.Join(dir, "pg.log"))
	if err != nil {
		t.Fatal(err)
	}
	if err := n.down(ctx); err != nil {
		t.Fatal(err)
	}
	if err := n.up(ctx, []string{"a"}); err != nil {
		t.Fatal(err)
	}
	data := dataOf(dir)
	if err := pg.create(ctx, data); err != nil {
		t.Fatal(err)
	}
	db, err := pg.start(ctx, n, "a", data)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pg.query(ctx, table); err != nil {
		t.Fatal(err)
	}
	l := newTestLedger(t)
	w, err := startWriter(ctx, pg, l)
	if err != nil {
		t.Fatal(err)
	}
	if err := until(ctx, 20*time.Second, "write", func(context.Context) (bool, error) { return l.count() >= 20, nil }); err != nil {
		t.Fatal(err)
	}
	if err := n.killOn(ctx, "a"); err != nil {
		t.Fatal(err)
	}
	<-db.done
	if err := <-w.done; !errors.Is(err, holdfast.Unavailable) {
		t.Errorf("the writer ended with %v, want unavailable", err)
	}
	if db, err = pg.start(ctx, n, "a", data); err != nil {
		t.Fatalf("after SIGKILL: %v", err)
	}
	found, err := pg.query(ctx, verifyRows)
	if err != nil {
		t.Fatal(err)
	}
	if missing, _, err := l.compare(found); err != nil || len(missing) > 0 {
		t.Errorf("missing %v, %v", missing, err)
	}
	if w, err = startWriter(ctx, pg, l); err != nil {
		t.Fatal(err)
	}
	if err := w.end(); err != nil {
		t.Errorf("a stopped writer ended with %v", err)
	}
	db.stop(unix.SIGINT, 10*time.Second)
}
