package engine

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"testing"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/engine/disk"
)

// created makes the test replica and opens it.
func created(t testing.TB, p *Pool, size int64) *Replica {
	t.Helper()
	if err := p.Create(context.Background(), testVolume, testReplica, size); err != nil {
		t.Fatal(err)
	}
	r, err := p.Open(testReplica)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// fsPool makes a pool on a filesystem.
func fsPool(t testing.TB, fs disk.FS) *Pool {
	t.Helper()
	if _, err := FormatFS(fs, testIdentity()); err != nil {
		t.Fatal(err)
	}
	return reopened(t, fs, "boot-1")
}

func reopened(t testing.TB, fs disk.FS, boot string) *Pool {
	t.Helper()
	p, err := OpenFS(FSOptions{FS: fs, Cluster: testCluster, BootID: boot})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// eachKind runs a test on every kind of pool.
func eachKind(t *testing.T, test func(t *testing.T, p *Pool)) {
	t.Run("memory", func(t *testing.T) { test(t, fsPool(t, disk.NewMem(8<<30))) })
	t.Run("xfs", func(t *testing.T) {
		path, root, _ := formatted(t)
		p := mustOpenPool(t, path, root)
		test(t, p)
		wantSound(t, p)
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// TestContract is what every kind of pool does alike.
func TestContract(t *testing.T) {
	eachKind(t, func(t *testing.T, p *Pool) {
		r := created(t, p, 9<<20)
		e := Entry{Epoch: 1, Grant: 1}
		write := func(v uint64, off, n int64, fua bool) {
			t.Helper()
			e.Seq++
			if err := r.WriteAt(e, fill(make([]byte, n), v), off, fua); err != nil {
				t.Fatal(err)
			}
		}
		write(1, 0, 16384, false)
		write(2, 4096, 4096, true)
		write(3, 4<<20-4096, 8192, false) // over two regions
		write(4, 9<<20-4096, 4096, false)
		e.Seq++
		if err := r.Trim(e, 8192, 4096, true); err != nil {
			t.Fatal(err)
		}
		if err := r.Flush(); err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			off int64
			v   uint64
		}{{0, 1}, {4096, 2}, {8192, 0}, {12288, 1}, {4<<20 - 4096, 3}, {4 << 20, 3}, {9<<20 - 4096, 4}, {1 << 20, 0}} {
			got := make([]byte, 4096)
			if err := r.ReadAt(got, c.off); err != nil || !bytes.Equal(got, fill(make([]byte, 4096), c.v)) {
				t.Fatalf("read at %d: %v, first byte %d, want %d", c.off, err, got[0], c.v)
			}
		}
		want := "[{0 8192} {12288 4096} {4190208 8192} {9433088 4096}]"
		if got, err := r.Allocated(0, 9<<20); err != nil || fmt.Sprint(got) != want {
			t.Fatalf("allocated: %v, %v; want %s", got, err, want)
		}
		if got, err := r.Allocated(4096, 16384); err != nil || fmt.Sprint(got) != "[{4096 4096} {12288 4096}]" {
			t.Fatalf("allocated in a part: %v, %v", got, err)
		}
		want = "[{0 16384} {4190208 8192} {9433088 4096}]"
		if got, err := r.Changed(0); err != nil || fmt.Sprint(got) != want {
			t.Fatalf("changed: %v, %v; want %s", got, err, want)
		}
		if st := r.State(); fmt.Sprint(st.Tail) != want || st.SizeBytes != 9<<20 || len(st.Suspects) != 0 {
			t.Fatalf("state: %+v", st)
		}
		checkHashes(t, r)
		epochs(t, r)
		refusals(t, p, r)
		infos, err := p.Replicas()
		if err != nil || len(infos) != 1 || infos[0].Replica != testReplica || infos[0].Volume != testVolume || infos[0].SizeBytes != 9<<20 || infos[0].AllocatedBytes < 20480 {
			t.Fatalf("replicas: %+v, %v", infos, err)
		}
		removal(t, p, r)
	})
}

func checkHashes(t *testing.T, r *Replica) {
	t.Helper()
	got, err := r.Hash(0, 2*HashBlock+4096)
	if err != nil || len(got) != 3 {
		t.Fatalf("hash: %d hashes, %v", len(got), err)
	}
	block := make([]byte, HashBlock)
	fill(block[:16384], 1)
	fill(block[4096:8192], 2)
	fill(block[8192:12288], 0)
	for i, b := range [][]byte{block, make([]byte, HashBlock), make([]byte, 4096)} {
		if sum := sha256.Sum256(b); got[i] != Hash(sum[:16]) {
			t.Fatalf("hash %d is wrong", i)
		}
	}
	_, err = r.Hash(4096, 4096)
	wantKind(t, "hash of a part", err, holdfast.Invalid)
}

// epochs follows change maps, tail and settling over epochs and grants.
func epochs(t *testing.T, r *Replica) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	p := make([]byte, 4096)
	must(r.WriteAt(Entry{Epoch: 2, Grant: 1, Seq: 6, Committed: 5}, p, 0, false))
	if st := r.State(); fmt.Sprint(st.Tail) != "[{0 4096}]" {
		t.Fatalf("tail after committing: %v", st.Tail)
	}
	must(r.SetPromise(5, 5, holdfast.Record{Version: 1, ID: testVolume, Epoch: 5, Name: "a"}))
	must(r.WriteAt(Entry{Epoch: 5, Grant: 5, Seq: 1}, p, 4<<20, false))
	must(r.Mark(6, []holdfast.Extent{{Offset: 100, Length: 1}, {Offset: 4000, Length: 200}}))
	for since, want := range map[holdfast.Epoch]string{
		0: "[{0 16384} {4190208 8192} {9433088 4096}]", 2: "[{0 8192} {4194304 4096}]",
		3: "[{0 8192} {4194304 4096}]", 6: "[{0 8192}]", 7: "[]"} {
		if got, err := r.Changed(since); err != nil || fmt.Sprint(got) != want {
			t.Fatalf("changed since %d: %v, %v; want %s", since, got, err, want)
		}
	}
	r.Commit(1, 100) // of an older grant: not ours to judge any more
	if st := r.State(); fmt.Sprint(st.Tail) != "[{0 4096} {4194304 4096}]" {
		t.Fatalf("tail of two grants: %v", st.Tail)
	}
	must(r.Settle(5, 5))
	if st := r.State(); fmt.Sprint(st.Tail) != "[{4194304 4096}]" || st.MapSince != 5 {
		t.Fatalf("settled: %+v", st)
	}
	_, err := r.Changed(4)
	wantKind(t, "changed since before the oldest map", err, holdfast.NotFound)
	r.Commit(5, 1)
	if st := r.State(); len(st.Tail) != 0 {
		t.Fatalf("tail after the last commit: %v", st.Tail)
	}
	must(r.Settle(5, 2)) // never back
	if st := r.State(); st.MapSince != 5 {
		t.Fatalf("settled back: %+v", st)
	}
	// Promises.
	wantKind(t, "an older grant", r.SetPromise(6, 4, holdfast.Record{}), holdfast.Fenced)
	wantKind(t, "an older epoch", r.SetPromise(4, 4, holdfast.Record{}), holdfast.Fenced)
	wantKind(t, "another grant of the same epoch", r.SetPromise(5, 6, holdfast.Record{}), holdfast.Fenced)
	wantKind(t, "a record of another volume", r.SetPromise(5, 5, holdfast.Record{Version: 1, ID: "other"}), holdfast.Invalid)
	wantKind(t, "a write of an older grant", r.WriteAt(Entry{Epoch: 5, Grant: 4, Seq: 9}, p, 0, false), holdfast.Fenced)
	must(r.SetPromise(7, 5, holdfast.Record{Version: 1, ID: testVolume, Epoch: 4, Name: "old"}))
	must(r.SetPromise(6, 5, holdfast.Record{Version: 1, ID: testVolume, Epoch: 5, Name: "b", SizeBytes: 4096}))
	if st := r.State(); st.Promise != (Promise{7, 5}) || st.Record.Name != "b" {
		t.Fatalf("promise and record: %+v", st)
	}
}

func refusals(t *testing.T, p *Pool, r *Replica) {
	t.Helper()
	ctx := context.Background()
	e, b := Entry{Epoch: 7, Grant: 5, Seq: 2}, make([]byte, 8192)
	wantKind(t, "misaligned offset", r.WriteAt(e, b, 512, false), holdfast.Invalid)
	wantKind(t, "misaligned length", r.WriteAt(e, b[:5000], 0, false), holdfast.Invalid)
	wantKind(t, "nothing", r.WriteAt(e, nil, 0, false), holdfast.Invalid)
	wantKind(t, "beyond the end", r.WriteAt(e, b, 9<<20-4096, false), holdfast.OutOfRange)
	wantKind(t, "negative", r.Trim(e, -4096, 4096, false), holdfast.Invalid)
	wantKind(t, "huge", r.Trim(e, 4096, 1<<62, false), holdfast.OutOfRange)
	wantKind(t, "misaligned read", r.ReadAt(b[:100], 0), holdfast.Invalid)
	wantKind(t, "read beyond the end", r.ReadAt(b, 9<<20), holdfast.OutOfRange)
	wantKind(t, "mark beyond the end", r.Mark(7, []holdfast.Extent{{Offset: 9 << 20, Length: 1}}), holdfast.OutOfRange)
	wantKind(t, "odd size", r.Grow(9<<20+1), holdfast.Invalid)
	if err := r.Grow(1 << 20); err != nil || r.State().SizeBytes != 9<<20 {
		t.Fatalf("growing to less: %v, size %d", err, r.State().SizeBytes)
	}
	_, err := p.Open(testReplica)
	wantKind(t, "open twice", err, holdfast.InUse)
	_, err = p.Open("ffff")
	wantKind(t, "open what is not there", err, holdfast.NotFound)
	_, err = p.Open("../../etc")
	wantKind(t, "open a path", err, holdfast.NotFound)
	wantKind(t, "create with a path", p.Create(ctx, testVolume, "../x", 1<<20), holdfast.Invalid)
	wantKind(t, "create of odd size", p.Create(ctx, testVolume, "ffff", 1000), holdfast.Invalid)
	wantKind(t, "create of no size", p.Create(ctx, testVolume, "ffff", 0), holdfast.Invalid)
	wantKind(t, "create for another volume", p.Create(ctx, "other", testReplica, 9<<20), holdfast.Exists)
	if err := p.Create(ctx, testVolume, testReplica, 9<<20); err != nil {
		t.Fatalf("create again: %v", err)
	}
	wantKind(t, "remove an open one", p.Remove(ctx, testReplica), holdfast.InUse)
}

func removal(t *testing.T, p *Pool, r *Replica) {
	t.Helper()
	ctx := context.Background()
	if err := errors.Join(r.Close(), r.Close()); err != nil {
		t.Fatal(err)
	}
	wantKind(t, "read of a closed replica", r.ReadAt(make([]byte, 4096), 0), holdfast.Unavailable)
	if err := errors.Join(p.Remove(ctx, testReplica), p.Remove(ctx, testReplica)); err != nil {
		t.Fatal(err)
	}
	if infos, err := p.Replicas(); err != nil || len(infos) != 0 {
		t.Fatalf("replicas after removal: %v, %v", infos, err)
	}
	_, err := p.Open(testReplica)
	wantKind(t, "open a removed one", err, holdfast.NotFound)
}

// TestGrow: a replica grows over many change maps and several pages of intents,
// and what is new reads as zeros and can be written.
func TestGrow(t *testing.T) {
	eachKind(t, func(t *testing.T, p *Pool) {
		r := created(t, p, 1<<20)
		b := fill(make([]byte, 4096), 9)
		for i, size := range []int64{1 << 20, 5 << 20, 3 << 30, 300 << 30} {
			e := Entry{Epoch: holdfast.Epoch(i + 1), Grant: 1, Seq: uint64(i + 1)}
			if err := r.Grow(size); err != nil {
				t.Fatal(err)
			}
			if err := r.WriteAt(e, b, size-4096, false); err != nil {
				t.Fatal(err)
			}
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		r, err := p.Open(testReplica)
		if err != nil {
			t.Fatal(err)
		}
		want := fmt.Sprint([]holdfast.Extent{{Offset: 1<<20 - 4096, Length: 4096}, {Offset: 5<<20 - 4096, Length: 4096},
			{Offset: 3<<30 - 4096, Length: 4096}, {Offset: 300<<30 - 4096, Length: 4096}})
		if got, err := r.Changed(0); err != nil || fmt.Sprint(got) != want {
			t.Fatalf("changed: %v, %v; want %s", got, err, want)
		}
		if st := r.State(); fmt.Sprint(st.Tail) != want {
			t.Fatalf("tail: %v", st.Tail)
		}
		wantKind(t, "more than is possible", r.Grow(holdfast.MaxVolumeBytes+4096), holdfast.Invalid)
	})
}

// TestConcurrentWriters: many writers of their own blocks, flushes and commits
// between them, all at once.
func TestConcurrentWriters(t *testing.T) {
	eachKind(t, func(t *testing.T, p *Pool) {
		r := created(t, p, 64<<20)
		r.idleFlushes = 1 // intents come and go all the time
		var wg sync.WaitGroup
		var mu sync.Mutex
		seq := uint64(0)
		for w := range int64(8) {
			wg.Go(func() {
				for i := range int64(60) {
					mu.Lock()
					seq++
					e := Entry{Epoch: 1, Grant: 1, Seq: seq}
					mu.Unlock()
					off := (w + 8*(i*37%1024)) * 4096
					if err := r.WriteAt(e, fill(make([]byte, 4096), uint64(w+1)), off, i%16 == 0); err != nil {
						t.Error(err)
						return
					}
					if i%10 == 0 {
						if err := r.Flush(); err != nil {
							t.Error(err)
						}
					}
				}
			})
		}
		wg.Wait()
		if n := r.tail.inUse(); n != 480 {
			t.Fatalf("%d writes in the tail, want 480", n)
		}
		r.Commit(1, seq)
		if n := r.tail.inUse(); n != 0 {
			t.Fatalf("%d writes in the tail after the commit", n)
		}
		b := make([]byte, 4096)
		for w := range int64(8) {
			for i := range int64(60) {
				if err := r.ReadAt(b, (w+8*(i*37%1024))*4096); err != nil || b[0] != byte(w+1) {
					t.Fatalf("writer %d, write %d: %v, %d", w, i, err, b[0])
				}
			}
		}
	})
}

// TestTailOverflow: more uncommitted writes than the tail has slots lose no
// knowledge, also not over a kill.
func TestTailOverflow(t *testing.T) {
	mem := disk.NewMem(1 << 30)
	r := created(t, fsPool(t, mem), 64<<20)
	b := make([]byte, 4096)
	var last uint64
	for i := range int64(tailSlots + 50) {
		last = uint64(i + 1)
		if err := r.WriteAt(Entry{Epoch: 1, Grant: 1, Seq: last}, b, i%tailSlots*4096*16, false); err != nil {
			t.Fatal(err)
		}
	}
	named := func() []holdfast.Extent {
		st := r.State()
		return merge(append(st.Tail, st.Suspects...))
	}
	all := func(when string) {
		t.Helper()
		for i := range int64(tailSlots) {
			if x := (holdfast.Extent{Offset: i * 4096 * 16, Length: 4096}); !within(x, named()) {
				t.Fatalf("%s: the write at %d is forgotten", when, x.Offset)
			}
		}
	}
	all("at once")
	for range 3 * idleFlushes {
		if err := r.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	all("after flushes")
	mem.Kill()
	p := reopened(t, mem, "boot-1")
	var err error
	if r, err = p.Open(testReplica); err != nil {
		t.Fatal(err)
	}
	all("after a kill")
	wantSound(t, p)
	r.Commit(1, last-1)
	all("after a commit of all but one")
	r.Commit(1, last)
	if st := r.State(); len(st.Tail) != 0 {
		t.Fatalf("tail after the commit of all: %v", st.Tail)
	}
}

// TestTailDamaged: a tail that cannot be read is replaced by suspects.
func TestTailDamaged(t *testing.T) {
	mem := disk.NewMem(1 << 30)
	r := created(t, fsPool(t, mem), 64<<20)
	if err := r.WriteAt(Entry{Epoch: 1, Grant: 1, Seq: 1}, make([]byte, 4096), 5<<20, false); err != nil {
		t.Fatal(err)
	}
	mem.Kill()
	f, err := mem.Open(replicaPath(testReplica)+"/"+tailFile, 0)
	if err != nil {
		t.Fatal(err)
	}
	used, b := int64(0), make([]byte, 1)
	for b[0] == 0 {
		used++
		if _, err := f.ReadAt(b, used*tailSlotSize); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.WriteAt([]byte{0xff}, used*tailSlotSize+30, false); err != nil {
		t.Fatal(err)
	}
	p := reopened(t, mem, "boot-1")
	problems, err := p.Check(context.Background(), nil)
	if err != nil || len(problems) != 1 {
		t.Fatalf("check of a damaged tail: %v, %v", problems, err)
	}
	if r, err = p.Open(testReplica); err != nil {
		t.Fatal(err)
	}
	if st := r.State(); fmt.Sprint(st.Suspects) != "[{4194304 4194304}]" || len(st.Tail) != 0 {
		t.Fatalf("state: %+v", st)
	}
	wantSound(t, p)
	if err := r.Settle(1, 0); err != nil {
		t.Fatal(err)
	}
	if st := r.State(); len(st.Suspects) != 0 {
		t.Fatalf("settled: %+v", st)
	}
}

// TestFailures: a failed sync or write is final; a failed read is not.
func TestFailures(t *testing.T) {
	for _, c := range []struct {
		op    disk.Op
		path  string
		do    func(r *Replica) error
		final bool
	}{
		{disk.OpSync, dataFile, func(r *Replica) error { return r.Flush() }, true},
		{disk.OpWrite, dataFile, func(r *Replica) error {
			return r.WriteAt(Entry{Epoch: 1, Grant: 1, Seq: 2}, make([]byte, 4096), 0, false)
		}, true},
		{disk.OpWrite, intentFile, func(r *Replica) error {
			return r.WriteAt(Entry{Epoch: 1, Grant: 1, Seq: 2}, make([]byte, 4096), 8<<20, false)
		}, true},
		{disk.OpPunch, dataFile, func(r *Replica) error { return r.Trim(Entry{Epoch: 1, Grant: 1, Seq: 2}, 0, 4096, false) }, true},
		{disk.OpMapSync, "", func(r *Replica) error { return r.Mark(1, []holdfast.Extent{{Offset: 0, Length: 4096}}) }, true},
		{disk.OpSync, promiseFile + ".tmp", func(r *Replica) error { return r.SetPromise(9, 9, holdfast.Record{}) }, true},
		{disk.OpRead, dataFile, func(r *Replica) error { return r.ReadAt(make([]byte, 4096), 0) }, false},
	} {
		t.Run(fmt.Sprint(c.op, " ", c.path), func(t *testing.T) {
			var rules disk.Rules
			p := fsPool(t, disk.NewFaulty(disk.NewMem(1<<30), rules.Hook))
			r := created(t, p, 16<<20)
			if err := r.WriteAt(Entry{Epoch: 1, Grant: 1, Seq: 1}, make([]byte, 4096), 0, false); err != nil {
				t.Fatal(err)
			}
			rules.Add(disk.Rule{Op: c.op, Path: c.path, Count: 1, Errno: syscall.EIO})
			wantKind(t, "failing", c.do(r), holdfast.Corrupt)
			if !c.final {
				if err := c.do(r); err != nil {
					t.Fatalf("again: %v", err)
				}
				return
			}
			wantKind(t, "flush", r.Flush(), holdfast.Corrupt)
			wantKind(t, "read", r.ReadAt(make([]byte, 4096), 0), holdfast.Corrupt)
			wantKind(t, "write", r.WriteAt(Entry{Epoch: 1, Grant: 1, Seq: 3}, make([]byte, 4096), 0, false), holdfast.Corrupt)
			wantKind(t, "promise", r.SetPromise(10, 10, holdfast.Record{}), holdfast.Corrupt)
			if r.Err() == nil || p.Info().Message == "" {
				t.Fatal("the failure is not shown")
			}
			// What it knew is known after opening it again.
			if err := r.Close(); err != nil {
				t.Fatal(err)
			}
			r, err := p.Open(testReplica)
			if err != nil {
				t.Fatal(err)
			}
			if st := r.State(); !within(holdfast.Extent{Offset: 0, Length: 4096}, st.Tail) {
				t.Fatalf("after opening again: %+v", st)
			}
		})
	}
}

// TestFull: a full pool refuses new space ahead of the wall, changes nothing,
// takes overwrites, metadata and trims, and goes on when there is room.
func TestFull(t *testing.T) {
	eachKind(t, func(t *testing.T, p *Pool) {
		r := created(t, p, 4<<30)
		b := fill(make([]byte, 1<<20), 3)
		e := Entry{Epoch: 1, Grant: 1}
		off := int64(0)
		var err error
		if m, ok := p.fs.(*disk.Mem); ok {
			m.SetCapacity(600 << 20)
			p.space.forget()
		}
		for ; err == nil; off += 1 << 20 {
			e.Seq++
			e.Committed = e.Seq - 1
			err = r.WriteAt(e, b, off, false)
		}
		wantKind(t, "write to a full pool", err, holdfast.NoSpace)
		off -= 1 << 20
		if r.Err() != nil {
			t.Fatalf("the replica has failed: %v", r.Err())
		}
		if st := r.State(); within(holdfast.Extent{Offset: off, Length: 1 << 20}, st.Tail) {
			t.Fatalf("the refused write is in the tail: %v", st.Tail)
		}
		got := make([]byte, 1<<20)
		if err := r.ReadAt(got, off); err != nil || !bytes.Equal(got, make([]byte, 1<<20)) {
			t.Fatalf("the refused write changed something: %v", err)
		}
		if info := p.Info(); info.State != holdfast.PoolFull {
			t.Fatalf("info: %+v", info)
		}
		if u, err := p.fs.Usage(); err != nil || u.FreeBytes < p.space.reserve-(1<<20) {
			t.Fatalf("the reserve of %d is touched: %+v, %v", p.space.reserve, u, err)
		}
		e.Seq++
		for what, err := range map[string]error{"overwrite": r.WriteAt(e, b, 0, true), "flush": r.Flush(),
			"promise": r.SetPromise(2, 1, holdfast.Record{}), "mark": r.Mark(5, []holdfast.Extent{{Offset: 0, Length: 4 << 30}}),
			"settle": r.Settle(1, 0), "grow": r.Grow(8 << 30), "trim": r.Trim(e, 0, 16<<20, false)} {
			if err != nil {
				t.Fatalf("%s on a full pool: %v", what, err)
			}
		}
		e.Seq++
		if err := r.WriteAt(e, b, off, false); err != nil {
			t.Fatalf("write after a trim: %v", err)
		}
	})
}

// TestIntentsGo: the intent of an idle region goes after flushes, not while its
// writes may be missing elsewhere; and a power loss then finds it gone.
func TestIntentsGo(t *testing.T) {
	mem := disk.NewMem(1 << 30)
	p := fsPool(t, mem)
	r := created(t, p, 64<<20)
	b := make([]byte, 4096)
	for i := range int64(8) {
		if err := r.WriteAt(Entry{Epoch: 1, Grant: 1, Seq: uint64(i + 1)}, b, i<<22, false); err != nil {
			t.Fatal(err)
		}
	}
	flush := func() {
		t.Helper()
		for range 3 * idleFlushes {
			if err := r.Flush(); err != nil {
				t.Fatal(err)
			}
		}
	}
	flush()
	if n := r.intents.total(); n != 8 {
		t.Fatalf("%d intents while nothing is committed, want 8", n)
	}
	r.Commit(1, 5)
	flush()
	if n := r.intents.total(); n != 3 {
		t.Fatalf("%d intents, want those of the 3 writes not committed", n)
	}
	if err := r.WriteAt(Entry{Epoch: 1, Grant: 1, Seq: 9, Committed: 8}, b, 0, false); err != nil {
		t.Fatal(err)
	}
	mem.Kill() // the clearing of the other intents was on disk with this one
	p = reopened(t, mem, "boot-2")
	r, err := p.Open(testReplica)
	if err != nil {
		t.Fatal(err)
	}
	if st := r.State(); fmt.Sprint(st.Suspects) != "[{0 4194304} {20971520 12582912}]" {
		t.Fatalf("suspects: %v", st.Suspects)
	}
	if got, err := r.Changed(1); err != nil || !within(holdfast.Extent{Offset: 20971520, Length: 12582912}, got) {
		t.Fatalf("suspects are not in the change map: %v, %v", got, err)
	}
}

// TestManyIntents: a volume that is never flushed does not become suspect as a
// whole.
func TestManyIntents(t *testing.T) {
	r := created(t, fsPool(t, disk.NewMem(1<<40)), 32<<30)
	b := make([]byte, 4096)
	for i := range int64(8000) {
		e := Entry{Epoch: 1, Grant: 1, Seq: uint64(i + 1), Committed: uint64(i)}
		if err := r.WriteAt(e, b, i<<22, false); err != nil {
			t.Fatal(err)
		}
	}
	if n := r.intents.total(); n > 2*manyIntents+1 {
		t.Fatalf("%d intents", n)
	}
}
