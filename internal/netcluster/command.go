package netcluster

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/holdfast-storage/holdfast"
)

// Command runs a program and gives its output. Its error shows the command and
// what it said. It is killed after a minute.
func Command(ctx context.Context, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return Output(exec.CommandContext(ctx, name, args...))
}

// inNode runs a command that changes a node's network, which is the same when done
// twice. While it is in the node's namespace, KillOn takes it for one of the node's
// processes: then it is done again, for longer than KillOn goes on.
func inNode(ctx context.Context, input, name string, args ...string) (string, error) {
	for began := time.Now(); ; {
		cmd := exec.CommandContext(ctx, name, args...)
		cmd.Stdin = strings.NewReader(input)
		out, err := Output(cmd)
		killed := cmd.ProcessState != nil && cmd.ProcessState.Sys().(syscall.WaitStatus).Signaled()
		if !killed || time.Since(began) > 20*time.Second || ctx.Err() != nil {
			return out, err
		}
	}
}

// Output runs cmd and gives what it printed.
func Output(cmd *exec.Cmd) (string, error) {
	var out, errw bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errw
	cmd.WaitDelay = 2 * time.Second
	err := cmd.Run()
	if err != nil {
		said := strings.TrimSpace(errw.String() + "\n" + out.String())
		return out.String(), holdfast.E(strings.Join(cmd.Args, " "), holdfast.Other, fmt.Sprintf("%v: %s", err, said))
	}
	return out.String(), nil
}

// Until calls f until it says true, at most for limit. what is for the error,
// which is Unavailable.
func Until(ctx context.Context, limit time.Duration, what string, f func(context.Context) (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var last error
	for {
		ok, err := f(ctx)
		if ok {
			return nil
		}
		if err != nil && (last == nil || ctx.Err() == nil) {
			last = err // not the error that the end of the time itself makes
		}
		select {
		case <-ctx.Done():
			msg := fmt.Sprintf("not within %v", limit)
			if last != nil {
				msg += ": " + last.Error()
			}
			return &holdfast.Error{Op: what, Kind: holdfast.Unavailable, Msg: msg, Err: quiet{ctx.Err()}}
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// quiet is a cause that does not repeat itself in the text.
type quiet struct{ cause error }

func (quiet) Error() string   { return "" }
func (q quiet) Unwrap() error { return q.cause }
