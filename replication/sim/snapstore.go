package sim

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/replication"
)

// The simulated store keeps snapshots as the engine does: a snapshot has the old
// content of the granules that were written first after it; all others are those
// of the next newer one that has them, or live. What a snapshot has got is durable
// at once, since the engine moves it before the write that would overwrite it.

// granuleCells is small, so that small volumes have many.
const granuleCells = 4 * blockCells

type snap struct {
	ref     replication.SnapshotRef
	cells   int64 // the size at that time
	held    map[int64][]value
	dropped bool // invisible; its granules are being handed down
}

// visible lists what can be read.
func (d *disk) visible() []replication.SnapshotRef {
	var refs []replication.SnapshotRef
	for _, s := range d.snaps {
		if !s.dropped {
			refs = append(refs, s.ref)
		}
	}
	return refs
}

// touch keeps the granules of a range for the newest snapshot, before a write.
func (d *disk) touch(first, last int64) {
	if len(d.snaps) == 0 || first >= last {
		return
	}
	s := d.snaps[len(d.snaps)-1]
	for g := first / granuleCells; g <= (last-1)/granuleCells; g++ {
		at := g * granuleCells
		if s.held[g] == nil && at < s.cells {
			s.held[g] = slices.Clone(d.live[at:min(at+granuleCells, s.cells)])
		}
	}
}

// seen is a cell as snapshot i shows it.
func (d *disk) seen(i int, b int64) value {
	if b >= d.snaps[i].cells {
		return 0
	}
	for _, s := range d.snaps[i:] {
		if h := s.held[b/granuleCells]; h != nil {
			if b%granuleCells < int64(len(h)) {
				return h[b%granuleCells]
			}
			return 0
		}
	}
	return d.live[b]
}

// find gives the place of a readable snapshot; -1 if there is none.
func (d *disk) find(id holdfast.SnapshotID) int {
	return slices.IndexFunc(d.snaps, func(s *snap) bool { return s.ref.ID == id && !s.dropped })
}

// view is the whole content of a snapshot; nil if it is not there.
func (d *disk) view(ref replication.SnapshotRef) []value {
	i := d.find(ref.ID)
	if i < 0 || d.snaps[i].ref != ref {
		return nil
	}
	out := make([]value, d.snaps[i].cells)
	for b := range out {
		out[b] = d.seen(i, int64(b))
	}
	return out
}

// cells gives what a task reads: what is live, or a snapshot's.
func (d *disk) content(t *replication.Task) func(int64) value {
	if t.Snapshot.ID == "" {
		return func(b int64) value { return d.live[b] }
	}
	i := d.find(t.Snapshot.ID)
	if i < 0 {
		t.Err = holdfast.E("store", holdfast.NotFound, "no such snapshot")
		return nil
	}
	return func(b int64) value { return d.seen(i, b) }
}

// snapTask does the tasks about snapshots; false: it is none.
func (d *disk) snapTask(t *replication.Task, first, last int64, part func() bool) bool {
	switch t.Kind {
	case replication.TaskSnapshot:
		d.take(t, part)
	case replication.TaskDropSnapshot:
		if part == nil || part() {
			d.drop(t)
		}
	case replication.TaskDiff:
		d.diff(t, first, last)
	case replication.TaskRestore:
		if read := d.content(t); read != nil {
			d.write(t, first, last, part, func(b int64) value { return read(b) })
		}
	default:
		return false
	}
	return true
}

func (d *disk) take(t *replication.Task, part func() bool) {
	if d.full {
		t.Err = holdfast.E("store", holdfast.NoSpace, "simulated full pool")
		return
	}
	ref := replication.SnapshotRef{ID: t.Snapshot.ID, Cut: t.Snapshot.Cut}
	if i := d.find(ref.ID); i >= 0 {
		if d.snaps[i].ref != ref {
			panic(fmt.Sprintf("sim: snapshot %v is taken where %v is", ref, d.snaps[i].ref))
		}
		return
	}
	d.flush()
	if part == nil || part() {
		d.snaps = append(d.snaps, &snap{ref: ref, cells: int64(len(d.live)), held: map[int64][]value{}})
	}
}

// drop hands some granules down to the older neighbour that lacks them.
func (d *disk) drop(t *replication.Task) {
	i := slices.IndexFunc(d.snaps, func(s *snap) bool { return s.ref.ID == t.Snapshot.ID && s.ref.Cut == t.Snapshot.Cut })
	if i < 0 {
		return
	}
	s := d.snaps[i]
	s.dropped = true
	for n := 0; i > 0 && len(s.held) > 0 && n < 3; n++ {
		g := sortedKeys(s.held)[0]
		if older := d.snaps[i-1]; older.held[g] == nil && g*granuleCells < older.cells {
			older.held[g] = s.held[g]
		}
		delete(s.held, g)
	}
	if t.More = i > 0 && len(s.held) > 0; !t.More {
		d.snaps = slices.Delete(d.snaps, i, i+1)
	}
}

func (d *disk) diff(t *replication.Task, first, last int64) {
	from, to := d.find(t.Snapshot.From), len(d.snaps)
	if t.Snapshot.ID != "" {
		to = d.find(t.Snapshot.ID)
	}
	if from < 0 || to < from {
		t.Err = holdfast.E("store", holdfast.NotFound, "no such snapshot")
		return
	}
	t.Extents = d.extents(func(b int64) bool {
		return b >= d.snaps[from].cells || slices.ContainsFunc(d.snaps[from:to], func(s *snap) bool { return s.held[b/granuleCells] != nil })
	}, first, last)
}

// exclusive counts the granules that a replica's snapshots have kept.
func (d *disk) exclusive() int {
	n := 0
	for _, s := range d.snaps {
		n += len(s.held)
	}
	return n
}

// value reads one cell of a write's data.
func written(t *replication.Task, first int64) func(int64) value {
	return func(b int64) value {
		if t.Kind != replication.TaskWrite {
			return 0
		}
		return binary.LittleEndian.Uint64(t.Buf.B[(b-first)*cellSize:])
	}
}
