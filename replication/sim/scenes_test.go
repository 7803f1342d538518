package sim

import (
	"slices"
	"testing"
)

// Each scene comes to its last fault in at least half of the runs that are made for
// it: one that does not shows nothing, and nobody would see that.
func TestScenesComplete(t *testing.T) {
	const each = 6
	scenes := groups()["scenes"]
	complete := map[string]int{}
	for n := range uint64(each * len(scenes)) {
		cfg := Default(*seed&^1 + 2*n) // even seeds play scenes, one after the other
		scene, res := cfg.Kinds[0], Run(cfg)
		if res.Err != nil {
			t.Errorf("seed %d, %s: %v", cfg.Seed, scene, res.Err)
		}
		if res.Coverage["scene: "+scene+" complete"] > 0 {
			complete[scene]++
		}
	}
	for _, s := range slices.Sorted(slices.Values(scenes)) {
		if t.Logf("%-10s complete in %d of %d runs", s, complete[s], each); 2*complete[s] < each {
			t.Errorf("the scene %s does not complete in half of its runs", s)
		}
	}
}
