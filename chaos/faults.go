package main

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-storage/holdfast"
)

// kind is a kind of fault.
type kind string

const (
	kill      kind = "kill"      // SIGKILL to a daemon, started again afterwards
	power     kind = "power"     // everything on a machine dies, mounts, devices and what was not synced
	blackout  kind = "blackout"  // the power of all machines at once
	crash     kind = "crash"     // SIGKILL to a daemon whose keeper starts the next one
	upgrade   kind = "upgrade"   // a daemon hands over to the next one, SIGHUP to its keeper
	hang      kind = "hang"      // SIGSTOP to a daemon whose keeper goes on, then SIGCONT
	pause     kind = "pause"     // SIGSTOP, then SIGCONT
	cut       kind = "cut"       // a machine's link is down
	flap      kind = "flap"      // down and up, several times
	deaf      kind = "deaf"      // one machine's packets to another one vanish, not the others
	mute      kind = "mute"      // one machine's packets vanish, whoever they are for
	partition kind = "partition" // two groups that do not hear each other
	lossy     kind = "lossy"     // some of the packets to a machine are lost
	slow      kind = "slow"      // what a machine sends is slow and late
	quorum    kind = "quorum"    // two of the three etcd members are killed
	etcd      kind = "etcd"      // all etcd members are killed
	fill      kind = "fill"      // a pool is filled, then emptied
	stall     kind = "stall"     // a pool's disk does not answer for a while
	eio       kind = "eio"       // a pool's disk gives I/O errors, until the daemon opens it anew
	replace   kind = "replace"   // a node is lost with its pool; another one takes its place
	term      kind = "term"      // a daemon is stopped in good order, and started again
	drain     kind = "drain"     // a node is drained; its replicas begin to move away
	grow      kind = "grow"      // a volume grows
	move      kind = "move"      // no fault: a volume is moved in good order
)

// weights say how often each kind comes; replace and blackout come by themselves,
// the last three only where there are keepers.
func weights(keepers bool) map[kind]int {
	out := map[kind]int{kill: 4, power: 2, pause: 3, cut: 3, flap: 1, deaf: 2, mute: 2, partition: 2, lossy: 2, slow: 2,
		quorum: 1, etcd: 1, fill: 2, stall: 2, eio: 2, replace: 1, blackout: 1, term: 2, drain: 1, grow: 1, move: 3}
	if keepers {
		out[crash], out[upgrade], out[hang] = 4, 3, 2
	}
	return out
}

func kindNames() string {
	var out []string
	for k := range weights(true) {
		out = append(out, string(k))
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

// parseKinds reads a list of kinds; empty means all.
func parseKinds(text string, keepers bool) (map[kind]int, error) {
	all := weights(keepers)
	if text == "" {
		return all, nil
	}
	out := map[kind]int{}
	for name := range strings.SplitSeq(text, ",") {
		k := kind(strings.TrimSpace(name))
		if all[k] == 0 && weights(true)[k] > 0 {
			return nil, holdfast.E("read the kinds of faults", holdfast.Invalid, fmt.Sprintf("%s needs nodes with keepers: -keeper yes", k))
		}
		if all[k] == 0 {
			return nil, holdfast.E("read the kinds of faults", holdfast.Invalid, fmt.Sprintf("%q is none; choose from %s", name, kindNames()))
		}
		out[k] = all[k]
	}
	return out, nil
}

// fault is one thing that happens in a round.
type fault struct {
	kind    kind
	machine int // number; -1: none
	others  []int
	at      time.Duration // from the beginning of the round
	lasts   time.Duration
	percent int // of packets lost
}

func (f fault) String() string {
	s := string(f.kind)
	if f.machine >= 0 {
		s += fmt.Sprintf(" m%d", f.machine+1)
	}
	for _, o := range f.others {
		s += fmt.Sprintf(" m%d", o+1)
	}
	if f.percent > 0 {
		s += fmt.Sprintf(" %d%%", f.percent)
	}
	if f.lasts > 0 {
		s += fmt.Sprintf(" for %v", f.lasts.Round(10*time.Millisecond))
	}
	return s
}

// schedule draws the faults of a round. A node is only replaced at the very
// beginning, when all replicas are in sync: later it might have the only copy,
// and to lose that is no fault of ours. A blackout is the end of its round, as no
// other fault can go on through it.
func schedule(rng *rand.Rand, length time.Duration, allowed map[kind]int) []fault {
	var out []fault
	if allowed[replace] > 0 && (len(allowed) == 1 || rng.IntN(4) == 0) {
		out = append(out, fault{kind: replace, machine: members + rng.IntN(machines-members)})
	}
	if allowed[blackout] > 0 && (len(allowed) == 1 || rng.IntN(6) == 0) {
		out = append(out, fault{kind: blackout, machine: -1, at: length, lasts: draw(rng) / 2})
	}
	if allowed[crash]+allowed[upgrade] > 0 && len(out) == 0 && rng.IntN(3) == 0 {
		allowed = maps.Clone(allowed) // a round without any fault that applications may notice
		maps.DeleteFunc(allowed, func(k kind, _ int) bool { return !harmless(k) })
	}
	var bag []kind
	for _, k := range sortedKinds(allowed) {
		if k != replace && k != blackout {
			bag = append(bag, slices.Repeat([]kind{k}, allowed[k])...)
		}
	}
	if len(bag) == 0 {
		return out
	}
	for range 4 + rng.IntN(8) {
		f := fault{kind: bag[rng.IntN(len(bag))], at: time.Second + time.Duration(rng.Int64N(int64(length*3/4)))}
		f.machine = rng.IntN(machines)
		f.lasts = draw(rng)
		f.complete(rng)
		out = append(out, f)
	}
	slices.SortStableFunc(out, func(a, b fault) int { return cmp.Compare(a.at, b.at) })
	return out
}

// draw gives a duration around the limits that matter: the silence that drops a
// replica (2 s), the lease (5 s), the replacement of what is away.
func draw(rng *rand.Rand) time.Duration {
	spans := []time.Duration{time.Second, 3 * time.Second, 6 * time.Second, 10 * time.Second, 18 * time.Second}
	long := spans[rng.IntN(len(spans))]
	return 50*time.Millisecond + time.Duration(rng.Int64N(int64(long)))
}

// complete draws what only some kinds have.
func (f *fault) complete(rng *rand.Rand) {
	others := slices.DeleteFunc(rng.Perm(machines), func(i int) bool { return i == f.machine })
	switch f.kind {
	case deaf:
		f.others = others[:1]
	case partition:
		f.others = others[:rng.IntN(2)] // with machine the smaller group
	case quorum:
		f.machine = rng.IntN(members)
		f.others = []int{(f.machine + 1 + rng.IntN(members-1)) % members}
	case etcd:
		f.machine, f.others = 0, []int{1, 2}
	case lossy:
		f.percent = 1 + rng.IntN(30)
	case fill, stall:
		f.lasts += 3 * time.Second // long enough to be met by writes
	case move, grow:
		f.machine, f.lasts, f.others = -1, 0, nil
	case crash, upgrade:
		f.lasts = 0
	}
}

func sortedKinds(m map[kind]int) []kind {
	var out []kind
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}
