package keeper

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
)

// TestMain is the daemon in the processes that the tests' keeper starts: it does
// what the lines of the file named by its argument say, one after the other, and
// writes down what it found in the file beside it.
func TestMain(m *testing.M) {
	if os.Getenv(Env) == "" {
		os.Exit(m.Run())
	}
	if err := daemon(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "daemon:", err)
		os.Exit(9)
	}
}

func daemon(script string) error {
	c, err := FromEnv()
	if err != nil {
		return err
	}
	over := make(chan os.Signal, 1)
	signal.Notify(over, HandOver, syscall.SIGTERM)
	said, err := os.OpenFile(script+".said", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	held, err := c.List()
	if err != nil {
		return err
	}
	fmt.Fprintf(said, "pid %d\n", os.Getpid())
	for _, h := range held {
		f := os.NewFile(uintptr(h.FD), h.Key)
		raw, err := io.ReadAll(io.NewSectionReader(f, 0, 100))
		fmt.Fprintf(said, "held %s %q %q %v\n", h.Key, h.Note, raw, err)
		_ = f.Close()
	}
	text, err := os.ReadFile(script)
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		if err := do(c, strings.Fields(line), over); err != nil {
			return err
		}
	}
	fmt.Fprintln(said, "done")
	s := <-over
	fmt.Fprintln(said, "told", s)
	return nil
}

func do(c *Client, w []string, over <-chan os.Signal) error {
	switch w[0] {
	case "put":
		f, err := os.Open(w[2])
		if err != nil {
			return err
		}
		defer f.Close()
		return c.Put(w[1], []byte("note of "+w[1]), int(f.Fd()))
	case "drop":
		return c.Drop(w[1])
	case "ready":
		return c.Ready()
	case "exit":
		os.Exit(7)
	case "deaf":
		<-over
		select {}
	}
	return nil
}

// kept is a keeper under test and what its daemons say.
type keeperRun struct {
	t      *testing.T
	script string
	status chan int
}

func run(t *testing.T, lines ...string) *keeperRun {
	r := &keeperRun{t: t, script: filepath.Join(t.TempDir(), "script"), status: make(chan int, 1)}
	r.write(lines...)
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		status, err := Run(ctx, Config{Path: "/proc/self/exe", Args: []string{r.script}, Try: []string{"-test.list", "NoSuchTest"}, HandOverWait: 200 * time.Millisecond, StopWait: 500 * time.Millisecond,
			StatusFile: r.script + ".status", Stdout: os.Stdout, Stderr: os.Stderr, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			status = -1
		}
		r.status <- status
	}()
	t.Cleanup(func() {
		cancel()
		select {
		case <-r.status:
		case <-time.After(20 * time.Second):
			t.Error("the keeper does not end")
		}
	})
	return r
}

func (r *keeperRun) write(lines ...string) {
	if err := os.WriteFile(r.script, []byte(strings.Join(lines, "\n")), 0o600); err != nil {
		r.t.Fatal(err)
	}
}

// said waits until the daemons have said so many lines that contain a text.
func (r *keeperRun) said(text string, n int) []string {
	r.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; {
		var all []string
		raw, _ := os.ReadFile(r.script + ".said")
		for sc := bufio.NewScanner(strings.NewReader(string(raw))); sc.Scan(); {
			if strings.Contains(sc.Text(), text) {
				all = append(all, sc.Text())
			}
		}
		if len(all) >= n {
			return all
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("the daemons did not say %q %d times, but:\n%s", text, n, raw)
		}
		<-time.After(5 * time.Millisecond)
	}
}

func (r *keeperRun) daemon() Status {
	r.t.Helper()
	s, err := ReadStatus(r.script + ".status")
	if err != nil {
		r.t.Fatal(err)
	}
	return s
}

func (r *keeperRun) kill(pid int, sig syscall.Signal) {
	r.t.Helper()
	if err := unix.Kill(pid, sig); err != nil {
		r.t.Fatal(err)
	}
}

func thing(t *testing.T, content string) string {
	path := filepath.Join(t.TempDir(), content)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestWhatAKilledDaemonPutIsThereForTheNext(t *testing.T) {
	a, b := thing(t, "alpha"), thing(t, "beta")
	r := run(t, "put x "+a, "put y "+a, "put y "+b, "put gone "+a, "drop gone", "drop never", "ready")
	for i := range 5 {
		r.said("done", i+1)
		if err := os.Remove(a); err != nil && i == 0 { // only the descriptors are left
			t.Fatal(err)
		}
		r.write("ready")
		s := r.daemon()
		if !s.Ready || s.Keeper != os.Getpid() {
			t.Errorf("status %+v", s)
		}
		r.kill(s.Daemon, syscall.SIGKILL)
		r.said("held x \"note of x\" \"alpha\" <nil>", i+1)
		r.said("held y \"note of y\" \"beta\" <nil>", i+1)
	}
	if g := r.saidNow("held gone"); g != "" {
		t.Errorf("what was dropped is still there: %s", g)
	}
}

func (r *keeperRun) saidNow(text string) string {
	raw, _ := os.ReadFile(r.script + ".said")
	for line := range strings.Lines(string(raw)) {
		if strings.Contains(line, text) {
			return line
		}
	}
	return ""
}

func TestHandOver(t *testing.T) {
	r := run(t, "put x "+thing(t, "alpha"), "ready")
	r.said("done", 1)
	first := r.daemon().Daemon
	r.kill(os.Getpid(), syscall.SIGHUP)
	r.said("told user defined signal 1", 1)
	r.said("held x", 1)
	r.said("done", 2)
	if now := r.daemon().Daemon; now == first {
		t.Error("the same daemon runs")
	}
	// One that does not listen is killed in the end, and the next one starts.
	r.write("ready", "deaf")
	r.kill(r.daemon().Daemon, syscall.SIGKILL)
	r.said("pid", 3)
	r.write("ready")
	r.kill(os.Getpid(), syscall.SIGHUP)
	r.said("held x", 3)
}

// TestADaemonThatCannotStartIsNotStartedAgain unless something depends on it.
func TestADaemonThatCannotStartIsNotStartedAgain(t *testing.T) {
	r := run(t, "exit")
	select {
	case s := <-r.status:
		r.status <- s
		if s != 7 {
			t.Errorf("status %d, want the daemon's 7", s)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the keeper goes on")
	}
	r = run(t, "put x "+thing(t, "alpha"), "exit")
	r.said("pid", 4)
	r.write("ready")
	r.said("done", 1)
}

// TestADaemonThatWasKilledIsStartedAgain, although it had not worked yet and nothing
// depends on it: so it is when the successor of a killed one is killed at its start.
func TestADaemonThatWasKilledIsStartedAgain(t *testing.T) {
	r := run(t)
	for i := range 2 {
		r.said("done", i+1)
		r.kill(r.daemon().Daemon, syscall.SIGKILL)
	}
	r.said("pid", 3)
}

func TestTheEndIsPassedOn(t *testing.T) {
	r := run(t, "put x "+thing(t, "alpha"), "ready")
	r.said("done", 1)
	r.kill(os.Getpid(), syscall.SIGTERM)
	r.said("told terminated", 1)
	s := <-r.status
	r.status <- s
	if s != 0 {
		t.Errorf("status %d", s)
	}
	if _, err := ReadStatus(r.script + ".status"); !errors.Is(err, holdfast.NotFound) {
		t.Errorf("the status of a keeper that has ended: %v", err)
	}
}

// TestWhatDoesNotEndIsKilled: nobody else would.
func TestWhatDoesNotEndIsKilled(t *testing.T) {
	r := run(t, "put x "+thing(t, "alpha"), "ready", "deaf")
	r.said("pid", 1)
	for !r.daemon().Ready {
		<-time.After(5 * time.Millisecond)
	}
	pid := r.daemon().Daemon
	r.kill(os.Getpid(), syscall.SIGTERM)
	s := <-r.status
	r.status <- s
	if s != 1 || !errors.Is(unix.Kill(pid, 0), unix.ESRCH) {
		t.Errorf("status %d; the daemon runs: %v", s, unix.Kill(pid, 0))
	}
}

// TestALostKeeperIsNoticed and malformed requests are refused.
func TestALostKeeperIsNoticed(t *testing.T) {
	ours, theirs, err := pair()
	if err != nil {
		t.Fatal(err)
	}
	conn, err := connOf(dup(t, theirs))
	if err != nil {
		t.Fatal(err)
	}
	_ = theirs.Close()
	k := &keeper{cfg: Config{Log: slog.New(slog.DiscardHandler)}, held: map[string]kept{}}
	served := make(chan struct{})
	go func() { defer close(served); k.serve(ours) }()
	c := &Client{conn: conn, lost: make(chan struct{})}
	for _, bad := range []error{
		c.Put("", nil, 0), c.Put(strings.Repeat("k", maxKey+1), nil, 0), c.Put("k", make([]byte, maxNote+1), 0), c.Put("k", nil, -1),
		second(c.call(packet{op: opPut, key: "k", fd: -1})), second(c.call(packet{op: '?', fd: -1})),
	} {
		if !errors.Is(bad, holdfast.Invalid) {
			t.Errorf("got %v, want kind invalid", bad)
		}
	}
	told := make(chan error, 1)
	go func() { told <- c.Wait(t.Context()) }()
	for range 100 { // the answers are for the calls
		if err := c.Ready(); err != nil {
			t.Fatal(err)
		}
	}
	short, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Wait(short); err != nil {
		t.Errorf("the end of waiting: %v", err)
	}
	select {
	case <-c.Lost():
		t.Error("the keeper is there, and counts as lost")
	default:
	}
	_ = ours.Close()
	<-served
	if err := <-told; !errors.Is(err, holdfast.Unavailable) {
		t.Errorf("the keeper is gone: %v", err)
	}
	<-c.Lost() // nobody has called anything
	if err := c.Put("k", nil, 0); !errors.Is(err, holdfast.Unavailable) {
		t.Errorf("without a keeper: %v", err)
	}
	_ = conn.Close()
}

func second(_ []Held, err error) error { return err }

func dup(t *testing.T, f *os.File) int {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

// TestPauses: what was working is replaced at once, what does not start is tried
// less and less often.
func TestPauses(t *testing.T) {
	var pause, all time.Duration
	for _, c := range []struct{ worked, want time.Duration }{
		{time.Hour, 0}, {aWhile, 0}, {0, firstPause}, {aWhile / 2, 2 * firstPause}, {0, 4 * firstPause}, {aWhile, 0}, {0, firstPause},
	} {
		if pause = pauseAfter(c.worked, pause); pause != c.want {
			t.Errorf("after %v of work: a pause of %v, want %v", c.worked, pause, c.want)
		}
	}
	for range 20 {
		pause = pauseAfter(0, pause)
		all += pause
	}
	if pause != lastPause || all > 20*lastPause {
		t.Errorf("the longest pause is %v, want %v", pause, lastPause)
	}
}
