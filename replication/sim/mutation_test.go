//go:build mutations

package sim

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/holdfast-storage/holdfast/replication"
)

var (
	only  = flag.String("sim.mutation", "", "try these only: names, separated by commas")
	child = flag.Uint("sim.mutant", 0, "for TestMutations itself: try this one, in this process")
)

// maxSeeds is within how many seeds every mutation must be caught.
const maxSeeds = 500

// TestMutations switches on one deliberate fault after the other, each in a
// process of its own. Each must make some seed fail; a fault that survives is a
// hole in the simulation.
func TestMutations(t *testing.T) {
	if *child != 0 {
		fmt.Printf("caught by seed: %d\n", catch(replication.Mutation(*child)))
		return
	}
	all := replication.Mutations()
	if len(all) != int(replication.MutationEnd)-1 {
		t.Errorf("%d of %d mutations are described", len(all), replication.MutationEnd-1)
	}
	var group sync.WaitGroup
	slots := make(chan bool, runtime.NumCPU())
	for _, m := range all {
		if *only != "" && !slices.Contains(strings.Split(*only, ","), m.Name) {
			continue
		}
		group.Go(func() {
			slots <- true
			defer func() { <-slots }()
			try(t, m)
		})
	}
	group.Wait()
}

// try runs one mutation and says how many seeds it took.
func try(t *testing.T, m replication.MutationInfo) {
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestMutations$", fmt.Sprintf("-sim.mutant=%d", m.Mutation), fmt.Sprintf("-sim.seed=%d", *seed))
	out, err := cmd.CombinedOutput()
	n := 0
	if _, line, ok := bytes.Cut(out, []byte("caught by seed: ")); err != nil || !ok {
		t.Errorf("%s %s: %v\n%s", m.Rule, m.Name, err, out)
		return
	} else if _, err := fmt.Sscan(string(line), &n); err != nil {
		t.Errorf("%s %s: %v", m.Rule, m.Name, err)
	}
	switch {
	case n == 0:
		t.Errorf("invariant %-8s  %-18s survives %d seeds: %s", m.Rule, m.Name, maxSeeds, m.Broken)
		return
	}
	t.Logf("invariant %-8s  %-18s caught after %3d seeds: %s", m.Rule, m.Name, n, m.Broken)
}

// catch says how many seeds it takes until a run fails that does not without the
// mutation; 0: none of them does. A run that fails anyway proves nothing.
func catch(m replication.Mutation) int {
	for n := range maxSeeds {
		replication.Mutant = m
		if !wrong(m, *seed+uint64(n)) {
			continue
		}
		replication.Mutant = replication.MutateNone
		if !wrong(m, *seed+uint64(n)) {
			return n + 1
		}
		fmt.Printf("seed %d fails without a mutation\n", *seed+uint64(n))
	}
	return 0
}

// wrong says whether a seed fails. Faults of the scrub need scrubs, and damage.
func wrong(m replication.Mutation, seed uint64) bool {
	cfg := Default(seed)
	if m != replication.MutateScrubMinority && m != replication.MutateScrubNoMarks && m != replication.MutateScrubNoLock {
		return Run(cfg).Err != nil
	}
	cfg.Kinds = nil
	if RunScrub(cfg, false).Err != nil {
		return true
	}
	cfg.Replicas, cfg.Kinds = 3, []string{"none"}
	return RunScrub(cfg, true).Err != nil
}
