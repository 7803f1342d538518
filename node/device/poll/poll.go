// Package poll has a front end look for a device's next request for a short while
// before its thread sleeps, as QEMU's I/O threads do (poll-max-ns).
//
// To sleep and to be woken by another CPU takes longer than a fast disk, most of all on
// a virtual machine: each end of it costs an interrupt between CPUs, for which the host
// is needed. Who looks instead lets other threads run between two looks
// (sched_yield(2)), and what they do for the next request runs on the same CPU.
//
// A Poller promises to look only while it pays: the last requests came one at a time,
// each soon after the answer to the one before; the process was asked for nothing else
// between them, neither by other devices nor by other nodes; and it uses one processor
// (package processors), as who looks keeps that. It looks for Most at the longest. Its
// methods may be called from any goroutine and do not block, but for Run.
package poll

import (
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast/node/device"
)

const (
	// Most is for how long it is looked for a request, and how soon after an answer
	// requests must have come of late, on average.
	Most = 150 * time.Microsecond
	// after is how many requests must have come alone before it is looked for one.
	after = 64
	// gapOver is over how many requests the average goes, of which none counts for
	// more than gapMost.
	gapOver = 16
	gapMost = 16 * Most
	// looked is the longest time between two looks in which, it is supposed, no other
	// thread ran.
	looked = 5 * time.Microsecond
)

// Poller is one device's. Make it with New.
type Poller struct {
	counter device.Counter       // nil: it never looks
	idle    chan struct{}        // of capacity 1: it is time to look
	now     func() time.Duration // monotonic

	open     atomic.Int32  // requests taken and not answered
	asked    atomic.Uint64 // what the counter says if nothing else was asked for since the last request
	alone    atomic.Int64  // so many came alone, one after the other
	answered atomic.Int64  // when the last one was, by now, in ns
	gap      atomic.Int64  // from then to the next request, in ns, on average
}

// New makes a Poller for a device whose requests b takes. It never looks if b is no
// device.Counter.
func New(b device.Backend) *Poller {
	began := time.Now()
	p := &Poller{idle: make(chan struct{}, 1), now: func() time.Duration { return time.Since(began) }}
	p.counter, _ = b.(device.Counter)
	p.gap.Store(int64(gapMost))
	return p
}

// Looks says whether Run ever looks.
func (p *Poller) Looks() bool { return p.counter != nil }

// Alone says whether no more than one request is open.
func (p *Poller) Alone() bool { return p.open.Load() <= 1 }

// Taken counts a request as open, before the backend has it.
func (p *Poller) Taken() {
	open := p.open.Add(1)
	if p.counter == nil {
		return
	}
	asked := p.counter.Asked()
	if p.asked.Swap(asked+1) != asked || open > 1 {
		p.alone.Store(0)
		return
	}
	p.alone.Add(1)
	was := p.gap.Load()
	gap := min(int64(p.now())-p.answered.Load(), int64(gapMost))
	p.gap.Store(was + (gap-was)/gapOver)
}

// Answered counts a request as answered. If none is open now it may be time to look for
// the next one, unless that would not pay after this one, as the caller says.
func (p *Poller) Answered(pays bool) {
	if p.open.Add(-1) > 0 || p.counter == nil {
		return
	}
	p.answered.Store(int64(p.now()))
	if pays && p.alone.Load() >= after && p.gap.Load() < int64(Most) && runtime.GOMAXPROCS(0) == 1 {
		select {
		case p.idle <- struct{}{}:
		default:
		}
	}
}

// Run calls look again and again whenever that pays, until it says that it has found
// something or that there is no sense in it, and then rest. It returns when stop is
// closed, which look should notice too.
func (p *Poller) Run(stop <-chan struct{}, look func() bool, rest func()) {
	for {
		select {
		case <-p.idle:
		case <-stop:
			return
		}
		p.poll(look)
		rest()
	}
}

func (p *Poller) poll(look func() bool) {
	began := p.now()
	own, last := time.Duration(0), began
	for p.open.Load() == 0 && last-began < Most && !look() {
		_, _, _ = unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
		now := p.now()
		if now-last < looked {
			own += now - last
		}
		last = now
	}
	spent.Add(int64(own))
}

var spent atomic.Int64 // ns

// Spent is for how long the process has computed for nothing but to look, about.
func Spent() time.Duration { return time.Duration(spent.Load()) }
