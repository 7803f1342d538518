package sim

import (
	"container/heap"
	"fmt"
	"math/rand/v2"
	"time"
)

// world is the scheduler: events in order of virtual time, ties in order of
// their making.
type world struct {
	seed   uint64
	base   *rand.Rand // where no choice is at work
	rng    *rand.Rand // of the choice at work
	now    time.Duration
	events eventHeap
	made   uint64
	trace  []string
	keep   bool

	choices []Choice        // made so far
	only    map[Choice]bool // the others are left out; nil: none
}

// newWorld has its own random numbers for each kind of run.
func newWorld(cfg *Config, kind uint64) *world {
	base := rand.New(rand.NewPCG(cfg.Seed, kind))
	return &world{seed: cfg.Seed ^ kind<<60, base: base, rng: base, keep: cfg.Trace, only: cfg.Only}
}

type event struct {
	at  time.Duration
	seq uint64
	rng *rand.Rand
	run func()
}

type eventHeap []*event

func (h eventHeap) Len() int { return len(h) }
func (h eventHeap) Less(i, j int) bool {
	return h[i].at < h[j].at || h[i].at == h[j].at && h[i].seq < h[j].seq
}
func (h eventHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *eventHeap) Push(x any)   { *h = append(*h, x.(*event)) }
func (h *eventHeap) Pop() any {
	old := *h
	e := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return e
}

// Now makes world a replication.Clock.
func (w *world) Now() time.Duration { return w.now }

// after runs f when d has passed.
func (w *world) after(d time.Duration, f func()) {
	w.made++
	heap.Push(&w.events, &event{at: w.now + d, seq: w.made, rng: w.rng, run: f})
}

// runUntil runs events up to a moment, or until stop says so.
func (w *world) runUntil(t time.Duration, stop func() bool) {
	for len(w.events) > 0 && w.events[0].at <= t {
		e := heap.Pop(&w.events).(*event)
		w.now, w.rng = e.at, e.rng
		e.run()
		w.rng = w.base
		if stop != nil && stop() {
			return
		}
	}
	w.now = max(w.now, t)
}

// logf notes a line of the trace, when one is kept.
func (w *world) logf(format string, args ...any) {
	if w.keep {
		w.trace = append(w.trace, fmt.Sprintf("%9.4f ", w.now.Seconds())+fmt.Sprintf(format, args...))
	}
}

// between is a random duration.
func (w *world) between(lo, hi time.Duration) time.Duration {
	return lo + time.Duration(w.rng.Int64N(int64(hi-lo)+1))
}

// chance is true with probability p.
func (w *world) chance(p float64) bool { return w.rng.Float64() < p }
