package node

import (
	"context"
	"fmt"
	"slices"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/engine"
	"github.com/holdfast-storage/holdfast/node/agent"
)

// Steps of a listing, in bytes. Taking a snapshot waits while one is at work: a
// step looks at no more than some ten thousand pieces of files, or at bitmaps.
const (
	dataStep    = 64 << 20
	changedStep = 4 << 30
)

// ListSnapshot lists ranges of a snapshot for the agent's NodeService.
func (p *pool) ListSnapshot(ctx context.Context, q agent.SnapshotQuery, step func(agent.SnapshotStep) error) error {
	p.mu.Lock()
	r := p.served[q.Replica].replica
	p.mu.Unlock()
	if r == nil {
		return holdfast.E("", holdfast.Unavailable, "the replica is not open here")
	}
	size, err := snapshotSize(r, q.Snapshot, q.Cut)
	if err != nil {
		return err
	}
	base := int64(0) // where only what has data is listed
	if q.Base != "" {
		if base, err = snapshotSize(r, q.Base, q.BaseCut); err != nil {
			return err
		}
	}
	for off := q.Offset; off < size; {
		if ctx.Err() != nil {
			return holdfast.WrapKind("list snapshot", holdfast.Unavailable, ctx.Err())
		}
		end := min(off+dataStep, size)
		if off < base {
			end = min(off+changedStep, base, size)
		}
		x, err := listStep(r, q, off, end-off)
		if err == nil {
			err = step(x)
		}
		if err != nil {
			return err
		}
		off = end
	}
	return nil
}

func listStep(r *engine.Replica, q agent.SnapshotQuery, off, n int64) (agent.SnapshotStep, error) {
	x := agent.SnapshotStep{End: off + n}
	var err error
	if q.Base != "" {
		x.Ranges, err = r.SnapshotChanged(q.Base, q.Snapshot, off, n)
		return x, err
	}
	if x.Ranges, err = r.SnapshotAllocated(q.Snapshot, off, n); err == nil && q.WithExclusive {
		x.ExclusiveBytes, err = r.SnapshotExclusive(q.Snapshot, off, n)
	}
	return x, err
}

// snapshotSize finds a snapshot by id and cut: one of another cut is a leftover.
func snapshotSize(r *engine.Replica, id holdfast.SnapshotID, cut string) (int64, error) {
	all := r.Snapshots()
	i := slices.IndexFunc(all, func(s engine.SnapshotInfo) bool { return s.ID == id && s.Cut == cut })
	if i < 0 {
		return 0, holdfast.E("", holdfast.NotFound, fmt.Sprintf("it has no snapshot %s of cut %s", id, cut))
	}
	return all[i].SizeBytes, nil
}

// SnapshotBytes is what the files of all snapshots of the replicas that are open
// refer to.
func (p *pool) SnapshotBytes() int64 {
	p.mu.Lock()
	open := make([]*engine.Replica, 0, len(p.served))
	for _, h := range p.served {
		if h.replica != nil {
			open = append(open, h.replica)
		}
	}
	p.mu.Unlock()
	var n int64
	for _, r := range open {
		for _, s := range r.Snapshots() {
			n += s.AllocatedBytes
		}
	}
	return n
}
