package sim

import "testing"

func scrubSeeds(t *testing.T, runs int, flips bool, change func(*Config)) (all ScrubResult) {
	t.Helper()
	for s := *seed; s < *seed+uint64(runs); s++ {
		cfg := Default(s)
		change(&cfg)
		res := RunScrub(cfg, flips)
		all.Scrubs, all.Ended, all.Flips = all.Scrubs+res.Scrubs, all.Ended+res.Ended, all.Flips+res.Flips
		all.Mismatches, all.Healed = all.Mismatches+res.Mismatches, all.Healed+res.Healed
		if res.Err == nil {
			continue
		}
		cfg.Trace = true
		for _, l := range RunScrub(cfg, flips).Trace {
			t.Log(l)
		}
		t.Fatalf("seed %d: %v\nfaults %v", s, res.Err, res.Faults)
	}
	t.Logf("%d seeds: %d scrubs, %d ended; %d flips, %d damaged, %d healed", runs, all.Scrubs, all.Ended, all.Flips, all.Mismatches, all.Healed)
	return all
}

// In-sync replicas never differ, whatever else fails: a scrub that finds
// something where no disk has changed anything by itself has found a fault of the
// protocol, or of the scrub.
func TestScrubFindsNothingWhereNothingIsDamaged(t *testing.T) {
	all := scrubSeeds(t, *runs, false, func(*Config) {})
	if all.Ended < *runs {
		t.Errorf("only %d scrubs ended", all.Ended)
	}
}

// With three replicas every flipped bit is found, and all are equal in the end.
func TestScrubHealsFlippedBits(t *testing.T) {
	all := scrubSeeds(t, *runs/2, true, func(c *Config) {
		c.Replicas, c.Hosts, c.Kinds = 3, max(c.Hosts, 3), []string{"none"}
	})
	if all.Flips < *runs || all.Mismatches < int64(all.Flips)/2 || all.Healed == 0 {
		t.Errorf("%+v", all)
	}
}
