package engine

import (
	"fmt"
	"reflect"
	"runtime/debug"
	"slices"

	"github.com/holdfast-storage/holdfast"
)

// SetPromise promises to serve nobody older than this epoch and grant, and keeps
// the record if it is not older than the one kept; both durable on return. From
// the call on no write of an older grant is taken. An older epoch of the same
// grant keeps the record only. Kinds: Fenced when another grant is promised at
// this epoch or a later one; Invalid; NoSpace; Corrupt.
func (r *Replica) SetPromise(epoch, grant holdfast.Epoch, record holdfast.Record) error {
	const op = "promise"
	r.durable.Lock()
	defer r.durable.Unlock()
	if record.Version != 0 && record.ID != r.meta.Volume {
		return errorf(op, holdfast.Invalid, "the record is of volume %s, the replica of volume %s", record.ID, r.meta.Volume)
	}
	p := Promise{Epoch: epoch, Grant: grant}
	switch was := r.promise; {
	case grant == was.Grant && epoch < was.Epoch:
		p = was
	case epoch < was.Epoch, grant < was.Grant, epoch == was.Epoch && grant != was.Grant:
		// Invariant 1: promises never go back.
		return errorf(op, holdfast.Fenced, "epoch %d of grant %d is promised; epoch %d of grant %d comes too late", was.Epoch, was.Grant, epoch, grant)
	}
	r.mu.Lock()
	r.floor.Store(max(r.floor.Load(), uint64(p.Grant)))
	r.mu.Unlock()
	r.mu.RLock()
	defer r.mu.RUnlock()
	if err := r.usable(op); err != nil {
		return err
	}
	// The record first: one that is ahead of the promise does no harm.
	if err := r.keepRecord(record); err != nil {
		return r.failUnlessFull("keep record", err)
	}
	if p == r.promise {
		return nil
	}
	if err := writeSealed(r.pool.fs, r.file(promiseFile), "promise", p); err != nil {
		return r.failUnlessFull(op, err)
	}
	r.state.Lock()
	defer r.state.Unlock()
	r.promise = p
	return nil
}

// keepRecord keeps the newest record shown (invariant 10).
func (r *Replica) keepRecord(record holdfast.Record) error {
	if record.Version == 0 || record.Epoch < r.record.Epoch && r.record.Version != 0 || reflect.DeepEqual(record, r.record) {
		return nil
	}
	record = record.Clone()
	if err := writeSealed(r.pool.fs, r.file(recordFile), "record", record); err != nil {
		return err
	}
	r.state.Lock()
	defer r.state.Unlock()
	r.record = record
	return nil
}

// Mark adds extents to the change map of an epoch, durably. Parts of blocks
// count as whole ones. Kinds: OutOfRange, NoSpace, Corrupt.
func (r *Replica) Mark(epoch holdfast.Epoch, extents []holdfast.Extent) (err error) {
	const op = "mark changes"
	defer r.guard(op, &err, debug.SetPanicOnFault(true))
	r.mu.RLock()
	defer r.mu.RUnlock()
	if err := r.usable(op); err != nil {
		return err
	}
	for size, i := r.size.Load(), 0; i < len(extents); i++ {
		if x := extents[i]; x.Offset < 0 || x.Length <= 0 || x.Offset > size || x.Length > size-x.Offset {
			return errorf(op, holdfast.OutOfRange, "%d bytes at %d are not within the replica's %d bytes", x.Length, x.Offset, size)
		}
	}
	m, err := r.changes.of(epoch)
	if err != nil {
		return r.failUnlessFull(op, err)
	}
	return r.failUnlessFull(op, m.mark(widen(extents, blockSize)))
}

// Settle says that the replica is in sync: suspects and the progress of a repair
// are forgotten, and the
// entries in the tail of grants other than this one, and the change maps of
// epochs before pruneBefore (0 keeps all). Durable on return. Intents stay.
func (r *Replica) Settle(grant, pruneBefore holdfast.Epoch) (err error) {
	const op = "settle"
	defer r.guard(op, &err, debug.SetPanicOnFault(true))
	r.durable.Lock()
	defer r.durable.Unlock()
	m := r.meta
	m.Suspects, m.Progress = nil, nil
	m.MapSince = max(m.MapSince, pruneBefore)
	if err := r.settleMeta(m); err != nil {
		return err
	}
	r.mu.Lock() // maps that others may be looking at are removed
	defer r.mu.Unlock()
	if err := r.usable(op); err != nil {
		return err
	}
	r.tail.settle(grant)
	return r.fail(op, r.changes.prune(m.MapSince))
}

// SetProgress makes every operation that returned before it durable, and then g,
// in place of the progress before; Settle forgets it. Suspects before the end of
// its first part are forgotten: the repair has compared them. Kinds: NoSpace,
// Corrupt.
func (r *Replica) SetProgress(g Progress) error {
	const op = "keep the repair's progress"
	if err := r.flushAll(); err != nil {
		return err
	}
	r.durable.Lock()
	defer r.durable.Unlock()
	m := r.meta
	m.Progress = &Progress{Since: g.Since, Parts: slices.Clone(g.Parts)}
	if len(g.Parts) > 0 {
		m.Suspects = slices.DeleteFunc(slices.Clone(m.Suspects), func(x holdfast.Extent) bool { return x.End() <= g.Parts[0].End })
	}
	return holdfast.Wrap(op, r.settleMeta(m))
}

// flushAll flushes, and clears the intents that can go: after a power loss only
// what was written since is suspect.
func (r *Replica) flushAll() error {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if err := r.usable("flush"); err != nil {
		return err
	}
	if err := r.flusher.do(r.flush); err != nil {
		return err
	}
	return r.clean(0)
}

// settleMeta replaces meta, if it differs; r.durable is held.
func (r *Replica) settleMeta(m meta) error {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if err := r.usable("settle"); err != nil || reflect.DeepEqual(m, r.meta) {
		return err
	}
	return r.failUnlessFull("settle", r.setMeta(m))
}

// setMeta replaces meta, durably; r.durable is held.
func (r *Replica) setMeta(m meta) error {
	if err := r.writeMeta(m); err != nil {
		return err
	}
	r.state.Lock()
	defer r.state.Unlock()
	r.meta = m
	return nil
}

// Grow makes the replica size bytes long, durably; nothing if it is as long
// already. Kinds: Invalid, NoSpace (it is as long as it was), Corrupt.
func (r *Replica) Grow(size int64) error {
	const op = "grow"
	if size <= 0 || size%blockSize != 0 || size > holdfast.MaxVolumeBytes {
		return errorf(op, holdfast.Invalid, "a size of %d bytes is not possible; a positive multiple of %d is needed", size, blockSize)
	}
	r.durable.Lock() // a snapshot being taken has this size
	defer r.durable.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.usable(op); err != nil {
		return err
	}
	if size <= r.size.Load() {
		return nil
	}
	// The data's length comes last: it decides how long the others must be.
	for _, step := range []func() error{
		func() error { return r.intents.grow(size) },
		func() error { return r.changes.grow(size) },
		func() error { return r.data.Truncate(size) },
	} {
		if err := step(); err != nil {
			return r.failUnlessFull(fmt.Sprintf("%s to %d bytes", op, size), err)
		}
	}
	if err := r.data.Sync(); err != nil {
		return r.fail(op, err)
	}
	r.size.Store(size)
	return nil
}
