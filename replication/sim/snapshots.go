package sim

import (
	"fmt"
	"slices"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/replication"
)

// Snapshots are taken, deleted and restored at random. What a snapshot holds is a
// read of the whole volume at the moment in which the first replica took it, when
// no write can be under way; a restore is a write of the whole volume.

// snapWatch is what a run knows of its snapshots.
type snapWatch struct {
	made    int
	cutAt   map[string]time.Duration        // when the first replica took it
	content map[holdfast.SnapshotID][]value // of those committed
	restore *holdfast.Restore
	asked   time.Duration       // when the restore was
	wish    holdfast.SnapshotID // to be restored once the volume is detached
	wishEnd time.Duration
	counts  map[string]int
}

const lostSnapshot breach = "a snapshot is lost, changed, or another one on another replica"

// noteCut notes when a snapshot is taken for the first time. The engine's contract
// is that no write is under way then.
func (c *cluster) noteCut(s *store, t *replication.Task) {
	if t.Kind != replication.TaskSnapshot || s.d.full {
		return
	}
	for _, r := range s.tasks {
		if isWrite(r.t) {
			panic(violation{lostSnapshot, "a replica is asked for a snapshot while writes are under way there"})
		}
	}
	if _, known := c.snaps.cutAt[t.Snapshot.Cut]; !known {
		c.snaps.cutAt[t.Snapshot.Cut] = c.w.now
	}
}

// applied looks at what a new record says about snapshots.
func (c *cluster) applied(before, rec *holdfast.Record) {
	for _, s := range rec.Snapshots {
		old := before.Snapshot(s.ID)
		if s.State == holdfast.SnapshotReady && (old == nil || old.State != holdfast.SnapshotReady) {
			c.committed(rec, s)
		}
	}
	if err := c.snapshotsEqual(rec, false); err != nil {
		panic(err)
	}
	if x := c.snaps.restore; x != nil && rec.Restore == nil {
		c.restored(*x)
	}
	c.snaps.restore = rec.Restore
}

// committed notes a snapshot's content, as the in-sync replicas have it.
func (c *cluster) committed(rec *holdfast.Record, s holdfast.Snapshot) {
	var content []value
	for _, rep := range rec.InSyncReplicas() {
		content = c.host(rep.Node).disk.view(replication.SnapshotRef{ID: s.ID, Cut: s.Cut})
		break
	}
	at, known := c.snaps.cutAt[s.Cut]
	if content == nil || !known {
		panic(violation{lostSnapshot, fmt.Sprintf("snapshot %s (cut %s) is committed and was not taken", s.ID, s.Cut)})
	}
	content = content[:s.SizeBytes/cellSize]
	c.snaps.content[s.ID] = content
	c.snaps.counts["taken"]++
	c.history = append(c.history, &op{kind: opRead, cells: int64(len(content)), got: content, call: at, ret: at, ok: true})
}

// restored notes that the volume's content is that of a snapshot again, durably.
func (c *cluster) restored(x holdfast.Restore) {
	content := slices.Clone(c.snaps.content[x.Snapshot])
	for int64(len(content)) < c.meta.rec.SizeBytes/cellSize {
		content = append(content, 0)
	}
	c.snaps.counts["restored"]++
	c.logf("restored %s", x.Snapshot)
	c.history = append(c.history,
		&op{kind: opWrite, cells: int64(len(content)), vals: content, call: c.snaps.asked, ret: c.w.now, ok: true},
		&op{kind: opFlush, call: c.w.now, ret: c.w.now, ok: true})
}

// snapshotsEqual verifies that every in-sync replica has every ready snapshot with
// the content that was committed and, when all is well, no other.
func (c *cluster) snapshotsEqual(rec *holdfast.Record, exact bool) error {
	for _, rep := range rec.InSyncReplicas() {
		h := c.host(rep.Node)
		var want []replication.SnapshotRef
		for _, s := range rec.ReadySnapshots() {
			ref := replication.SnapshotRef{ID: s.ID, Cut: s.Cut}
			want = append(want, ref)
			content := h.disk.view(ref)
			if int64(len(content)) < s.SizeBytes/cellSize {
				return violation{lostSnapshot, fmt.Sprintf("%s is in sync and lacks snapshot %v; it has %v", h.id, ref, h.disk.visible())}
			}
			for b, v := range c.snaps.content[s.ID] {
				if content[b] != v {
					return violation{lostSnapshot, fmt.Sprintf("cell %d of snapshot %v is %d on %s, and was %d when it was committed", b, ref, content[b], h.id, v)}
				}
			}
		}
		if exact && !slices.Equal(h.disk.visible(), want) {
			return violation{lostSnapshot, fmt.Sprintf("%s has snapshots %v, the record %v", h.id, h.disk.visible(), want)}
		}
	}
	return nil
}

// snapshotsWell verifies it in the end.
func (c *cluster) snapshotsWell() error { return c.snapshotsEqual(&c.meta.rec, true) }

// snapsWell says whether nothing is to be done about snapshots.
func (c *cluster) snapsWell() bool {
	rec := c.meta.rec
	return rec.Restore == nil && len(rec.ReadySnapshots()) == len(rec.Snapshots)
}

// forgetSnapshots forgets what a record that was made anew does not know.
func (c *cluster) forgetSnapshots() {
	c.snaps.restore, c.snaps.wish = c.meta.rec.Restore, ""
	for id := range c.snaps.content {
		if s := c.meta.rec.Snapshot(id); s == nil || s.State == holdfast.SnapshotWanted {
			delete(c.snaps.content, id)
		}
	}
}

// snapshotting does something about snapshots now and then.
func (c *cluster) snapshotting() {
	w := c.w
	c.every(streamSnapshots, w.between(500*time.Millisecond, 3*time.Second), func(n int) time.Duration {
		pause := w.between(50*time.Millisecond, 2500*time.Millisecond)
		switch {
		case c.meta.calm && !c.restoring:
			c.tidySnapshots()
		case !c.restoring && c.may("snapshot"):
			w.choose(Choice{ChoiceSnapshot, n, 0}, func() {
				c.faults["snapshot"]++
				c.snapshotEvent()
			})
		}
		return pause
	})
}

// tidySnapshots ends what would wait for a command.
func (c *cluster) tidySnapshots() {
	c.snaps.wish = ""
	c.change("drop groups' snapshots", func(r *holdfast.Record) bool {
		n := len(r.Snapshots)
		for _, s := range slices.Clone(r.Snapshots) {
			if s.Group != "" && s.State == holdfast.SnapshotWanted {
				r.RemoveSnapshot(s.ID)
			}
		}
		return len(r.Snapshots) < n
	})
}

func (c *cluster) snapshotEvent() {
	w, rec := c.w, c.meta.rec
	switch x := w.rng.Float64(); {
	case x < 0.5 && len(rec.Snapshots) < 6:
		c.want("")
	case x < 0.75 && len(rec.Snapshots) > 0:
		c.deleteSnapshot(rec.Snapshots[w.rng.IntN(len(rec.Snapshots))].ID)
	case x < 0.9 && len(rec.Snapshots) < 6:
		c.group()
	case x > 0.95 && c.snaps.wish == "" && len(rec.ReadySnapshots()) > 0 && rec.Restore == nil:
		ready := rec.ReadySnapshots()
		c.snaps.wish, c.snaps.wishEnd = ready[w.rng.IntN(len(ready))].ID, w.now+6*time.Second
	}
}

// want asks for a snapshot.
func (c *cluster) want(group string) holdfast.SnapshotID {
	c.snaps.made++
	id := holdfast.SnapshotID(fmt.Sprintf("s%d", c.snaps.made))
	c.change("want snapshot "+string(id), func(r *holdfast.Record) bool {
		r.PutSnapshot(holdfast.Snapshot{ID: id, State: holdfast.SnapshotWanted, Group: group})
		return true
	})
	return id
}

func (c *cluster) deleteSnapshot(id holdfast.SnapshotID) {
	c.change("delete snapshot "+string(id), func(r *holdfast.Record) bool {
		s := r.Snapshot(id)
		if s == nil || s.State == holdfast.SnapshotDeleting || r.Restore != nil && r.Restore.Snapshot == id {
			return false
		}
		if s.State == holdfast.SnapshotWanted && c.w.chance(0.5) {
			r.RemoveSnapshot(id)
			return true
		}
		deleting := *s
		deleting.State = holdfast.SnapshotDeleting
		r.PutSnapshot(deleting)
		return true
	})
}

// group holds a primary's writes, takes a snapshot by command, and releases them;
// it does not wait for anything.
func (c *cluster) group() {
	d := c.devs
	if len(d) == 0 || d[0].h.pausedUntil > c.w.now || !d[0].h.up {
		return
	}
	h, p := d[0].h, d[0].p
	id, token := c.want("g"), fmt.Sprintf("t%d", c.snaps.made)
	alive := func(f func()) func() { return func() { h.run(h.life, f) } }
	p.Hold(token, c.w.between(100*time.Millisecond, 3*time.Second), func(err error) {
		if err != nil {
			return
		}
		c.w.after(c.w.between(0, 100*time.Millisecond), alive(func() {
			p.Cut(token, id, func(err error) {
				if err == nil {
					c.snaps.counts["group"]++
				}
			})
		}))
	})
	c.w.after(c.w.between(0, 500*time.Millisecond), alive(func() { _ = p.Unhold(token) }))
}

// detachedWork is what happens to a volume that nobody has attached: a restore is
// begun once it may be, and a maintenance primary does what the record asks for.
// It says whether the volume should stay detached.
func (c *cluster) detachedWork() bool {
	w, rec := c.w, &c.meta.rec
	if c.snaps.wish != "" {
		switch {
		case w.now > c.snaps.wishEnd:
			c.snaps.wish = ""
		case rec.AttachedTo() == "":
			c.askRestore()
		default:
			for _, d := range c.devs {
				if d.h.pausedUntil <= w.now {
					d.p.Release()
				}
			}
			c.clear()
		}
	}
	if rec.Restore == nil && (c.snapsWell() || !w.chance(0.3)) {
		return c.snaps.wish != ""
	}
	if len(c.devs) == 0 && !c.attaching && rec.AttachedTo() == "" {
		if h := c.maintainer(); h != nil {
			h.maintain()
		}
	}
	return rec.Restore != nil || c.snaps.wish != ""
}

// maintainer is whose primary is to maintain the volume: the one that does it
// already while its node lives, else that of an in-sync replica.
func (c *cluster) maintainer() *host {
	if p := c.meta.rec.Primary; p != nil && c.meta.alive(p.Node) {
		return c.host(p.Node)
	}
	for _, h := range c.members() {
		if h.up {
			return h
		}
	}
	return nil
}

func (c *cluster) askRestore() {
	id := c.snaps.wish
	c.change("restore "+string(id), func(r *holdfast.Record) bool {
		if s := r.Snapshot(id); s == nil || s.State != holdfast.SnapshotReady {
			c.snaps.wish = ""
			return false
		}
		c.snaps.made++
		c.snaps.asked = c.w.now
		r.SetRestore(&holdfast.Restore{ID: fmt.Sprintf("x%d", c.snaps.made), Snapshot: id})
		c.snaps.wish = ""
		return true
	})
}

// maintain opens a maintenance primary, if the host has no primary.
func (h *host) maintain() {
	h.grant(holdfast.MaintenancePrimary, false, func(*device) {})
}

// yield ends a host's maintenance primary, so that the volume can be attached
// there.
func (h *host) yield() {
	if h.primary != nil && h.maintaining {
		h.primary.Release()
	}
}
