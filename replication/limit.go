package replication

import (
	"fmt"
	"slices"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/buf"
)

// A volume may have a limit for how long its I/O waits (Spec.IOTimeoutMillis).
// A request that is not done by then fails with kind Unavailable, and until I/O
// can go on again, later ones that could not be begun fail at once; the device
// stays. Without a limit, which is the default, requests wait.
//
// A write that fails so may be applied on some replicas, and sent to others. It
// stays in flight for the protocol: its range stays locked, its number is not
// committed, so that the replicas keep it in their tails, and it ends by the same
// rules as all others, but tells nobody. So its range is the same on all in-sync
// replicas whenever it can be read, with the write or without (invariant 6).

// maxLeft bounds the failed writes that are still in flight; with so many, which
// only a full pool brings about, new writes fail at once. It bounds their memory.
const maxLeft = 64

// limiter is what the limit needs to know.
type limiter struct {
	// asleep is how long this process was paused: requests did not wait for
	// anybody else then.
	asleep time.Duration
	// failing: a request has waited for too long, and it is not known yet that I/O
	// can go on.
	failing bool
	left    int // failed writes still in flight
}

// awake is the time without that in which this process was paused.
func (p *Primary) awake() time.Duration { return p.now() - p.limit.asleep }

// hopeless says whether a new request would only wait as others did before it
// until they failed.
func (p *Primary) hopeless(r *Request) bool {
	switch {
	case !p.limit.failing:
		return false
	case r.Op == OpRead:
		return !p.readable()
	case p.held(r) || r.Op != OpFlush && p.limit.left >= maxLeft:
		return true
	}
	return p.someoneAway()
}

// someoneAway says whether a replica does not answer that writes need.
func (p *Primary) someoneAway() bool {
	return slices.ContainsFunc(p.peers, func(t *peer) bool { return t.required && !t.up })
}

// tickLimit fails what has waited for too long.
func (p *Primary) tickLimit() {
	limit := p.rec.Spec.IOTimeout()
	if limit == 0 {
		p.limit.failing = false
		return
	}
	before := p.awake() - limit
	p.expireBacklog(before)
	p.expireReads(before)
	p.expireFlushes(before)
	p.expireWrites(before)
	p.expireLocks(before)
	if p.limit.failing && p.limit.left == 0 && p.phase == serving && p.readable() && p.member.losing == 0 && p.mayAck() && !p.someoneAway() {
		p.limit.failing = false
		p.changed("I/O can go on: requests wait again, up to the limit of %v", limit)
	}
}

// tooLong is what a request gets that has waited for too long.
func (p *Primary) tooLong() error {
	what := p.waitReason()
	if what == "" {
		what = "its replicas"
	}
	limit := p.rec.Spec.IOTimeout()
	p.counters.Expired++
	if !p.limit.failing {
		p.limit.failing = true
		p.changed("I/O has waited for %s for %v, the volume's limit: it fails until it can go on", what, limit)
	}
	return holdfast.E("I/O on volume "+p.rec.Name, holdfast.Unavailable, fmt.Sprintf("it waits for %s; the volume's limit of %v is over", what, limit))
}

// expireBacklog fails what was never begun.
func (p *Primary) expireBacklog(before time.Duration) {
	rs := p.backlog
	if len(rs) == 0 || !slices.ContainsFunc(rs, func(r *Request) bool { return r.at < before }) {
		return
	}
	p.backlog = nil
	var late []*Request
	for _, r := range rs {
		if r.at < before {
			late = append(late, r)
		} else {
			p.backlog = append(p.backlog, r)
		}
	}
	for _, r := range late {
		r.Done(r, p.tooLong())
	}
}

// expireReads fails reads that wait, and those that a replica does not answer.
func (p *Primary) expireReads(before time.Duration) {
	parked := p.readers.parked
	p.readers.parked = nil
	var late []*read
	for _, rd := range parked {
		if rd.req.at < before {
			late = append(late, rd)
		} else {
			p.readers.parked = append(p.readers.parked, rd)
		}
	}
	for _, t := range p.peers {
		for _, id := range sortedIDs(t.pending) {
			if rd := t.pending[id].rd; rd != nil && !rd.done && rd.req.at < before {
				late = append(late, rd)
			}
		}
	}
	for _, rd := range late {
		rd.leaveBuffer()
		p.readers.n--
		p.finishRead(rd, p.tooLong())
	}
}

// leaveBuffer gives the request another buffer if a store may still write into
// the first: at any time, and with what is old by then.
func (rd *read) leaveBuffer() {
	if !rd.inPlace {
		return
	}
	rd.inPlace = false
	old := rd.req.Buf
	rd.req.Buf = buf.Get(len(old.B))
	old.Release()
}

// expireFlushes fails flushes; what a running one does not wait for any more goes
// on without telling anybody.
func (p *Primary) expireFlushes(before time.Duration) {
	f := &p.flush
	var late []*Request
	keep := func(rs []*Request) []*Request {
		return slices.DeleteFunc(rs, func(r *Request) bool {
			if r.at < before {
				late = append(late, r)
			}
			return r.at < before
		})
	}
	f.waiting, f.running = keep(f.waiting), keep(f.running)
	for _, r := range late {
		r.Done(r, p.tooLong())
	}
	if len(late) > 0 {
		p.kickFlush()
	}
}

// expireWrites fails what has been sent; see above for what becomes of it.
func (p *Primary) expireWrites(before time.Duration) {
	expired := false
	for _, w := range p.inflight {
		if w.done || w.failed || w.req.at >= before {
			continue
		}
		w.failed, expired = true, true
		p.limit.left++
		w.req.Done(w.req, p.tooLong())
	}
	if expired && mutant(Mutate6ForgetFailed) {
		for _, w := range p.inflight {
			if w.failed && !w.done {
				p.finishWrite(w, nil)
			}
		}
		p.cutInflight()
	}
}

// expireLocks fails what waits for its range.
func (p *Primary) expireLocks(before time.Duration) {
	for _, h := range slices.Clone(p.locks.waiting) {
		if h.fail != nil && h.at < before && slices.Contains(p.locks.waiting, h) {
			h.fail(p.tooLong())
		}
	}
}
