package engine

import (
	"crypto/sha256"
	"runtime/debug"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/buf"
)

// Changed lists the blocks written or marked in epochs from since on, sorted and
// merged. Kind NotFound when the maps do not reach back so far.
func (r *Replica) Changed(since holdfast.Epoch) (_ []holdfast.Extent, err error) {
	defer r.guard("list changes", &err, debug.SetPanicOnFault(true))
	r.mu.RLock()
	defer r.mu.RUnlock()
	if err := r.usable("list changes"); err != nil {
		return nil, err
	}
	r.state.Lock()
	oldest := r.meta.MapSince
	r.state.Unlock()
	if since < oldest {
		return nil, errorf("list changes of replica "+string(r.id), holdfast.NotFound, "change maps reach back to epoch %d, not to %d", oldest, since)
	}
	return r.changes.since(since), nil
}

// Allocated lists where data is within [off, off+n), sorted and merged; the rest
// reads as zeros.
func (r *Replica) Allocated(off, n int64) ([]holdfast.Extent, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if err := r.check("list allocated space", off, n); err != nil {
		return nil, err
	}
	var xs []holdfast.Extent
	err := r.chain.live(holdfast.Extent{Offset: off, Length: n}, lister(&xs))
	return xs, corrupt("list allocated space of replica "+string(r.id), err)
}

// Hash gives one hash for each HashBlock of [off, off+n), where off is a
// multiple of it; the last may be of fewer bytes. Holes count as zeros.
func (r *Replica) Hash(off, n int64) ([]Hash, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if err := r.check("hash", off, n); err != nil {
		return nil, err
	}
	return r.hash("hash", off, n, r.chain.live)
}

// hash reads through find what has data.
func (r *Replica) hash(op string, off, n int64, find func(holdfast.Extent, use) error) ([]Hash, error) {
	op += " of replica " + string(r.id)
	if off%HashBlock != 0 {
		return nil, errorf(op, holdfast.Invalid, "the offset %d is no multiple of %d", off, HashBlock)
	}
	var data []holdfast.Extent
	if err := find(holdfast.Extent{Offset: off, Length: n}, lister(&data)); err != nil {
		return nil, corrupt(op, err)
	}
	b := buf.Get(HashBlock)
	defer b.Release()
	hashes := make([]Hash, 0, (n+HashBlock-1)/HashBlock)
	for end := off + n; off < end; off += HashBlock {
		p := b.B[:min(HashBlock, end-off)]
		for len(data) > 0 && data[0].End() <= off {
			data = data[1:]
		}
		if len(data) == 0 || data[0].Offset >= off+int64(len(p)) {
			clear(p)
		} else if err := find(holdfast.Extent{Offset: off, Length: int64(len(p))}, reader(p, off)); err != nil {
			return nil, corrupt(op, err)
		}
		sum := sha256.Sum256(p)
		hashes = append(hashes, Hash(sum[:16]))
	}
	return hashes, nil
}
