package sim

import (
	"slices"
	"time"
)

// fault makes one random fault and plans the next.
func (c *cluster) fault() {
	kinds := Faults()
	if len(c.cfg.Kinds) > 0 {
		if c.cfg.Kinds[0] == "none" {
			return
		}
		kinds = c.cfg.Kinds
	}
	if c.restoring {
		c.w.after(time.Second, c.fault)
		return
	}
	kind := kinds[c.w.rng.IntN(len(kinds))]
	h := c.meta.hosts[c.w.rng.IntN(len(c.meta.hosts))]
	if c.w.chance(0.3) && len(c.devs) > 0 {
		h = c.devs[c.w.rng.IntN(len(c.devs))].h
	}
	c.faults[kind]++
	c.inject(kind, h)
	c.w.after(c.w.between(100*time.Millisecond, 6*time.Second), c.fault)
}

func (c *cluster) inject(kind string, h *host) {
	w := c.w
	o := c.meta.hosts[w.rng.IntN(len(c.meta.hosts))]
	span := w.between(50*time.Millisecond, 9*time.Second)
	if cutting := kind == "cut" || kind == "one-way" || kind == "isolate"; cutting && w.chance(0.4) {
		// Somebody loses patience with a node that is cut off.
		w.after(w.between(0, 1500*time.Millisecond), func() {
			if !c.attaching && !c.meta.calm {
				c.moveTo(o, true)
			}
		})
	}
	w.logf("fault: %s on %s (other %s) for %v", kind, h.id, o.id, span)
	switch kind {
	case "kill", "power":
		h.kill(kind == "power")
		w.after(span, func() { c.restart(h) })
	case "power-all":
		for _, x := range c.meta.hosts {
			x.kill(true)
			w.after(w.between(0, span), func() { c.restart(x) })
		}
	case "cut", "one-way":
		h.cutTo[o] = true
		if kind == "cut" {
			o.cutTo[h] = true
		}
		w.after(span, func() { delete(h.cutTo, o); delete(o.cutTo, h) })
	case "isolate":
		for _, x := range c.meta.hosts {
			h.cutTo[x], x.cutTo[h] = true, true
		}
		h.noMeta = w.chance(0.7)
		w.after(span, func() {
			h.noMeta = false
			for _, x := range c.meta.hosts {
				delete(h.cutTo, x)
				delete(x.cutTo, h)
			}
		})
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
	case "grow":
		c.grow()
	case "replace":
		c.replace()
	case "clear":
		c.clear()
	case "detach":
		if d := h.device; d != nil && h.pausedUntil <= w.now {
			d.p.Release()
		}
	case "full":
		if h.disk != nil {
			d := h.disk
			d.full = true
			w.after(span, func() { d.full = false })
		}
	default:
		c.scene(kind)
	}
}

func (c *cluster) restart(h *host) {
	if !h.up {
		h.start()
	}
}

// Faults lists the kinds of faults.
func Faults() []string {
	return slices.Clone([]string{"kill", "power", "power-all", "cut", "one-way", "isolate", "meta-out", "no-meta", "pause", "slow", "stuck", "detach", "full",
		"grow", "replace", "clear", "expire", "undo", "relay", "last", "double", "hush", "forget", "forget-growth", "rollback"})
}
