package sim

import (
	"fmt"
	"math/rand/v2"
	"time"
)

// Choice names one thing that a run does by chance: a fault, a request of a user,
// a move of the attachment. Each has a random stream of its own, which what
// follows from it draws from as well (those of a second volume are numbered from
// a million), so that a run with some choices left out
// goes as before but for what they have changed. This is what shrinking is made
// of.
type Choice struct {
	Kind ChoiceKind
	N, I int
}

// ChoiceKind is what sort of choice it is, and N and I count.
type ChoiceKind uint8

// The kinds.
const (
	ChoiceFault   ChoiceKind = iota + 1 // the N-th fault of the plan
	ChoiceRequest                       // request I of step N
	ChoiceStorm                         // request I of step N in a storm
	ChoiceMove                          // the attachment is moved in step N
	ChoiceRecord                        // something fails right after revision N
	ChoiceSwap                          // something fails during the N-th swap
	ChoiceScrub                         // a scrub is begun or cancelled in step N
	ChoiceFlip                          // the N-th flipped bit

	ChoiceSnapshot // something is done about snapshots in step N

	streamSteps  // times of requests
	streamOwner  // who attaches
	streamFaults // times of faults
	streamScrubs // of scrubs
	streamFlips  // of flips
	streamSnapshots
)

func (c Choice) String() string {
	kinds := [...]string{"", "fault", "request", "storm", "move", "record", "swap", "scrub", "flip", "snapshot", "", "", "", "", "", ""}
	return fmt.Sprintf("%s %d.%d", kinds[c.Kind], c.N, c.I)
}

// stream is the random stream of a choice.
func (w *world) stream(c Choice) *rand.Rand {
	x := uint64(c.Kind)<<56 ^ uint64(c.N)<<20 ^ uint64(c.I)
	return rand.New(rand.NewPCG(w.seed, x*0x9e3779b97f4a7c15+1))
}

// choose does what a choice stands for, unless it is left out.
func (w *world) choose(c Choice, f func()) bool { return w.perhaps(c, 1, f) }

// perhaps does it with probability p.
func (w *world) perhaps(c Choice, p float64, f func()) bool {
	rng := w.stream(c)
	if p < 1 && rng.Float64() >= p || w.only != nil && !w.only[c] {
		return false
	}
	w.choices = append(w.choices, c)
	w.within(rng, f)
	return true
}

// within runs f with its random numbers from a stream.
func (w *world) within(rng *rand.Rand, f func()) {
	old := w.rng
	w.rng = rng
	f()
	w.rng = old
}

// every does f again and again, each time in a random stream of its own, numbered
// on from the first; f says after how long.
func (w *world) every(from Choice, first time.Duration, f func(n int) time.Duration) {
	var step func(n int)
	step = func(n int) {
		var pause time.Duration
		w.within(w.stream(Choice{from.Kind, n, 0}), func() { pause = f(n) })
		if pause > 0 {
			w.within(w.base, func() { w.after(pause, func() { step(n + 1) }) })
		}
	}
	w.within(w.base, func() { w.after(first, func() { step(from.N) }) })
}
