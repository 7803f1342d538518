package dataplane

import (
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/replication"
)

// pacing keeps a volume's limits. All of it is used within steps only.
type pacing struct {
	throttle *throttle // nil: no limit
	timer    *time.Timer
	ended    bool // nothing is held back any more
}

// submit hands a request to the machine, now or when the limits allow it. What
// waits here is not yet the machine's: it does not count as waiting for replicas.
func (h *Volume) submit(r *replication.Request) {
	t := h.pacing.throttle
	if t == nil {
		h.machine.Submit(r)
		return
	}
	now := h.v.plane.clock.Now()
	if t.take(r, now) {
		h.machine.Submit(r)
		return
	}
	t.put(r, now)
	h.pace()
}

// adoptLimits takes over the limits of the newest record if they have changed.
func (h *Volume) adoptLimits() {
	p := &h.pacing
	l := h.machine.Limits()
	switch {
	case p.ended || p.throttle == nil && !l.Any() || p.throttle != nil && p.throttle.limits == l:
		return
	case !l.Any():
		h.letGo()
		return
	case p.throttle == nil:
		p.throttle = &throttle{}
	}
	p.throttle.set(l, h.v.plane.clock.Now())
	h.disarm()
	h.pace()
}

// pace lets pass what may, and wakes itself up for what must wait.
func (h *Volume) pace() {
	p := &h.pacing
	for p.throttle != nil && p.timer == nil {
		r, wait := p.throttle.next(h.v.plane.clock.Now())
		switch {
		case r != nil:
			h.machine.Submit(r)
		case wait == 0 || !h.arm(wait):
			return
		}
	}
}

// arm calls pace in a while; false when the plane is closing, which ends the
// machine and with it what waits.
func (h *Volume) arm(wait time.Duration) bool {
	pl := h.v.plane
	pl.mu.Lock()
	defer pl.mu.Unlock()
	if pl.closed {
		return false
	}
	pl.work.Add(1)
	h.pacing.timer = time.AfterFunc(wait, func() {
		defer pl.work.Done()
		h.v.step(func() {
			h.pacing.timer = nil
			h.pace()
		})
	})
	return true
}

func (h *Volume) disarm() {
	if t := h.pacing.timer; t != nil && t.Stop() {
		h.v.plane.work.Done()
		h.pacing.timer = nil
	}
}

// letGo ends the limits: what waits goes to the machine, in order.
func (h *Volume) letGo() {
	h.disarm()
	t := h.pacing.throttle
	if t == nil {
		return
	}
	h.pacing.throttle = nil
	for r := t.pop(); r != nil; r = t.pop() {
		h.machine.Submit(r)
	}
}

// endLimits ends them for good.
func (h *Volume) endLimits() {
	h.pacing.ended = true
	h.letGo()
}

// Limited says for which limit requests of the device are held back, and how long
// the first has been; "" when none is.
func (h *Volume) Limited() (what string, long time.Duration) {
	h.v.lock()
	defer h.v.unlock()
	if t := h.pacing.throttle; t != nil {
		return t.told(h.v.plane.clock.Now())
	}
	return "", 0
}

// Limits are those that are kept now.
func (h *Volume) Limits() holdfast.Limits {
	h.v.lock()
	defer h.v.unlock()
	if t := h.pacing.throttle; t != nil {
		return t.limits
	}
	return holdfast.Limits{}
}
