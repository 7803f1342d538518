// Package processors has a process use one of Go's processors (GOMAXPROCS) for as
// long as one is enough, and all of them when it is not.
//
// With more than one, each goroutine that becomes ready while another processor is
// idle wakes a thread to look for work: at low load that thread finds nothing, and
// costs more than the work (docs/design/processors.md has the measurements). With
// one, a goroutine that computes for long, or a thread that stays in the kernel, can
// hold up all others for some milliseconds. So a Governor promises to take all
// processors once one has been in use all the time for two looks in a row; to go back
// only after a while of little work; and to wait longer each time that turns out wrong.
//
// It owns no goroutine but one for the moment of a change. Whoever does the work
// calls Look: where nothing is done nothing is looked at.
package processors

import (
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// lookEvery is the least time over which is measured how busy the process is.
	lookEvery = 20 * time.Millisecond
	// full is the share of one processor from which it is too little, for fullLooks
	// looks in a row; little the share below which it would be enough.
	full, fullLooks, little = 0.95, 2, 0.7
	// holdFirst is for how long there must have been little work before the process
	// goes back to one processor; twice as long after each time that this did not
	// last for triedFor, up to holdMost.
	holdFirst, holdMost, triedFor = time.Second, time.Minute, time.Minute
)

// Config is where a Governor gets what it needs to know.
type Config struct {
	// Waited is for how long goroutines may have kept a processor without computing,
	// all together since the process began; nil: never.
	Waited func() time.Duration
	// Polled is for how long the process has computed only as there was nothing else to
	// do, since it began; nil: never.
	Polled func() time.Duration

	// For tests; the defaults are the process's.
	now func() time.Duration // monotonic
	cpu func() time.Duration // that the process has computed, in all its threads
	set func(one bool)
}

// Governor chooses the number of processors. A nil one leaves it alone. Its methods
// may be called from any goroutine and do not block.
type Governor struct {
	cfg  Config
	next atomic.Int64 // when to look again, as Config.now

	mu       sync.Mutex
	one      bool
	changing bool
	at, used time.Duration // of the look before: when, and the usage then
	since    time.Duration // when the present period of looking for little work began,
	before   time.Duration // and what had been computed by then
	lowered  time.Duration // when the process went to one processor
	hold     time.Duration
	fulls    int
}

// New gives a Governor of this process; nil where the number of processors is set by
// the environment variable GOMAXPROCS, or is one anyway.
func New(cfg Config) *Governor {
	if os.Getenv("GOMAXPROCS") != "" || runtime.GOMAXPROCS(0) == 1 {
		return nil
	}
	began := time.Now()
	cfg.now = func() time.Duration { return time.Since(began) }
	cfg.cpu = processTime
	cfg.set = func(one bool) {
		if one {
			runtime.GOMAXPROCS(1)
		} else {
			runtime.SetDefaultGOMAXPROCS()
		}
	}
	return newGovernor(cfg)
}

func newGovernor(cfg Config) *Governor {
	g := &Governor{cfg: cfg, hold: holdFirst, lowered: -triedFor}
	g.at = cfg.now()
	g.used = g.usage()
	g.since, g.before = g.at, g.cfg.cpu()
	return g
}

// usage is for how long one processor would have been in use, if there were no other.
func (g *Governor) usage() time.Duration {
	used := g.cfg.cpu()
	if g.cfg.Waited != nil {
		used += g.cfg.Waited()
	}
	if g.cfg.Polled != nil {
		used -= g.cfg.Polled()
	}
	return used
}

// Look is to be called after each piece of work. It costs the time of day, and every
// lookEvery a system call.
func (g *Governor) Look() {
	if g == nil {
		return
	}
	now := g.cfg.now()
	if int64(now) < g.next.Load() || !g.mu.TryLock() {
		return
	}
	defer g.mu.Unlock()
	g.next.Store(int64(now + lookEvery))
	g.look(now)
}

// look is called under the mutex.
func (g *Governor) look(now time.Duration) {
	used := g.usage()
	span, share := now-g.at, 0.0
	if span > 0 {
		share = float64(used-g.used) / float64(span)
	}
	g.at, g.used = now, used
	if g.changing {
		return
	}
	if g.one {
		if g.fulls++; share < full {
			g.fulls = 0
		}
		if g.fulls >= fullLooks {
			if g.hold *= 2; now-g.lowered >= triedFor {
				g.hold = holdFirst
			}
			g.hold = min(g.hold, holdMost)
			g.change(now, false)
		}
		return
	}
	period := now - g.since
	if period < g.hold {
		return
	}
	// What was waited for says nothing here: with more processors others went on.
	cpu := g.cfg.cpu()
	enough := float64(cpu-g.before) < little*float64(period)
	g.since, g.before = now, cpu
	if enough {
		g.lowered = now
		g.change(now, true)
	}
}

// change is called under the mutex. It stops all goroutines for some microseconds,
// and waits for a garbage collection that is under way: that is left to a goroutine.
func (g *Governor) change(now time.Duration, one bool) {
	g.one, g.fulls = one, 0
	g.since, g.before = now, g.cfg.cpu()
	if g.changing {
		return // whoever is at it looks again
	}
	g.changing = true
	go func() {
		for {
			g.cfg.set(one)
			g.mu.Lock()
			if g.one == one {
				g.changing = false
				g.mu.Unlock()
				return
			}
			one = g.one
			g.mu.Unlock()
		}
	}()
}

// processTime is what all threads have computed, in the kernel too: getrusage(2).
func processTime() time.Duration {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
