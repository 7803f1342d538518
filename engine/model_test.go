package engine

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/engine/disk"
)

var (
	modelSeed = flag.Uint64("model.seed", 1, "first seed of TestModel")
	modelRuns = flag.Uint64("model.runs", 60, "how many seeds TestModel runs on a disk in memory")
	modelXFS  = flag.Uint64("model.xfs", 1, "how many seeds TestModelXFS runs on real XFS")
)

// modelDisk is a pool's disk that can lose power.
type modelDisk interface {
	fs() disk.FS
	memory() disk.FS // of the machine
	// stop ends the process in the middle of something, kill is what its end does,
	// crash a power loss.
	stop()
	kill()
	crash(rng *rand.Rand)
}

type memDisk struct{ mem *disk.Mem }

func (d memDisk) fs() disk.FS          { return d.mem }
func (d memDisk) memory() disk.FS      { return d.mem.Volatile() }
func (d memDisk) stop()                { d.mem.Kill() }
func (d memDisk) kill()                { d.mem.Kill() }
func (d memDisk) crash(rng *rand.Rand) { d.mem.Crash(rng) }

// model is a pool with replicas, snapshots and clones, and what they must hold.
type model struct {
	t     *testing.T
	rng   *rand.Rand
	disk  modelDisk
	fuse  *fuse
	boot  int
	pool  *Pool
	reps  map[holdfast.ReplicaID]*modelReplica
	next  uint64
	names int
	trace []string
	most  int64  // blocks of a replica
	again string // the command that does the same
}

type modelReplica struct {
	id     holdfast.ReplicaID
	r      *Replica // nil while it is closed
	blocks []modelValue
	snaps  []*modelSnapshot // oldest first
	origin *modelReplica    // nil when it depends on nothing
	snap   holdfast.SnapshotID
	seq    uint64
	maybe  bool // being made or removed: need not be there
	// tried are the numbers of the changes of each granule, failed ones included.
	tried map[int64][]uint64
}

// modelValue is what a block must read as; unsure is what else it may be after a
// crash, since what else a power loss may bring back.
type modelValue struct {
	value         uint64
	unsure, since []uint64
}

type modelSnapshot struct {
	id     holdfast.SnapshotID
	cut    string
	blocks []uint64
	seq    uint64 // of the last change that is in it
	state  string // "", "taking": may be there; "dropping": need not be there
}

func newModel(t *testing.T, d modelDisk, seed uint64, most int64) *model {
	m := &model{t: t, rng: rand.New(rand.NewPCG(seed, 7)), disk: d, most: most, reps: map[holdfast.ReplicaID]*modelReplica{}}
	m.fuse = &fuse{left: -1, kill: func() {}}
	if _, err := FormatFS(d.fs(), testIdentity()); err != nil {
		t.Fatal(err)
	}
	m.must("open pool", m.openPool())
	m.create()
	return m
}

func (m *model) logf(format string, a ...any) { m.trace = append(m.trace, fmt.Sprintf(format, a...)) }

func (m *model) fatalf(format string, a ...any) {
	m.t.Helper()
	for _, line := range m.trace[max(0, len(m.trace)-80):] {
		m.t.Log(line)
	}
	m.t.Log("again: " + m.again)
	m.t.Fatalf(format, a...)
}

// must says whether an operation came through: one that failed although the
// process lives is a failure of the test.
func (m *model) must(what string, err error) bool {
	m.t.Helper()
	if err != nil && !m.fuse.blown {
		m.fatalf("%s: %v", what, err)
	}
	return err == nil
}

func (m *model) openPool() error {
	memory := disk.NewFaulty(m.disk.memory(), m.fuse.hook)
	p, err := OpenFS(FSOptions{FS: disk.NewFaulty(m.disk.fs(), m.fuse.hook), Memory: memory, Cluster: testCluster, BootID: fmt.Sprint("boot-", m.boot), ReserveBytes: 1 << 20})
	m.pool = p
	return err
}

// sorted gives the replicas in a fixed order.
func (m *model) sorted() []*modelReplica {
	var out []*modelReplica
	for _, id := range slices.Sorted(maps.Keys(m.reps)) {
		out = append(out, m.reps[id])
	}
	return out
}

func (m *model) pick() *modelReplica {
	all := m.sorted()
	return all[m.rng.IntN(len(all))]
}

func (m *model) name(prefix string) string {
	m.names++
	return fmt.Sprintf("%s%d", prefix, m.names)
}

func (m *model) create() {
	rep := &modelReplica{id: holdfast.ReplicaID(m.name("r")), blocks: make([]modelValue, m.most/2+m.rng.Int64N(m.most/4))}
	err := m.pool.Create(context.Background(), testVolume, rep.id, int64(len(rep.blocks))*blockSize)
	m.logf("create %s of %d blocks: %v", rep.id, len(rep.blocks), err)
	if m.must("create", err) {
		m.reps[rep.id] = rep
		m.open(rep)
	}
}

func (m *model) open(rep *modelReplica) {
	r, err := m.pool.Open(rep.id)
	if m.must("open", err) {
		rep.r = r
		r.idleFlushes, r.doneStep = 1+m.rng.Uint64N(3), 1+m.rng.Int64N(5)
	}
}

// step does one random operation.
func (m *model) step() {
	rep := m.pick()
	if rep.r == nil {
		if m.open(rep); rep.r == nil {
			return
		}
	}
	switch k := m.rng.IntN(100); {
	case k < 42:
		m.write(rep)
	case k < 52:
		m.trim(rep)
	case k < 60:
		m.flush(rep)
	case k < 69:
		m.take(rep)
	case k < 75:
		m.drop(rep)
	case k < 81:
		m.restore(rep)
	case k < 84:
		m.grow(rep)
	case k < 88:
		m.clone(rep)
	case k < 92:
		m.settle(rep)
	case k < 94:
		m.close(rep)
	case k < 95:
		m.remove(rep)
	default:
		m.verify(rep)
	}
}

func (m *model) place(rep *modelReplica, most int64) (b, n int64) {
	total := int64(len(rep.blocks))
	b = m.rng.Int64N(total)
	if m.rng.IntN(2) == 0 {
		b %= 40
	}
	return b, 1 + m.rng.Int64N(min(most, total-b))
}

// change applies an operation on blocks from b on, whose values become want.
func (m *model) change(rep *modelReplica, b int64, want []uint64, do func(e Entry) error) error {
	rep.seq++
	rep.noteChange(b, int64(len(want)))
	err := do(Entry{Epoch: 1, Grant: 1, Seq: rep.seq, Committed: rep.seq - 1})
	for i, v := range want {
		x := &rep.blocks[b+int64(i)]
		if err != nil {
			x.unsure = append(x.unsure, v)
			continue
		}
		if x.value != v {
			x.since = append(x.since, x.value)
		}
		x.value = v
	}
	return err
}

func (rep *modelReplica) noteChange(b, n int64) {
	if rep.tried == nil {
		rep.tried = map[int64][]uint64{}
	}
	for g := b * blockSize / granuleSize; g <= ((b+n)*blockSize-1)/granuleSize; g++ {
		rep.tried[g] = append(rep.tried[g], rep.seq)
	}
}

func (m *model) write(rep *modelReplica) {
	b, n := m.place(rep, 40)
	m.next++
	want, fua := slices.Repeat([]uint64{m.next}, int(n)), m.rng.IntN(9) == 0
	err := m.change(rep, b, want, func(e Entry) error {
		p := fill(make([]byte, n*blockSize), m.next)
		if !fua && m.next%2 == 0 {
			return writeInParts(rep.r, e, p, b*blockSize)
		}
		return rep.r.WriteAt(e, p, b*blockSize, fua)
	})
	for i := b; fua && err == nil && i < b+n; i++ {
		rep.blocks[i].since = nil
	}
	m.logf("%s: write %d at %d+%d: %v", rep.id, m.next, b, n, err)
	m.must("write", err)
}

// writeInParts writes p as a batch of up to five.
func writeInParts(r *Replica, e Entry, p []byte, off int64) error {
	var ts []Transfer
	part := max(len(p)/holdfast.BlockSize/5, 1) * holdfast.BlockSize
	for at := 0; at < len(p); at += part {
		ts = append(ts, Transfer{Write: true, Entry: e, P: p[at:min(at+part, len(p))], Off: off + int64(at)})
	}
	r.TransferAll(ts)
	var errs []error
	for _, x := range ts {
		errs = append(errs, x.Err)
	}
	return errors.Join(errs...)
}

func (m *model) trim(rep *modelReplica) {
	b, n := m.place(rep, 100)
	err := m.change(rep, b, make([]uint64, n), func(e Entry) error { return rep.r.Trim(e, b*blockSize, n*blockSize, false) })
	m.logf("%s: trim %d+%d: %v", rep.id, b, n, err)
	m.must("trim", err)
}

func (m *model) flush(rep *modelReplica) {
	err := rep.r.Flush()
	m.logf("%s: flush: %v", rep.id, err)
	if m.must("flush", err) {
		rep.flushed()
	}
}

func (rep *modelReplica) flushed() {
	for i := range rep.blocks {
		rep.blocks[i].since = nil
	}
}

func (rep *modelReplica) values() []uint64 {
	out := make([]uint64, len(rep.blocks))
	for i := range out {
		out[i] = rep.blocks[i].value
	}
	return out
}

func (m *model) take(rep *modelReplica) {
	s := &modelSnapshot{id: holdfast.SnapshotID(m.name("s")), cut: m.name("c"), blocks: rep.values(), seq: rep.seq, state: "taking"}
	rep.snaps = append(rep.snaps, s)
	err := rep.r.TakeSnapshot(s.id, s.cut)
	m.logf("%s: take %s: %v", rep.id, s.id, err)
	if !m.must("take", err) {
		return
	}
	s.state = ""
	rep.flushed()
	if err := rep.r.TakeSnapshot(s.id, s.cut); err != nil && !m.fuse.blown {
		m.fatalf("take again: %v", err)
	}
}

// someSnapshot is one that is there; nil if none is.
func (m *model) someSnapshot(rep *modelReplica) *modelSnapshot {
	if len(rep.snaps) == 0 {
		return nil
	}
	if s := rep.snaps[m.rng.IntN(len(rep.snaps))]; s.state == "" {
		return s
	}
	return nil
}

func (m *model) drop(rep *modelReplica) {
	if len(rep.snaps) == 0 {
		return
	}
	s := rep.snaps[m.rng.IntN(len(rep.snaps))]
	for _, other := range m.sorted() {
		if other.origin == rep && other.snap == s.id {
			_, err := rep.r.DropSnapshot(context.Background(), s.id, s.cut, 1)
			if m.must("", nil); !errors.Is(err, holdfast.Busy) && !m.fuse.blown {
				m.fatalf("drop of %s, which %s depends on: %v", s.id, other.id, err)
			}
			return
		}
	}
	s.state = "dropping"
	for steps := m.rng.IntN(6); ; steps-- {
		more, err := rep.r.DropSnapshot(context.Background(), s.id, s.cut, 1+m.rng.IntN(4))
		m.logf("%s: drop %s: more %v, %v", rep.id, s.id, more, err)
		if !m.must("drop", err) || more && steps <= 0 {
			return
		}
		if !more {
			rep.snaps = slices.DeleteFunc(rep.snaps, func(x *modelSnapshot) bool { return x == s })
			return
		}
	}
}

func (m *model) restore(rep *modelReplica) {
	s := m.someSnapshot(rep)
	if s == nil {
		return
	}
	b, n := m.place(rep, 200)
	want := make([]uint64, n)
	if b < int64(len(s.blocks)) {
		copy(want, s.blocks[b:])
	}
	err := m.change(rep, b, want, func(e Entry) error { return rep.r.RestoreRange(e, s.id, b*blockSize, n*blockSize) })
	m.logf("%s: restore %s at %d+%d: %v", rep.id, s.id, b, n, err)
	m.must("restore", err)
}

func (m *model) grow(rep *modelReplica) {
	total := int64(len(rep.blocks)) + 1 + m.rng.Int64N(40)
	if total > 2*m.most {
		return
	}
	err := rep.r.Grow(total * blockSize)
	m.logf("%s: grow to %d: %v", rep.id, total, err)
	if m.must("grow", err) {
		rep.grown(total)
	}
}

func (rep *modelReplica) grown(blocks int64) {
	rep.blocks = append(rep.blocks, make([]modelValue, blocks-int64(len(rep.blocks)))...)
}

func (m *model) clone(rep *modelReplica) {
	s := m.someSnapshot(rep)
	if s == nil || len(m.reps) >= 4 {
		return
	}
	c := &modelReplica{id: holdfast.ReplicaID(m.name("r")), origin: rep, snap: s.id, blocks: make([]modelValue, int64(len(s.blocks))+m.rng.Int64N(30))}
	for i, v := range s.blocks {
		c.blocks[i].value = v
	}
	err := m.pool.CreateFrom(context.Background(), CloneOptions{Volume: testVolume, Replica: c.id, SizeBytes: int64(len(c.blocks)) * blockSize, Origin: rep.id, Snapshot: s.id})
	m.logf("%s: clone of %s %s: %v", c.id, rep.id, s.id, err)
	m.reps[c.id], c.maybe = c, err != nil
	if m.must("clone", err) && m.rng.IntN(3) > 0 {
		m.open(c)
	}
}

func (m *model) settle(rep *modelReplica) {
	more, err := rep.r.Independent(context.Background(), 1+m.rng.IntN(20))
	m.logf("%s: become independent: more %v, %v", rep.id, more, err)
	if m.must("become independent", err) && !more {
		rep.origin = nil
	}
}

func (m *model) close(rep *modelReplica) {
	err := rep.r.Close()
	m.logf("%s: close: %v", rep.id, err)
	if m.must("close", err) {
		rep.flushed()
		rep.r = nil
	}
}

func (m *model) remove(rep *modelReplica) {
	if len(m.reps) == 1 {
		return
	}
	for _, other := range m.sorted() {
		if other.origin == rep {
			return
		}
	}
	if m.close(rep); rep.r != nil {
		return
	}
	rep.maybe = true
	err := m.pool.Remove(context.Background(), rep.id)
	m.logf("%s: remove: %v", rep.id, err)
	if m.must("remove", err) {
		delete(m.reps, rep.id)
	}
}

// blockValue is the value that a block is full of.
func (m *model) blockValue(p []byte, what string, b int) uint64 {
	if !bytes.Equal(p[8:], p[:blockSize-8]) {
		m.fatalf("block %d of %s is torn", b, what)
	}
	return binary.LittleEndian.Uint64(p)
}
