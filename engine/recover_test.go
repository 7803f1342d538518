package engine

import (
	"context"
	"math/rand/v2"
	"path"
	"syscall"
	"testing"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/engine/disk"
)

// eachCrash runs a test with so many different power losses; cut makes one and
// opens pool and replica again.
func eachCrash(t *testing.T, test func(t *testing.T, mem *disk.Mem, rules *disk.Rules, p *Pool, cut func(power bool) *Replica)) {
	for seed := range uint64(30) {
		mem, rules := disk.NewMem(1<<30), &disk.Rules{}
		fs := disk.NewFaulty(mem, rules.Hook)
		boot := "boot-1"
		cut := func(power bool) *Replica {
			t.Helper()
			rules.Clear()
			if mem.Kill(); power {
				boot = "boot-2"
				mem.Crash(rand.New(rand.NewPCG(seed, 7)))
			}
			p := reopened(t, fs, boot)
			r, err := p.Open(testReplica)
			if err != nil {
				t.Fatal(err)
			}
			wantSound(t, p)
			return r
		}
		test(t, mem, rules, fsPool(t, fs), cut)
	}
}

// TestVisibleIsNotDurable: what a killed process had written, but not made
// durable, is made so before it is relied upon: an intent, and a promise.
func TestVisibleIsNotDurable(t *testing.T) {
	eachCrash(t, func(t *testing.T, _ *disk.Mem, rules *disk.Rules, p *Pool, cut func(bool) *Replica) {
		r := created(t, p, 16<<20)
		rules.Add(disk.Rule{Op: disk.OpWrite, Path: intentFile, Errno: syscall.EIO, Applied: 4096})
		b := fill(make([]byte, 4096), 5)
		e := Entry{Epoch: 1, Grant: 1, Seq: 1}
		wantKind(t, "write", r.WriteAt(e, b, 0, false), holdfast.Corrupt)
		r = cut(false)
		if err := r.WriteAt(e, b, 0, false); err != nil {
			t.Fatal(err)
		}
		rules.Add(disk.Rule{Op: disk.OpSyncDir, Path: string(testReplica), Errno: syscall.EIO})
		wantKind(t, "promise", r.SetPromise(4, 3, holdfast.Record{}), holdfast.Corrupt)
		r = cut(false)
		promised := r.State().Promise
		r = cut(true)
		st := r.State()
		if !within(holdfast.Extent{Offset: 0, Length: 4096}, st.Suspects) {
			t.Fatalf("a write that the power loss may have undone is not suspect: %+v", st)
		}
		if promised != (Promise{4, 3}) || st.Promise != promised {
			t.Fatalf("the promise was %v, and is %v after the power loss", promised, st.Promise)
		}
	})
}

// TestWriteDuringFlush: a flush does not vouch for a write that came while it was
// under way, even if the intent's region has been idle since.
func TestWriteDuringFlush(t *testing.T) {
	eachCrash(t, func(t *testing.T, _ *disk.Mem, rules *disk.Rules, p *Pool, cut func(bool) *Replica) {
		r := created(t, p, 16<<20)
		r.idleFlushes = 1
		write := func(seq uint64, off int64) {
			t.Helper()
			e := Entry{Epoch: 1, Grant: 1, Seq: seq, Committed: seq - 1}
			if err := r.WriteAt(e, fill(make([]byte, 4096), seq), off, false); err != nil {
				t.Fatal(err)
			}
		}
		write(1, 0)
		if err := r.Flush(); err != nil {
			t.Fatal(err)
		}
		// The second comes after the data's sync, before the change map's. Its own
		// write is complete, and committed, when the intents are looked at.
		busy := false
		rules.Add(disk.Rule{Op: disk.OpSync, Path: changesDir + "/" + mapName(1), Before: func(disk.Call) {
			if !busy {
				busy = true
				write(2, 8192)
				r.Commit(1, 2)
			}
		}})
		if err := r.flusher.do(r.flush); err != nil {
			t.Fatal(err)
		}
		if err := r.clean(0); err != nil {
			t.Fatal(err)
		}
		rules.Clear()
		write(3, 4<<20) // so that what was cleared is written
		r = cut(true)
		if st := r.State(); !busy || !within(holdfast.Extent{Offset: 8192, Length: 4096}, st.Suspects) {
			t.Fatalf("a write after the flush is not suspect: %+v", st)
		}
	})
}

// TestSuspectsStay: suspects outlive further power losses, and nothing but Settle
// ends them.
func TestSuspectsStay(t *testing.T) {
	eachCrash(t, func(t *testing.T, _ *disk.Mem, _ *disk.Rules, p *Pool, cut func(bool) *Replica) {
		r := created(t, p, 16<<20)
		if err := r.WriteAt(Entry{Epoch: 1, Grant: 1, Seq: 1}, make([]byte, 4096), 0, true); err != nil {
			t.Fatal(err)
		}
		want := holdfast.Extent{Offset: 0, Length: regionSize}
		for range 3 {
			if r = cut(true); !within(want, r.State().Suspects) {
				t.Fatalf("suspects: %v", r.State().Suspects)
			}
			if err := r.Flush(); err != nil {
				t.Fatal(err)
			}
		}
		if err := r.Settle(1, 0); err != nil {
			t.Fatal(err)
		}
		if r = cut(true); len(r.State().Suspects) != 0 {
			t.Fatalf("suspects after settling: %v", r.State().Suspects)
		}
	})
}

// TestCreateCrash kills Create and Remove at every operation: afterwards the
// replica is there and whole, or not there; what was never finished is cleaned
// up, and nothing else.
func TestCreateCrash(t *testing.T) {
	ctx := context.Background()
	for _, what := range []string{"create", "remove"} {
		for at, blown := 0, true; blown; at++ {
			mem := disk.NewMem(1 << 30)
			f := &fuse{left: -1, kill: mem.Kill}
			fs := disk.NewFaulty(mem, f.hook)
			p := fsPool(t, fs)
			if err := p.Create(ctx, testVolume, "other", 1<<20); err != nil {
				t.Fatal(err)
			}
			var err error
			if what == "remove" {
				err = p.Create(ctx, testVolume, testReplica, 1<<20)
				f.left = at
				if err == nil {
					err = p.Remove(ctx, testReplica)
				}
			} else {
				f.left = at
				err = p.Create(ctx, testVolume, testReplica, 1<<20)
			}
			if blown = f.blown; blown == (err == nil) {
				t.Fatalf("%s, stopped at %d: %v", what, at, err)
			}
			*f = fuse{left: -1}
			if at%2 == 0 {
				mem.Crash(rand.New(rand.NewPCG(uint64(at), 3)))
			} else {
				mem.Kill()
			}
			p = reopened(t, fs, "boot-2")
			wantSound(t, p)
			infos, err := p.Replicas()
			if err != nil || len(infos) == 0 || infos[0].Replica != testReplica && infos[0].Replica != "other" {
				t.Fatalf("%s, stopped at %d: %v, %v", what, at, infos, err)
			}
			there := len(infos) == 2
			if !blown && there != (what == "create") {
				t.Fatalf("%s came through; replicas: %v", what, infos)
			}
			for _, i := range infos {
				if r, err := p.Open(i.Replica); err != nil || r.State().SizeBytes != 1<<20 {
					t.Fatalf("%s, stopped at %d: open %s: %v", what, at, i.Replica, err)
				}
			}
			entries, err := mem.List(replicasDir)
			if err != nil || len(entries) != len(infos) {
				t.Fatalf("%s, stopped at %d: left over: %v, %v", what, at, entries, err)
			}
		}
	}
}

// TestNothingDeletedOnAbsence (invariant 8): a replica whose files are damaged or
// missing, and files that nobody knows, are reported and stay.
func TestNothingDeletedOnAbsence(t *testing.T) {
	mem := disk.NewMem(1 << 30)
	p := fsPool(t, mem)
	if err := created(t, p, 1<<20).Close(); err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"stranger", "replicas/stranger.txt", "replicas/" + string(testReplica) + "/stranger",
		"replicas/" + string(testReplica) + "/changes/stranger"} {
		if _, err := mem.Open(name, disk.Create); err != nil {
			t.Fatal(err)
		}
	}
	if err := mem.Remove(path.Join(replicaPath(testReplica), metaFile)); err != nil {
		t.Fatal(err)
	}
	p = reopened(t, mem, "boot-1")
	problems, err := p.Check(context.Background(), nil)
	if err != nil || len(problems) != 5 {
		t.Fatalf("check found %v, %v; want 5 problems", problems, err)
	}
	_, err = p.Open(testReplica)
	wantKind(t, "open without meta", err, holdfast.Corrupt)
	infos, err := p.Replicas()
	if err != nil || len(infos) != 1 || infos[0].Err == nil {
		t.Fatalf("replicas: %+v, %v", infos, err)
	}
	wantKind(t, "create over it", p.Create(context.Background(), testVolume, testReplica, 1<<20), holdfast.Corrupt)
	if entries, err := mem.List(replicaPath(testReplica)); err != nil || len(entries) != 7 {
		t.Fatalf("entries: %v, %v", entries, err)
	}
}

// TestCheckFinds damages every file in turn, and expects Check to name it.
func TestCheckFinds(t *testing.T) {
	dir := replicaPath(testReplica)
	for _, c := range []struct {
		name string
		off  int64
	}{{identityFile, 40}, {dir + "/" + metaFile, 50}, {dir + "/" + promiseFile, 45}, {dir + "/" + recordFile, 60},
		{dir + "/" + intentFile, 20}, {dir + "/" + intentFile, 4096 + 7}, {dir + "/" + tailFile, 3},
		{dir + "/changes/" + mapName(1), 17}, {dir + "/changes/" + mapName(1), mapHeader + 32}, {dir + "/" + dataFile, 1<<20 + 5}} {
		mem := disk.NewMem(1 << 30)
		p := fsPool(t, mem)
		r := created(t, p, 1<<20)
		if err := r.SetPromise(1, 1, holdfast.Record{Version: 1, ID: testVolume, SizeBytes: 1 << 20, Epoch: 1}); err != nil {
			t.Fatal(err)
		}
		if err := r.WriteAt(Entry{Epoch: 1, Grant: 1, Seq: 1}, make([]byte, 4096), 0, false); err != nil {
			t.Fatal(err)
		}
		wantSound(t, p)
		f, err := mem.Open(c.name, 0)
		if err != nil {
			t.Fatal(err)
		}
		b := []byte{0}
		_, _ = f.ReadAt(b, c.off)
		if _, err := f.WriteAt([]byte{b[0] ^ 0x41}, c.off, false); err != nil {
			t.Fatal(err)
		}
		problems, err := p.Check(context.Background(), nil)
		if err != nil || len(problems) == 0 || problems[0].Path != c.name {
			t.Errorf("%s damaged at %d: %v, %v", c.name, c.off, problems, err)
		}
	}
}
