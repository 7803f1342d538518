package engine

import (
	"context"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/engine/disk"
	"github.com/holdfast-storage/holdfast/internal/blockrecorder"
)

var (
	replaySteps   = flag.Int("replay.steps", 60, "how many operations TestReplay records")
	replayFlushes = flag.Int("replay.flushes", 12, "how many flush points it tries; 0 for all")
	replayBetween = flag.Int("replay.between", 12, "how many points between flushes it tries")
)

// recorderEnv tells this program to be the recorder: the file that it serves
// must not be opened by the process that serves it.
const recorderEnv = "HF_TEST_RECORDER"

func TestMain(m *testing.M) {
	if args := strings.Split(os.Getenv(recorderEnv), "|"); len(args) == 3 {
		go func() {
			_, _ = io.Copy(io.Discard, os.Stdin) // ends with the test, however that ends
			os.Exit(1)
		}()
		if err := blockrecorder.Serve(args[0], args[1], args[2]); err != nil {
			fmt.Fprintln(os.Stderr, "recorder:", err)
			os.Exit(1)
		}
		return
	}
	if dir := os.Getenv(lateEnv); dir != "" {
		fmt.Fprintln(os.Stderr, "late writer:", writeWhenTold(dir))
		os.Exit(1)
	}
	if device, root, ok := strings.Cut(os.Getenv(writerEnv), "|"); ok {
		fmt.Fprintln(os.Stderr, "writer:", writeAndWait(device, root))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// replay is a recorded run: images on an XFS of their own, which makes copies at
// once, and the model's states with the places in the log where they begin.
type replay struct {
	t      *testing.T
	dir    string // on the XFS for images
	log    string
	states []replayState
	tried  int
	// recorder is the process that serves the device.
	recorder *os.Process
}

// replayState is what must be there when the log is at pos or later, as long as
// the next operation has not begun.
type replayState struct {
	pos  int64
	reps map[holdfast.ReplicaID]*modelReplica
}

// hostDir is a directory on an XFS that is no pool.
func hostDir(t *testing.T) string {
	path, root := image(t, 6<<30)
	ctx := context.Background()
	if _, err := Format(ctx, formatOptions(path, root)); err != nil {
		t.Fatal(err)
	}
	x := &xfsDisk{t: t, image: path, root: root}
	x.mount()
	t.Cleanup(func() {
		if err := x.m.release(); err != nil {
			t.Error(err)
		}
	})
	return x.m.dir
}

func reflink(t *testing.T, from, to string) {
	t.Helper()
	_ = os.Remove(to)
	if out, err := exec.Command("cp", "--reflink=always", "--sparse=auto", from, to).CombinedOutput(); err != nil {
		t.Fatalf("copy: %v %s", err, out)
	}
}

// record runs random operations on a pool whose device is recorded.
func (p *replay) record(seed uint64, steps int) {
	t := p.t
	live, mnt := filepath.Join(p.dir, "live.img"), filepath.Join(p.dir, "pools")
	if err := os.WriteFile(live, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(live, 320<<20); err != nil {
		t.Fatal(err)
	}
	if _, err := Format(context.Background(), formatOptions(live, mnt)); err != nil {
		t.Fatal(err)
	}
	reflink(t, live, filepath.Join(p.dir, "base.img"))
	served := p.serve(live)
	x := &xfsDisk{t: t, image: served, root: mnt, mem: disk.NewMem(1 << 30)}
	x.mount()
	t.Cleanup(func() {
		if x.m != nil {
			x.d.closeAll()
			_ = x.m.release()
		}
	})
	if err := x.d.Remove(identityFile); err != nil {
		t.Fatal(err)
	}
	m := newModel(t, x, seed, 256)
	m.again = fmt.Sprintf("make replay-proof SEED=%d", seed)
	p.note(m)
	for range steps {
		m.step()
		p.note(m)
	}
	x.d.closeAll()
	if err := x.m.release(); err != nil {
		t.Fatal(err)
	}
	x.m = nil
}

// serve starts the recorder and gives the file that it serves.
func (p *replay) serve(img string) string {
	t := p.t
	dir, err := os.MkdirTemp("", "hf-test-recorder-")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), recorderEnv+"="+dir+"|"+img+"|"+p.log)
	cmd.Stderr = os.Stderr
	alive, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.recorder = cmd.Process
	t.Cleanup(func() {
		_ = unix.Unmount(dir, unix.MNT_DETACH)
		_ = alive.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = os.Remove(dir)
	})
	served := filepath.Join(dir, blockrecorder.Name)
	for deadline := time.Now().Add(30 * time.Second); ; <-time.After(10 * time.Millisecond) {
		if _, err := os.Stat(served); err == nil {
			return served
		} else if time.Now().After(deadline) {
			t.Fatalf("the recorder does not serve: %v", err)
		}
	}
}

// note keeps the model's state, and where the log is.
func (p *replay) note(m *model) {
	info, err := os.Stat(p.log)
	if err != nil {
		p.t.Fatal(err)
	}
	s := replayState{pos: info.Size(), reps: map[holdfast.ReplicaID]*modelReplica{}}
	for id, rep := range m.reps {
		c := &modelReplica{id: id, blocks: slices.Clone(rep.blocks), seq: rep.seq, tried: map[int64][]uint64{}}
		for g, ns := range rep.tried {
			c.tried[g] = slices.Clone(ns)
		}
		for i := range c.blocks {
			c.blocks[i].since = slices.Clone(c.blocks[i].since)
		}
		for _, sn := range rep.snaps {
			copied := *sn
			c.snaps = append(c.snaps, &copied)
		}
		s.reps[id] = c
	}
	p.states = append(p.states, s)
}

// at gives the state at a place of the log, and the one that may be on its way.
func (p *replay) at(pos int64) (now, next replayState) {
	k, found := slices.BinarySearchFunc(p.states, pos, func(s replayState, pos int64) int { return int(max(-1, min(1, s.pos-pos))) })
	for found && k+1 < len(p.states) && p.states[k+1].pos == pos {
		k++
	}
	if !found {
		k--
	}
	return p.states[k], p.states[min(k+1, len(p.states)-1)]
}

// try opens what a crash would have left, and compares it.
func (p *replay) try(img string, pos int64, what string) {
	p.tried++
	now, next := p.at(pos)
	x := &xfsDisk{t: p.t, image: img, root: filepath.Join(p.dir, "pools")}
	x.mount()
	defer func() {
		x.d.closeAll()
		if err := x.m.release(); err != nil {
			p.t.Error(err)
		}
	}()
	fatalf := func(format string, a ...any) {
		p.t.Helper()
		p.t.Fatalf("%s, at %d of the log: %s", what, pos, fmt.Sprintf(format, a...))
	}
	pool, err := OpenFS(FSOptions{FS: x.d, Cluster: testCluster, BootID: "after", ReserveBytes: 1 << 20})
	if err != nil {
		fatalf("open pool: %v", err)
	}
	infos, err := pool.Replicas()
	if err != nil {
		fatalf("list replicas: %v", err)
	}
	there := map[holdfast.ReplicaID]bool{}
	for _, i := range infos {
		there[i.Replica] = true
		if err := compareReplica(pool, i.Replica, now.reps[i.Replica], next.reps[i.Replica]); err != nil {
			fatalf("replica %s: %v", i.Replica, err)
		}
	}
	for id := range now.reps {
		if !there[id] && next.reps[id] != nil {
			fatalf("replica %s is not there", id)
		}
	}
	problems, err := pool.Check(context.Background(), nil)
	if err != nil || len(problems) > 0 {
		fatalf("check: %v, %v", problems, err)
	}
}

// compareReplica compares what is there with the state before an operation and
// the one after it, of which either may be nil.
func compareReplica(pool *Pool, id holdfast.ReplicaID, now, next *modelReplica) error {
	if now == nil && next == nil {
		return fmt.Errorf("nobody made it")
	}
	now, next = orElse(now, next), orElse(next, now)
	r, err := pool.Open(id)
	if err != nil {
		return err
	}
	size := int(r.State().SizeBytes / blockSize)
	if size != len(now.blocks) && size != len(next.blocks) {
		return fmt.Errorf("it has %d blocks, must have %d or %d", size, len(now.blocks), len(next.blocks))
	}
	values, err := blockValues(size, r.ReadAt)
	if err != nil {
		return err
	}
	for i, v := range values {
		var ok []uint64
		for _, m := range []*modelReplica{now, next} {
			if i < len(m.blocks) {
				ok = append(append(ok, m.blocks[i].value), m.blocks[i].since...)
			}
		}
		if !slices.Contains(ok, v) {
			return fmt.Errorf("block %d is %d, must be one of %d", i, v, ok)
		}
	}
	if err := compareSnapshots(r, now, next); err != nil {
		return err
	}
	// What is there now, between the two states; a change on its way was tried.
	found := &modelReplica{seq: next.seq, tried: next.tried, snaps: slices.Clone(now.snaps)}
	for _, v := range values {
		found.blocks = append(found.blocks, modelValue{value: v})
	}
	for _, s := range next.snaps {
		if !slices.ContainsFunc(now.snaps, func(o *modelSnapshot) bool { return o.id == s.id }) {
			found.snaps = append(found.snaps, s)
		}
	}
	return found.allChanges(r)
}

func orElse(a, b *modelReplica) *modelReplica {
	if a == nil {
		return b
	}
	return a
}

func compareSnapshots(r *Replica, now, next *modelReplica) error {
	there := map[holdfast.SnapshotID]bool{}
	for _, info := range r.Snapshots() {
		there[info.ID] = true
		same := func(s *modelSnapshot) bool { return s.id == info.ID }
		i := slices.IndexFunc(append(slices.Clone(now.snaps), next.snaps...), same)
		if i < 0 {
			return fmt.Errorf("it has a snapshot %s that nobody took", info.ID)
		}
		s := append(slices.Clone(now.snaps), next.snaps...)[i]
		values, err := blockValues(len(s.blocks), func(p []byte, off int64) error { return r.ReadSnapshot(info.ID, p, off) })
		if err != nil {
			return err
		}
		for i, v := range values {
			if v != s.blocks[i] {
				return fmt.Errorf("block %d of snapshot %s is %d, must be %d", i, info.ID, v, s.blocks[i])
			}
		}
	}
	for _, s := range now.snaps {
		stays := slices.ContainsFunc(next.snaps, func(o *modelSnapshot) bool { return o.id == s.id && o.state == "" })
		if s.state == "" && stays && !there[s.id] {
			return fmt.Errorf("snapshot %s is not there", s.id)
		}
	}
	return nil
}

// blockValues reads blocks, each of which must be full of one value.
func blockValues(blocks int, read func(p []byte, off int64) error) ([]uint64, error) {
	p := make([]byte, int64(blocks)*blockSize)
	if err := read(p, 0); err != nil {
		return nil, err
	}
	out := make([]uint64, blocks)
	for i := range out {
		b := p[int64(i)*blockSize:][:blockSize]
		out[i] = uint64(b[0]) | uint64(b[1])<<8 | uint64(b[2])<<16 | uint64(b[3])<<24 | uint64(b[4])<<32
		for k := 8; k < len(b); k++ {
			if b[k] != b[k-8] {
				return nil, fmt.Errorf("block %d is torn", i)
			}
		}
	}
	return out, nil
}

// TestReplay records every write and flush that reaches a pool's device while
// random operations run, makes what a power loss at flushes and between them
// would have left, mounts that, and compares live data and every snapshot with
// the model. Between flushes any of the writes since the last one may be missing.
func TestReplay(t *testing.T) {
	dir := hostDir(t)
	p := &replay{t: t, dir: dir, log: filepath.Join(dir, "log")}
	p.record(*modelSeed, *replaySteps)
	rng := rand.New(rand.NewPCG(*modelSeed, 11))
	var flushes, writes []int64
	p.each(func(rec blockrecorder.Record) {
		if rec.End <= p.states[0].pos {
			return
		}
		if rec.Kind == blockrecorder.Flush {
			flushes = append(flushes, rec.End)
		} else {
			writes = append(writes, rec.End)
		}
	})
	t.Logf("%d operations, %d writes and %d flushes of the device", *replaySteps, len(writes), len(flushes))
	chosen := map[int64]bool{}
	choose := func(from []int64, n int) {
		rng.Shuffle(len(from), func(i, j int) { from[i], from[j] = from[j], from[i] })
		for _, at := range from[:min(n, len(from))] {
			chosen[at] = true
		}
	}
	if *replayFlushes == 0 {
		*replayFlushes = len(flushes)
	}
	choose(flushes, *replayFlushes)
	choose(writes, *replayBetween)
	p.walk(rng, chosen)
	t.Logf("%d points tried", p.tried)
}

func (p *replay) each(visit func(blockrecorder.Record)) {
	f, err := os.Open(p.log)
	if err != nil {
		p.t.Fatal(err)
	}
	defer f.Close()
	if err := blockrecorder.Read(f, func(r blockrecorder.Record) error { visit(r); return nil }); err != nil {
		p.t.Fatal(err)
	}
}

// walk makes the disk's content go along the log, and tries the chosen points.
func (p *replay) walk(rng *rand.Rand, chosen map[int64]bool) {
	durable, copied := filepath.Join(p.dir, "durable.img"), filepath.Join(p.dir, "try.img")
	reflink(p.t, filepath.Join(p.dir, "base.img"), durable)
	f, err := os.OpenFile(durable, os.O_RDWR, 0)
	if err != nil {
		p.t.Fatal(err)
	}
	defer f.Close()
	var pending []blockrecorder.Record
	apply := func(to io.WriterAt, rec blockrecorder.Record) {
		if _, err := to.WriteAt(rec.Data, rec.Offset); err != nil {
			p.t.Fatal(err)
		}
	}
	p.each(func(rec blockrecorder.Record) {
		what := "at a flush"
		if rec.Kind == blockrecorder.Flush {
			for _, w := range pending {
				apply(f, w)
			}
			pending = pending[:0]
		} else {
			pending = append(pending, rec)
			what = "between flushes"
		}
		if !chosen[rec.End] {
			return
		}
		reflink(p.t, durable, copied)
		c, err := os.OpenFile(copied, os.O_RDWR, 0)
		if err != nil {
			p.t.Fatal(err)
		}
		odds := []float64{0.2, 0.5, 0.9, 1}[rng.IntN(4)]
		for _, w := range pending {
			if rng.Float64() < odds {
				w.Data = w.Data[:tornLength(rng, len(w.Data))]
				apply(c, w)
			}
		}
		if err := c.Close(); err != nil {
			p.t.Fatal(err)
		}
		p.try(copied, rec.End, what)
	})
}

// tornLength is how much of a write of n bytes arrives: all, or now and then only
// its first pages.
func tornLength(rng *rand.Rand, n int) int {
	if rng.IntN(8) > 0 {
		return n
	}
	return rng.IntN(n/disk.PageSize+1) * disk.PageSize
}
