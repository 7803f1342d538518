package sim

import (
	"time"

	"github.com/holdfast-storage/holdfast"
)

// Scenes whose faults wait for the record to show their moment.

// alone leaves one in-sync replica, which loses power after it wrote what another
// one lacks.
func (c *cluster) alone() {
	in := c.members()
	if len(in) < 2 {
		return
	}
	c.begun("alone")
	c.lodge()
	for _, x := range in[1:] {
		c.down(x, false, 20*time.Second)
	}
	c.when(15*time.Second, func() bool { return len(c.members()) == 1 }, func() {
		c.cold(30 * time.Millisecond)
		c.soon(35*time.Millisecond, func() {
			c.down(in[0], true, 100*time.Millisecond)
			c.soon(time.Second, func() {
				c.complete("alone")
				for _, x := range in[1:] {
					c.restart(x)
				}
			})
		})
	})
}

// last takes all in-sync replicas from a primary that still has a stale one,
// which is there and has not got everything yet.
func (c *cluster) last() {
	w, in := c.w, c.members()
	if len(in) < 3 {
		return
	}
	c.begun("last")
	c.lodge()
	stale := in[0]
	c.down(stale, false, 20*time.Second)
	c.when(8*time.Second, func() bool { return !c.inSync(stale) }, func() {
		c.storm(100 * time.Millisecond)
		c.soon(time.Second, func() {
			c.restart(stale)
			stale.lateUntil = w.now + 6*time.Second
		})
		c.when(5*time.Second, func() bool { return c.state(stale) == holdfast.Rebuilding }, func() {
			c.cold(50 * time.Millisecond)
			c.soon(40*time.Millisecond, func() {
				c.complete("last")
				for i, x := range c.members() {
					if x != c.holder() {
						c.down(x, true, time.Duration(i)*300*time.Millisecond+50*time.Millisecond)
					}
				}
			})
		})
	})
}

// leaveOldest has the replica leave that is in sync for longest.
func (c *cluster) leaveOldest() {
	free := c.free()
	c.change("leave", func(r *holdfast.Record) bool {
		var oldest *holdfast.Replica
		for i := range r.Replicas {
			if x := &r.Replicas[i]; x.State == holdfast.InSync && !x.Leaving && (oldest == nil || x.Since < oldest.Since) {
				oldest = x
			}
		}
		if free == nil || oldest == nil || len(r.Replicas) > r.Spec.Replicas {
			return false
		}
		oldest.Leaving = true
		c.place(r, free)
		return true
	})
}

// lodge moves the volume to a host without a replica, if there is one, so that it
// outlives what happens to replicas.
func (c *cluster) lodge() {
	if h, o := c.holder(), c.free(); h != nil && h.disk != nil && o != nil && !c.attaching {
		c.moveTo(o, true)
	}
}

// state is that of a host's replica in the record.
func (c *cluster) state(h *host) holdfast.ReplicaState {
	if x := c.meta.rec.On(h.id); x != nil && x.ID == h.replicaID {
		return x.State
	}
	return ""
}

func (c *cluster) inSync(h *host) bool { return c.state(h) == holdfast.InSync }

// when does a scene's next fault as soon as something is so, unless that takes
// longer than d, or the faults have ended.
func (c *cluster) when(d time.Duration, is func() bool, f func()) {
	switch {
	case c.meta.calm || d < 0:
	case is():
		f()
	case d < 10*time.Millisecond:
		c.logf("scene %s: what it waits for does not come", c.playing)
		c.stageUntil = 0 // another one can have it
	default:
		c.w.after(10*time.Millisecond, func() { c.when(d-10*time.Millisecond, is, f) })
	}
}

// cold is a storm for a block that is otherwise hardly written, so that what goes
// wrong there stays.
func (c *cluster) cold(span time.Duration) {
	c.storm(span)
	if !c.hotOnly {
		c.spot = c.w.rng.Int64N(c.cfg.Blocks)
	}
}
