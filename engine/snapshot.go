package engine

import (
	"context"
	"errors"
	"slices"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/engine/disk"
)

// SnapshotInfo describes a snapshot on a replica.
type SnapshotInfo struct {
	ID        holdfast.SnapshotID
	Cut       string // the attempt to take it
	SizeBytes int64
	// HeldBytes counts the granules that were changed since, up to the next newer
	// snapshot: the most that it can take.
	HeldBytes int64
	// AllocatedBytes is about what its file refers to; the live data and other
	// snapshots may refer to the same.
	AllocatedBytes int64
}

// maxCut bounds the name of an attempt, in bytes.
const maxCut = 255

// Snapshots lists the replica's snapshots, oldest first; those being dropped are
// not among them. It does no I/O, and waits for none.
func (r *Replica) Snapshots() []SnapshotInfo { return r.chain.infos(false) }

// Dropping lists the snapshots whose dropping was begun and is not done, for who
// goes on with it after the replica was opened.
func (r *Replica) Dropping() []SnapshotInfo { return r.chain.infos(true) }

// shown is a snapshot as Snapshots and Dropping show it.
type shown struct {
	meta snapshotMeta
	s    *snapshot
}

// show makes the present list of snapshots the one that is shown; the caller is
// the only one who changes it.
func (c *chain) show() {
	list := make([]shown, 0, len(c.snaps))
	for _, s := range c.snaps {
		list = append(list, shown{s.meta, s})
	}
	c.shown.Store(&list)
}

func (c *chain) infos(dropping bool) []SnapshotInfo {
	var out []SnapshotInfo
	for _, x := range *c.shown.Load() {
		if x.meta.Dropping == dropping {
			out = append(out, SnapshotInfo{ID: x.meta.ID, Cut: x.meta.Cut, SizeBytes: x.meta.SizeBytes,
				HeldBytes: x.s.held.count.Load() * granuleSize, AllocatedBytes: x.s.bytes.Load()})
		}
	}
	return out
}

// TakeSnapshot makes the replica's content of now the snapshot id, durably: all
// that was acknowledged is flushed first. It takes the same short time whatever
// the replica's size; reads wait meanwhile. The caller has no write under way.
// Taking it again with the same cut does nothing. Kinds: Invalid; Exists, when
// there is one of another cut, or one of this cut is being dropped; NoSpace;
// Corrupt.
func (r *Replica) TakeSnapshot(id holdfast.SnapshotID, cut string) error {
	op := "take snapshot " + string(id)
	if !safeName(string(id)) || cut == "" || len(cut) > maxCut {
		return errorf(op, holdfast.Invalid, "the id %q cannot be a name, or the cut %.300q has not 1 to %d bytes", id, cut, maxCut)
	}
	r.durable.Lock()
	defer r.durable.Unlock()
	if there, err := r.hasSnapshot(id, cut); there || err != nil {
		r.reclaim(err)
		return holdfast.Wrap(op, err)
	}
	s, err := r.makeSnapshot(id, cut)
	if err != nil {
		return r.failUnlessFull(op, err)
	}
	return r.install(op, s)
}

// hasSnapshot says whether the snapshot is there already, or cannot be taken.
func (r *Replica) hasSnapshot(id holdfast.SnapshotID, cut string) (bool, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if err := r.usable("look for it"); err != nil {
		return false, err
	}
	if _, s := r.chain.find(id); s != nil {
		if s.meta.Cut != cut {
			return false, errorf("look for it", holdfast.Exists, "it was taken by another attempt (%s, not %s); drop that first", s.meta.Cut, cut)
		}
		return true, nil
	}
	for _, s := range r.chain.snaps {
		if s.meta.ID == id && s.meta.Cut == cut {
			return false, errorf("look for it", holdfast.Exists, "the one of this attempt is being dropped")
		}
	}
	if err := r.pool.space.room(0); err != nil {
		return false, err
	}
	return false, r.pool.snapshots.room(granuleSize)
}

// makeSnapshot makes the file of a snapshot, durably; it belongs to nobody before
// meta names it. The size may be another one by the time it is installed.
func (r *Replica) makeSnapshot(id holdfast.SnapshotID, cut string) (*snapshot, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if err := r.usable("make its file"); err != nil {
		return nil, err
	}
	number := r.meta.NextFile
	for _, m := range r.meta.Snapshots {
		number = max(number, m.File+1)
	}
	size := r.size.Load()
	s := &snapshot{meta: snapshotMeta{ID: id, Cut: cut, SizeBytes: size, File: number}, share: &r.pool.snapshots,
		name: r.chain.file(snapshotFileName(number)), held: newGranules(granulesOf(size))}
	fs := r.pool.fs
	if err := disk.RemoveAll(fs, s.name); err != nil { // left by an attempt that failed
		return nil, err
	}
	f, err := fs.Open(s.name, disk.Create|disk.Exclusive|disk.Direct)
	if err != nil {
		return nil, err
	}
	s.f = f
	err = errors.Join(f.Truncate(snapshotFileSize(size)), f.Sync())
	if err == nil {
		err = fs.SyncDir(r.file(snapshotsDir))
	}
	if err != nil {
		return nil, errors.Join(err, r.unmake(s))
	}
	return s, nil
}

func (r *Replica) unmake(s *snapshot) error {
	return errors.Join(s.f.Close(), disk.RemoveAll(r.pool.fs, s.name))
}

// install makes the snapshot the newest; nothing else runs meanwhile.
func (r *Replica) install(op string, s *snapshot) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.usable(op); err != nil {
		return errors.Join(err, r.unmake(s))
	}
	if err := r.data.Sync(); err != nil {
		return r.fail(op, err)
	}
	m := r.meta
	m.NextFile = s.meta.File + 1
	m.Snapshots = append(slices.Clone(m.Snapshots), s.meta)
	if err := r.setMeta(m); err != nil {
		// Whether meta names it is not known, unless the disk was full.
		if holdfast.KindOf(err) == holdfast.NoSpace {
			err = errors.Join(err, r.unmake(s))
		}
		return r.failUnlessFull(op, err)
	}
	c := r.chain
	c.mu.Lock()
	defer c.mu.Unlock()
	c.snaps = append(c.snaps, s)
	c.retarget()
	c.show()
	return nil
}

// lookup gives a snapshot that may be read in [off, off+n); r.mu is held.
func (r *Replica) lookup(op string, id holdfast.SnapshotID, off, n int64) (*snapshot, error) {
	if err := r.check(op, off, n); err != nil {
		return nil, err
	}
	_, s := r.chain.find(id)
	switch {
	case s == nil:
		return nil, errorf(op+" of replica "+string(r.id), holdfast.NotFound, "it has no snapshot %s", id)
	case off > s.meta.SizeBytes || n > s.meta.SizeBytes-off:
		return nil, errorf(op+" of snapshot "+string(id), holdfast.OutOfRange, "%d bytes at %d are not within its %d bytes", n, off, s.meta.SizeBytes)
	}
	return s, nil
}

// ReadSnapshot fills p from off of a snapshot, in whole blocks. Kinds: NotFound,
// Invalid, OutOfRange, Corrupt.
func (r *Replica) ReadSnapshot(id holdfast.SnapshotID, p []byte, off int64) error {
	const op = "read snapshot"
	r.mu.RLock()
	defer r.mu.RUnlock()
	s, err := r.lookup(op, id, off, int64(len(p)))
	if err != nil {
		return err
	}
	return corrupt(op+" of replica "+string(r.id), r.chain.viewLocked(s, holdfast.Extent{Offset: off, Length: int64(len(p))}, reader(p, off)))
}

// SnapshotAllocated lists where a snapshot has data within [off, off+n), sorted
// and merged; the rest reads as zeros.
func (r *Replica) SnapshotAllocated(id holdfast.SnapshotID, off, n int64) ([]holdfast.Extent, error) {
	const op = "list allocated space of a snapshot"
	r.mu.RLock()
	defer r.mu.RUnlock()
	s, err := r.lookup(op, id, off, n)
	if err != nil {
		return nil, err
	}
	var out []holdfast.Extent
	err = r.chain.viewLocked(s, holdfast.Extent{Offset: off, Length: n}, lister(&out))
	return out, corrupt(op+" of replica "+string(r.id), err)
}

// HashSnapshot is Hash of a snapshot.
func (r *Replica) HashSnapshot(id holdfast.SnapshotID, off, n int64) ([]Hash, error) {
	const op = "hash snapshot"
	r.mu.RLock()
	defer r.mu.RUnlock()
	s, err := r.lookup(op, id, off, n)
	if err != nil {
		return nil, err
	}
	return r.hash(op, off, n, func(x holdfast.Extent, f use) error { return r.chain.viewLocked(s, x, f) })
}

// SnapshotChanged lists what may differ, within [off, off+n), between two
// snapshots, or between one and the live data when to is empty: whole granules,
// sorted and merged, cut at the larger one's size. Beyond the smaller one's size
// it is what has data. Which of the two is older does not matter. Kinds:
// NotFound, Invalid, OutOfRange (of the larger one), Corrupt.
func (r *Replica) SnapshotChanged(from, to holdfast.SnapshotID, off, n int64) ([]holdfast.Extent, error) {
	const op = "list changes between snapshots"
	r.mu.RLock()
	defer r.mu.RUnlock()
	if err := r.check(op, off, n); err != nil {
		return nil, err
	}
	c := r.chain
	i, older := c.find(from)
	j, newer := c.find(to)
	if to == "" {
		j = len(c.snaps)
	}
	if older == nil || newer == nil && to != "" {
		return nil, errorf(op+" of replica "+string(r.id), holdfast.NotFound, "it has no snapshot %s, or no %s", from, to)
	}
	if i > j {
		i, j, older, newer = j, i, newer, older
	}
	size := r.size.Load()
	if newer != nil {
		size = newer.meta.SizeBytes
	}
	if off > size || n > size-off {
		return nil, errorf(op, holdfast.OutOfRange, "%d bytes at %d are not within %d bytes", n, off, size)
	}
	x := holdfast.Extent{Offset: off, Length: n}
	out := c.changedBetween(i, j, x, older.meta.SizeBytes)
	beyond := clip(x, holdfast.Extent{Offset: older.meta.SizeBytes, Length: max(0, size-older.meta.SizeBytes)})
	if beyond.Length <= 0 {
		return out, nil
	}
	find := c.live
	if newer != nil {
		find = func(x holdfast.Extent, f use) error { return c.viewLocked(newer, x, f) }
	}
	err := find(beyond, lister(&out))
	return out, corrupt(op, err)
}

// changedBetween lists the granules that snapshots i to j-1 hold within x, cut
// at size.
func (c *chain) changedBetween(i, j int, x holdfast.Extent, size int64) []holdfast.Extent {
	union := newGranules(granulesOf(size))
	for _, s := range c.snaps[i:j] {
		union.join(s.held)
	}
	var out []holdfast.Extent
	union.each(x.Offset/granuleSize, func(g int64) bool {
		part := clip(granuleExtent(g, g, size), x)
		if part.Length <= 0 {
			return false
		}
		if k := len(out) - 1; k >= 0 && out[k].End() == part.Offset {
			out[k].Length += part.Length
		} else {
			out = append(out, part)
		}
		return true
	})
	return out
}

// RestoreRange makes [off, off+n) what it is in a snapshot, zeros beyond its
// end; it is a write in every respect, whose data is the snapshot's. Kinds: as
// WriteAt, and NotFound.
func (r *Replica) RestoreRange(e Entry, id holdfast.SnapshotID, off, n int64) error {
	return r.apply(e, change{off: off, n: n, restore: id}, false)
}

// differing lists where a snapshot's view is not in the data, and zeros are
// wanted beyond its end; r.mu is held.
func (c *chain) differing(s *snapshot, x holdfast.Extent) (out []piece) {
	i := slices.Index(c.snaps, s)
	if end := min(x.End(), s.meta.SizeBytes); end > x.Offset {
		last := (end - 1) / granuleSize
		for g := x.Offset / granuleSize; g <= last; {
			h, to := alike(g, last, func(g int64) *snapshot { return c.holder(i, g) })
			if h != nil {
				out = append(out, piece{clip(granuleExtent(g, to, end), x), h.f})
			}
			g = to + 1
		}
	}
	if beyond := clip(x, holdfast.Extent{Offset: s.meta.SizeBytes, Length: 1 << 62}); beyond.Length > 0 {
		out = append(out, piece{beyond, nil})
	}
	return out
}

// piece is a range with the file that its content is taken from; nil for zeros.
type piece struct {
	holdfast.Extent
	from disk.File
}

// DropSnapshot removes a snapshot in steps: the first call makes it invisible,
// durably; each moves at most step granules that the next older one lacks to
// that one. It says whether there is more to do. After a crash it goes on where
// it was. Nothing happens when there is none of this id and cut. Kinds: Busy when
// a clone depends on it, which is named; Unavailable; NoSpace; Corrupt.
func (r *Replica) DropSnapshot(ctx context.Context, id holdfast.SnapshotID, cut string, step int) (more bool, err error) {
	op := "drop snapshot " + string(id)
	if step <= 0 {
		return true, errorf(op, holdfast.Invalid, "a step of %d granules is not possible", step)
	}
	r.durable.Lock()
	defer r.durable.Unlock()
	s, err := r.beginDrop(op, id, cut)
	if s == nil || err != nil {
		return err != nil, err
	}
	if err := ctx.Err(); err != nil {
		return true, holdfast.WrapKind(op, holdfast.Unavailable, err)
	}
	more, err = r.handDown(s, step)
	if err == nil && !more {
		err = r.finishDrop(s)
	}
	return more || err != nil, r.failUnlessFull(op, err)
}

// beginDrop finds the snapshot, and makes it invisible unless it is so already.
func (r *Replica) beginDrop(op string, id holdfast.SnapshotID, cut string) (*snapshot, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.usable(op); err != nil {
		return nil, err
	}
	i := slices.IndexFunc(r.chain.snaps, func(s *snapshot) bool { return s.meta.ID == id && s.meta.Cut == cut })
	if i < 0 {
		return nil, nil
	}
	s := r.chain.snaps[i]
	if s.meta.Dropping {
		return s, nil
	}
	m := r.meta
	m.Snapshots = slices.Clone(m.Snapshots)
	m.Snapshots[i].Dropping = true
	// CreateFrom makes its dependence known, and then looks whether the snapshot
	// is there; here it is the other way round. The chain's lock orders the two.
	r.chain.mu.Lock()
	s.meta.Dropping = true
	r.chain.mu.Unlock()
	err := r.pool.dependent(r.id, id)
	if err == nil {
		err = r.failUnlessFull(op, r.setMeta(m))
	}
	if err != nil {
		r.chain.mu.Lock()
		s.meta.Dropping = false
		r.chain.mu.Unlock()
		return nil, holdfast.Wrap(op, err)
	}
	if s == r.chain.target {
		r.chain.retarget()
	}
	r.chain.show()
	return s, nil
}

// handDown moves at most step granules to the next older snapshot, if there is
// one, and says whether there are more; durable if not. What the snapshot holds
// does not change any more.
func (r *Replica) handDown(s *snapshot, step int) (more bool, err error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	i := slices.Index(r.chain.snaps, s)
	if err := r.usable("hand down"); err != nil || i == 0 {
		return false, err
	}
	older := r.chain.snaps[i-1]
	var todo [][2]int64
	s.held.each(0, func(g int64) bool {
		switch k := len(todo) - 1; {
		case g >= older.held.n:
			return false
		case older.held.has(g):
			return true
		case step <= 0:
			more = true
			return false
		case k >= 0 && todo[k][1] == g-1 && todo[k][1]-todo[k][0] < 63:
			todo[k][1] = g
		default:
			todo = append(todo, [2]int64{g, g})
		}
		step--
		return true
	})
	for _, t := range todo {
		if err := older.take(s.f, t[0], t[1]); err != nil {
			return true, err
		}
	}
	if !more {
		// What follows relies on it.
		return false, r.fail("sync snapshot", older.f.Sync())
	}
	return true, nil
}

// finishDrop forgets the snapshot, durably, and then removes its file.
func (r *Replica) finishDrop(s *snapshot) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.usable("drop snapshot"); err != nil {
		return err
	}
	i := slices.Index(r.chain.snaps, s)
	m := r.meta
	m.Snapshots = slices.Delete(slices.Clone(m.Snapshots), i, i+1)
	if err := r.setMeta(m); err != nil {
		return err
	}
	r.chain.mu.Lock()
	r.chain.snaps = slices.Delete(slices.Clone(r.chain.snaps), i, i+1)
	r.chain.show()
	r.chain.mu.Unlock()
	s.grew(-s.bytes.Load())
	r.pool.space.forget()
	return errors.Join(s.f.Close(), disk.RemoveAll(r.pool.fs, s.name))
}
