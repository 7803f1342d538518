package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/engine/disk"
)

// verify compares a replica and its snapshots with the model, by every way to
// look at them.
func (m *model) verify(rep *modelReplica) {
	left := m.fuse.left
	defer func() { m.fuse.left = left }()
	m.fuse.left = -1 // nobody dies meanwhile
	for i, v := range m.read(rep, "live data", len(rep.blocks), rep.r.ReadAt) {
		if v != rep.blocks[i].value {
			m.fatalf("%s: block %d is %d, must be %d", rep.id, i, v, rep.blocks[i].value)
		}
	}
	m.snapshots(rep)
	if s := m.someSnapshot(rep); s != nil {
		m.changes(rep, s, nil)
		if o := m.someSnapshot(rep); o != nil && o != s {
			m.changes(rep, s, o)
		}
	}
	m.hashes(rep)
}

// read gives the values of all blocks.
func (m *model) read(rep *modelReplica, what string, blocks int, read func(p []byte, off int64) error) []uint64 {
	out := make([]uint64, blocks)
	for b := 0; b < blocks; {
		n := min(1+m.rng.IntN(60), blocks-b)
		p := make([]byte, int64(n)*blockSize)
		if err := read(p, int64(b)*blockSize); err != nil {
			m.fatalf("read %s of %s at %d+%d: %v", what, rep.id, b, n, err)
		}
		for i := range n {
			out[b+i] = m.blockValue(p[int64(i)*blockSize:][:blockSize], what, b+i)
		}
		b += n
	}
	return out
}

// snapshots checks which are there, and what they contain.
func (m *model) snapshots(rep *modelReplica) {
	infos := rep.r.Snapshots()
	var there []*modelSnapshot
	for _, s := range rep.snaps {
		found := len(infos) > 0 && infos[0].ID == s.id
		switch {
		case found && infos[0].Cut == s.cut && infos[0].SizeBytes == int64(len(s.blocks))*blockSize:
			infos = infos[1:]
		case found:
			m.fatalf("%s: snapshot %+v, must be %s", rep.id, infos[0], s.cut)
		case s.state == "":
			m.fatalf("%s: snapshot %s is not there", rep.id, s.id)
		}
		if !found && s.state == "taking" {
			continue
		}
		there = append(there, s)
		if !found {
			continue
		}
		values := m.read(rep, string(s.id), len(s.blocks), func(p []byte, off int64) error { return rep.r.ReadSnapshot(s.id, p, off) })
		if !slices.Equal(values, s.blocks) {
			for i := range values {
				if values[i] != s.blocks[i] {
					m.fatalf("%s: block %d of snapshot %s is %d, must be %d", rep.id, i, s.id, values[i], s.blocks[i])
				}
			}
		}
		if s.state == "taking" {
			s.state = ""
		}
	}
	if len(infos) > 0 {
		m.fatalf("%s: snapshots too many: %+v", rep.id, infos)
	}
	rep.snaps = there
}

// changes checks that all that differs between a snapshot and another one, or the
// live data, is listed, that nothing is that nobody has changed, and that what is
// not allocated is zero.
func (m *model) changes(rep *modelReplica, s, to *modelSnapshot) {
	if err := rep.changes(rep.r, s, to); err != nil {
		m.fatalf("%s: %v", rep.id, err)
	}
	alloc, err := rep.r.SnapshotAllocated(s.id, 0, int64(len(s.blocks))*blockSize)
	if err != nil {
		m.fatalf("%s: allocated in %q: %v", rep.id, s.id, err)
	}
	for i, v := range s.blocks {
		if x := blockExtent(i); v != 0 && !within(x, alloc) {
			m.fatalf("%s: block %d of %q has data, and is not listed: %v", rep.id, i, s.id, alloc)
		}
	}
}

func blockExtent(i int) holdfast.Extent {
	return holdfast.Extent{Offset: int64(i) * blockSize, Length: blockSize}
}

// changes checks what is listed as changed; to is nil for the live data.
func (rep *modelReplica) changes(r *Replica, s, to *modelSnapshot) error {
	live := &modelSnapshot{blocks: rep.values(), seq: rep.seq}
	if to == nil {
		to = live
	}
	size := max(len(s.blocks), len(to.blocks))
	xs, err := r.SnapshotChanged(s.id, to.id, 0, int64(size)*blockSize)
	if err != nil {
		return fmt.Errorf("changed between %q and %q: %w", s.id, to.id, err)
	}
	at := func(vs []uint64, i int) uint64 {
		if i < len(vs) {
			return vs[i]
		}
		return 0
	}
	for i := range size {
		if at(s.blocks, i) != at(to.blocks, i) && !within(blockExtent(i), xs) {
			return fmt.Errorf("block %d differs between %q and %q, and is not listed: %v", i, s.id, to.id, xs)
		}
	}
	first, last := min(s.seq, to.seq), max(s.seq, to.seq)
	both := int64(min(len(s.blocks), len(to.blocks))) * blockSize
	for _, x := range xs {
		for g := x.Offset / granuleSize; g*granuleSize < min(x.End(), both/granuleSize*granuleSize); g++ {
			if !slices.ContainsFunc(rep.tried[g], func(n uint64) bool { return n > first && n <= last }) {
				return fmt.Errorf("granule %d is listed as changed between %q and %q, and nobody has changed it: %v", g, s.id, to.id, xs)
			}
		}
	}
	return nil
}

// allChanges checks the lists of all snapshots to the next one, and to the data.
func (rep *modelReplica) allChanges(r *Replica) error {
	var last *modelSnapshot
	for _, s := range rep.snaps {
		if i, _ := r.chain.find(s.id); i < 0 {
			continue
		}
		err := rep.changes(r, s, nil)
		if err == nil && last != nil {
			err = rep.changes(r, last, s)
		}
		if err != nil {
			return err
		}
		last = s
	}
	return nil
}

// hashes checks that equal content has equal hashes, live or not.
func (m *model) hashes(rep *modelReplica) {
	s := m.someSnapshot(rep)
	if s == nil {
		return
	}
	n := int64(len(s.blocks)) * blockSize
	live, err := rep.r.Hash(0, n)
	if err != nil {
		m.fatalf("%s: hash: %v", rep.id, err)
	}
	old, err := rep.r.HashSnapshot(s.id, 0, n)
	if err != nil {
		m.fatalf("%s: hash of %s: %v", rep.id, s.id, err)
	}
	const per = int(HashBlock / blockSize)
	values := rep.values()
	for i := range live {
		to := min((i+1)*per, len(s.blocks))
		if same := slices.Equal(values[i*per:to], s.blocks[i*per:to]); same != (live[i] == old[i]) {
			m.fatalf("%s: hashes %d of live data and %s: equal %v, content equal %v", rep.id, i, s.id, live[i] == old[i], same)
		}
	}
}

// arm lets the process die within the next operations of the disk, half of the
// time at one that snapshots make.
func (m *model) arm(most int) {
	*m.fuse = fuse{left: m.rng.IntN(most), kill: m.disk.stop, torn: m.rng.Int64N(3) * blockSize}
	if rare := []string{".snapshot", "/meta.tmp", "/meta", "/owned", "/snapshots"}; m.rng.IntN(2) == 0 {
		m.fuse.path, m.fuse.left = rare[m.rng.IntN(len(rare))], m.rng.IntN(most/5)
	}
}

// crash kills the process or cuts the power, and opens everything again.
func (m *model) crash() {
	if power := m.rng.IntN(2) == 0; power {
		m.boot++
		m.disk.crash(m.rng)
		m.logf("power loss")
		for _, rep := range m.sorted() {
			for i := range rep.blocks {
				x := &rep.blocks[i]
				x.unsure = append(x.unsure, x.since...)
			}
		}
	} else {
		m.disk.kill()
		m.logf("killed")
	}
	*m.fuse = fuse{left: -1, kill: func() {}}
	m.must("open pool", m.openPool())
	for _, rep := range m.sorted() {
		m.reopen(rep)
	}
	problems, err := m.pool.Check(context.Background(), nil)
	if err != nil || len(problems) > 0 {
		m.fatalf("check: %v, %v", problems, err)
	}
}

func (m *model) reopen(rep *modelReplica) {
	r, err := m.pool.Open(rep.id)
	if errors.Is(err, holdfast.NotFound) && rep.maybe {
		delete(m.reps, rep.id)
		return
	}
	m.must("open", err)
	rep.r, rep.maybe = r, false
	if rep.grown(r.State().SizeBytes / blockSize); r.chain.base == nil {
		rep.origin = nil
	}
	for i, v := range m.read(rep, "live data", len(rep.blocks), r.ReadAt) {
		x := &rep.blocks[i]
		if v != x.value && !slices.Contains(x.unsure, v) {
			m.fatalf("%s: block %d is %d, must be %d or one of %d", rep.id, i, v, x.value, x.unsure)
		}
		if v != x.value {
			x.since = append(x.since, x.value)
		}
		x.value, x.unsure = v, nil
	}
	m.snapshots(rep)
	if err := rep.allChanges(r); err != nil {
		m.fatalf("%s: after a crash: %v", rep.id, err)
	}
}

func (m *model) run(crashes, steps int) {
	for range crashes {
		m.fuse.left = -1
		if m.rng.IntN(3) > 0 {
			m.arm(5 * steps)
		}
		for i := 0; i < steps && !m.fuse.blown; i++ {
			m.step()
		}
		m.crash()
	}
	for _, rep := range m.sorted() {
		m.verify(rep)
	}
}

// TestModel does random reads, writes, trims, flushes, snapshots, clones,
// restores, drops and growth, with killed processes and power losses at random
// points, and compares everything with a model.
func TestModel(t *testing.T) {
	for seed := *modelSeed; seed < *modelSeed+*modelRuns; seed++ {
		m := newModel(t, memDisk{disk.NewMem(1 << 30)}, seed, 256)
		m.again = fmt.Sprintf("go test ./engine -run '^TestModel$' -model.seed=%d -model.runs=1", seed)
		m.run(5, 60)
		wantNoLeftovers(t, m)
	}
}

// wantNoLeftovers: nothing but what the model has is on the disk once all that
// was begun is finished.
func wantNoLeftovers(t *testing.T, m *model) {
	for _, rep := range m.sorted() {
		entries, err := m.disk.fs().List(replicaPath(rep.id) + "/" + snapshotsDir)
		if err != nil {
			t.Fatal(err)
		}
		files := 0
		for _, e := range entries {
			if strings.HasSuffix(e.Name, ".snapshot") {
				files++
			}
		}
		if want := len(rep.r.Snapshots()) + len(rep.r.Dropping()); files != want {
			m.fatalf("%s: %d files of snapshots, must be %d", rep.id, files, want)
		}
	}
}
