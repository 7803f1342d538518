package engine

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"
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
	p, err := OpenFS(FSOptions{FS: fs, Memory: memoryOf(fs), Cluster: testCluster, BootID: boot})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// memoryOf is the memory of the machine that has a disk in memory.
func memoryOf(fs disk.FS) disk.FS {
	if v, ok := fs.(interface{ Volatile() disk.FS }); ok {
		return v.Volatile()
	}
	return nil
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
