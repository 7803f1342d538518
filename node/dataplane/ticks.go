package dataplane

import (
	"time"

	"github.com/holdfast-storage/holdfast"
)

// ticks says when which primary is told that time has passed. One at rest is told
// when it has asked for it, all others every TickEvery. So that a node's death is
// found although all volumes are at rest, one of those with a replica there, any one,
// probes it every ProbeEvery; when that is in vain, all of them do.
// Guarded by Plane.mu, as a leaf.
type ticks struct {
	awake   map[*Volume]struct{}
	resting map[*Volume]time.Duration                // until
	next    time.Duration                            // none of the resting is due before
	nodes   map[holdfast.NodeID]map[*Volume]struct{} // others, with replicas of those at rest
	probeAt time.Duration                            // when the nodes are to be probed
	silent  []holdfast.NodeID                        // newly
	kick    chan struct{}                            // of capacity 1: there is something to do earlier than it seemed
}

// never is later than anything.
const never = time.Duration(1<<63 - 1)

func newTicks() ticks {
	return ticks{awake: map[*Volume]struct{}{}, resting: map[*Volume]time.Duration{}, next: never,
		nodes: map[holdfast.NodeID]map[*Volume]struct{}{}, kick: make(chan struct{}, 1)}
}

// wake has a primary told every TickEvery from now on.
func (p *Plane) wake(h *Volume) {
	p.mu.Lock()
	_, rested := p.ticks.resting[h]
	first := len(p.ticks.awake) == 0
	p.forgetRest(h)
	p.ticks.awake[h] = struct{}{}
	p.mu.Unlock()
	if rested && first {
		p.hurry()
	}
}

// rest has a primary told at a moment, and not before.
func (p *Plane) rest(h *Volume, until time.Duration, nodes []holdfast.NodeID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.primaries[h]; !ok {
		return
	}
	t := &p.ticks
	delete(t.awake, h)
	t.resting[h] = until
	t.next = min(t.next, until)
	for _, id := range nodes {
		if id == p.cfg.Self {
			continue
		}
		if t.nodes[id] == nil {
			t.nodes[id] = map[*Volume]struct{}{}
		}
		t.nodes[id][h] = struct{}{}
	}
}

// forgetRest is called with the plane's mutex.
func (p *Plane) forgetRest(h *Volume) {
	t := &p.ticks
	if _, ok := t.resting[h]; !ok {
		return
	}
	delete(t.resting, h)
	for id, n := range t.nodes {
		if delete(n, h); len(n) == 0 {
			delete(t.nodes, id)
		}
	}
}

// hurry has the ticking goroutine look again.
func (p *Plane) hurry() {
	select {
	case p.ticks.kick <- struct{}{}:
	default:
	}
}

// nodeSilent is the word of a primary that a node does not answer it; called within
// a step.
func (p *Plane) nodeSilent(id holdfast.NodeID) {
	p.mu.Lock()
	p.ticks.silent = append(p.ticks.silent, id)
	p.mu.Unlock()
	p.hurry()
}

// probe is a question that a volume's primary is to ask a node.
type probe struct {
	h    *Volume
	node holdfast.NodeID
}

// due gives what is to be done now.
func (p *Plane) due(hs []*Volume, probes []probe) ([]*Volume, []probe) {
	p.mu.Lock()
	defer p.mu.Unlock()
	t, now := &p.ticks, p.clock.Now()
	for h := range t.awake {
		hs = append(hs, h)
	}
	if now >= t.next {
		// With those that are due soon, so that many are one's company: it is wake-ups
		// that cost, here and on the nodes that are asked.
		t.next = never
		for h, until := range t.resting {
			if until <= now+p.cfg.RestSlack {
				hs = append(hs, h)
				continue // told of again after its tick
			}
			t.next = min(t.next, until)
		}
	}
	for _, id := range t.silent {
		for h := range t.nodes[id] {
			probes = append(probes, probe{h, id})
		}
	}
	t.silent = t.silent[:0]
	if len(t.nodes) > 0 && now >= t.probeAt {
		t.probeAt = now + p.cfg.ProbeEvery
		for id, n := range t.nodes {
			for h := range n { // in no order: another one each time
				probes = append(probes, probe{h, id})
				break
			}
		}
	}
	return hs, probes
}

// idle is for how long nothing is due, but for a kick.
func (p *Plane) idle() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	t, now := &p.ticks, p.clock.Now()
	next := t.next
	if len(t.nodes) > 0 {
		next = min(next, t.probeAt)
	}
	if len(t.awake) > 0 || len(t.silent) > 0 {
		next = min(next, now+p.cfg.TickEvery)
	}
	return max(next-now, p.cfg.TickEvery)
}

// tick tells the primaries that time has passed.
func (p *Plane) tick() {
	wait := p.cfg.TickEvery
	timer := time.NewTimer(wait)
	defer timer.Stop()
	var hs []*Volume
	var probes []probe
	for {
		select {
		case <-p.life.Done():
			return
		case <-p.ticks.kick:
			// Only what was to be slept through is cut short: kicks may come often.
			if wait > p.cfg.TickEvery {
				wait = p.cfg.TickEvery
				timer.Reset(wait)
			}
			continue
		case <-timer.C:
		}
		hs, probes = p.due(hs[:0], probes[:0])
		for _, h := range hs {
			h.tick()
		}
		for _, x := range probes {
			x.h.v.step(func() { x.h.machine.Probe(x.node) })
		}
		clear(hs)
		clear(probes)
		wait = p.idle()
		timer.Reset(wait)
	}
}

// tick is one tick of a primary.
func (h *Volume) tick() {
	h.v.lock()
	h.machine.Tick()
	h.adoptLimits()
	h.ticked = true
	h.v.unlock()
}

// look has the plane tell a primary of time as it needs it now. It is the end of each
// tick, and of each step of one that is at rest.
func (h *Volume) look() {
	p := h.v.plane
	until, rests := h.machine.Rests()
	switch {
	case rests && (!h.resting || until != h.until || h.ticked):
		var nodes []holdfast.NodeID
		if !h.resting {
			h.machine.Replicas(func(id holdfast.NodeID) { nodes = append(nodes, id) })
		}
		p.rest(h, until, nodes)
	case !rests && h.resting:
		p.wake(h)
	}
	h.resting, h.until, h.ticked = rests, until, false
}
