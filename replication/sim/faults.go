package sim

import "time"

// fault makes the random faults of all volumes.
func (c *cluster) fault() {
	w := c.w
	var kinds []string
	for _, k := range Faults() {
		if c.may(k) && !passive(k) && (k != "limit" || c.cfg.Limits) && (k != "rollback" || !c.cfg.Snapshots) {
			kinds = append(kinds, k)
		}
	}
	if len(kinds) == 0 {
		return
	}
	c.every(streamFaults, w.between(500*time.Millisecond, 3*time.Second), func(n int) time.Duration {
		switch {
		case c.restoring, c.staged():
			return time.Second
		case c.meta.calm:
			return 0
		}
		pause := w.between(100*time.Millisecond, 6*time.Second)
		w.choose(Choice{ChoiceFault, n, 0}, func() {
			kind := kinds[w.rng.IntN(len(kinds))]
			v := c
			if len(c.volumes) > 1 {
				v = c.volumes[w.rng.IntN(len(c.volumes))]
			}
			h := v.meta.hosts[w.rng.IntN(len(v.meta.hosts))]
			if w.chance(0.3) && len(v.devs) > 0 {
				h = v.devs[w.rng.IntN(len(v.devs))].h
			}
			v.faults[kind]++
			v.inject(kind, h)
		})
		return pause
	})
}

func (c *cluster) inject(kind string, h *host) {
	w := c.w
	o := c.meta.hosts[w.rng.IntN(len(c.meta.hosts))]
	span := w.between(50*time.Millisecond, 9*time.Second)
	c.logf("fault: %s on %s (other %s) for %v", kind, h.id, o.id, span)
	c.occasion(kind, h, span)
	c.death(kind, h, span)
	c.link(kind, h, o, span)
	c.trouble(kind, h, span)
	c.scene(kind)
}

// occasion is what the controller does.
func (c *cluster) occasion(kind string, h *host, span time.Duration) {
	switch kind {
	case "grow":
		c.grow()
	case "drain":
		c.drain(h, span)
	case "replace":
		c.replace()
	case "limit":
		c.limit()
	case "clear":
		c.clear()
	case "lull":
		c.lull(span)
	}
}

// death ends processes, with the power of their hosts or without.
func (c *cluster) death(kind string, h *host, span time.Duration) {
	switch kind {
	case "kill", "power":
		c.down(h, kind == "power", span)
	case "power-all":
		for _, x := range c.meta.hosts {
			c.down(x, true, c.w.between(0, span))
		}
	}
}

// link breaks connections.
func (c *cluster) link(kind string, h, o *host, span time.Duration) {
	w := c.w
	switch kind {
	case "cut", "one-way":
		h.cutTo[o.machine] = true
		if kind == "cut" {
			o.cutTo[h.machine] = true
		}
		w.after(span, func() { delete(h.cutTo, o.machine); delete(o.cutTo, h.machine) })
	case "flap":
		for at := time.Duration(0); at < span; at += w.between(5*time.Millisecond, 400*time.Millisecond) {
			w.after(at, func() { c.cutOff(h, w.chance(0.5) && !c.calm) }) // not while all are to be well (seed 70048139)
		}
		w.after(span, func() { c.cutOff(h, false) })
	case "isolate":
		c.cutOff(h, true)
		h.noMeta = w.chance(0.7)
		w.after(span, func() {
			h.noMeta = false
			c.cutOff(h, false)
		})
	default:
		return
	}
	if w.chance(0.4) { // somebody loses patience with a node that is cut off
		c.soon(w.between(0, 1500*time.Millisecond), func() {
			if !c.attaching {
				c.moveTo(o, true)
			}
		})
	}
}

// trouble is what a host can have for a while.
func (c *cluster) trouble(kind string, h *host, span time.Duration) {
	w := c.w
	switch kind {
	case "meta-out":
		c.meta.out = true
		w.after(span, func() { c.meta.out = false })
	case "no-meta":
		h.noMeta = true
		w.after(span, func() { h.noMeta = false })
	case "pause":
		h.pausedUntil = w.now + span
	case "slow":
		h.slowUntil = w.now + span
	case "stuck":
		h.stuckUntil = w.now + span
	case "detach":
		if d := h.device; d != nil && h.pausedUntil <= w.now {
			d.p.Release()
		}
	case "eio":
		c.failing(h, span)
	case "full":
		h.fill(true)
		w.after(span, func() { h.fill(false) })
	}
}

// failing lets a machine's disks fail for a while, not every time; afterwards somebody
// starts the process again, which serves a replica no more.
func (c *cluster) failing(h *host, span time.Duration) {
	for _, d := range h.disks() {
		d.failsUntil = c.w.now + span
	}
	c.w.after(span, func() {
		if h.up && h.broken() {
			c.down(h, false, c.w.between(10*time.Millisecond, time.Second))
		}
	})
}

// cutOff cuts a host off from all others, or ends that.
func (c *cluster) cutOff(h *host, cut bool) {
	for _, x := range c.meta.hosts {
		if cut && x != h {
			h.cutTo[x.machine], x.cutTo[h.machine] = true, true
			continue
		}
		delete(h.cutTo, x.machine)
		delete(x.cutTo, h.machine)
	}
}

func (c *cluster) restart(h *host) {
	if !h.up {
		h.start()
	}
}
