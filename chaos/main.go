// Command chaos runs a real cluster of five nodes through random faults and
// checks after every round that nothing is lost and nothing is stuck.
//
// The daemons are real, each in a network namespace, with an etcd member in
// three of them, pools in image files and real mounts. Three kinds of work run
// meanwhile: PostgreSQL committing numbered rows, fio writing what it can verify,
// and a checker of its own that knows of every block of a raw device what it may
// hold. An orchestrator of its own moves the volumes as Kubernetes and others do.
// With odd seeds, or -keeper yes, nodes run under their keepers, as those of users
// do: then there are faults of the daemon alone, and rounds with no other ones, in
// which applications may see a pause, but never an error.
//
// It promises that a round that passes has verified every acknowledged write from
// another node, compared all replicas block by block, and found no mount, device,
// process or replica too many; that a failure names the seed, the round, what was
// done when, and the logs; and that everything it made is removed at its end, or
// at its next start. The seed decides which faults come when, how they meet the
// daemons depends on the machine: a seed repeats the story, not the outcome.
//
// Goroutines: one per fault under way, a few per volume, one per process; all
// end before it does.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// options of a run.
type options struct {
	duration time.Duration
	faults   time.Duration // of one round
	seed     uint64
	rounds   int // at most; 0: as the duration allows
	dir      string
	logs     string
	binary   string
	prefix   string
	only     string
	wait     time.Duration // for another run to end
	keep     bool
	keepers  bool   // nodes run under their keepers
	repeat   string // the command that does the same again
}

func main() {
	var o options
	flag.DurationVar(&o.duration, "duration", 10*time.Minute, "no round begins that would end after it, but the first one")
	flag.DurationVar(&o.faults, "faults", 25*time.Second, "how long faults go on in each round")
	flag.Uint64Var(&o.seed, "seed", uint64(time.Now().UnixNano()), "decides which faults come when")
	flag.IntVar(&o.rounds, "rounds", 0, "at most so many rounds; 0: as many as the duration allows")
	flag.StringVar(&o.dir, "dir", "/var/tmp/hf-chaos", "folder of the run, removed at its end")
	flag.StringVar(&o.logs, "logs", "/var/tmp/hf-chaos-logs", "folder of the logs; those of a failure are moved to one beside it")
	flag.StringVar(&o.binary, "binary", "build/holdfast", "the program to test; see: make build")
	flag.StringVar(&o.prefix, "prefix", "hf-chaos-", "of the namespaces' names; runs side by side need different ones, and other folders")
	flag.StringVar(&o.only, "only", "", "only these kinds of faults, with commas between: "+kindNames())
	flag.DurationVar(&o.wait, "wait", 0, "how long to wait for another run to end")
	flag.BoolVar(&o.keep, "keep", false, "after a failure leave the folder with pools and configurations")
	keeper := flag.String("keeper", "seed", "run nodes under their keepers, as services do, with the faults crash, upgrade and hang: yes, no, or seed (odd seeds do)")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := start(ctx, o, *keeper); err != nil {
		fmt.Fprintf(os.Stderr, "\nchaos: %.3000v\n", err)
		os.Exit(1)
	}
}

func start(ctx context.Context, o options, keeper string) error {
	var err error
	if o.keepers, err = withKeepers(keeper, o.seed); err != nil {
		return err
	}
	o.repeat = repeat(o, keeper)
	if o.binary, err = filepath.Abs(o.binary); err != nil {
		return err
	}
	allowed, err := parseKinds(o.only, o.keepers)
	if err != nil {
		return err
	}
	err = play(ctx, o, allowed)
	if ctx.Err() != nil {
		return errors.Join(errors.New("interrupted; everything is removed"), err)
	}
	return err
}

// repeat is the command that does the same as this one, with its seed.
func repeat(o options, keeper string) string {
	args := []string{os.Args[0], "-seed", fmt.Sprint(o.seed), "-keeper", keeper}
	flag.Visit(func(f *flag.Flag) {
		if f.Name != "seed" && f.Name != "keeper" {
			args = append(args, "-"+f.Name+"="+f.Value.String())
		}
	})
	return strings.Join(args, " ")
}
