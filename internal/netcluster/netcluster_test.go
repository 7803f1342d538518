package netcluster

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
)

func newTestLedger(t *testing.T) *Ledger {
	t.Helper()
	l, err := NewLedger(filepath.Join(t.TempDir(), "ledger"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	return l
}

func TestLedgerNoticesLostRowsAndMeasuresStalls(t *testing.T) {
	l := newTestLedger(t)
	start := time.Unix(1000, 0)
	l.WatchStall(start)
	for i, at := range []time.Duration{0, 10 * time.Millisecond, 3 * time.Second, 3010 * time.Millisecond} {
		if n := l.take(); n != int64(i+1) {
			t.Fatalf("row %d is numbered %d", i+1, n)
		}
		if err := l.ack(int64(i+1), start.Add(at)); err != nil {
			t.Fatal(err)
		}
	}
	if got := l.Stall(start.Add(4 * time.Second)); got != 2990*time.Millisecond {
		t.Errorf("stall %v, want 2.99 s", got)
	}
	if got := l.Stall(start.Add(10 * time.Second)); got != 6990*time.Millisecond {
		t.Errorf("the present stall does not count: %v", got)
	}
	missing, unacked, err := l.Compare("1\n2\n4\n5\n")
	if err != nil || len(missing) != 1 || missing[0] != 3 || unacked != 1 {
		t.Errorf("missing %v, unacknowledged %d, %v; want [3], 1", missing, unacked, err)
	}
	if _, _, err := l.Compare("x"); err == nil {
		t.Error("nonsense is accepted as rows")
	}
}

func TestParseMount(t *testing.T) {
	m, ok := parseMount(`36 35 0:51 / /mnt/a\040b rw,nosuid shared:1 - fuse.holdfast hold\134fast rw,user_id=0`)
	if !ok || m.Point != "/mnt/a b" || m.Dev != "0:51" || m.Type != "fuse.holdfast" || m.Source != `hold\fast` {
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
	n := Network{Prefix: "hf-test-clean-"}
	dir := filepath.Join(t.TempDir(), "run")
	ctx := context.Background()
	t.Cleanup(func() { _ = Clean(ctx, n, dir) })
	if err := Clean(ctx, n, dir); err != nil {
		t.Fatalf("nothing to clean: %v", err)
	}
	if err := n.Up(ctx, []string{"a", "b"}); err != nil {
		t.Fatal(err)
	}
	p, err := n.StartIn("a", exec.Command("sleep", "1000"))
	if err != nil {
		t.Fatal(err)
	}
	mnt := leaveMounts(t, dir)
	if got := n.Processes(ctx); len(got) != 1 || got[0] != p.Pid() {
		t.Errorf("processes in the namespaces: %v, want %d", got, p.Pid())
	}
	if loops := LoopsBelow(dir); len(loops) != 1 {
		t.Errorf("loop devices: %v, want one", loops)
	}
	if err := Clean(ctx, n, dir); err != nil {
		t.Fatal(err)
	}
	<-p.done
	if ns, loops := n.Namespaces(), LoopsBelow(dir); len(ns) > 0 || len(loops) > 0 {
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
		if _, err := Command(t.Context(), args[0], args[1:]...); err != nil {
			t.Fatal(err)
		}
	}
	return mnt
}

// The database and its writer on an ordinary folder: rows are acknowledged,
// survive SIGKILL, and a lost database ends the writer with an error.
func TestDatabaseAndWriter(t *testing.T) {
	dir, err := os.MkdirTemp("/var/tmp", "hf-test-db-") // not t.TempDir: its parents are root's only
	if err != nil {
		t.Fatal(err)
	}
	n := Network{Prefix: "hf-test-db-"}
	ctx := context.Background()
	t.Cleanup(func() {
		_ = KillAll(ctx, func() []int { return n.Processes(ctx) })
		_ = n.Down(ctx)
		_ = os.RemoveAll(dir)
	})
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	pg, err := FindPostgres(dir, filepath.Join(dir, "pg.log"))
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Down(ctx); err != nil {
		t.Fatal(err)
	}
	if err := n.Up(ctx, []string{"a"}); err != nil {
		t.Fatal(err)
	}
	data := DataOf(dir)
	if err := pg.Create(ctx, data); err != nil {
		t.Fatal(err)
	}
	db, err := pg.Start(ctx, n, "a", data)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pg.Query(ctx, Table); err != nil {
		t.Fatal(err)
	}
	l := newTestLedger(t)
	w, err := StartWriter(ctx, pg, l)
	if err != nil {
		t.Fatal(err)
	}
	if err := Until(ctx, 20*time.Second, "write", func(context.Context) (bool, error) { return l.Count() >= 20, nil }); err != nil {
		t.Fatal(err)
	}
	if err := n.KillOn(ctx, "a"); err != nil {
		t.Fatal(err)
	}
	<-db.done
	<-w.Done()
	if err := w.Err(); !errors.Is(err, holdfast.Unavailable) {
		t.Errorf("the writer ended with %v, want unavailable", err)
	}
	if db, err = pg.Start(ctx, n, "a", data); err != nil {
		t.Fatalf("after SIGKILL: %v", err)
	}
	found, err := pg.Query(ctx, VerifyRows)
	if err != nil {
		t.Fatal(err)
	}
	if missing, _, err := l.Compare(found); err != nil || len(missing) > 0 {
		t.Errorf("missing %v, %v", missing, err)
	}
	if w, err = StartWriter(ctx, pg, l); err != nil {
		t.Fatal(err)
	}
	if err := w.End(); err != nil {
		t.Errorf("a stopped writer ended with %v", err)
	}
	db.Stop(unix.SIGINT, 10*time.Second)
}
