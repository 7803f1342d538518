package engine

import (
	"context"
	"errors"
	"path"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/engine/disk"
)

// originMeta is what a clone's meta says of where its content comes from. All
// granules before Done are its own.
type originMeta struct {
	Replica   holdfast.ReplicaID  `json:"replica"`
	Snapshot  holdfast.SnapshotID `json:"snapshot"`
	Cut       string              `json:"cut"`
	SizeBytes int64               `json:"sizeBytes"` // of the snapshot
	Done      int64               `json:"done"`
}

// base is where a clone finds what it does not own yet.
type base struct {
	chain *chain
	snap  *snapshot
	size  int64
	// owned has the granules that are in the clone's own data; kept in the file
	// marks, which has one page for each that is not before done.
	owned *granules
	marks disk.File
	done  int64 // as the clone's meta says; guarded by its lock durable
}

// owns says whether granule g is in the clone's own data.
func (b *base) owns(g int64) bool { return g >= b.owned.n || b.owned.has(g) }

// openBase opens what a clone rests upon; the pool's admin lock is held.
func (c *chain) openBase(m *meta) error {
	o := m.Origin
	origin, err := c.pool.acquire(o.Replica)
	if err != nil {
		return corrupt("open origin "+string(o.Replica)+" of the clone", err)
	}
	b := &base{chain: origin, size: o.SizeBytes, owned: newGranules(granulesOf(o.SizeBytes)), done: o.Done}
	_, b.snap = origin.find(o.Snapshot)
	switch {
	case b.snap == nil || b.snap.meta.Cut != o.Cut:
		err = errorf("open clone", holdfast.Corrupt, "its origin %s has no snapshot %s of cut %s", o.Replica, o.Snapshot, o.Cut)
	default:
		b.marks, err = c.pool.fs.Open(path.Join(c.dir, ownedFile), 0)
		err = mustBeSound(err)
	}
	if err == nil {
		err = b.load()
	}
	if err != nil {
		return errors.Join(err, b.close(c.pool))
	}
	c.base = b
	return nil
}

func (b *base) load() error {
	if b.done > 0 {
		b.owned.add(0, min(b.done, b.owned.n)-1)
	}
	ps, err := b.marks.Mapped(0, b.owned.n*blockSize)
	for _, p := range ps {
		b.owned.add(p.Offset/blockSize, (p.End()-1)/blockSize)
	}
	return err
}

func (b *base) close(p *Pool) error {
	var err error
	if b.marks != nil {
		err = b.marks.Close()
	}
	return errors.Join(err, p.discharge(b.chain))
}

// own makes [first, last] the clone's own: the blocks are shared, and then the
// marks say so. Until they do nothing is written there, so that doing it again
// after a crash does no harm. The granules are claimed.
func (c *chain) own(first, last int64) error {
	b := c.base
	last = min(last, b.owned.n-1)
	for g := first; g <= last; {
		owned, end := alike(g, last, b.owned.has)
		if !owned {
			err := b.chain.view(b.snap, granuleExtent(g, end, b.size), func(f disk.File, x holdfast.Extent) error {
				return c.data.CloneRange(f, x.Offset, x.Length)
			})
			if err == nil {
				err = b.marks.Allocate(g*blockSize, (end-g+1)*blockSize)
			}
			if err != nil {
				return err
			}
			b.owned.add(g, end)
		}
		g = end + 1
	}
	return nil
}

// CreateFrom makes a replica whose content is that of a snapshot of another one
// on this pool, larger if sizeBytes says so; durable on return, and usable at
// once. Until Independent is done it reads from the origin, which cannot be
// removed, nor the snapshot be dropped. When the same one is there, it returns
// nil. Kinds: NotFound for the origin or its snapshot; Exists; Invalid; NoSpace.
func (p *Pool) CreateFrom(ctx context.Context, c CloneOptions) error {
	op := "clone replica " + string(c.Replica) + " from snapshot " + string(c.Snapshot)
	p.admin.Lock()
	defer p.admin.Unlock()
	if err := p.usable(ctx); err != nil {
		return holdfast.Wrap(op, err)
	}
	if there, err := p.present(c.Volume, c.Replica, c.SizeBytes); there || err != nil {
		return holdfast.Wrap(op, err)
	}
	// Known as dependent before the snapshot is looked at: who drops it looks
	// the other way round.
	p.depends(c.Replica, dependence{c.Origin, c.Snapshot})
	o, err := p.originOf(c)
	if err == nil {
		err = p.make(c.Replica, meta{Volume: c.Volume, Replica: c.Replica, Origin: o}, c.SizeBytes)
	}
	if err != nil {
		p.independent(c.Replica)
	}
	return holdfast.Wrap(op, err)
}

// CloneOptions says what CreateFrom makes, and from what.
type CloneOptions struct {
	Volume    holdfast.VolumeID
	Replica   holdfast.ReplicaID
	SizeBytes int64
	Origin    holdfast.ReplicaID
	Snapshot  holdfast.SnapshotID
}

func (p *Pool) originOf(c CloneOptions) (*originMeta, error) {
	if !safeName(string(c.Origin)) {
		return nil, errorf("find origin", holdfast.NotFound, "there is no replica %q on pool %s", c.Origin, p.id.Pool)
	}
	var m meta
	if r := p.opened(c.Origin); r != nil {
		m.Snapshots = r.chain.list()
	} else if err := readSealed(p.fs, path.Join(replicaPath(c.Origin), metaFile), "replica", &m); err != nil {
		return nil, holdfast.Wrap("find origin", err)
	}
	for _, s := range m.Snapshots {
		if s.ID != c.Snapshot || s.Dropping {
			continue
		}
		if c.SizeBytes < s.SizeBytes {
			return nil, errorf("choose a size", holdfast.Invalid, "%d bytes are less than the snapshot's %d", c.SizeBytes, s.SizeBytes)
		}
		return &originMeta{Replica: c.Origin, Snapshot: s.ID, Cut: s.Cut, SizeBytes: s.SizeBytes}, nil
	}
	return nil, errorf("find origin", holdfast.NotFound, "replica %s has no snapshot %s", c.Origin, c.Snapshot)
}

// doneStep is after how many granules a clone's progress is noted in its meta,
// so that their marks are not needed.
const doneStep = 4096

// Independent takes over at most step granules that the replica does not own yet
// from its origin, and says whether there are more. When there are none it is
// independent, durably: the origin can go. Kinds: Invalid, NoSpace, Unavailable,
// Corrupt.
func (r *Replica) Independent(ctx context.Context, step int) (more bool, err error) {
	const op = "make clone independent"
	if step <= 0 {
		return true, errorf(op, holdfast.Invalid, "a step of %d granules is not possible", step)
	}
	r.durable.Lock()
	defer r.durable.Unlock()
	next, err := r.ownSome(ctx, int64(step))
	if err != nil {
		return true, err
	}
	b := r.chain.base
	if b == nil {
		return false, nil
	}
	if next < b.owned.n {
		if next-b.done >= r.doneStep {
			return true, r.failUnlessFull(op, r.noteDone(next))
		}
		return true, nil
	}
	return false, r.failUnlessFull(op, r.cutLoose())
}

// ownSome gives the first granule that is not owned yet; r.durable is held, so
// that base stays.
func (r *Replica) ownSome(ctx context.Context, step int64) (next int64, err error) {
	const op = "make clone independent"
	r.mu.RLock()
	defer r.mu.RUnlock()
	if err := r.usable(op); err != nil {
		return 0, err
	}
	b := r.chain.base
	if b == nil {
		return 0, nil
	}
	const most = 64
	for g := b.done; ; {
		for g < b.owned.n && b.owned.has(g) {
			g++
		}
		if g == b.owned.n || step <= 0 {
			return g, nil
		}
		if err := ctx.Err(); err != nil {
			return g, holdfast.WrapKind(op, holdfast.Unavailable, err)
		}
		end := min(g+min(step, most), b.owned.n) - 1
		if err := r.ownClaimed(g, end); err != nil {
			return g, r.failUnlessFull(op, err)
		}
		step -= end - g + 1
	}
}

func (r *Replica) ownClaimed(first, last int64) error {
	c := r.chain
	c.claims.take(first, last)
	defer c.claims.release(first, last)
	if err := c.pool.space.room(0); err != nil {
		return err
	}
	return c.own(first, last)
}

// noteDone makes durable that all granules before next are owned.
func (r *Replica) noteDone(next int64) error {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if err := r.usable("make clone independent"); err != nil {
		return err
	}
	b, m := r.chain.base, r.meta
	o := *m.Origin
	o.Done = next
	m.Origin = &o
	if err := r.data.Sync(); err != nil {
		return r.fail("flush", err)
	}
	if err := r.setMeta(m); err != nil {
		return err
	}
	b.done = next
	return b.marks.Punch(0, next*blockSize)
}

// cutLoose makes a clone that owns all its granules forget its origin.
func (r *Replica) cutLoose() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.usable("make clone independent"); err != nil {
		return err
	}
	if err := r.data.Sync(); err != nil {
		return r.fail("flush", err)
	}
	m := r.meta
	m.Origin = nil
	if err := r.setMeta(m); err != nil {
		return err
	}
	r.chain.mu.Lock()
	b := r.chain.base
	r.chain.base = nil
	r.chain.mu.Unlock()
	r.pool.independent(r.id)
	return errors.Join(b.close(r.pool), disk.RemoveAll(r.pool.fs, r.file(ownedFile)))
}
