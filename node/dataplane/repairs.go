package dataplane

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-storage/holdfast"
)

// The repairs of all volumes served here share one budget. It adapts: a moment in
// each second without copying shows how long the application's small writes take
// by themselves, and when they take clearly longer beside copying, the rate falls
// at once and rises again step by step (additive increase, multiplicative
// decrease). It never falls below a floor. A repair needs no more than that to
// end: live writes reach its target from the start, so that what it lacks only
// shrinks.
const (
	paceCycle = time.Second            // in which there is one moment without copying
	paceQuiet = 80 * time.Millisecond  // that moment
	paceSlice = 100 * time.Millisecond // after which the rate is looked at
	paceFew   = 8                      // writes make a median
	paceBurst = 10 * time.Millisecond  // of the rate may be taken at once
	paceSmall = 64 << 10               // bytes of a write that counts

	// paceSlower times as long, and paceJitter more, is clearly longer.
	paceSlower = 1.15
	paceJitter = 30 * time.Microsecond
)

// pace decides at which rate repairs copy. It does no I/O and knows no clock.
type pace struct {
	limit, floor float64 // bytes a second
	rate         float64
	free         time.Duration // when the next bytes may be taken
	cycle        time.Duration // when this one began
	slice        time.Duration // likewise
	used         time.Duration // when bytes were last taken
	base         time.Duration // median without copying; 0: not known
	with         []time.Duration
	without      []time.Duration
	seen         int // writes in this cycle
}

func newPace(limit int64) *pace {
	l := float64(limit)
	return &pace{limit: l, floor: min(l, max(l/25, 1<<20)), rate: l / 4, used: -time.Hour}
}

// take takes n bytes, or says when to ask again.
func (p *pace) take(n int64, now time.Duration) (wait time.Duration) {
	if p.limit == 0 {
		return 0
	}
	p.turn(now)
	p.used = now
	if end := p.cycle + paceQuiet; p.quiet(now) {
		return end - now
	}
	if p.free > now {
		return p.free - now
	}
	p.free = max(p.free, now-paceBurst) + time.Duration(float64(n)/p.rate*float64(time.Second))
	return 0
}

// quiet says whether this is the moment without copying: only where the
// application writes.
func (p *pace) quiet(now time.Duration) bool { return p.seen >= paceFew && now < p.cycle+paceQuiet }

// wrote notes one of the application's writes.
func (p *pace) wrote(bytes int64, took, now time.Duration) {
	if bytes > paceSmall || now-p.used > paceCycle || p.limit == 0 {
		return
	}
	p.turn(now)
	switch {
	case now < p.cycle+paceQuiet && now-took >= p.cycle:
		p.without = append(p.without, took)
	case now-took >= p.cycle+paceQuiet:
		p.with = append(p.with, took)
	}
	p.seen++
}

// turn ends slices and cycles whose time has passed.
func (p *pace) turn(now time.Duration) {
	if now-p.slice >= paceSlice {
		p.judge()
		p.slice = now
	}
	if now-p.cycle < paceCycle {
		return
	}
	if len(p.without) >= paceFew {
		m := median(p.without)
		if p.base == 0 || now-p.cycle > 2*paceCycle {
			p.base = m
		}
		p.base = (p.base + m) / 2
	}
	p.cycle, p.without = now, p.without[:0]
	if now-p.slice > paceCycle {
		p.seen = 0
	}
	p.seen = min(p.seen, paceFew)
	if len(p.with) == 0 && p.seen < paceFew {
		p.seen = 0
	}
}

// judge changes the rate by what was seen since it was last looked at.
func (p *pace) judge() {
	switch {
	case len(p.with) == 0:
		p.rate = min(p.limit, p.rate+p.limit/8) // nobody is in the way
		p.seen = 0
	case len(p.with) < paceFew:
		return // some more are needed
	case p.base == 0:
		p.rate = p.floor // not known yet: carefully
	case float64(median(p.with)) > paceSlower*float64(p.base)+float64(paceJitter):
		p.rate = max(p.floor, p.rate*0.6)
	default:
		p.rate = min(p.limit, p.rate+p.limit/32)
	}
	p.with = p.with[:0]
}

func median(xs []time.Duration) time.Duration {
	slices.Sort(xs)
	return xs[len(xs)/2]
}

// repairs is the budget of a node.
type repairs struct {
	plane *Plane
	most  int // at once

	mu      sync.Mutex // a leaf
	pace    *pace
	running map[holdfast.ReplicaID]bool
	queue   []holdfast.ReplicaID
}

func newRepairs(p *Plane) *repairs {
	return &repairs{plane: p, most: p.cfg.Repairs, pace: newPace(p.cfg.RepairRate), running: map[holdfast.ReplicaID]bool{}}
}

// gate is the budget as one volume's primary uses it.
type gate struct {
	*repairs
	v *volume
}

// Turn implements replication.RepairGate: whoever asked first is first.
func (r *repairs) Turn(id holdfast.ReplicaID) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.running[id] {
		return ""
	}
	at := slices.Index(r.queue, id)
	if at < 0 {
		at = len(r.queue)
		r.queue = append(r.queue, id)
	}
	if len(r.running)+at < r.most {
		r.queue = slices.Delete(r.queue, at, at+1)
		r.running[id] = true
		return ""
	}
	return fmt.Sprintf("its turn: %d repairs at once on node %s", r.most, r.plane.cfg.Self)
}

// Done implements replication.RepairGate.
func (r *repairs) Done(id holdfast.ReplicaID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.running, id)
	r.queue = slices.DeleteFunc(r.queue, func(x holdfast.ReplicaID) bool { return x == id })
}

// Wrote implements replication.RepairGate.
func (r *repairs) Wrote(bytes int64, took time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pace.wrote(bytes, took, r.plane.clock.Now())
}

// Take implements replication.RepairGate.
func (g gate) Take(n int64, again func()) bool {
	g.mu.Lock()
	wait := g.pace.take(n, g.plane.clock.Now())
	g.mu.Unlock()
	if wait <= 0 {
		return true
	}
	g.plane.spawn(func() {
		pause(g.plane.life, wait)
		g.v.step(again)
	})
	return false
}
