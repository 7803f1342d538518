package engine

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"path"
	"strings"
	"syscall"
	"testing"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/engine/disk"
)

const (
	testVolume  = holdfast.VolumeID("11111111111111111111111111111111")
	testReplica = holdfast.ReplicaID("22222222222222222222222222222222")
	testCluster = holdfast.ClusterID("cluster-a")
)

func testIdentity() Identity {
	return Identity{Cluster: testCluster, Node: "node-a", Pool: "pool-a"}
}

// world is a replica on a disk in memory, and a model of what it must hold.
type world struct {
	t     *testing.T
	rng   *rand.Rand
	mem   *disk.Mem
	fuse  *fuse
	boot  int
	pool  *Pool
	rep   *Replica
	trace []string

	size      int64
	epoch     holdfast.Epoch
	grant     holdfast.Epoch
	seq       uint64
	committed uint64
	next      uint64
	promise   Promise // the least that must be promised
	mapSince  holdfast.Epoch

	blocks []modelBlock
	// tail has the writes not known to be committed, by sequence number of the
	// present grant; oldTail those of grants before.
	tail    map[uint64]holdfast.Extent
	oldTail []holdfast.Extent
}

// modelBlock is what may be in a block.
type modelBlock struct {
	value   uint64         // what it must read as while there is no crash
	unsure  []uint64       // what else it may be: a write under way when the process was killed
	since   []uint64       // what it was, at and since the last flush; a power loss may bring it back
	changed holdfast.Epoch // the last epoch in which it was written
	suspect bool           // differs from what was acknowledged; must be named until settled
}

// fuse kills the process after so many operations of the disk.
type fuse struct {
	left  int    // negative: never
	path  string // only operations on paths that end with it count
	torn  int64
	blown bool
	kill  func()
}

func (f *fuse) hook(c *disk.Call) error {
	if f.blown {
		return disk.Errno(string(c.Op), c.Path, syscall.EIO)
	}
	if f.left == 0 && strings.HasSuffix(c.Path, f.path) {
		f.blown = true
		c.Applied, c.After = f.torn, f.kill
		return disk.Errno(string(c.Op), c.Path, syscall.EIO)
	}
	if strings.HasSuffix(c.Path, f.path) {
		f.left--
	}
	return nil
}

// arm sets the fuse somewhere within the next steps, half of the time at a file
// that is seldom touched.
func (w *world) arm(most int) {
	*w.fuse = fuse{left: w.rng.IntN(most), kill: w.mem.Kill, torn: w.rng.Int64N(3) * blockSize}
	if rare := []string{intentFile, promiseFile + ".tmp", metaFile, string(testReplica), changesDir}; w.rng.IntN(2) == 0 {
		w.fuse.path, w.fuse.left = rare[w.rng.IntN(len(rare))], w.rng.IntN(most/10)
	}
}

func (w *world) logf(format string, a ...any) { w.trace = append(w.trace, fmt.Sprintf(format, a...)) }

func (w *world) fatalf(format string, a ...any) {
	w.t.Helper()
	from := max(0, len(w.trace)-60)
	for _, line := range w.trace[from:] {
		w.t.Log(line)
	}
	w.t.Fatalf(format, a...)
}

func newWorld(t *testing.T, seed uint64) *world {
	w := &world{t: t, rng: rand.New(rand.NewPCG(seed, 1)), mem: disk.NewMem(1 << 30),
		size: 12 << 20, epoch: 1, grant: 1, boot: 1, tail: map[uint64]holdfast.Extent{}}
	w.fuse = &fuse{left: -1, kill: w.mem.Kill}
	w.blocks = make([]modelBlock, w.size/blockSize)
	if _, err := FormatFS(w.mem, testIdentity()); err != nil {
		t.Fatal(err)
	}
	w.openPool()
	if err := w.pool.Create(context.Background(), testVolume, testReplica, w.size); err != nil {
		t.Fatal(err)
	}
	w.openReplica()
	w.setPromise()
	return w
}

func (w *world) openPool() error {
	fs := disk.NewFaulty(w.mem, w.fuse.hook)
	p, err := OpenFS(FSOptions{FS: fs, Memory: fs.Volatile(), Cluster: testCluster, BootID: fmt.Sprint("boot-", w.boot), ReserveBytes: 1 << 20})
	w.pool = p
	return err
}

func (w *world) openReplica() error {
	r, err := w.pool.Open(testReplica)
	if w.rep = r; err == nil {
		r.idleFlushes = 1 + w.rng.Uint64N(3)
	}
	return err
}

func fill(p []byte, v uint64) []byte {
	for i := 0; i < len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], v)
	}
	return p
}

// step does one random operation; it reports whether the fuse blew.
func (w *world) step() {
	switch k := w.rng.IntN(100); {
	case k < 55:
		w.write()
	case k < 63:
		w.trim()
	case k < 78:
		w.flush()
	case k < 81:
		w.newEpoch()
	case k < 83:
		w.newGrant()
	case k < 86:
		w.settle()
	case k < 88:
		w.grow()
	case k < 91:
		w.mark()
	case k < 93:
		w.reopen()
	default:
		w.check()
	}
}

func (w *world) place(maxBlocks int64) (off, n int64) {
	total := w.size / blockSize
	b := w.rng.Int64N(total)
	if w.rng.IntN(2) == 0 {
		b = b % 8 // some blocks are written again and again
	}
	n = 1 + w.rng.Int64N(min(maxBlocks, total-b))
	return b * blockSize, n * blockSize
}

func (w *world) entry() Entry {
	w.seq++
	if w.rng.IntN(3) == 0 {
		w.committed = min(w.seq-1, w.committed+w.rng.Uint64N(8))
	}
	for s := range w.tail {
		if s <= w.committed {
			delete(w.tail, s)
		}
	}
	return Entry{Epoch: w.epoch, Grant: w.grant, Seq: w.seq, Committed: w.committed}
}

func (w *world) write() {
	off, n := w.place(8)
	w.next++
	w.change(off, n, w.next, func(e Entry, fua bool) error {
		return w.rep.WriteAt(e, fill(make([]byte, n), w.next), off, fua)
	})
}

func (w *world) trim() {
	off, n := w.place(64)
	w.change(off, n, 0, func(e Entry, fua bool) error { return w.rep.Trim(e, off, n, fua) })
}

func (w *world) change(off, n int64, v uint64, do func(e Entry, fua bool) error) {
	e, fua := w.entry(), w.rng.IntN(8) == 0
	w.tail[e.Seq] = holdfast.Extent{Offset: off, Length: n}
	err := do(e, fua)
	w.logf("write of %d at %d+%d seq %d committed %d epoch %d fua %v: %v", v, off/blockSize, n/blockSize, e.Seq, e.Committed, e.Epoch, fua, err)
	if err != nil && !w.fuse.blown {
		w.fatalf("write: %v", err)
	}
	for b := off / blockSize; b < (off+n)/blockSize; b++ {
		m := &w.blocks[b]
		if err != nil {
			m.unsure = append(m.unsure, v)
			continue
		}
		m.since = append(m.since, m.value)
		m.value, m.changed, m.suspect = v, max(m.changed, w.epoch), false
		if fua {
			m.since = nil
		}
	}
}

func (w *world) flush() {
	err := w.rep.Flush()
	w.logf("flush: %v", err)
	if err == nil {
		w.flushed()
	} else if !w.fuse.blown {
		w.fatalf("flush: %v", err)
	}
}

func (w *world) flushed() {
	for b := range w.blocks {
		w.blocks[b].since = nil
	}
}

func (w *world) setPromise() {
	p := Promise{Epoch: w.epoch, Grant: w.grant}
	rec := holdfast.Record{Version: 1, ID: testVolume, Epoch: w.epoch, SizeBytes: w.size}
	err := w.rep.SetPromise(p.Epoch, p.Grant, rec)
	w.logf("promise %v: %v", p, err)
	if err == nil {
		w.promise = p
	} else if !w.fuse.blown {
		w.fatalf("promise: %v", err)
	}
}

func (w *world) newEpoch() {
	w.epoch++
	w.setPromise()
}

func (w *world) newGrant() {
	w.epoch++
	w.grant = w.epoch
	for _, x := range w.tail {
		w.oldTail = append(w.oldTail, x)
	}
	w.tail, w.seq, w.committed = map[uint64]holdfast.Extent{}, 0, 0
	w.setPromise()
}

func (w *world) settle() {
	var prune holdfast.Epoch
	if w.rng.IntN(2) == 0 {
		prune = w.epoch - min(w.epoch, holdfast.Epoch(w.rng.Uint64N(3)))
	}
	err := w.rep.Settle(w.grant, prune)
	w.logf("settle, prune before %d: %v", prune, err)
	if err == nil || w.fuse.blown {
		// A settle under way may or may not count: the weaker claim is checked.
		w.oldTail = nil
		for b := range w.blocks {
			w.blocks[b].suspect = false
		}
		w.mapSince = max(w.mapSince, prune)
	} else {
		w.fatalf("settle: %v", err)
	}
}

func (w *world) grow() {
	size := w.size + blockSize*(1+w.rng.Int64N(600))
	err := w.rep.Grow(size)
	w.logf("grow to %d: %v", size, err)
	if err == nil {
		w.grown(size)
	} else if !w.fuse.blown {
		w.fatalf("grow: %v", err)
	}
}

func (w *world) grown(size int64) {
	w.size = size
	w.blocks = append(w.blocks, make([]modelBlock, size/blockSize-int64(len(w.blocks)))...)
}

func (w *world) mark() {
	off, n := w.place(16)
	err := w.rep.Mark(w.epoch, []holdfast.Extent{{Offset: off, Length: n}})
	w.logf("mark %d+%d: %v", off/blockSize, n/blockSize, err)
	if err != nil && !w.fuse.blown {
		w.fatalf("mark: %v", err)
	}
	for b := off / blockSize; err == nil && b < (off+n)/blockSize; b++ {
		w.blocks[b].changed = w.epoch
	}
}

// reopen closes cleanly and opens again.
func (w *world) reopen() {
	if err := w.rep.Close(); err != nil {
		if !w.fuse.blown {
			w.fatalf("close: %v", err)
		}
		return
	}
	w.flushed()
	if err := w.openReplica(); err != nil && !w.fuse.blown {
		w.fatalf("open: %v", err)
	}
	w.logf("closed and opened")
}

// needed says whether the replica rests on a piece of memory, as nothing else has
// what is in it.
func (w *world) needed(piece string) bool {
	var m meta
	if err := readSealed(w.mem, replicaPath(testReplica)+"/"+metaFile, "replica", &m); err != nil {
		w.fatalf("read meta: %v", err)
	}
	epoch, isMap := parseMapName(path.Base(piece))
	if isMap && epoch >= m.MapSince { // one without a file was never finished
		f, err := w.mem.Open(replicaPath(testReplica)+"/"+changesDir+"/"+mapName(epoch), 0)
		return err == nil && f.Close() == nil && m.Memory != ""
	}
	return !isMap && m.Memory != ""
}

// crash kills the process, takes its memory away as well, or cuts the power, until
// the pool is open again.
func (w *world) crash() {
	cut := false
	for {
		kind := []string{"killed", "killed", "power loss", "power loss", "killed, its memory spoiled"}[w.rng.IntN(5)]
		if kind == "power loss" {
			w.boot++
			w.mem.Crash(w.rng)
		} else {
			w.mem.Kill()
		}
		if kind == "killed, its memory spoiled" {
			if what := spoil(w.t, w.rng, w.mem.Volatile(), testReplica); !w.needed(what) {
				kind = "killed, and not its memory: " + what
			} else {
				w.logf("%s", what)
			}
		}
		if !strings.HasPrefix(kind, "killed") || strings.HasSuffix(kind, "spoiled") {
			cut = true
			w.lost()
		}
		w.logf("%s", kind)
		*w.fuse = fuse{left: -1}
		if w.rng.IntN(3) == 0 {
			w.arm(60)
		}
		err := w.openPool()
		if err == nil {
			err = w.openReplica()
		}
		if err == nil {
			w.fuse.left = -1
			w.compare(cut)
			return
		}
		if !w.fuse.blown {
			w.fatalf("open after a crash: %v", err)
		}
	}
}

// lost lets every block be anything that it was since the last flush. What the
// tail named is suspect from here on, which Settle may forget for every grant.
func (w *world) lost() {
	for seq, x := range w.tail {
		if seq < w.seq {
			w.oldTail = append(w.oldTail, x)
		}
	}
	w.tail = map[uint64]holdfast.Extent{}
	for b := range w.blocks {
		m := &w.blocks[b]
		m.unsure = append(m.unsure, m.since...)
	}
}

// TestCrash runs random operations with random crashes at random points, and
// checks after each what may be lost and what must be known about it.
func TestCrash(t *testing.T) {
	seeds := uint64(120)
	if testing.Short() {
		seeds = 30
	}
	for seed := range seeds {
		w := newWorld(t, seed)
		for range 6 {
			w.fuse.left = -1
			if w.rng.IntN(3) > 0 {
				w.arm(150)
			}
			for i := 0; i < 80 && !w.fuse.blown; i++ {
				w.step()
			}
			w.crash()
			if w.rep.State().Promise != (Promise{w.epoch, w.grant}) {
				w.setPromise()
			}
		}
		if t.Failed() {
			t.Logf("seed %d", seed)
			return
		}
	}
}
