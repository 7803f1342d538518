package sim

import (
	"slices"
	"time"

	"github.com/holdfast-storage/holdfast"
)

// A scene is several faults in the order in which they hurt: what chance alone
// brings about too rarely.

// scene begins one.
func (c *cluster) scene(kind string) {
	c.acting = kind
	switch kind {
	case "expire":
		c.expire()
	case "undo":
		c.undo()
	case "double":
		c.double()
	case "last":
		c.last()
	case "alone":
		c.alone()
	case "hush":
		c.hush()
	case "forget":
		c.soon(c.w.between(0, time.Second), c.forget)
	case "forget-growth":
		c.forgetGrowth()
	case "rollback":
		c.rollback()
	case "interrupt":
		c.interrupt()
	default:
		c.direct(kind)
	}
}

// members are the hosts of in-sync replicas, in a random order.
func (c *cluster) members() []*host {
	var hs []*host
	for _, rep := range c.meta.rec.InSyncReplicas() {
		hs = append(hs, c.host(rep.Node))
	}
	c.w.rng.Shuffle(len(hs), func(i, j int) { hs[i], hs[j] = hs[j], hs[i] })
	return hs
}

// down kills a host for a while.
func (c *cluster) down(h *host, power bool, span time.Duration) {
	h.kill(power)
	c.w.after(span, func() { c.restart(h) })
}

// holder is the host whose device is used; nil if there is none.
func (c *cluster) holder() *host {
	if len(c.devs) == 0 {
		return nil
	}
	return c.devs[len(c.devs)-1].h
}

// isolate cuts a host off from all others.
func (c *cluster) isolate(h *host, span time.Duration) {
	c.cutOff(h, true)
	c.w.after(span, func() { c.cutOff(h, false) })
}

// soon does a scene's next fault, unless the faults have ended.
func (c *cluster) soon(d time.Duration, f func()) {
	c.w.after(d, func() {
		if !c.meta.calm {
			f()
		}
	})
}

// expire lets the lease of a primary run out that still hears its replicas, then
// cuts it off in the moment in which another one is granted the volume.
func (c *cluster) expire() {
	w, in := c.w, c.members()
	if c.holder() == nil || len(in) < 2 || c.attaching {
		return
	}
	c.begun("expire")
	// It needs something to read from once it is cut off.
	if h := c.holder(); !slices.Contains(in, h) {
		c.moveTo(in[0], true)
	}
	c.when(5*time.Second, func() bool { return slices.Contains(c.members(), c.holder()) }, func() {
		h := c.holder()
		h.noMeta = true
		w.after(14*time.Second, func() { h.noMeta = false })
		c.soon(leaseTTL+w.between(0, 200*time.Millisecond), func() { c.succeed(h) })
	})
}

// succeed grants the volume to another member than h, which is cut off.
func (c *cluster) succeed(h *host) {
	w := c.w
	if c.attaching {
		return
	}
	for _, o := range c.members() {
		if o != h {
			c.moveTo(o, false)
			break
		}
	}
	at := time.Duration(0)
	if w.chance(0.4) {
		at = w.between(0, 10*time.Millisecond)
	}
	c.soon(at, func() { c.isolate(h, 7*time.Second) })
	c.onServe = func() {
		c.complete("expire")
		c.onServe = nil
		c.storm(time.Second)
	}
}

// undo makes a write durable on one replica that no other has, kills the primary,
// lets another one take over and undo it, and takes the power of all.
func (c *cluster) undo() {
	h, w, in := c.holder(), c.w, c.members()
	if h == nil || len(in) < 2 || c.attaching {
		return
	}
	c.begun("undo")
	from, to := in[0], in[1]
	for _, x := range in[1:] {
		x.lateUntil = w.now + time.Second // it gets nothing done in time
	}
	d := h.device
	for range 3 {
		for range c.cfg.Depth {
			if d != nil && !d.gone && h.pausedUntil <= w.now {
				d.issue()
			}
		}
	}
	c.soon(w.between(time.Millisecond, 4*time.Millisecond), func() {
		if from.store != nil {
			from.disk.flush() // a flush of somebody else's, on the same disk
		}
		c.down(h, false, 100*time.Millisecond)
		for _, x := range in[1:] {
			if x != h && x.up {
				c.down(x, false, 20*time.Millisecond) // what waited there is gone
			}
		}
	})
	c.soon(200*time.Millisecond, func() {
		if !c.attaching {
			c.moveTo(to, true)
		}
	})
	c.onServe = func() {
		c.onServe = nil
		c.soon(w.between(100*time.Millisecond, 600*time.Millisecond), func() {
			for _, x := range c.meta.hosts {
				c.down(x, true, 50*time.Millisecond)
			}
			c.soon(300*time.Millisecond, func() {
				c.complete("undo")
				if !c.attaching {
					c.moveTo(from, true)
				}
			})
		})
	}
}

// hush drops a replica while nothing is under way, and has all requests and new
// connections come in the moment in which the others are told.
func (c *cluster) hush() {
	h, in := c.holder(), c.members()
	if h == nil || len(in) < 3 {
		return
	}
	gone := in[0]
	if gone == h {
		gone = in[1]
	}
	c.begun("hush")
	c.hushed, c.quiet = true, true
	c.soon(30*time.Millisecond, func() { c.down(gone, false, 5*time.Second) })
	c.soon(9*time.Second, func() { c.hushed, c.quiet = false, false })
}

// forgetGrowth has the volume grow, writes at its new end, and loses the metadata
// store.
func (c *cluster) forgetGrowth() {
	c.grow()
	at := c.w.between(300*time.Millisecond, 3*time.Second)
	c.soon(at, func() {
		c.storm(200 * time.Millisecond)
		c.spot = c.meta.rec.SizeBytes/holdfast.BlockSize - 1
	})
	c.soon(at+250*time.Millisecond, c.forget)
}

// dropped is the moment in which a replica was dropped: the others' connections
// break before they know, or they go as well.
func (c *cluster) dropped(want holdfast.Record) {
	w, in := c.w, c.members()
	if want.Primary == nil || len(in) == 0 {
		return
	}
	h := c.host(want.Primary.Node)
	if c.hushed {
		c.complete("hush")
		c.hushed, c.quiet = false, false
		c.pile(h)
		c.storm(50 * time.Millisecond)
		for _, x := range in {
			x.jitterUntil = w.now + 200*time.Millisecond
			if x != h {
				c.soon(w.between(time.Millisecond, 8*time.Millisecond), func() { c.snap(h, x) })
			}
		}
		return
	}
	if w.chance(0.15) && !c.staged() {
		for _, x := range in {
			x.jitterUntil = w.now + 100*time.Millisecond
		}
		c.soon(w.between(2*time.Millisecond, 15*time.Millisecond), c.forget)
	}
	if b := c.survivor; b != nil {
		if c.snapped++; c.snapped == 2 {
			c.complete("double")
		}
		b.jitterUntil = w.now + 100*time.Millisecond
		c.soon(w.between(0, 4*time.Millisecond), func() { c.snap(h, b) })
		return
	}
	if !w.chance(0.6) || !c.may("snap") {
		return
	}
	c.faults["snap"]++
	c.storm(20 * time.Millisecond)
	in[0].jitterUntil = w.now + 200*time.Millisecond
	c.soon(w.between(0, 3*time.Millisecond), func() { c.snap(h, in[0]) })
	if len(in) > 1 && in[1] != h && c.may("record") && w.chance(0.5) {
		c.soon(w.between(0, 50*time.Millisecond), func() { c.down(in[1], false, 4*time.Second) })
	}
}

// snap breaks the connections between two hosts; new ones can be made at once.
func (c *cluster) snap(a, b *host) {
	var keep []*end
	for _, e := range c.ends {
		switch {
		case e.shut || e.owner.life != e.life:
		case e.owner == a && e.peer.owner == b || e.owner == b && e.peer.owner == a:
			e.out.closed, e.in.closed = true, true
			e.tell(e.peer)
			e.peer.tell(e)
		default:
			keep = append(keep, e)
		}
	}
	c.ends = keep
}

// repaired has writes that overlap come while a replica is repaired whose disk
// takes its time.
func (c *cluster) repaired(want holdfast.Record) {
	for _, rep := range want.Replicas {
		if rep.State == holdfast.Rebuilding && c.may("jitter") && c.w.chance(0.4) {
			c.faults["jitter"]++
			c.host(rep.Node).jitterUntil = c.w.now + 400*time.Millisecond
			c.storm(300 * time.Millisecond)
		}
	}
}

// storm makes the users of the volume ask for much at once.
func (c *cluster) storm(span time.Duration) {
	w := c.w
	going := c.stormUntil > w.now
	c.spot, c.stormUntil = w.rng.Int64N(c.cfg.HotBlocks), max(c.stormUntil, w.now+span)
	if !c.hotOnly && w.chance(0.5) {
		c.spot = w.rng.Int64N(c.cfg.Blocks) // hardly written otherwise: what goes wrong there stays
	}
	if going {
		return
	}
	var step func()
	step = func() {
		if c.stormUntil < w.now {
			return
		}
		c.stormSteps++
		c.request(ChoiceStorm, c.stormSteps, 1+w.rng.IntN(max(1, c.cfg.Depth/2)))
		w.after(w.between(0, 2*time.Millisecond), step)
	}
	step()
}

// double loses two of three replicas one right after the other, with a write in
// between, and breaks the connection to the third whenever one is dropped.
func (c *cluster) double() {
	h, w, in := c.holder(), c.w, c.members()
	if h == nil || len(in) < 3 {
		return
	}
	for i := range in {
		if in[i] == h {
			in[0], in[i] = in[i], in[0]
		}
	}
	c.begun("double")
	c.storm(60 * time.Millisecond)
	c.survivor, c.snapped = in[0], 0
	c.soon(5*time.Millisecond, func() { c.down(in[1], false, 3*time.Second) })
	c.soon(5*time.Millisecond+w.between(500*time.Microsecond, 4*time.Millisecond), func() { c.down(in[2], false, 7*time.Second) })
	w.after(2500*time.Millisecond, func() { c.survivor = nil })
}

// interrupt has a replica come back, and breaks its repair off when some progress
// is durable: the replica dies, with its power or without, or the primary does.
func (c *cluster) interrupt() {
	h, w, in := c.holder(), c.w, c.members()
	if h == nil || len(in) < 2 {
		return
	}
	t := in[0]
	if t == h {
		t = in[1]
	}
	c.begun("interrupt")
	c.down(t, w.chance(0.5), 4*time.Second)
	tries, breaks := 0, 1+w.rng.IntN(3)
	var watch func()
	watch = func() {
		if tries++; tries > 300 {
			return
		}
		if t.disk != nil && t.up && len(t.disk.progress.Parts) > 0 && c.meta.rec.On(t.id) != nil && c.meta.rec.On(t.id).State == holdfast.Rebuilding {
			if breaks--; breaks == 0 {
				c.complete("interrupt")
			}
			c.soon(w.between(0, 300*time.Millisecond), func() { c.breakOff(t) })
			if breaks == 0 {
				return
			}
			c.soon(3*time.Second, watch)
			return
		}
		c.soon(50*time.Millisecond, watch)
	}
	c.soon(4*time.Second, watch)
}

// breakOff ends the repair of a host's replica, while writes go on.
func (c *cluster) breakOff(t *host) {
	h, w := c.holder(), c.w
	c.storm(60 * time.Millisecond)
	switch how := w.rng.IntN(4); {
	case how < 2 && t.up:
		c.down(t, how == 0, w.between(100*time.Millisecond, 2*time.Second))
	case how == 2 && h != nil:
		c.down(h, w.chance(0.3), w.between(100*time.Millisecond, 2*time.Second))
	case h != nil && h != t:
		h.cutTo[t.machine], t.cutTo[h.machine] = true, true
		w.after(w.between(100*time.Millisecond, 3*time.Second), func() { delete(h.cutTo, t.machine); delete(t.cutTo, h.machine) })
	}
}
