package etcd_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast/metadata/etcd"
)

// pausedEndpoint in the environment turns this test program into the process
// that is stopped.
const pausedEndpoint = "HOLDFAST_TEST_PAUSED_ENDPOINT"

const pausedTTL = 2 * time.Second

func TestMain(m *testing.M) {
	if endpoint := os.Getenv(pausedEndpoint); endpoint != "" {
		if err := holdLease(endpoint); err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// holdLease joins, and says for each line it reads whether it holds the lease.
func holdLease(endpoint string) error {
	s, err := etcd.Open(context.Background(), etcd.Config{Endpoints: []string{endpoint}})
	if err != nil {
		return err
	}
	l, err := s.Join(context.Background(), "n1", "i1", pausedTTL)
	if err != nil {
		return err
	}
	fmt.Println("joined")
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		held := l.Held() // first, before any goroutine may have noticed
		select {
		case <-l.Lost():
			fmt.Println("held", held, "lost true")
		case <-time.After(200 * time.Millisecond):
			fmt.Println("held", held, "lost false")
		}
	}
	return nil
}

// A process that is stopped for longer than its lease lasts must find it gone
// when it goes on, whoever looks first.
func TestPausedProcess(t *testing.T) {
	c := newCluster(t, 1, nil)
	watcher := c.open(t, nil)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), pausedEndpoint+"="+c.client.Endpoints[0])
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	lines := bufio.NewScanner(out)
	expect := func(want string) {
		t.Helper()
		if !lines.Scan() || strings.TrimSpace(lines.Text()) != want {
			t.Fatalf("the process says %q, want %q", lines.Text(), want)
		}
	}
	ask := func(want string) {
		t.Helper()
		if _, err := fmt.Fprintln(in); err != nil {
			t.Fatal(err)
		}
		expect(want)
	}
	expect("joined")
	ask("held true lost false")

	if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	stopped := time.Now()
	for alive := true; alive; {
		if alive, err = watcher.Alive(t.Context(), "n1"); err != nil {
			t.Fatal(err)
		}
		if time.Since(stopped) > 30*time.Second {
			t.Fatal("a stopped process is alive")
		}
	}
	if _, err := fmt.Fprintln(in); err != nil { // the question waits for it
		t.Fatal(err)
	}
	if err := cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	expect("held false lost true")
	if alive, err := watcher.Alive(t.Context(), "n1"); err != nil || alive {
		t.Fatalf("alive %v, %v: a lost lease came back", alive, err)
	}
}
