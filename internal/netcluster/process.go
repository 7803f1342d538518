package netcluster

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

// Process is a program running on a node.
type Process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	err  error         // how; after done
}

// StartIn starts a program inside a node's namespace, in a process group of its
// own so that Ctrl-C at the terminal does not reach it.
func (n Network) StartIn(node string, cmd *exec.Cmd) (*Process, error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	if err := n.Inside(n.Node(node), cmd.Start); err != nil {
		return nil, holdfast.Wrap("start "+cmd.Path+" on node "+node, err)
	}
	p := &Process{cmd: cmd, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// Kill ends it and its children without warning, and waits until it is gone.
func (p *Process) Kill() {
	_ = unix.Kill(-p.cmd.Process.Pid, unix.SIGKILL)
	<-p.done
}

// Done is closed when it has ended; Err says how then.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err says how it has ended; nil while it runs.
func (p *Process) Err() error {
	if !p.Ended() {
		return nil
	}
	return p.err
}

// Signal sends a signal to it and its children.
func (p *Process) Signal(sig syscall.Signal) { _ = unix.Kill(-p.cmd.Process.Pid, sig) }

// Stop asks it to end, and kills it after limit.
func (p *Process) Stop(sig syscall.Signal, limit time.Duration) {
	_ = p.cmd.Process.Signal(sig)
	select {
	case <-p.done:
	case <-time.After(limit):
		p.Kill()
	}
}

// Ended says whether it has ended.
func (p *Process) Ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// OpenLog opens a node's log file for appending.
func OpenLog(dir, node string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, node+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	return f, holdfast.Wrap("open log of node "+node, err)
}

// LastLines are the last n lines of a file that are not mere information.
func LastLines(path string, n int) []string {
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

// KillAll ends processes by their ids and waits until they are gone.
func KillAll(ctx context.Context, list func() []int) error {
	return Until(ctx, 10*time.Second, "end processes", func(context.Context) (bool, error) {
		pids := list()
		for _, pid := range pids {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		return len(pids) == 0, nil
	})
}

// Pid is its process id.
func (p *Process) Pid() int { return p.cmd.Process.Pid }
