package sim

import (
	"slices"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/replication"
)

// More scenes that have the stage for themselves.

// copies breaks a take-over off when one replica has got what it copies and another
// one has not, and has those two go on without its source.
func (c *cluster) copies(in []*host) {
	if len(in) < 3 {
		return
	}
	from, fast, slow, blocks := in[0], in[1], in[2], c.spots()
	late := func(t *replication.Task) time.Duration { return laterWrites(t, false, 3*time.Second) }
	c.stage(40 * time.Second)
	c.take(from, true, 8*time.Second, func() {
		// Not written before: that would be in all tails still, and so be reconciled.
		c.rested(from, func() {
			fast.hinder, slow.hinder = late, late
			c.ask(from, opWrite, blocks...)
			c.soon(20*time.Millisecond, func() {
				for _, x := range in {
					c.down(x, false, 20*time.Millisecond) // what waited there is gone
				}
				c.attaching = false
				c.soon(50*time.Millisecond, func() { c.takeBroken(from, fast, slow, blocks) })
			})
		})
	})
}

// takeBroken has a host take the volume, and breaks that off.
func (c *cluster) takeBroken(from, fast, slow *host, blocks []int64) {
	if from.disk == nil || fast.disk == nil || slow.disk == nil {
		c.stageUntil = 0 // one of them was replaced meanwhile
		return
	}
	slow.hinder = func(t *replication.Task) time.Duration { return laterWrites(t, false, 3*time.Second) }
	before := slices.Clone(fast.disk.live)
	c.moveTo(from, true)
	copied := func() bool {
		return from.primary != nil && from.primary.Phase() == "reconciling" && fast.disk != nil && !slices.Equal(before, fast.disk.live)
	}
	c.when(5*time.Second, copied, func() {
		c.down(from, false, 20*time.Second)
		c.down(slow, false, 20*time.Millisecond)
		c.attaching = false
		c.soon(50*time.Millisecond, func() {
			c.take(fast, true, 12*time.Second, func() {
				c.ask(fast, opRead, blocks...)
				c.leaveStage(time.Second)
			})
		})
	})
}

// promoted takes the power of all in the moment in which a replica is in sync
// again that lacked what was flushed; it is the first that is back.
func (c *cluster) promoted(in []*host) {
	t, h, blocks := in[0], in[1], c.spots()
	c.stage(35 * time.Second)
	c.take(h, true, 8*time.Second, func() {
		c.missing(t, func() {
			c.ask(h, opWrite, blocks...)
			c.rested(h, func() {
				c.ask(h, opFlush, 0)
				c.rested(h, func() {
					c.restart(t)
					c.when(8*time.Second, func() bool { return c.inSync(t) }, func() { c.blackout(t, blocks) })
				})
			})
		})
	})
}

// unsure leaves the outcome of a promotion open while its candidate is gone, and
// has it take effect after more was written; then the candidate is all that is left.
func (c *cluster) unsure(in []*host) {
	t, h, blocks := in[0], in[1], c.spots()
	c.stage(35 * time.Second)
	c.take(h, true, 8*time.Second, func() {
		c.missing(t, func() {
			c.onPromote = func() {
				c.down(t, false, 20*time.Second)
				c.soon(50*time.Millisecond, func() { c.ask(h, opWrite, blocks...) })
			}
			c.restart(t)
			c.when(9*time.Second, func() bool { return c.inSync(t) }, func() {
				c.restart(t)
				for _, x := range c.meta.hosts {
					if x != t {
						c.down(x, false, 7*time.Second)
					}
				}
				c.attaching = false
				c.take(t, true, 9*time.Second, func() {
					c.ask(t, opRead, blocks...)
					c.leaveStage(100 * time.Millisecond)
				})
			})
			c.w.after(9*time.Second, func() { c.onPromote = nil })
		})
	})
}

// rewind restores a snapshot of the metadata store from before a replica was
// dropped that lacks what was written since, and is back: it alone would believe it.
func (c *cluster) rewind(in []*host) {
	if c.cfg.Snapshots || len(c.volumes) > 1 || len(in) < 2 || c.w.now+35*time.Second > c.cfg.Faults {
		return
	}
	gone, h, blocks := in[0], in[1], c.spots()
	c.stage(40 * time.Second)
	c.take(h, true, 8*time.Second, func() {
		c.ask(h, opWrite, blocks...)
		c.rested(h, func() {
			old := c.meta.rec.Clone()
			c.missing(gone, func() {
				c.ask(h, opWrite, blocks...)
				c.rested(h, func() {
					if c.restoring || c.hindered() {
						return
					}
					c.restoring, c.calm = true, true
					c.endTroubles(gone)
					c.w.after(500*time.Millisecond, func() {
						c.rollBackTo([]holdfast.Record{old}, gone)
						// Not before all are back: if the only one that knows does not
						// answer, nobody can tell (seed 9700956).
						c.w.after(200*time.Millisecond, func() { c.believe(gone, blocks, c.w.now+4*time.Second) })
						c.leaveStage(7 * time.Second)
					})
				})
			})
		})
	})
}

// believe has a host try again and again to serve what the store says, for a while,
// and reads if it does.
func (c *cluster) believe(h *host, blocks []int64, until time.Duration) {
	switch {
	case c.w.now > until || !c.restoring:
		return
	case c.serves(h):
		c.ask(h, opRead, blocks...)
		return
	case h.primary == nil && !h.opening:
		c.moveTo(h, true)
	}
	c.w.after(250*time.Millisecond, func() { c.believe(h, blocks, until) })
}

// lastOne takes all in-sync replicas for a while from a primary that still has a stale
// one, which is there and lacks what was written. The first is about to be dropped
// when the other one goes.
func (c *cluster) lastOne(in []*host) {
	h := c.free()
	if len(in) < 3 || h == nil {
		return
	}
	stale, blocks := in[0], c.spots()
	c.stage(45 * time.Second)
	c.take(h, true, 8*time.Second, func() {
		c.missing(stale, func() {
			c.ask(h, opWrite, blocks...)
			c.rested(h, func() {
				for _, x := range c.members() {
					x.hinder = func(t *replication.Task) time.Duration { return laterCopies(t, 20*time.Second) }
				}
				c.restart(stale)
				c.when(8*time.Second, func() bool { return c.state(stale) == holdfast.Rebuilding }, func() { c.takeAway(h, blocks) })
			})
		})
	})
}

// takeAway takes the in-sync replicas from a primary one after the other; it cannot
// drop the first before the last is gone, too.
func (c *cluster) takeAway(h *host, blocks []int64) {
	in := c.members()
	if len(in) != 2 || in[0] == h || in[1] == h {
		return
	}
	h.noMeta = true
	c.down(in[0], false, 11*time.Second)
	c.soon(c.cfg.Protocol.SilentAfter+500*time.Millisecond, func() {
		c.down(in[1], false, 9*time.Second)
		c.ask(h, opRead, blocks...)
	})
	c.w.after(c.cfg.Protocol.SilentAfter+time.Second, func() { h.noMeta = false })
	c.soon(13*time.Second, func() {
		c.ask(h, opRead, blocks...)
		c.leaveStage(time.Second)
	})
}

// laterCopies is how much later a read for a repair begins.
func laterCopies(t *replication.Task, d time.Duration) time.Duration {
	if t.Copied && t.Kind == replication.TaskRead {
		return d
	}
	return 0
}
