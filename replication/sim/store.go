package sim

import (
	"encoding/binary"
	"slices"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/replication"
)

// The simulated store keeps one value per cell, half a block, so that requests
// that are not made of whole blocks show.
const (
	cellSize   = holdfast.BlockSize / 2
	blockCells = holdfast.BlockSize / cellSize
	// regionCells is the intent region, in cells: small, so that small volumes
	// have many.
	regionCells = 4 * blockCells
)

// value is a cell's content: what was last written; 0 is a hole.
type value = uint64

// disk is a replica's durable and volatile state. A killed process leaves all
// of it; a power loss leaves what is durable and any part of the rest.
type disk struct {
	size      int64
	live      []value // as read now
	safe      []value // as of the last flush, per block
	dirty     []bool  // live may differ from safe
	promise   replication.Promise
	record    holdfast.Record
	mapSince  holdfast.Epoch
	maps      map[holdfast.Epoch]*bitmap
	tail      []tailEntry // memory-mapped: gone with the power
	intents   map[int64]bool
	suspects  map[int64]bool
	boot      int
	failed    bool
	full      bool
	unflushed map[int64]bool // regions written since the last flush
	progress  replication.Progress
	copying   map[*replication.Task]bool // repair copies begun and not applied: not in the tail

	repairReads map[int64]int // blocks read for a repair, where somebody counts them

	failsUntil time.Duration // accesses end with errors, some of them

	onPromise func(old, next replication.Promise, newer bool) // for the coverage; newer: the record is
	snaps     []*snap                                         // oldest first
}

type bitmap struct{ live, safe []bool }

type tailEntry struct {
	grant holdfast.Epoch
	seq   uint64
	ext   holdfast.Extent
}

func newDisk(size int64) *disk {
	n := size / cellSize
	return &disk{size: size, live: make([]value, n), safe: make([]value, n), dirty: make([]bool, n),
		maps: map[holdfast.Epoch]*bitmap{}, intents: map[int64]bool{}, suspects: map[int64]bool{}, unflushed: map[int64]bool{}, boot: 1,
		copying: map[*replication.Task]bool{}}
}

// store runs tasks on a disk for one life of a process.
type store struct {
	w     *world
	d     *disk
	host  *host
	dead  bool
	tasks []*running
	done  func(*replication.Task)
	boot  string
}

// running is a task; a write has begun when its tail and intent are noted, which
// is what the engine does first when the task's turn has come.
type running struct {
	t     *replication.Task
	begun bool
}

func (s *store) State() replication.StoreState {
	d := s.d
	st := replication.StoreState{Promise: d.promise, Record: d.record, SizeBytes: d.size, MapSince: d.mapSince, Boot: s.boot, Progress: d.progress.Clone(), Snapshots: d.visible()}
	for _, e := range d.tail {
		st.Tail = append(st.Tail, e.ext)
	}
	st.Suspects = d.regions(d.suspects)
	return st
}

func (d *disk) regions(set map[int64]bool) []holdfast.Extent {
	var out []holdfast.Extent
	for _, r := range sortedKeys(set) {
		out = append(out, holdfast.Extent{Offset: r * regionCells * cellSize,
			Length: min(regionCells*cellSize, d.size-r*regionCells*cellSize)})
	}
	return out
}

func sortedKeys[K int64 | holdfast.Epoch, V any](m map[K]V) []K {
	ks := make([]K, 0, len(m))
	for k := range m {
		ks = append(ks, k)
	}
	slices.Sort(ks)
	return ks
}

// Submit starts a task: it takes effect at some moment, and is answered later.
func (s *store) Submit(t *replication.Task) {
	if s.dead {
		return
	}
	r := &running{t: t}
	s.tasks = append(s.tasks, r)
	d := s.w.between(20*time.Microsecond, 600*time.Microsecond)
	if s.host.slowUntil > s.w.now {
		d += s.w.between(0, 3*time.Second)
	}
	if s.host.jitterUntil > s.w.now {
		d += s.w.between(0, 20*time.Millisecond)
	}
	if s.host.stuckUntil > s.w.now {
		d += s.host.stuckUntil - s.w.now
	}
	if isWrite(t) && s.host.lateUntil > s.w.now {
		d += time.Second
	}
	wait := s.w.between(0, d)
	if s.host.hinder != nil {
		more := s.host.hinder(t)
		wait, d = wait+more, d+more
	}
	if isWrite(t) {
		s.w.after(wait, func() { s.begin(r) })
	}
	s.w.after(d, func() {
		if s.dead {
			return
		}
		s.tasks = slices.DeleteFunc(s.tasks, func(x *running) bool { return x == r })
		if s.d.failsUntil > s.w.now && s.w.chance(0.3) {
			s.fail(t)
		} else {
			s.host.c.noteCut(s, t)
			s.d.apply(t, nil)
		}
		s.w.after(s.w.between(0, 100*time.Microsecond), func() {
			if !s.dead {
				s.done(t)
			}
		})
	})
}

// begin notes a write's tail and intent, unless its process has ended.
func (s *store) begin(r *running) {
	if !s.dead && !r.begun {
		r.begun = true
		s.d.begin(r.t)
	}
}

// fail does a task in part, or not at all, and says so.
func (s *store) fail(t *replication.Task) {
	if t.Kind == replication.TaskWrite || t.Kind == replication.TaskTrim {
		s.d.apply(t, func() bool { return s.w.chance(0.5) })
	}
	t.Err = holdfast.E("store", holdfast.Corrupt, "simulated error of the disk")
}

// kill stops the process: what is under way is applied in part, block by block.
func (s *store) kill() {
	s.dead = true
	for _, r := range s.tasks {
		if (r.begun || r.t.Kind == replication.TaskSnapshot || r.t.Kind == replication.TaskDropSnapshot) && s.w.chance(0.7) {
			s.host.c.noteCut(s, r.t)
			s.d.apply(r.t, func() bool { return s.w.chance(0.6) })
		}
	}
	s.tasks = nil
	clear(s.d.copying)
}

// powerLoss forgets what was not durable: each unflushed block on its own.
func (d *disk) powerLoss(w *world) {
	for i := 0; i < len(d.live); i += blockCells {
		undo := w.chance(0.5) // the whole block, or nothing of it
		for j := i; j < i+blockCells; j++ {
			if d.dirty[j] && undo {
				d.live[j] = d.safe[j]
			}
			d.safe[j], d.dirty[j] = d.live[j], false
		}
	}
	for _, e := range sortedKeys(d.maps) {
		m := d.maps[e]
		for i := range m.live {
			if m.live[i] && !m.safe[i] && w.chance(0.5) {
				m.live[i] = false
			}
			m.safe[i] = m.live[i]
		}
	}
	for _, r := range sortedKeys(d.intents) {
		d.suspects[r] = true
	}
	d.tail = nil
	d.unflushed = map[int64]bool{}
	d.boot++
}

func (d *disk) begin(t *replication.Task) {
	if t.Copied {
		d.copying[t] = true
	} else {
		d.tail = append(d.tail, tailEntry{t.Grant, t.Seq, holdfast.Extent{Offset: t.Offset, Length: t.Length}})
	}
	for b := t.Offset / cellSize; b < (t.Offset+t.Length)/cellSize; b++ {
		d.intents[b/regionCells] = true
		d.unflushed[b/regionCells] = true
	}
}

func (d *disk) mapOf(e holdfast.Epoch) *bitmap {
	m := d.maps[e]
	if m == nil {
		m = &bitmap{make([]bool, len(d.live)), make([]bool, len(d.live))}
		d.maps[e] = m
	}
	for len(m.live) < len(d.live) {
		m.live, m.safe = append(m.live, false), append(m.safe, false)
	}
	return m
}

// apply does a task; part says per block whether it is done, nil for all.
func (d *disk) apply(t *replication.Task, part func() bool) {
	first, last := t.Offset/cellSize, (t.Offset+t.Length)/cellSize
	if d.failed {
		t.Err = holdfast.E("store", holdfast.Corrupt, "simulated disk failure")
		return
	}
	switch t.Kind {
	case replication.TaskRead:
		read := d.content(t)
		for b := first; t.Copied && d.repairReads != nil && b < last; b += blockCells {
			d.repairReads[b/blockCells]++
		}
		for b := first; b < last && read != nil; b++ {
			blk := t.Buf.B[(b-first)*cellSize:][:cellSize]
			clear(blk)
			binary.LittleEndian.PutUint64(blk, read(b))
		}
	case replication.TaskWrite, replication.TaskTrim:
		d.write(t, first, last, part, written(t, first))
	case replication.TaskFlush:
		d.flush()
	case replication.TaskPromise:
		if t.Promise.Epoch < d.promise.Epoch {
			panic("sim: a promise went back")
		}
		if d.onPromise != nil {
			d.onPromise(d.promise, t.Promise, t.Record.Revision > d.record.Revision)
		}
		d.promise, d.record = t.Promise, *t.Record
	default:
		if !d.snapTask(t, first, last, part) {
			d.control(t, first, last)
		}
	}
}

func isWrite(t *replication.Task) bool {
	return t.Kind == replication.TaskWrite || t.Kind == replication.TaskTrim || t.Kind == replication.TaskRestore
}

func (d *disk) write(t *replication.Task, first, last int64, part func() bool, data func(int64) value) {
	if d.full && t.Kind != replication.TaskTrim {
		t.Err = holdfast.E("store", holdfast.NoSpace, "simulated full pool")
		return
	}
	d.oneWriter(t.Grant)
	delete(d.copying, t)
	m := d.mapOf(t.Epoch)
	done := true
	for b := first; b < last; b++ {
		if part != nil && b%blockCells == 0 {
			done = part()
		}
		if !done {
			continue
		}
		v := data(b)
		d.touch(b, b+1)
		d.live[b], m.live[b] = v, true
		d.dirty[b] = true
		if t.FUA && part == nil {
			d.safe[b], d.dirty[b] = v, false
		}
	}
	d.commit(t.Grant, t.Committed)
}

func (d *disk) commit(grant holdfast.Epoch, upTo uint64) {
	d.tail = slices.DeleteFunc(d.tail, func(e tailEntry) bool { return e.grant == grant && e.seq <= upTo })
}

// flush makes all durable, and clears the intents that nothing needs.
func (d *disk) flush() {
	copy(d.safe, d.live)
	clear(d.dirty)
	for _, m := range d.maps {
		copy(m.safe, m.live)
	}
	needed := map[int64]bool{}
	for _, e := range d.tail {
		for b := e.ext.Offset / cellSize; b < e.ext.End()/cellSize; b++ {
			needed[b/regionCells] = true
		}
	}
	for t := range d.copying {
		for b := t.Offset / cellSize; b < (t.Offset+t.Length)/cellSize; b++ {
			needed[b/regionCells] = true
		}
	}
	for r := range d.intents {
		if !needed[r] && !d.suspects[r] {
			delete(d.intents, r)
		}
	}
	d.unflushed = needed
}

func (d *disk) control(t *replication.Task, first, last int64) {
	switch t.Kind {
	case replication.TaskMark:
		m := d.mapOf(t.Epoch)
		for _, e := range t.Extents {
			for b := e.Offset / cellSize; b < e.End()/cellSize; b++ {
				m.live[b], m.safe[b] = true, true
			}
		}
	case replication.TaskChanged:
		if t.Since < d.mapSince {
			t.Err = holdfast.E("store", holdfast.NotFound, "no map")
			return
		}
		t.Extents = d.extents(func(b int64) bool {
			for e, m := range d.maps {
				if e >= t.Since && b < int64(len(m.live)) && m.live[b] {
					return true
				}
			}
			return false
		}, 0, int64(len(d.live)))
	case replication.TaskAllocated:
		if read := d.content(t); read != nil {
			t.Extents = d.extents(func(b int64) bool { return read(b) != 0 }, first, last)
		}
	case replication.TaskHash:
		read := d.content(t)
		if read == nil {
			return
		}
		for b := first; b < last; b += replication.HashBlock / cellSize {
			var h replication.Hash
			var x uint64 = 1469598103934665603
			for i := b; i < min(b+replication.HashBlock/cellSize, last); i++ {
				x = (x ^ read(i)) * 1099511628211
				x ^= x >> 29
			}
			binary.LittleEndian.PutUint64(h[:], x)
			t.Hashes = append(t.Hashes, h)
		}
	case replication.TaskGrow:
		for d.size < t.Length {
			d.size += cellSize
			d.live, d.safe, d.dirty = append(d.live, 0), append(d.safe, 0), append(d.dirty, false)
		}
	case replication.TaskSettle:
		d.tail = slices.DeleteFunc(d.tail, func(e tailEntry) bool { return e.grant != t.Grant })
		for r := range d.suspects {
			if !d.unflushed[r] {
				delete(d.intents, r)
			}
		}
		d.suspects, d.progress = map[int64]bool{}, replication.Progress{}
		for _, e := range sortedKeys(d.maps) {
			if e < t.Since {
				delete(d.maps, e)
			}
		}
		d.mapSince = max(d.mapSince, t.Since)
	case replication.TaskCommit:
		d.commit(t.Grant, t.Committed)
	case replication.TaskProgress:
		d.keepProgress(t.Progress)
	}
}

// keepProgress flushes, and forgets suspects that the repair has compared.
func (d *disk) keepProgress(g *replication.Progress) {
	d.flush()
	d.progress = g.Clone()
	for r := range d.suspects {
		if len(g.Parts) > 0 && min((r+1)*regionCells*cellSize, d.size) <= g.Parts[0].End {
			delete(d.suspects, r)
			if !d.unflushed[r] {
				delete(d.intents, r)
			}
		}
	}
}

// extents lists the blocks with a cell for which in is true.
func (d *disk) extents(in func(int64) bool, first, last int64) []holdfast.Extent {
	var out []holdfast.Extent
	for c := first; c < last; c++ {
		if !in(c) {
			continue
		}
		off := c / blockCells * holdfast.BlockSize
		switch n := len(out); {
		case n > 0 && out[n-1].End() > off:
		case n > 0 && out[n-1].End() == off:
			out[n-1].Length += holdfast.BlockSize
		default:
			out = append(out, holdfast.Extent{Offset: off, Length: holdfast.BlockSize})
		}
	}
	return out
}
