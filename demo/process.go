package demo

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
)

// process is a program running on a node.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	err  error         // how; after done
}

// startIn starts a program inside a node's namespace, in a process group of its
// own so that Ctrl-C at the terminal does not reach it.
func (n network) startIn(node string, cmd *exec.Cmd) (*process, error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	if err := n.inside(n.node(node), cmd.Start); err != nil {
		return nil, holdfast.Wrap("start "+cmd.Path+" on node "+node, err)
	}
	p := &process{cmd: cmd, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// kill ends it and its children without warning, and waits until it is gone.
func (p *process) kill() {
	_ = unix.Kill(-p.cmd.Process.Pid, unix.SIGKILL)
	<-p.done
}

// stop asks it to end, and kills it after limit.
func (p *process) stop(sig syscall.Signal, limit time.Duration) {
	_ = p.cmd.Process.Signal(sig)
	select {
	case <-p.done:
	case <-time.After(limit):
		p.kill()
	}
}

// ended says whether it has ended.
func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// daemonLog opens a node's log file for appending.
func daemonLog(dir, node string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, node+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	return f, holdfast.Wrap("open log of node "+node, err)
}

// lastLines are the last n lines of a file that are not mere information.
func lastLines(path string, n int) []string {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	var out []string
	for line := range strings.Lines(string(raw)) {
		if !strings.Contains(line, "level=INFO") && !strings.Contains(line, "level=DEBUG") {
			out = append(out, strings.TrimRight(line, "\n"))
		}
	}
	return out[max(0, len(out)-n):]
}

// killAll ends processes by their ids and waits until they are gone.
func killAll(ctx context.Context, list func() []int) error {
	return until(ctx, 10*time.Second, "end processes", func(context.Context) (bool, error) {
		pids := list()
		for _, pid := range pids {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		return len(pids) == 0, nil
	})
}
