package engine

import (
	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/engine/disk"
)

// SnapshotExclusive counts, within [off, off+n), the bytes of blocks that nothing
// but the snapshot refers to, which dropping it gives free: neither the live data
// nor, by its own file or through this one's, another snapshot or clone that has
// taken them. Kinds: as SnapshotAllocated.
func (r *Replica) SnapshotExclusive(id holdfast.SnapshotID, off, n int64) (int64, error) {
	const op = "measure snapshot"
	r.mu.RLock()
	defer r.mu.RUnlock()
	s, err := r.lookup(op, id, off, n)
	if err != nil || n == 0 {
		return 0, err
	}
	i, _ := r.chain.find(id)
	var older *snapshot // reads what it does not hold itself from this one's file
	for j := i - 1; j >= 0 && older == nil; j-- {
		if !r.chain.snaps[j].meta.Dropping {
			older = r.chain.snaps[j]
		}
	}
	var total int64
	last := (off + n - 1) / granuleSize
	s.held.each(off/granuleSize, func(g int64) bool {
		if g > last {
			return false
		}
		if older != nil && g < older.held.n && !older.held.has(g) {
			return true
		}
		var have []disk.Piece
		part := clip(granuleExtent(g, g, off+n), holdfast.Extent{Offset: off, Length: n})
		if have, err = s.f.Mapped(part.Offset, part.Length); err != nil {
			return false
		}
		for _, x := range have {
			if !x.Shared {
				total += x.Length
			}
		}
		return true
	})
	return total, corrupt(op+" of replica "+string(r.id), err)
}
