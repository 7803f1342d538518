package sim

import (
	"math/rand/v2"
	"slices"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/replication"
)

// Scenes that have the stage for themselves: nobody else asks for anything,
// attaches, or breaks something, so that what they set up stays as it is until it
// is looked at.

// stageOnly makes a run of the n-th scene alone, with the shape that it needs.
func (c *Config) stageOnly(n uint64, rng *rand.Rand) {
	scenes := groups()["scenes"]
	scene := scenes[n%uint64(len(scenes))]
	c.Kinds = []string{scene}
	c.Scrubs, c.Snapshots, c.Limits, c.MinInSync, c.Volumes = false, false, false, 1, 1
	p := &c.Protocol
	p.SlowPolicy, p.SlowFactor, p.SlowDifference, p.SlowFor, p.SlowHoldOff = "", 0, 0, 0, 0
	if rng.IntN(3) == 0 {
		for _, k := range Faults() {
			if passive(k) && k != "scrub" && k != "flip" && k != "snapshot" {
				c.Kinds = append(c.Kinds, k)
			}
		}
	}
	p.IOTimeout = time.Duration(4+rng.IntN(6)) * time.Second
	p.SilentAfter = time.Duration(1+rng.IntN(2)) * time.Second
	p.ReadWindow = time.Second
	switch scene {
	case "stale", "expire":
		p.SilentAfter = time.Duration(5+rng.IntN(2)) * time.Second
	case "relay", "source", "last", "double", "copies", "rewind", "final":
		c.Hosts, c.Replicas = 5, 3
	case "hush":
		c.Replicas, c.Depth = 3, 8
	case "halfway":
		p.ProgressEvery = 50*time.Millisecond + time.Duration(rng.Int64N(int64(150*time.Millisecond)))
	}
	if scene != "interrupt" {
		p.RepairRate = 0
	}
	if scene == "source" || scene == "halfway" {
		p.RepairRate, p.RepairChunk = 48<<10+rng.Int64N(32<<10), holdfast.BlockSize<<rng.IntN(2)
	}
}

// direct begins a scene that has the stage for itself.
func (c *cluster) direct(kind string) {
	in := c.members()
	if len(in) < 2 || c.attaching {
		return
	}
	switch kind {
	case "relay":
		c.relay(in)
	case "source":
		c.source(in)
	case "stale":
		c.stale(in)
	case "undone":
		c.undone(in)
	case "unflushed":
		c.unflushed(in)
	case "flying":
		c.flying(in)
	case "failed":
		c.failed(in)
	case "halfway":
		c.halfway(in)
	case "copies":
		c.copies(in)
	case "rewind":
		c.rewind(in)
	case "promoted":
		c.promoted(in)
	case "unsure":
		c.unsure(in)
	case "final":
		c.lastOne(in)
	}
}

// staged says whether a scene has the stage.
func (c *cluster) staged() bool { return c.stageUntil > c.w.now }

// stage takes it for a while, at most.
func (c *cluster) stage(span time.Duration) {
	c.stageUntil, c.playing = c.w.now+span, c.acting
	c.begun(c.playing)
}

// leaveStage gives it back after a while.
func (c *cluster) leaveStage(span time.Duration) {
	c.complete(c.playing)
	c.w.after(span, func() { c.stageUntil = 0 })
}

// serves says whether a host has the volume attached and serves it.
func (c *cluster) serves(h *host) bool {
	return slices.ContainsFunc(c.devs, func(d *device) bool { return d.h == h && d == h.device && !d.gone })
}

// take attaches the volume to a host, trying until it serves, for at most d.
func (c *cluster) take(h *host, force bool, d time.Duration, f func()) {
	c.when(d, func() bool {
		if !c.serves(h) && !c.attaching && h.up {
			c.moveTo(h, force)
		}
		return c.serves(h)
	}, f)
}

// ask has a host's device do the same to each of some blocks.
func (c *cluster) ask(h *host, kind opKind, blocks ...int64) {
	for _, b := range blocks {
		if !c.serves(h) || h.pausedUntil > c.w.now {
			return
		}
		o := &op{kind: kind, first: b * blockCells, cells: blockCells, call: c.w.now, open: true}
		if kind == opFlush {
			o.first, o.cells = 0, 0
		}
		h.device.start(o)
	}
}

// rested waits until everything is answered that was asked of a host's device.
func (c *cluster) rested(h *host, f func()) {
	c.when(5*time.Second, func() bool { return c.serves(h) && len(h.device.ops) == 0 }, f)
}

// spots are some blocks, far from each other: at most one for each of what
// repairs compare as one.
func (c *cluster) spots() []int64 {
	const apart = replication.HashBlock / holdfast.BlockSize
	var out []int64
	for b := int64(0); b < c.usable(); b += apart {
		out = append(out, b+c.w.rng.Int64N(min(apart, c.usable()-b)))
	}
	return out
}

// many are about half of all blocks, from the front to the back.
func (c *cluster) many() []int64 {
	var out []int64
	for b := 2 + c.w.rng.Int64N(2); b < c.usable(); b += 2 {
		out = append(out, b)
	}
	return out
}

// usable is how many blocks scenes may use.
func (c *cluster) usable() int64 {
	if c.hotOnly {
		return c.cfg.HotBlocks
	}
	return c.cfg.Blocks
}

// missing has one replica of in go away, and goes on when it was dropped.
func (c *cluster) missing(t *host, f func()) {
	c.down(t, false, 20*time.Second)
	c.when(8*time.Second, func() bool { return !c.inSync(t) }, f)
}

// blackout takes the power of all hosts. One is back at once, the others when it
// has taken the volume alone; then some blocks are read.
func (c *cluster) blackout(first *host, blocks []int64) {
	for _, x := range c.meta.hosts {
		x.kill(true)
		if x != first {
			c.w.after(7*time.Second, func() { c.restart(x) })
		}
	}
	c.attaching = false
	c.w.after(50*time.Millisecond, func() { c.restart(first) })
	c.soon(100*time.Millisecond, func() {
		c.take(first, true, 9*time.Second, func() {
			c.ask(first, opRead, blocks...)
			c.leaveStage(100 * time.Millisecond)
		})
	})
}

// stale lets the lease of a primary run out that still hears its replicas, and
// cuts it off from all. Another one is granted the volume, and writes; the old one
// is asked for the same blocks while it still believes in its replicas.
func (c *cluster) stale(in []*host) {
	w, old, next, blocks := c.w, in[0], in[1], c.spots()
	c.stage(30 * time.Second)
	c.take(old, true, 8*time.Second, func() {
		c.ask(old, opWrite, blocks...)
		old.noMeta = true
		w.after(18*time.Second, func() { old.noMeta = false })
		c.soon(leaseTTL-w.between(0, 500*time.Millisecond), func() {
			c.isolate(old, 9*time.Second)
			c.take(next, false, 8*time.Second, func() {
				c.ask(next, opWrite, blocks...)
				for i := range 30 {
					c.soon(time.Duration(i+1)*50*time.Millisecond, func() { c.ask(old, opRead, blocks[i%len(blocks)]) })
				}
				c.leaveStage(2 * time.Second)
			})
		})
	})
}

// undone makes a write durable on one replica that no other has. All others die;
// one of them takes over, undoes it and shows what was there before. Then all lose
// power, and the one that had the write is the first that is back.
func (c *cluster) undone(in []*host) {
	w, from, to, blocks := c.w, in[0], in[1], c.spots()
	c.stage(35 * time.Second)
	h := in[w.rng.IntN(len(in))]
	c.take(h, true, 8*time.Second, func() {
		c.ask(h, opWrite, blocks...)
		c.rested(h, func() {
			for _, x := range in[1:] {
				x.hinder = func(t *replication.Task) time.Duration { return laterWrites(t, false, time.Second) }
			}
			c.ask(h, opWrite, blocks...)
			c.soon(w.between(3*time.Millisecond, 6*time.Millisecond), func() {
				if from.disk != nil {
					from.disk.flush() // of another volume's, on the same disk
				}
				c.down(h, false, 50*time.Millisecond)
				for _, x := range in[1:] {
					c.down(x, false, 20*time.Millisecond) // what waited there is gone
				}
				c.soon(100*time.Millisecond, func() {
					c.take(to, true, 12*time.Second, func() {
						c.ask(to, opRead, blocks...)
						c.soon(w.between(20*time.Millisecond, 100*time.Millisecond), func() { c.blackout(from, blocks) })
					})
				})
			})
		})
	})
}

// laterWrites is how much later a write begins: the copier's, or the others.
func laterWrites(t *replication.Task, copied bool, d time.Duration) time.Duration {
	if isWrite(t) && t.Copied == copied {
		return d
	}
	return 0
}

// unflushed has a flush come that one replica does not do; then all lose power,
// and that one is the first that is back.
func (c *cluster) unflushed(in []*host) {
	w, h, slow, blocks := c.w, in[0], in[1], c.spots()
	if w.chance(0.5) {
		h = in[len(in)-1]
	}
	c.stage(25 * time.Second)
	c.take(h, true, 8*time.Second, func() {
		c.ask(h, opWrite, blocks...)
		c.rested(h, func() {
			slow.hinder = func(*replication.Task) time.Duration { return 500 * time.Millisecond }
			c.ask(h, opFlush, 0)
			c.soon(w.between(5*time.Millisecond, 100*time.Millisecond), func() { c.blackout(slow, blocks) })
		})
	})
}

// relay has one replica come back, after a power loss that took what it knew, while
// a second is away, and makes it the second's only source: for a new primary, since
// the old one remembers what it was to compare.
func (c *cluster) relay(in []*host) {
	h := c.free()
	if len(in) < 3 || h == nil {
		return
	}
	first, middle, last, blocks := in[0], in[1], in[2], c.spots()
	c.stage(45 * time.Second)
	c.take(h, true, 8*time.Second, func() {
		c.missing(last, func() {
			c.ask(h, opWrite, blocks...)
			c.rested(h, func() {
				c.down(middle, true, 100*time.Millisecond)
				c.when(5*time.Second, func() bool { return !c.inSync(middle) }, func() {
					c.when(10*time.Second, func() bool { return c.inSync(middle) && len(middle.disk.suspects) == 0 }, func() {
						c.missing(first, func() { c.relayed(h, last) })
					})
				})
			})
		})
	})
}

// relayed has a new primary, and the last replica come back.
func (c *cluster) relayed(h, last *host) {
	c.down(h, false, 20*time.Millisecond)
	c.attaching = false
	c.soon(50*time.Millisecond, func() {
		c.take(h, true, 8*time.Second, func() {
			c.restart(last)
			c.when(10*time.Second, func() bool { return c.inSync(last) }, func() { c.leaveStage(300 * time.Millisecond) })
		})
	})
}

// source has the replica leave from which another one is being repaired, and
// writes what that repair has still to copy.
func (c *cluster) source(in []*host) {
	h, t := c.free(), in[0]
	if len(in) < 3 || h == nil {
		return
	}
	blocks := c.many()
	c.stage(35 * time.Second)
	c.take(h, true, 8*time.Second, func() {
		c.missing(t, func() {
			c.ask(h, opWrite, blocks...)
			c.soon(100*time.Millisecond, func() { c.restart(t) })
			c.when(8*time.Second, func() bool { return c.state(t) == holdfast.Rebuilding }, func() {
				left := len(c.members())
				c.keepUntil = c.w.now + 4*time.Second
				c.leaveOldest()
				c.when(time.Second, func() bool { return len(c.members()) < left }, func() {
					slices.Reverse(blocks)
					c.soon(20*time.Millisecond, func() { c.ask(h, opWrite, blocks...) })
					c.leaveStage(5 * time.Second)
				})
			})
		})
	})
}

// flying has writes under way on all in-sync replicas in the moment in which the
// repair of another one begins.
func (c *cluster) flying(in []*host) {
	t, h, blocks := in[0], in[1], c.spots()
	c.stage(25 * time.Second)
	c.take(h, true, 8*time.Second, func() {
		c.missing(t, func() {
			c.restart(t)
			greeted := func() bool { return t.disk != nil && t.disk.promise.Epoch == c.meta.rec.Epoch }
			c.when(8*time.Second, greeted, func() {
				for _, x := range c.members() {
					x.hinder = func(t *replication.Task) time.Duration { return laterWrites(t, false, time.Second) }
					c.soon(300*time.Millisecond, func() { x.hinder = nil })
				}
				c.ask(h, opWrite, blocks...)
				c.leaveStage(5 * time.Second)
			})
		})
	})
}

// failed has writes fail for the application, after the limit for how long they
// wait, that one replica never got, while nobody can be dropped.
func (c *cluster) failed(in []*host) {
	t, h, blocks := in[0], in[1], c.spots()
	limit := func(millis int64) {
		c.change("limit I/O", func(r *holdfast.Record) bool {
			spec := r.Spec
			spec.IOTimeoutMillis = millis
			r.SetSpec(spec)
			return true
		})
	}
	c.stage(20 * time.Second)
	c.take(h, true, 8*time.Second, func() {
		limit(500)
		c.soon(500*time.Millisecond, func() {
			c.meta.out = true
			span := c.w.between(1500*time.Millisecond, 3*time.Second)
			c.w.after(span, func() { c.meta.out = false })
			c.soon(span+100*time.Millisecond, func() { limit(0) })
			c.down(t, false, c.w.between(time.Second, 4*time.Second))
			c.soon(10*time.Millisecond, func() { c.ask(h, opWrite, blocks...) })
			c.leaveStage(8 * time.Second)
		})
	})
}

// halfway kills a replica under repair right after some progress became durable,
// while there was something under way: of the copier's, or writes of the epoch
// before.
func (c *cluster) halfway(in []*host) {
	t, h, blocks := in[0], in[1], c.many()
	live := c.w.chance(0.5)
	c.stage(35 * time.Second)
	c.take(h, true, 8*time.Second, func() {
		c.missing(t, func() {
			c.ask(h, opWrite, blocks...)
			c.soon(100*time.Millisecond, func() { c.restart(t) })
			c.when(8*time.Second, func() bool { return c.state(t) == holdfast.Rebuilding }, func() {
				if live {
					t.hinder = func(t *replication.Task) time.Duration { return laterWrites(t, false, 3*time.Second) }
					c.ask(h, opWrite, 0, 1)
				}
				c.halt(t, live)
			})
		})
	})
}

// halt waits for a replica's first durable progress, or if its copies are to be
// late then for the next, and kills it.
func (c *cluster) halt(t *host, first bool) {
	end := func() int64 {
		if t.disk == nil || len(t.disk.progress.Parts) == 0 {
			return 0
		}
		return t.disk.progress.Parts[0].End
	}
	kill := func() {
		c.down(t, false, 200*time.Millisecond)
		c.leaveStage(6 * time.Second)
	}
	c.when(3*time.Second, func() bool { return end() > 0 }, func() {
		if first {
			kill()
			return
		}
		at := end()
		t.hinder = func(t *replication.Task) time.Duration { return laterWrites(t, true, 3*time.Second) }
		c.when(time.Second, func() bool { return end() > at }, kill)
	})
}

// pile has several writes of the same blocks come at once.
func (c *cluster) pile(h *host) {
	blocks := c.many()
	blocks = blocks[:min(8, len(blocks))]
	for range 2 {
		c.ask(h, opWrite, blocks...)
	}
}
