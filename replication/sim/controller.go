package sim

import (
	"fmt"
	"time"

	"github.com/holdfast-storage/holdfast"
)

// change is what the controller does to the record: no epoch is added.
func (c *cluster) change(what string, f func(*holdfast.Record) bool) {
	if c.meta.out {
		return
	}
	next := c.meta.rec.Clone()
	if f(&next) {
		c.logf("controller: %s", what)
		c.meta.apply(next)
	}
}

// grow asks for a larger volume.
func (c *cluster) grow() {
	c.change("grow", func(r *holdfast.Record) bool {
		r.Spec.SizeBytes += 1 + c.w.rng.Int64N(8*holdfast.BlockSize)
		return r.Spec.SizeBytes < 2*c.cfg.Blocks*holdfast.BlockSize
	})
}

// limit changes the volume's limit for waiting I/O, also while I/O waits.
func (c *cluster) limit() {
	limit := int64(0)
	if c.w.chance(0.6) {
		limit = 500 + c.w.rng.Int64N(4000)
	}
	c.change("limit I/O", func(r *holdfast.Record) bool {
		spec := r.Spec
		spec.IOTimeoutMillis = limit
		r.SetSpec(spec)
		return true
	})
}

// replace lets a replica leave, or takes away one that is not in sync, and adds
// an empty one.
func (c *cluster) replace() {
	c.change("replace a replica", func(r *holdfast.Record) bool {
		if len(r.Replicas) > r.Spec.Replicas {
			return false // the last one is still being replaced
		}
		old := &r.Replicas[c.w.rng.IntN(len(r.Replicas))]
		host := c.host(old.Node)
		if old.State == holdfast.InSync {
			if host = c.free(); host == nil {
				return false
			}
			old.Leaving = true
		} else {
			host.remove()
			*old = r.Replicas[len(r.Replicas)-1]
			r.Replicas = r.Replicas[:len(r.Replicas)-1]
		}
		c.place(r, host)
		return true
	})
}

// drain empties a node: for a while no replica comes there, and those of all
// volumes leave, each for an empty one elsewhere, where there is room. Those that
// cannot leave now are asked again.
func (c *cluster) drain(h *host, span time.Duration) {
	h.cordoned = c.w.now + span + 10*time.Second
	var again func()
	again = func() {
		for _, x := range h.hosts {
			x.c.leave(x)
		}
		if h.cordoned > c.w.now && !c.calm {
			c.w.after(c.w.between(100*time.Millisecond, 2*time.Second), again)
		}
	}
	again()
}

// leave has a host's replica leave the volume.
func (c *cluster) leave(h *host) {
	free := c.free()
	if free == nil || h.disk == nil {
		return
	}
	c.change("drain "+string(h.id), func(r *holdfast.Record) bool {
		old := r.On(h.id)
		if old == nil || old.ID != h.replicaID || old.Leaving || len(r.Replicas) > r.Spec.Replicas {
			return false
		}
		old.Leaving = true
		c.place(r, free)
		return true
	})
}

// refill ends all drains and adds empty replicas where there are too few, as the
// controller does all the time: a metadata store that was installed anew while
// nodes were drained may have found no room for them.
func (c *cluster) refill() {
	for _, h := range c.meta.hosts {
		h.cordoned = 0
	}
	c.change("add replicas", func(r *holdfast.Record) bool {
		staying := 0
		for _, x := range r.Replicas {
			if !x.Leaving {
				staying++
			}
		}
		changed := false
		for h := c.free(); h != nil && staying < r.Spec.Replicas; h = c.free() {
			c.place(r, h)
			staying++
			changed = true
		}
		return changed
	})
}

// place puts an empty replica into the record.
func (c *cluster) place(r *holdfast.Record, h *host) {
	c.replicas++
	rep := holdfast.Replica{ID: holdfast.ReplicaID(fmt.Sprintf("r%d", c.replicas)), Node: h.id, Pool: "p", State: holdfast.New}
	h.add(rep.ID, r.SizeBytes)
	r.Replicas = append(r.Replicas, rep)
}

// free is a host without a replica.
func (c *cluster) free() *host {
	for _, h := range c.meta.hosts {
		if h.disk == nil && h.cordoned <= c.w.now {
			return h
		}
	}
	return nil
}

// retire takes a leaving replica out of the record as soon as it may, which is
// when the primary is busy with dropping it.
func (c *cluster) retire(rec holdfast.Record) {
	for _, rep := range rec.Replicas {
		if !rep.Leaving || rep.State == holdfast.InSync {
			continue
		}
		c.w.after(max(c.keepUntil-c.w.now, 0)+c.w.between(0, 20*time.Millisecond), func() {
			c.change("retire "+string(rep.ID), func(r *holdfast.Record) bool {
				for i, x := range r.Replicas {
					if x.ID == rep.ID && x.Leaving && x.State != holdfast.InSync {
						r.Replicas = append(r.Replicas[:i], r.Replicas[i+1:]...)
						c.host(x.Node).remove()
						return true
					}
				}
				return false
			})
		})
	}
}

// clear takes the grant from a node whose lease is gone, as a detach does.
func (c *cluster) clear() {
	c.change("clear a dead grant", func(r *holdfast.Record) bool {
		if r.Primary == nil || c.meta.alive(r.Primary.Node) {
			return false
		}
		r.Primary = nil
		return true
	})
}

// add makes an empty replica on a host.
func (h *host) add(id holdfast.ReplicaID, size int64) {
	h.disk, h.replicaID = newDisk(size), id
	if h.up {
		h.open()
	}
}

// remove ends a replica and its data.
func (h *host) remove() {
	if h.up && h.replica != nil {
		h.replica.Close()
		h.store.kill()
	}
	h.disk, h.store, h.replica, h.replicaID = nil, nil, nil, ""
}
