package engine

import (
	"errors"
	"path"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/engine/disk"
)

// snapshotMeta is what a replica's meta says of a snapshot. File is the number
// that its file is named by.
type snapshotMeta struct {
	ID        holdfast.SnapshotID `json:"id"`
	Cut       string              `json:"cut"`
	SizeBytes int64               `json:"sizeBytes"`
	File      uint64              `json:"file"`
	Dropping  bool                `json:"dropping,omitempty"`
}

// snapshot is an open one: what it holds is in f, the rest in newer ones or in
// the data.
type snapshot struct {
	meta  snapshotMeta
	name  string
	f     disk.File
	held  *granules
	bytes atomic.Int64 // that f refers to, about
	share *share       // of the pool
}

// snapshotFileName names the file of a number.
func snapshotFileName(n uint64) string { return strconv.FormatUint(n, 10) + ".snapshot" }

func parseSnapshotFile(name string) (uint64, bool) {
	n, err := strconv.ParseUint(name[:max(0, len(name)-len(".snapshot"))], 10, 64)
	return n, err == nil && snapshotFileName(n) == name
}

// Behind the snapshot's content, from its size rounded up on, the file has one
// page for each granule: allocated while that granule is being taken over in
// several steps, so that what a crash leaves of it does not count.
func markOffset(size, g int64) int64 { return granulesOf(size)*granuleSize + g*blockSize }

func snapshotFileSize(size int64) int64 { return markOffset(size, granulesOf(size)) }

// chain is a replica's data with its snapshots: each granule of a snapshot is in
// its own file, else in the next newer one that holds it, else in the data. It
// outlives the replica's being open while an open clone reads from it.
type chain struct {
	pool *Pool
	id   holdfast.ReplicaID
	dir  string
	data disk.File
	refs int // guarded by Pool.mu: the replica, if open, and open clones

	// mu is held for writing where the list changes, in addition to the
	// replica's own lock: clones read under this one alone.
	mu     sync.RWMutex
	snaps  []*snapshot // oldest first, those being dropped included
	shown  atomic.Pointer[[]shown]
	claims claims
	turns  turns
	// target is the snapshot that a first write to a granule puts its content
	// into; nil without snapshots. touched has the granules that need nothing any
	// more, ahead those that are in its file before they are touched. Which sets
	// these are changes under the replica's lock only.
	target  *snapshot
	touched *granules
	ahead   *granules
	base    *base // where a clone's content comes from; nil when it is all its own
}

// openChain opens the files. opens and saved say which sets are known already.
func openChain(p *Pool, id holdfast.ReplicaID, m *meta) (*chain, error) {
	c := &chain{pool: p, id: id, dir: replicaPath(id)}
	c.claims.cond.L = &c.claims.mu
	var err error
	if m.Origin == nil {
		// Of a clone that became independent; meta, which says so, is durable first.
		if err := p.fs.SyncDir(c.dir); err != nil {
			return nil, err
		}
		if err := disk.RemoveAll(p.fs, path.Join(c.dir, ownedFile)); err != nil {
			return nil, err
		}
	}
	if c.data, err = p.fs.Open(path.Join(c.dir, dataFile), disk.Direct|disk.Late); err != nil {
		return nil, mustBeSound(err)
	}
	if err = waitForWrites(c.data); err == nil {
		err = c.openSnapshots(m)
	}
	if err == nil && m.Origin != nil {
		err = c.openBase(m)
	}
	if err != nil {
		return nil, errors.Join(err, c.close())
	}
	c.retarget()
	c.show()
	return c, nil
}

// waitForWrites returns when the writes of a process that was killed have ended:
// what it gave to the kernel by io_uring may be under way when its lock is gone
// already. Setting a file's size, to what it is, waits for them.
func waitForWrites(f disk.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	return f.Truncate(info.SizeBytes)
}

func (c *chain) file(name string) string { return path.Join(c.dir, snapshotsDir, name) }

// tidy removes the files of snapshots that were not taken in the end, or are
// dropped: meta does not name them (invariant 8).
func (c *chain) tidy(m *meta) error {
	entries, err := c.pool.fs.List(path.Join(c.dir, snapshotsDir))
	if err != nil {
		return err
	}
	for _, e := range entries {
		n, ok := parseSnapshotFile(e.Name)
		named := slices.ContainsFunc(m.Snapshots, func(s snapshotMeta) bool { return s.File == n })
		if ok && !named || disk.IsTemporary(e.Name) {
			// What meta says need not be durable yet.
			if err := errors.Join(c.pool.fs.SyncDir(c.dir), c.pool.fs.Remove(c.file(e.Name))); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *chain) openSnapshots(m *meta) error {
	if err := c.tidy(m); err != nil {
		return err
	}
	saved := map[uint64]*granules{}
	if len(m.Snapshots) > 0 {
		saved = loadHeld(c.pool.fs, c.file(heldFile), m)
	}
	for _, sm := range m.Snapshots {
		s := &snapshot{meta: sm, name: c.file(snapshotFileName(sm.File)), share: &c.pool.snapshots}
		var err error
		if s.f, err = c.pool.fs.Open(s.name, disk.Direct); err != nil {
			return mustBeSound(err)
		}
		c.snaps = append(c.snaps, s)
		s.held = saved[sm.File]
	}
	// The newest first, by which the next older one is judged.
	for i := len(c.snaps) - 1; i >= 0; i-- {
		s := c.snaps[i]
		if s.held == nil {
			if err := c.rebuild(i, m.Origin != nil); err != nil {
				return err
			}
		}
		info, err := s.f.Stat()
		if err != nil {
			return err
		}
		if size := s.meta.SizeBytes; info.SizeBytes < snapshotFileSize(size) {
			return errorf(s.name, holdfast.Corrupt, "it has %d bytes; a snapshot of %d bytes needs %d", info.SizeBytes, size, snapshotFileSize(size))
		}
		// What was shared ahead counts when it is held.
		s.grew(min(info.AllocatedBytes, s.held.count.Load()*granuleSize))
	}
	return nil
}

// retarget chooses the snapshot that first writes go to: the newest that is not
// being dropped. What a newer one holds needs nothing.
func (c *chain) retarget() {
	c.target, c.touched, c.ahead = nil, nil, nil
	for i := len(c.snaps) - 1; i >= 0 && c.target == nil; i-- {
		if s := c.snaps[i]; !s.meta.Dropping {
			c.target = s
			c.touched = newGranules(granulesOf(s.meta.SizeBytes))
			c.ahead = newGranules(granulesOf(s.meta.SizeBytes))
			for _, newer := range c.snaps[i:] {
				c.touched.join(newer.held)
			}
		}
	}
}

// close closes the files; nobody uses them.
func (c *chain) close() error {
	errs := []error{c.data.Close()}
	for _, s := range c.snaps {
		errs = append(errs, s.f.Close())
		s.grew(-s.bytes.Load())
	}
	if c.base != nil {
		errs = append(errs, c.base.close(c.pool))
	}
	return errors.Join(errs...)
}

// find gives a snapshot that is not being dropped, and its place; nil if there
// is none.
func (c *chain) find(id holdfast.SnapshotID) (int, *snapshot) {
	for i, s := range c.snaps {
		if s.meta.ID == id && !s.meta.Dropping {
			return i, s
		}
	}
	return -1, nil
}

// list gives what meta says of the snapshots.
func (c *chain) list() []snapshotMeta {
	c.mu.RLock()
	defer c.mu.RUnlock()
	var out []snapshotMeta
	for _, s := range c.snaps {
		out = append(out, s.meta)
	}
	return out
}

// holder is the snapshot in whose file granule g of snapshot number i is; nil
// when it is in the data.
func (c *chain) holder(i int, g int64) *snapshot {
	for _, s := range c.snaps[i:] {
		if s.held.has(g) {
			return s
		}
	}
	return nil
}

// use is told where a range of a view is: its bytes are those of f at the same
// place. It may be told again about a range when something came in between; the
// last time counts.
type use func(f disk.File, x holdfast.Extent) error

// view finds a range of a snapshot, piece by piece in order.
func (c *chain) view(s *snapshot, x holdfast.Extent, f use) error {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.viewLocked(s, x, f)
}

// viewLocked is view; c.mu, or the replica's own lock, is held.
func (c *chain) viewLocked(s *snapshot, x holdfast.Extent, f use) error {
	i := slices.Index(c.snaps, s)
	if i < 0 {
		return errorf("read snapshot "+string(s.meta.ID), holdfast.NotFound, "it was dropped")
	}
	last := (x.End() - 1) / granuleSize
	for g := x.Offset / granuleSize; g <= last; {
		h, end := alike(g, last, func(g int64) *snapshot { return c.holder(i, g) })
		part := clip(granuleExtent(g, end, x.End()), x)
		var err error
		if h != nil {
			err = f(h.f, part)
		} else if err = c.live(part, f); err == nil {
			if c.anyHeld(i, g, end) {
				continue // a first write has moved some of it meanwhile
			}
		}
		if err != nil {
			return err
		}
		g = end + 1
	}
	return nil
}

// anyHeld says whether any of the granules is in a file by now.
func (c *chain) anyHeld(i int, g, end int64) bool {
	for ; g <= end; g++ {
		if c.holder(i, g) != nil {
			return true
		}
	}
	return false
}

// live finds a range of the live content.
func (c *chain) live(x holdfast.Extent, f use) error {
	b := c.base
	if b == nil {
		return f(c.data, x)
	}
	last := (x.End() - 1) / granuleSize
	for g := x.Offset / granuleSize; g <= last; {
		own, end := alike(g, last, b.owns)
		part := clip(granuleExtent(g, end, x.End()), x)
		g = end + 1
		if !own {
			if theirs := clip(part, holdfast.Extent{Length: b.size}); theirs.Length > 0 {
				if err := b.chain.view(b.snap, theirs, f); err != nil {
					return err
				}
				part = holdfast.Extent{Offset: theirs.End(), Length: part.End() - theirs.End()}
			}
		}
		if part.Length > 0 {
			if err := f(c.data, part); err != nil {
				return err
			}
		}
	}
	return nil
}

// clip is the part of x within y; they overlap.
func clip(x, y holdfast.Extent) holdfast.Extent {
	off := max(x.Offset, y.Offset)
	return holdfast.Extent{Offset: off, Length: min(x.End(), y.End()) - off}
}

// reader fills p, which begins at off, from wherever pieces are.
func reader(p []byte, off int64) use {
	return func(f disk.File, x holdfast.Extent) error {
		_, err := f.ReadAt(p[x.Offset-off:x.End()-off], x.Offset)
		return err
	}
}

// lister appends to *out where pieces have data, sorted and merged.
func lister(out *[]holdfast.Extent) use {
	return func(f disk.File, x holdfast.Extent) error {
		xs, err := f.Extents(x.Offset, x.Length)
		if err != nil {
			return err
		}
		*out = cut(*out, x.Offset) // told again
		for _, y := range xs {
			if k := len(*out) - 1; k >= 0 && (*out)[k].End() == y.Offset {
				(*out)[k].Length += y.Length
			} else {
				*out = append(*out, y)
			}
		}
		return nil
	}
}

// cut removes what lies at or after off from sorted extents.
func cut(xs []holdfast.Extent, off int64) []holdfast.Extent {
	for len(xs) > 0 {
		k := len(xs) - 1
		if xs[k].End() <= off {
			break
		}
		if xs[k].Length = off - xs[k].Offset; xs[k].Length > 0 {
			break
		}
		xs = xs[:k]
	}
	return xs
}
