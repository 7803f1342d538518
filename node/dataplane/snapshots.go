package dataplane

import (
	"context"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/engine"
	"github.com/holdfast-storage/holdfast/internal/buf"
	"github.com/holdfast-storage/holdfast/replication"
)

// dropStep is how many granules one task moves while a snapshot is dropped: a few
// milliseconds' worth, so that no other task waits long.
const dropStep = 64

func snapshotRefs(r *engine.Replica) []replication.SnapshotRef {
	var refs []replication.SnapshotRef
	for _, s := range r.Snapshots() {
		refs = append(refs, replication.SnapshotRef{ID: s.ID, Cut: s.Cut})
	}
	return refs
}

// snapshotTask does the tasks that are only about snapshots.
func (b engineBacking) snapshotTask(t *replication.Task, e engine.Entry) {
	r, s := b.r, t.Snapshot
	switch t.Kind {
	case replication.TaskSnapshot:
		t.Err = r.TakeSnapshot(s.ID, s.Cut)
	case replication.TaskDropSnapshot:
		t.More, t.Err = r.DropSnapshot(context.Background(), s.ID, s.Cut, dropStep)
	case replication.TaskRestore:
		t.Err = r.RestoreRange(e, s.ID, t.Offset, t.Length)
		if t.Err == nil && t.FUA {
			t.Err = r.Flush()
		}
	case replication.TaskDiff:
		t.Extents, t.Err = r.SnapshotChanged(s.From, s.ID, t.Offset, t.Length)
	default:
		t.Err = holdfast.E("store task", holdfast.Unsupported, "this release does not know the task")
	}
}

func (b engineBacking) allocated(t *replication.Task) ([]holdfast.Extent, error) {
	if id := t.Snapshot.ID; id != "" {
		return b.r.SnapshotAllocated(id, t.Offset, t.Length)
	}
	return b.r.Allocated(t.Offset, t.Length)
}

// finishDrops goes on with what an earlier process has begun to drop: to the
// primary it is gone already.
func (p *Plane) finishDrops(r *engine.Replica) {
	for _, s := range r.Dropping() {
		for more := true; more && p.life.Err() == nil; {
			var err error
			if more, err = r.DropSnapshot(p.life, s.ID, s.Cut, dropStep); err != nil {
				if p.life.Err() == nil {
					p.log.Warn("a snapshot that is being dropped keeps its space until the replica is opened again", "snapshot", string(s.ID), "err", err)
				}
				break
			}
		}
	}
}

// Hold stops the volume's writes for a group's snapshot, for at most ttl, and
// returns when none is under way: see replication.Primary.Hold.
func (h *Volume) Hold(ctx context.Context, token string, ttl time.Duration) error {
	return h.told(ctx, "hold volume "+string(h.v.id), func(done func(error)) { h.machine.Hold(token, ttl, done) })
}

// Cut takes a group's snapshot under a hold and returns when every in-sync replica
// has it: see replication.Primary.Cut.
func (h *Volume) Cut(ctx context.Context, token string, id holdfast.SnapshotID) error {
	return h.told(ctx, "take snapshot of volume "+string(h.v.id), func(done func(error)) { h.machine.Cut(token, id, done) })
}

// Unhold lets writes go. It fails with Unavailable if the hold was over already.
func (h *Volume) Unhold(token string) error {
	h.v.lock()
	defer h.v.unlock()
	return h.machine.Unhold(token)
}

// told runs a command of the machine and waits for its result.
func (h *Volume) told(ctx context.Context, op string, f func(done func(error))) error {
	result := make(chan error, 1)
	h.v.step(func() { f(func(err error) { result <- err }) })
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
		return holdfast.WrapKind(op, holdfast.Unavailable, ctx.Err())
	}
}

// ReadSnapshot fills p, whole blocks of at most replication.MaxData bytes, from
// off of a ready snapshot.
func (h *Volume) ReadSnapshot(ctx context.Context, id holdfast.SnapshotID, p []byte, off int64) error {
	var data *buf.Buf // retained for the copy, which is made outside of the lock
	err := h.told(ctx, "read snapshot "+string(id), func(done func(error)) {
		h.machine.ReadSnapshot(id, off, int64(len(p)), func(b *buf.Buf, err error) {
			if err == nil {
				data = b.Retain()
			}
			done(err)
		})
	})
	if err != nil {
		return err
	}
	copy(p, data.B)
	data.Release()
	return nil
}

// ListSnapshot lists where a ready snapshot has data within a range or, with from,
// a superset of what differs from that older one.
func (h *Volume) ListSnapshot(ctx context.Context, id, from holdfast.SnapshotID, off, n int64) ([]holdfast.Extent, error) {
	var out []holdfast.Extent
	err := h.told(ctx, "list snapshot "+string(id), func(done func(error)) {
		h.machine.ListSnapshot(id, from, off, n, func(xs []holdfast.Extent, err error) {
			out = xs
			done(err)
		})
	})
	if err != nil {
		return nil, err // out may still be written
	}
	return out, nil
}
