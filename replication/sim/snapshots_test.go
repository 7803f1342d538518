package sim

import "testing"

// TestSnapshotSeeds runs seeds with snapshots taken, deleted, restored and cut by
// command all the time, and all faults.
func TestSnapshotSeeds(t *testing.T) {
	total := map[string]int{}
	run := func(cfg Config) Result {
		cfg.Snapshots = true
		return Run(cfg)
	}
	for s := *seed; s < *seed+uint64(*runs); s++ {
		cfg := Default(s)
		res := run(cfg)
		for k, n := range res.Snapshots {
			total[k] += n
		}
		if res.Err != nil {
			cfg.Snapshots = true
			t.Fatal(explain(Failure{Config: cfg, Result: res}, run))
		}
	}
	t.Logf("%d seeds: %v", *runs, total)
	if *runs >= 50 && (total["taken"] < 2**runs || total["group"] == 0 || total["restored"] == 0) {
		t.Errorf("too little happened: %v", total)
	}
}
