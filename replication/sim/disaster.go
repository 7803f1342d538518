package sim

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/holdfast-storage/holdfast"
)

// forget loses the metadata store with everything in it. Each record is made anew
// from the newest one that any replica keeps, which must be enough (invariant 10).
func (s *site) forget() {
	kept := map[*cluster]holdfast.Record{}
	for _, c := range s.volumes {
		rec := c.newestKept()
		if slices.ContainsFunc(rec.InSyncReplicas(), func(x holdfast.Replica) bool { return c.host(x.Node).replicaID == x.ID }) {
			kept[c] = rec
		} // else nobody was ever greeted, or the controller removed it in this moment
	}
	if len(kept) == 0 {
		return
	}
	for _, c := range s.volumes {
		if rec, ok := kept[c]; ok {
			c.logf("the metadata store is lost; kept is epoch %d revision %d %s", rec.Epoch, rec.Revision, states(rec))
		}
	}
	for _, m := range s.machines {
		m.kill(false)
	}
	for _, c := range s.volumes {
		c.attaching = false
		rec, ok := kept[c]
		if !ok {
			continue
		}
		for _, o := range c.history {
			if end := (o.first + o.cells) * cellSize; o.ok && (o.kind == opWrite || o.kind == opTrim) && end > rec.SizeBytes {
				panic(fmt.Sprintf("sim: byte %d was written, and no replica knows that the volume has more than %d", end, rec.SizeBytes))
			}
		}
		c.install(rec)
	}
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
// well, and lets other primaries try. One that was dropped since the snapshot
// comes back in that moment: it knows of nothing newer. Either nobody does, or the
// others refuse: then the newest state is restored, and replicas that were not in
// sync are made anew, since they may have believed the snapshot.
func (c *cluster) rollback() {
	w, in := c.w, c.members()
	var old []holdfast.Record
	for _, v := range c.volumes {
		old = append(old, v.meta.rec.Clone())
	}
	var gone *host
	if len(in) > 1 && in[0] != c.holder() && w.chance(0.7) {
		gone = in[0]
		c.down(gone, false, 30*time.Second)
	}
	c.soon(w.between(3*time.Second, 9*time.Second), func() {
		if w.now+10*time.Second > c.cfg.Faults || c.restoring || c.hindered() || gone != nil && c.inSync(gone) {
			return
		}
		c.restoring, c.calm = true, true
		c.endTroubles(gone)
		w.after(1500*time.Millisecond, func() { c.rollBackTo(old, gone) })
	})
}

func (s *site) rollBackTo(old []holdfast.Record, gone *host) {
	if gone != nil && !gone.up {
		gone.start()
	}
	for _, c := range s.volumes {
		for _, x := range c.meta.rec.InSyncReplicas() {
			if h := c.host(x.Node); h.disk == nil || h.disk.record.Epoch != c.meta.rec.Epoch {
				s.restoring, s.calm = false, false
				return // one that was not shown it yet might believe the snapshot, and would have to be removed by hand
			}
		}
	}
	now, attached := make([]holdfast.Record, len(old)), make([]int, len(old))
	for i, c := range s.volumes {
		now[i], attached[i] = c.meta.rec.Clone(), c.attached
		old[i].Revision = now[i].Revision + 1000
		c.meta.rec = old[i]
		c.rolledBack = true
		c.logf("the metadata store is rolled back to epoch %d %s", old[i].Epoch, states(old[i]))
	}
	for _, m := range s.machines {
		if slices.ContainsFunc(m.hosts, func(h *host) bool { return h.primary != nil || h.opening }) {
			s.volumes[0].down(m.hosts[0], false, 50*time.Millisecond)
		}
	}
	s.w.after(5*time.Second, func() {
		s.restoring, s.calm = false, false
		for _, m := range s.machines {
			m.kill(false)
		}
		for i, c := range s.volumes {
			c.restore(now[i], c.attached > attached[i])
		}
	})
}

// restore puts back the record from before a rollback, unless the old one was
// served: then the replicas knew of nothing newer.
func (c *cluster) restore(now holdfast.Record, served bool) {
	if served {
		now = c.meta.rec.Clone()
	}
	c.logf("the metadata store is restored; the old one was served: %v", served)
	for _, h := range c.meta.hosts {
		if x := now.Replica(h.replicaID); h.disk != nil && !served && (x == nil || x.State != holdfast.InSync) {
			h.remove()
		}
		if h.disk != nil {
			now.Epoch = max(now.Epoch, h.disk.promise.Epoch)
		}
	}
	c.attaching = false
	c.install(now)
}

// hindered says whether some process or disk is not able to work.
func (s *site) hindered() bool {
	for _, m := range s.machines {
		if max(m.pausedUntil, m.slowUntil, m.stuckUntil) > s.w.now || slices.ContainsFunc(m.hosts, func(h *host) bool { return h.replica != nil && h.replica.Failure() != nil }) {
			return true
		}
	}
	return false
}

// endTroubles makes everybody well but one.
func (s *site) endTroubles(gone *host) {
	s.out = false
	for _, m := range s.machines {
		m.mend()
		m.lateUntil, m.jitterUntil = 0, 0
		if !m.up && (gone == nil || gone.machine != m) {
			m.start()
		}
	}
}
