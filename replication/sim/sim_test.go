package sim

import (
	"flag"
	"testing"
)

var (
	seed = flag.Uint64("sim.seed", 1, "first seed")
	runs = flag.Int("sim.runs", 60, "how many seeds")
)

// TestSeeds runs seeds sim.seed to sim.seed+sim.runs-1. A failure names its seed
// and prints the trace of its replay.
func TestSeeds(t *testing.T) {
	total := 0
	for s := *seed; s < *seed+uint64(*runs); s++ {
		cfg := Default(s)
		res := Run(cfg)
		total += res.Operations
		if res.Err == nil {
			continue
		}
		cfg.Trace = true
		again := Run(cfg)
		for _, l := range again.Trace {
			t.Log(l)
		}
		t.Fatalf("seed %d: %v\nfaults %v", s, res.Err, res.Faults)
	}
	t.Logf("%d seeds, %d operations", *runs, total)
}
