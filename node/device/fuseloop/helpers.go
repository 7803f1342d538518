package fuseloop

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
)

const (
	// helperIdle is how long a helper stays that has nothing to do: it takes some
	// megabytes, and starting it some hundredths of a second.
	helperIdle = 10 * time.Second
	// helperWrite bounds handing it an operation.
	helperWrite = 5 * time.Second
)

// helpers is this process's side of its helper (see helper.go). One that fails,
// with all that it had under way, is followed by another one. There is none when
// cmd is empty: this process does the operations itself then.
type helpers struct {
	cmd []string
	log *slog.Logger

	mu  sync.Mutex
	now *helper // nil: none runs
}

// helper is one process. Its fields are guarded by the mutex of helpers.
type helper struct {
	proc    *os.Process
	in      *os.File
	calls   map[uint64]chan<- outcome // of what is under way
	last    uint64
	idle    *time.Timer // set while nothing is
	stopped bool        // takes nothing more
}

// outcome is an answer, or why there is none.
type outcome struct {
	answer
	err error
}

// do has t done. When ctx ends first, it goes on.
func (h *helpers) do(ctx context.Context, t task) (loopDevice, error) {
	if len(h.cmd) == 0 {
		return t.run()
	}
	t.Parent = os.Getpid()
	done := make(chan outcome, 1)
	pid, err := h.send(t, done)
	if err != nil {
		return loopDevice{}, err
	}
	select {
	case o := <-done:
		if o.err != nil {
			return loopDevice{}, holdfast.WrapKind(t.Do, holdfast.Unavailable, o.err)
		}
		return o.Loop, o.answer.err()
	case <-ctx.Done():
		h.log.Warn("an operation on a device is left to itself", "do", t.Do, "file", t.File, "device", t.Loop.Path, "pid", pid)
		return loopDevice{}, holdfast.WrapKind(t.Do+": the kernel did not finish in time", holdfast.Unavailable, ctx.Err())
	}
}

// send hands the helper an operation; done gets what becomes of it.
func (h *helpers) send(t task, done chan<- outcome) (pid int, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.now == nil {
		if h.now, err = h.start(); err != nil {
			return 0, holdfast.WrapKind("start a helper process", holdfast.Unavailable, err)
		}
	}
	x := h.now
	x.last++
	t.ID = x.last
	raw, err := json.Marshal(t)
	if err != nil {
		return 0, holdfast.WrapKind("describe an operation", holdfast.Other, err)
	}
	if x.idle != nil {
		x.idle.Stop()
		x.idle = nil
	}
	x.calls[t.ID] = done
	_ = x.in.SetWriteDeadline(time.Now().Add(helperWrite))
	if _, err := x.in.Write(append(raw, '\n')); err != nil {
		delete(x.calls, t.ID)
		h.stop(x)
		_ = x.proc.Kill() // what it has of this one is nothing it could begin
		return 0, holdfast.WrapKind(t.Do+": the helper process takes nothing", holdfast.Unavailable, err)
	}
	return x.proc.Pid, nil
}

// start runs a helper. It ends when its input does: with this process at the latest.
func (h *helpers) start() (*helper, error) {
	var stderr bytes.Buffer
	cmd := exec.Command(h.cmd[0], h.cmd[1:]...)
	cmd.Stderr = &stderr
	// A terminal's signals are meant for the daemon, which then ends its devices
	// in order.
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	in, tasks, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer in.Close()
	cmd.Stdin = in
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		_ = tasks.Close()
		return nil, err
	}
	x := &helper{proc: cmd.Process, in: tasks, calls: map[uint64]chan<- outcome{}}
	go func() {
		err := errors.Join(h.listen(x, out), cmd.Wait())
		h.ended(x, fmt.Errorf("the helper process ended: %s: %w", strings.TrimSpace(stderr.String()), err))
	}()
	return x, nil
}

// listen passes the answers on until there are no more.
func (h *helpers) listen(x *helper, out io.Reader) error {
	answers := json.NewDecoder(out)
	for {
		var a answer
		if err := answers.Decode(&a); err != nil {
			return err
		}
		h.mu.Lock()
		if done := x.calls[a.ID]; done != nil {
			delete(x.calls, a.ID)
			done <- outcome{answer: a}
		}
		if len(x.calls) == 0 && !x.stopped {
			x.idle = time.AfterFunc(helperIdle, func() { h.rest(x) })
		}
		h.mu.Unlock()
	}
}

// rest ends a helper that has had nothing to do.
func (h *helpers) rest(x *helper) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(x.calls) == 0 {
		h.stop(x)
	}
}

// ended tells who waits that no answer will come.
func (h *helpers) ended(x *helper, why error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.stop(x)
	for id, done := range x.calls {
		delete(x.calls, id)
		done <- outcome{err: why}
	}
}

// stop gives a helper nothing more; it ends when it has done what it has. The mutex
// is held.
func (h *helpers) stop(x *helper) {
	if x.stopped {
		return
	}
	x.stopped = true
	_ = x.in.Close()
	if h.now == x {
		h.now = nil
	}
}

// close ends the helper.
func (h *helpers) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.now != nil {
		h.stop(h.now)
	}
}
