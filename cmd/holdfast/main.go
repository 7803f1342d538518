// Command holdfast is the whole product in one program: the daemon of a node
// (holdfast node), the command line of a cluster (holdfast volume, node, pool,
// status) and a cluster on one machine for trying out (holdfast demo).
//
// It promises that errors say what to do, that the exit code tells kinds of
// failure apart (see exit.go) and that everything is available as a table, JSON
// or YAML. It holds flags and output only; the work is done by the packages it
// calls, which own the goroutines.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	_ "time/tzdata" // zones of schedules, on machines without them

	"github.com/holdfast-storage/holdfast/node/device/fuseloop"
)

func main() {
	// The daemon's helper: nothing else of this program is started.
	if len(os.Args) > 1 && os.Args[1] == fuseloop.HelperArg {
		os.Exit(fuseloop.RunHelper(os.Stdin, os.Stdout))
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
