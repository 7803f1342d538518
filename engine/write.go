package engine

import (
	"errors"
	"runtime/debug"
	"sync"
	"sync/atomic"

	"github.com/holdfast-storage/holdfast"
)

const (
	// idleFlushes is for how many flushes a region must have had no writes
	// before its intent goes, and how often that is looked at. A region that is
	// written to again needs a durable write for its intent first: with 64, a
	// database that flushes after each write to a random place in half a
	// gigabyte paid for one with every other write.
	idleFlushes = 1024
	// manyIntents is from how many intents on a flush looks sooner; and each
	// time that so many more were set, a write flushes by itself.
	manyIntents = 1024
)

// ReadAt fills p from off; holes read as zeros. All in whole blocks. Kinds:
// Invalid, OutOfRange, Corrupt.
func (r *Replica) ReadAt(p []byte, off int64) error {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if err := r.check("read", off, int64(len(p))); err != nil {
		return err
	}
	var err error
	if c := r.chain; c.base == nil {
		_, err = r.data.ReadAt(p, off)
	} else {
		err = c.live(holdfast.Extent{Offset: off, Length: int64(len(p))}, reader(p, off))
	}
	return r.readErr(err)
}

// readErr is the answer for a sector that cannot be read: the rest of the replica
// still can.
func (r *Replica) readErr(err error) error {
	if err == nil {
		return nil
	}
	return corrupt("read of replica "+string(r.id), err)
}

// WriteAt writes p at off, both in whole blocks. On return the write is applied
// and named by the change map of e.Epoch; with fua its data is durable. Writes
// that overlap must not be under way at once. Kinds: Invalid, OutOfRange, Fenced
// (a newer grant is promised), NoSpace (nothing was changed; try again), Corrupt
// (final).
func (r *Replica) WriteAt(e Entry, p []byte, off int64, fua bool) error {
	return r.apply(e, change{p: p, off: off, n: int64(len(p))}, fua)
}

// Trim makes [off, off+n) read as zeros and frees its space; it is a write in
// every other respect.
func (r *Replica) Trim(e Entry, off, n int64, fua bool) error {
	return r.apply(e, change{off: off, n: n}, fua)
}

// Commit tells that all writes of grant up to seq are applied on every in-sync
// replica, as Entry.Committed does.
func (r *Replica) Commit(grant holdfast.Epoch, seq uint64) {
	var err error // a fault has failed the replica, as the next write will say
	defer r.guard("commit", &err, debug.SetPanicOnFault(true))
	r.mu.RLock()
	defer r.mu.RUnlock()
	if !r.closed {
		r.tail.trim(grant, seq)
	}
}

// change is what apply does: writes p, or makes [off, off+n) what it is in a
// snapshot, if that is named, or trims it.
type change struct {
	p       []byte
	off, n  int64
	restore holdfast.SnapshotID
	pieces  []piece // to restore, found by room
}

// apply is every kind of write.
func (r *Replica) apply(e Entry, c change, fua bool) error {
	err := r.applyOnce(e, c, fua)
	r.reclaim(err)
	return err
}

func (r *Replica) applyOnce(e Entry, c change, fua bool) (err error) {
	defer r.guard("write", &err, debug.SetPanicOnFault(true))
	r.mu.RLock()
	defer r.mu.RUnlock()
	m, err := r.admit(e, &c)
	if err != nil {
		return err
	}
	first, last := regionsOf(c.off, c.n)
	r.intents.enter(first, last)
	defer r.intents.leave(first, last, &r.flusher.begun)
	slot, err := r.announce(e, &c)
	if err != nil {
		return err
	}
	done, err := r.put(&c, fua)
	return r.applied(&c, m, slot, done, err)
}

// admit refuses a write, with nothing changed, or makes room for it.
func (r *Replica) admit(e Entry, c *change) (*changeMap, error) {
	if err := r.check("write", c.off, c.n); err != nil {
		return nil, err
	}
	if uint64(e.Grant) < r.floor.Load() {
		return nil, errorf("write of replica "+string(r.id), holdfast.Fenced, "its grant %d is older than the promised one, %d", e.Grant, r.floor.Load())
	}
	return r.room(e.Epoch, c)
}

// announce puts a write into the tail, and makes its intents durable. The order
// is the promise: tail, intent, data, change map. What a repair copies is copied
// again when the process dies under it: see SetProgress.
func (r *Replica) announce(e Entry, c *change) (slot int, err error) {
	slot = -1
	if e.Copied {
		r.tail.trim(e.Grant, e.Committed)
	} else {
		slot = r.tail.add(e, c.off, c.n)
	}
	first, last := regionsOf(c.off, c.n)
	if err := r.intents.ensure(first, last); err != nil {
		return slot, r.fail("write intents", err)
	}
	return slot, nil
}

// applied ends a write whose data is there, or is not: done and err are put's.
func (r *Replica) applied(c *change, m *changeMap, slot, done int, err error) error {
	if err != nil {
		err = r.failUnlessFull("write", err)
		if done == 0 && r.failed.Load() == nil {
			r.tail.remove(slot)
		} else {
			m.set(c.off, c.n)
		}
		r.pool.space.forget()
		return err
	}
	m.set(c.off, c.n)
	return nil
}

// room makes sure, before anything is changed, that there is space for a write
// and for its bits, and that snapshots have what it changes.
func (r *Replica) room(epoch holdfast.Epoch, c *change) (*changeMap, error) {
	m, err := r.changes.of(epoch)
	if err == nil {
		err = m.prepare(c.off, c.n)
	}
	if err != nil {
		return nil, r.failUnlessFull("prepare change map", err)
	}
	if err := r.keepOld(c); err != nil {
		return nil, err
	}
	if c.p != nil {
		if err := r.pool.space.take(r.data, c.off, c.n); err != nil {
			return nil, r.failUnlessFull("write", err)
		}
	}
	if n := r.intents.total(); n >= manyIntents && n >= r.flusher.enough.Load() {
		if err := r.thin(n); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// keepOld puts what a change is the first to change into the newest snapshot,
// and finds what a restore has to do. That a snapshot holds a granule which then
// is not changed does no harm.
func (r *Replica) keepOld(c *change) error {
	if c.restore == "" {
		if err := r.chain.touch(c.off, c.n, c.p == nil); err != nil {
			return r.failUnlessFull("keep old content", err)
		}
		return nil
	}
	_, s := r.chain.find(c.restore)
	if s == nil {
		return errorf("restore replica "+string(r.id), holdfast.NotFound, "it has no snapshot %s", c.restore)
	}
	c.pieces = r.chain.differing(s, holdfast.Extent{Offset: c.off, Length: c.n})
	for _, p := range c.pieces {
		if err := r.chain.touch(p.Offset, p.Length, p.from == nil); err != nil {
			return r.failUnlessFull("keep old content", err)
		}
	}
	return nil
}

// thin flushes when a volume that is never flushed has collected many intents,
// so that a power loss does not leave all of it suspect.
func (r *Replica) thin(n int64) error {
	old := r.flusher.enough.Load()
	if n < old || !r.flusher.enough.CompareAndSwap(old, n+manyIntents) {
		return nil // somebody else does it
	}
	if err := r.flusher.do(r.flush); err != nil {
		return err
	}
	if err := r.clean(0); err != nil {
		return err
	}
	r.flusher.enough.Store(r.intents.total() + manyIntents)
	return nil
}

// put changes the data, and says how much of it when that fails.
func (r *Replica) put(c *change, fua bool) (done int, err error) {
	if c.p != nil {
		return r.data.WriteAt(c.p, c.off, fua)
	}
	if c.restore == "" {
		c.pieces = []piece{{Extent: holdfast.Extent{Offset: c.off, Length: c.n}}}
	}
	for _, p := range c.pieces {
		if p.from == nil {
			err = r.data.Punch(p.Offset, p.Length)
		} else {
			err = r.data.CloneRange(p.from, p.Offset, p.Length)
		}
		if err != nil {
			return 1, err // how far it came is not known
		}
	}
	if fua {
		// A failed sync is never "full" to the caller: the data is in doubt.
		return 0, r.fail("flush", r.data.Sync())
	}
	return 0, nil
}

// Flush makes every operation that returned before it durable. Flushes that come
// together share one sync. An error is final.
func (r *Replica) Flush() error {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if err := r.usable("flush"); err != nil {
		return err
	}
	if err := r.flusher.do(r.flush); err != nil {
		return err
	}
	n := r.flusher.begun.Load()
	if n%r.idleFlushes == 0 && r.intents.clearable(n, r.idleFlushes) > 0 {
		return r.clean(r.idleFlushes)
	}
	return nil
}

// flush is one sync of the data.
func (r *Replica) flush() error {
	if err := r.usable("flush"); err != nil {
		return err
	}
	return r.fail("flush", r.data.Sync())
}

// clean clears the intents of regions that have been idle for so many flushes.
// What it clears is covered by a flush and a sync of the change maps, both begun
// after the regions' last writes were complete.
func (r *Replica) clean(idle uint64) error {
	n := r.flusher.synced()
	if err := r.changes.sync(); err != nil {
		return r.fail("sync change maps", err)
	}
	r.intents.clear(n, idle, r.tail.regions)
	return nil
}

// flusher lets flushes that come together share one.
type flusher struct {
	// begun counts the syncs begun. A write that was complete when it was n is
	// covered by every sync whose number is greater.
	begun  atomic.Uint64
	enough atomic.Int64 // intents at which a write flushes by itself

	mu      sync.Mutex
	cond    sync.Cond
	running bool
	done    uint64 // number of the last sync that succeeded
	err     error  // of a failed one; final
}

// do returns when a sync that began after the call has succeeded.
func (f *flusher) do(flush func() error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	need := f.begun.Load() + 1
	for f.done < need {
		switch {
		case f.err != nil:
			return f.err
		case f.running:
			f.cond.Wait()
		default:
			f.run(flush)
		}
	}
	return nil
}

// run does one sync, without the lock while it lasts.
func (f *flusher) run(flush func() error) {
	f.running = true
	n := f.begun.Add(1)
	f.mu.Unlock()
	err := flush()
	f.mu.Lock()
	f.running = false
	if err != nil {
		f.err = errors.Join(f.err, err)
	} else {
		f.done = n
	}
	f.cond.Broadcast()
}

// synced is the number of the last sync that succeeded.
func (f *flusher) synced() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.done
}
