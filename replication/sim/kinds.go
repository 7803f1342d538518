package sim

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
)

// groups are the sets of faults that FAULTS names, and the kinds in each.
func groups() map[string][]string {
	return map[string][]string{
		"crash":     {"kill", "record"},
		"power":     {"power", "power-all"},
		"partition": {"cut", "isolate", "snap"},
		"oneway":    {"one-way"},
		"flap":      {"flap"},
		"pause":     {"pause"},
		"slow":      {"slow", "stuck", "jitter"},
		"full":      {"full"},
		"eio":       {"eio"},
		"flips":     {"scrub", "flip"},
		"etcd":      {"meta-out", "no-meta", "swap", "forget", "forget-growth"},
		"rollback":  {"rollback"},
		"resize":    {"grow", "limit"},
		"replace":   {"replace", "drain"},
		"move":      {"move", "detach", "clear"},
		"snapshot":  {"snapshot"},
		"lull":      {"lull"},
		"scenes": {"expire", "undo", "relay", "last", "double", "hush", "interrupt", "alone", "source", "stale", "undone", "unflushed", "flying", "failed", "halfway",
			"copies", "promoted", "unsure", "rewind", "final"},
	}
}

// passive faults do not come from the plan: they happen on an occasion.
func passive(kind string) bool {
	return slices.Contains([]string{"move", "record", "swap", "jitter", "snap", "scrub", "flip", "snapshot"}, kind)
}

// Faults lists all kinds of faults.
func Faults() []string {
	var all []string
	for _, kinds := range groups() {
		all = append(all, kinds...)
	}
	slices.Sort(all)
	return all
}

// few are some kinds of faults, and all that happen on an occasion: a few kinds,
// often, meet in other ways than all of them together.
func few(rng *rand.Rand) []string {
	var kinds, passives []string
	for _, k := range Faults() {
		if passive(k) {
			passives = append(passives, k)
		} else {
			kinds = append(kinds, k)
		}
	}
	rng.Shuffle(len(kinds), func(i, j int) { kinds[i], kinds[j] = kinds[j], kinds[i] })
	return append(kinds[:3+rng.IntN(6)], passives...)
}

// FaultSet names the kinds of a list of sets or kinds, separated by commas; "" and
// "all" mean all, "none" none.
func FaultSet(names string) ([]string, error) {
	if names == "" || names == "all" {
		return Faults(), nil
	}
	var kinds []string
	for _, name := range strings.Split(names, ",") {
		switch set, ok := groups()[name]; {
		case name == "none":
			kinds = append(kinds, name)
		case ok:
			kinds = append(kinds, set...)
		case slices.Contains(Faults(), name):
			kinds = append(kinds, name)
		default:
			return nil, fmt.Errorf("no faults are called %q; these are: %s", name, strings.Join(slices.Sorted(keys(groups())), ","))
		}
	}
	return kinds, nil
}

func keys[V any](m map[string]V) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// may says whether a kind of fault happens in this run.
func (c *cluster) may(kind string) bool { return may(c.cfg.Kinds, kind) }

func may(kinds []string, kind string) bool {
	return len(kinds) == 0 || slices.Contains(kinds, kind)
}
