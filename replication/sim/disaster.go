package sim

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/holdfast-storage/holdfast"
)

// forget loses the metadata store with everything in it. The record is made anew
// from the newest one that any replica keeps, which must be enough (invariant 10).
func (c *cluster) forget() {
	rec := c.newestKept()
	if !slices.ContainsFunc(rec.InSyncReplicas(), func(x holdfast.Replica) bool { return c.host(x.Node).replicaID == x.ID }) {
		return // nobody was ever greeted, or the controller removed it in this moment
	}
	c.w.logf("the metadata store is lost; kept is epoch %d revision %d %s", rec.Epoch, rec.Revision, states(rec))
	for _, h := range c.meta.hosts {
		h.kill(false)
	}
	c.attaching = false
	for _, o := range c.history {
		if end := (o.first + o.cells) * cellSize; o.ok && (o.kind == opWrite || o.kind == opTrim) && end > rec.SizeBytes {
			panic(fmt.Sprintf("sim: byte %d was written, and no replica knows that the volume has more than %d", end, rec.SizeBytes))
		}
	}
	c.install(rec)
}

// newestKept is the newest record on any disk.
func (c *cluster) newestKept() (rec holdfast.Record) {
	for _, h := range c.meta.hosts {
		if h.disk == nil || h.disk.record.Version == 0 {
			continue
		}
		x := h.disk.record
		if cmp.Or(cmp.Compare(x.Epoch, rec.Epoch), cmp.Compare(x.Revision, rec.Revision)) > 0 {
			rec = x
		}
	}
	return rec.Clone()
}

// install puts a record into the store after all processes have ended, as an
// operator does: without primary, without replicas that are not there any more,
// with empty ones in their place. Then the hosts start again.
func (c *cluster) install(rec holdfast.Record) {
	rec.Revision, rec.Primary = c.meta.rec.Revision+1000, nil
	kept := rec.Replicas
	rec.Replicas = nil
	staying := 0
	for _, x := range kept {
		if h := c.host(x.Node); h.disk != nil && h.replicaID == x.ID && (!x.Leaving || x.State == holdfast.InSync) {
			rec.Replicas = append(rec.Replicas, x)
			if !x.Leaving {
				staying++
			}
		}
	}
	for _, h := range c.meta.hosts {
		if h.disk != nil && rec.Replica(h.replicaID) == nil {
			h.remove()
		}
	}
	for h := c.free(); h != nil && staying < rec.Spec.Replicas; h = c.free() {
		staying++
		c.replicas++
		rep := holdfast.Replica{ID: holdfast.ReplicaID(fmt.Sprintf("r%d", c.replicas)), Node: h.id, Pool: "p", State: holdfast.New}
		h.add(rep.ID, rec.SizeBytes)
		rec.Replicas = append(rec.Replicas, rep)
	}
	if err := rec.Validate(); err != nil {
		panic(err)
	}
	c.meta.rec = rec
	c.forgetSnapshots()
	for _, h := range c.meta.hosts {
		c.w.after(c.w.between(0, 500*time.Millisecond), func() { c.restart(h) })
	}
}

// rollback restores an old snapshot of the metadata store while all nodes are
// well, and lets another primary try. One that was dropped since the snapshot
// comes back in that moment: it knows of nothing newer. Either nobody does, or the
// others refuse: then the newest state is restored, and replicas that were not in
// sync are made anew, since they may have believed the snapshot.
func (c *cluster) rollback() {
	w, old, in := c.w, c.meta.rec.Clone(), c.members()
	var gone *host
	if len(in) > 1 && in[0] != c.holder() && w.chance(0.7) {
		gone = in[0]
		c.down(gone, false, 30*time.Second)
	}
	c.soon(w.between(3*time.Second, 9*time.Second), func() {
		if w.now+10*time.Second > c.cfg.Faults || c.restoring || c.hindered() || gone != nil && c.inSync(gone) {
			return
		}
		c.restoring, c.meta.calm = true, true
		c.endTroubles(gone)
		w.after(1500*time.Millisecond, func() { c.rollBackTo(old, gone) })
	})
}

func (c *cluster) rollBackTo(old holdfast.Record, gone *host) {
	w := c.w
	if gone != nil {
		c.restart(gone)
	}
	now, attached := c.meta.rec.Clone(), c.attached
	for _, x := range now.InSyncReplicas() {
		if h := c.host(x.Node); h.disk == nil || h.disk.record.Epoch != now.Epoch {
			c.restoring, c.meta.calm = false, false
			return // one that was not shown it yet might believe the snapshot, and would have to be removed by hand
		}
	}
	old.Revision = now.Revision + 1000
	c.meta.rec = old
	c.rolledBack = true
	w.logf("the metadata store is rolled back to epoch %d %s", old.Epoch, states(old))
	for _, h := range c.meta.hosts {
		if h.primary != nil || h.opening {
			c.down(h, false, 50*time.Millisecond)
		}
	}
	w.after(5*time.Second, func() {
		c.restoring, c.meta.calm = false, false
		served := c.attached > attached // replicas knew of nothing newer
		if served {
			now = c.meta.rec.Clone()
		}
		w.logf("the metadata store is restored; the old one was served: %v", served)
		for _, h := range c.meta.hosts {
			h.kill(false)
			if x := now.Replica(h.replicaID); h.disk != nil && !served && (x == nil || x.State != holdfast.InSync) {
				h.remove()
			}
			if h.disk != nil {
				now.Epoch = max(now.Epoch, h.disk.promise.Epoch)
			}
		}
		c.attaching = false
		c.install(now)
	})
}

// hindered says whether some process or disk is not able to work.
func (c *cluster) hindered() bool {
	for _, h := range c.meta.hosts {
		if max(h.pausedUntil, h.slowUntil, h.stuckUntil) > c.w.now || h.replica != nil && h.replica.Failure() != nil {
			return true
		}
	}
	return false
}

// endTroubles makes everybody well but one.
func (c *cluster) endTroubles(gone *host) {
	c.meta.out = false
	for _, h := range c.meta.hosts {
		h.noMeta, h.cutTo, h.lateUntil, h.jitterUntil = false, map[*host]bool{}, 0, 0
		if h.disk != nil {
			h.disk.full, h.disk.failsUntil = false, 0
		}
		if h != gone {
			c.restart(h)
		}
	}
}
