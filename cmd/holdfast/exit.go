package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/holdfast-storage/holdfast"
)

// The exit codes. Scripts may rely on them.
const (
	exitOK          = 0
	exitFailed      = 1   // anything else
	exitUsage       = 2   // wrong flags or arguments; the request can never work
	exitNotFound    = 3   // what was named does not exist
	exitConflict    = 4   // exists, in use, or changed by somebody else
	exitUnavailable = 5   // the cluster or a part of it does not answer
	exitNoSpace     = 6   // no space, or a size out of range
	exitUnhealthy   = 7   // status --check: something is wrong
	exitInterrupted = 130 // Ctrl-C
)

// errUnhealthy ends "status --check" without another message.
var errUnhealthy = errors.New("the cluster is not healthy")

func exitCode(err error) int {
	var daemon daemonExit
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &daemon):
		return int(daemon)
	case errors.Is(err, errUnhealthy):
		return exitUnhealthy
	case errors.Is(err, context.Canceled):
		return exitInterrupted
	}
	switch holdfast.KindOf(err) {
	case holdfast.Invalid, holdfast.Unsupported:
		return exitUsage
	case holdfast.NotFound:
		return exitNotFound
	case holdfast.Exists, holdfast.InUse, holdfast.Busy:
		return exitConflict
	case holdfast.Unavailable:
		return exitUnavailable
	case holdfast.NoSpace, holdfast.OutOfRange:
		return exitNoSpace
	default:
		return exitFailed
	}
}

// report shows an error to a person.
func report(w io.Writer, err error) {
	var daemon daemonExit
	if errors.Is(err, errUnhealthy) || errors.As(err, &daemon) {
		return // said already
	}
	if errors.Is(err, context.Canceled) {
		fmt.Fprintln(w, "holdfast: interrupted")
		return
	}
	fmt.Fprintln(w, "holdfast:", err)
}
