package dataplane

import (
	"sync"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/engine"
	"github.com/holdfast-storage/holdfast/replication"
)

// AddReplica serves an engine replica from now on, and owns it: RemoveReplica or
// Close closes it. On error the caller still owns it. Errors: Exists if the
// replica is served already, Unavailable when the plane is closing.
func (p *Plane) AddReplica(vol holdfast.VolumeID, id holdfast.ReplicaID, r *engine.Replica) error {
	if err := p.addReplica(vol, id, engineBacking{r}); err != nil {
		return err
	}
	p.spawn(func() { p.finishDrops(r) })
	p.spawn(func() { p.makeIndependent(id, r) })
	return nil
}

// engineBacking translates tasks to calls of an engine replica.
type engineBacking struct{ r *engine.Replica }

func (b engineBacking) Close() error { return b.r.Close() }

func (b engineBacking) State() replication.StoreState {
	s := b.r.State()
	return replication.StoreState{Promise: replication.Promise(s.Promise), Record: s.Record, SizeBytes: s.SizeBytes,
		Tail: s.Tail, Suspects: s.Suspects, MapSince: s.MapSince, Boot: s.Boot, Progress: machineProgress(s.Progress), Snapshots: snapshotRefs(b.r)}
}

func machineProgress(g engine.Progress) replication.Progress {
	out := replication.Progress{Since: g.Since}
	for _, x := range g.Parts {
		out.Parts = append(out.Parts, replication.ProgressPart(x))
	}
	return out
}

func engineProgress(g replication.Progress) engine.Progress {
	out := engine.Progress{Since: g.Since}
	for _, x := range g.Parts {
		out.Parts = append(out.Parts, engine.ProgressPart(x))
	}
	return out
}

func (b engineBacking) Do(t *replication.Task) {
	r, e := b.r, entryOf(t)
	switch t.Kind {
	case replication.TaskRead:
		if id := t.Snapshot.ID; id != "" {
			t.Err = r.ReadSnapshot(id, t.Buf.B, t.Offset)
			return
		}
		t.Err = r.ReadAt(t.Buf.B, t.Offset)
	case replication.TaskWrite:
		t.Err = r.WriteAt(e, t.Buf.B, t.Offset, t.FUA)
	case replication.TaskTrim:
		t.Err = r.Trim(e, t.Offset, t.Length, t.FUA)
	case replication.TaskFlush:
		t.Err = r.Flush()
	case replication.TaskPromise:
		t.Err = r.SetPromise(t.Promise.Epoch, t.Promise.Grant, *t.Record)
	case replication.TaskMark:
		t.Err = r.Mark(t.Epoch, t.Extents)
	case replication.TaskChanged:
		t.Extents, t.Err = r.Changed(t.Since)
	case replication.TaskAllocated:
		t.Extents, t.Err = b.allocated(t)
	case replication.TaskHash:
		t.Hashes, t.Err = b.hash(t)
	case replication.TaskGrow:
		t.Err = r.Grow(t.Length)
	case replication.TaskSettle:
		t.Err = r.Settle(t.Grant, t.Since)
	case replication.TaskCommit:
		r.Commit(t.Grant, t.Committed)
	case replication.TaskProgress:
		t.Err = r.SetProgress(engineProgress(*t.Progress))
	default:
		b.snapshotTask(t, e)
	}
}

// transfers are the same tasks as the engine takes them, used again and again.
var transfers = sync.Pool{New: func() any { return new([]engine.Transfer) }}

// DoAll does short reads and writes together.
func (b engineBacking) DoAll(tasks []*replication.Task) {
	p := transfers.Get().(*[]engine.Transfer)
	ts := (*p)[:0]
	for _, t := range tasks {
		ts = append(ts, engine.Transfer{Write: t.Kind == replication.TaskWrite, Entry: entryOf(t), P: t.Buf.B, Off: t.Offset})
	}
	b.r.TransferAll(ts)
	for i, t := range tasks {
		t.Err = ts[i].Err
	}
	clear(ts)
	*p = ts
	transfers.Put(p)
}

func entryOf(t *replication.Task) engine.Entry {
	return engine.Entry{Epoch: t.Epoch, Grant: t.Grant, Seq: t.Seq, Committed: t.Committed, Copied: t.Copied}
}

func (b engineBacking) hash(t *replication.Task) ([]replication.Hash, error) {
	hash := b.r.Hash
	if id := t.Snapshot.ID; id != "" {
		hash = func(off, n int64) ([]engine.Hash, error) { return b.r.HashSnapshot(id, off, n) }
	}
	hs, err := hash(t.Offset, t.Length)
	out := make([]replication.Hash, len(hs))
	for i, h := range hs {
		out[i] = replication.Hash(h)
	}
	return out, err
}
