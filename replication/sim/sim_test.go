package sim

import (
	"flag"
	"fmt"
	"testing"
	"time"
)

var (
	seed   = flag.Uint64("sim.seed", 1, "first seed")
	runs   = flag.Int("sim.runs", 60, "how many seeds")
	faults = flag.String("sim.faults", "", "sets of faults, separated by commas; all, if empty")
)

// TestSeeds runs seeds sim.seed to sim.seed+sim.runs-1 on all cores. A failure
// names its seed and how to replay it, and is shrunk to what a person can read.
func TestSeeds(t *testing.T) {
	kinds, err := FaultSet(*faults)
	if err != nil {
		t.Fatal(err)
	}
	sum := Campaign{Seed: *seed, Runs: *runs, Kinds: kinds, Every: 5 * time.Second, Print: func(line string) { t.Log(line) }}.Do()
	for _, line := range sum.Lines() {
		t.Log(line)
	}
	if f := sum.Failed; f != nil {
		t.Fatal(explain(*f, nil))
	}
}

// explain shrinks a failure and tells it.
func explain(f Failure, run func(Config) Result) string {
	s := Shrink(f, run, 3000)
	set := ""
	if *faults != "" {
		set = " FAULTS=" + *faults
	}
	text := fmt.Sprintf("seed %d: %v\nreplay: make sim SEED=%d RUNS=1%s\nfaults: %v\n", f.Config.Seed, f.Result.Err, f.Config.Seed, set, f.Result.Faults)
	text += fmt.Sprintf("\nof its %d choices %d are enough (found in %d runs):\n", s.From, s.To, s.Tries)
	for _, line := range s.Result.Trace {
		text += line + "\n"
	}
	return text + fmt.Sprintf("then: %v", s.Result.Err)
}
