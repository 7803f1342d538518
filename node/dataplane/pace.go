package dataplane

import (
	"math"
	"slices"
	"time"

	"github.com/holdfast-storage/holdfast/replication"
)

// The repairs of all volumes served here share one budget. It adapts: a moment in
// each second without copying shows how long the application's small reads and
// writes take by themselves, and when they take clearly longer beside copying, the
// rate falls at once and rises again step by step (additive increase,
// multiplicative decrease). It never falls below a floor. A repair needs no more
// than that to end: live writes reach its target from the start, so that what it
// lacks only shrinks.
const (
	paceCycle  = time.Second            // in which there is one moment without copying
	paceQuiet  = 80 * time.Millisecond  // that moment
	paceSettle = 10 * time.Millisecond  // of it, in which what was under way ends
	paceSlice  = 100 * time.Millisecond // after which the rate is looked at
	paceFew    = 8                      // requests make a median
	paceBurst  = 10 * time.Millisecond  // of the rate may be taken at once
	paceSmall  = 64 << 10               // bytes of a request that counts

	// paceSlower times as long, and paceJitter more, is clearly longer. An
	// application that keeps its queue full does so much less; the bound,
	// 85 % of the throughput, is at 1.18.
	paceSlower = 1.1
	paceJitter = 30 * time.Microsecond
	// paceDoubt, over the square root of their number, is how much more so few
	// requests must take: their median is off by as much by chance.
	paceDoubt = 0.7
)

// pace decides at which rate repairs copy. It does no I/O and knows no clock.
type pace struct {
	limit, floor float64 // bytes a second
	rate         float64
	free         time.Duration // when the next bytes may be taken
	cycle        time.Duration // when this one began
	slice        time.Duration // likewise
	used         time.Duration // when bytes were last taken
	reads        times
	writes       times
	seen         time.Duration // when a request last ended
}

// times are those that one kind of request took.
type times struct {
	base    time.Duration // median without copying; 0: not known
	with    []time.Duration
	without []time.Duration
}

func newPace(limit int64) *pace {
	l := float64(limit)
	return &pace{limit: l, floor: min(l, max(l/25, 1<<20)), rate: l / 4, used: -time.Hour, seen: -time.Hour}
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
// application does something.
func (p *pace) quiet(now time.Duration) bool {
	return now-p.seen < 2*paceCycle && now < p.cycle+paceQuiet
}

// served notes one of the application's requests.
func (p *pace) served(op replication.Op, bytes int64, took, now time.Duration) {
	if bytes > paceSmall || now-p.used > paceCycle || p.limit == 0 {
		return
	}
	p.turn(now)
	x := &p.writes
	if op == replication.OpRead {
		x = &p.reads
	}
	switch began := now - took; {
	case now < p.cycle+paceQuiet && began >= p.cycle+paceSettle:
		x.without = append(x.without, took)
	case began >= p.cycle+paceQuiet:
		x.with = append(x.with, took)
	}
	p.seen = now
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
	p.reads.learn(now-p.cycle > 2*paceCycle)
	p.writes.learn(now-p.cycle > 2*paceCycle)
	p.cycle = now
}

// learn takes the moments without copying into account, as many as it takes where
// little is done. What is known from before does not count any more after a pause.
func (x *times) learn(pause bool) {
	if len(x.without) < paceFew {
		return
	}
	m := median(x.without)
	if x.base == 0 || pause {
		x.base = m
	}
	x.base = (x.base + m) / 2
	x.without = x.without[:0]
}

// judge changes the rate by what was seen since it was last looked at.
func (p *pace) judge() {
	var all, enough int
	var took, alone, jitter float64
	for _, x := range []*times{&p.reads, &p.writes} {
		n := len(x.with)
		if all += n; n < paceFew {
			continue
		}
		enough++
		if x.base > 0 {
			took += float64(n) * float64(median(x.with))
			alone += float64(n) * float64(x.base)
			jitter += float64(n)*float64(paceJitter) + paceDoubt*math.Sqrt(float64(n))*float64(x.base)
		}
	}
	switch {
	case all == 0:
		p.rate = min(p.limit, p.rate+p.limit/8) // nobody is in the way
	case enough == 0:
		return // some more are needed
	case alone == 0:
		p.rate = p.floor // not known yet: carefully
	case took > paceSlower*alone+jitter:
		p.rate = max(p.floor, p.rate*0.6)
	default:
		p.rate = min(p.limit, p.rate+p.limit/32)
	}
	p.reads.with, p.writes.with = p.reads.with[:0], p.writes.with[:0]
}

func median(xs []time.Duration) time.Duration {
	slices.Sort(xs)
	return xs[len(xs)/2]
}
