package engine

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/engine/disk"
)

// TestSnapshotContract is what every kind of pool does alike.
func TestSnapshotContract(t *testing.T) {
	eachKind(t, func(t *testing.T, p *Pool) {
		r := created(t, p, 1<<20+4096)
		s := &scene{t: t, r: r}
		s.write(1, 0, 3*granuleSize)
		s.take("a")
		s.write(2, granuleSize+4096, 8192)
		s.write(3, 1<<20, 4096) // a granule that has only one block, and was a hole
		s.must(r.Grow(2 << 20))
		s.take("b")
		s.write(4, 0, 4096)
		s.write(5, 1<<20+8192, 4096)
		s.must(r.Trim(s.next(), 2*granuleSize, granuleSize, false))
		s.value("a", granuleSize+4096, 1)
		s.value("a", 1<<20, 0)
		s.value("a", 2*granuleSize, 1)
		s.value("b", granuleSize+4096, 2)
		s.value("b", 1<<20, 3)
		s.value("b", 1<<20+8192, 0)
		s.value("", 2*granuleSize, 0)
		changed := func(from, to holdfast.SnapshotID, want string) {
			t.Helper()
			if xs, err := r.SnapshotChanged(from, to, 0, 2<<20); err != nil || fmt.Sprint(xs) != want {
				t.Fatalf("changed from %q to %q: %v, %v; want %s", from, to, xs, err, want)
			}
		}
		changed("a", "b", "[{65536 65536} {1048576 4096}]")
		changed("b", "a", "[{65536 65536} {1048576 4096}]")
		changed("b", "", "[{0 65536} {131072 65536} {1048576 65536}]")
		changed("a", "", "[{0 196608} {1048576 4096} {1056768 4096}]")
		if xs, err := r.SnapshotAllocated("a", 0, 1<<20); err != nil || fmt.Sprint(xs) != "[{0 196608}]" {
			t.Fatalf("allocated: %v, %v", xs, err)
		}
		s.refusals()
		s.must(r.RestoreRange(s.next(), "a", 0, 2<<20))
		s.value("", granuleSize+4096, 1)
		s.value("", 1<<20, 0)
		s.value("", 1<<20+8192, 0)
		s.value("b", 1<<20, 3)
		s.drop("a")
		s.drop("b")
		s.value("", 2*granuleSize, 1)
		wantSound(t, p)
	})
}

// scene is a replica with short words for what is done to it.
type scene struct {
	t   *testing.T
	r   *Replica
	seq uint64
}

func (s *scene) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *scene) next() Entry {
	s.seq++
	return Entry{Epoch: 1, Grant: 1, Seq: s.seq, Committed: s.seq - 1}
}

func (s *scene) write(v uint64, off, n int64) {
	s.t.Helper()
	s.must(s.r.WriteAt(s.next(), fill(make([]byte, n), v), off, false))
}

func (s *scene) take(id holdfast.SnapshotID) {
	s.t.Helper()
	s.must(s.r.TakeSnapshot(id, "cut-"+string(id)))
	s.must(s.r.TakeSnapshot(id, "cut-"+string(id)))
}

func (s *scene) drop(id holdfast.SnapshotID) {
	s.t.Helper()
	for more := true; more; {
		var err error
		more, err = s.r.DropSnapshot(context.Background(), id, "cut-"+string(id), 3)
		s.must(err)
	}
}

// value expects a block of a snapshot, or of the live data, to be full of v.
func (s *scene) value(id holdfast.SnapshotID, off int64, v uint64) {
	s.t.Helper()
	p := make([]byte, 4096)
	if id == "" {
		s.must(s.r.ReadAt(p, off))
	} else {
		s.must(s.r.ReadSnapshot(id, p, off))
	}
	if got := binary.LittleEndian.Uint64(p[4088:]); got != v {
		s.t.Fatalf("block at %d of %q is %d, must be %d", off, id, got, v)
	}
}

func (s *scene) refusals() {
	t, r, p := s.t, s.r, make([]byte, 4096)
	t.Helper()
	wantKind(t, "take with another cut", r.TakeSnapshot("a", "other"), holdfast.Exists)
	wantKind(t, "take without a cut", r.TakeSnapshot("c", ""), holdfast.Invalid)
	wantKind(t, "take with a path", r.TakeSnapshot("../c", "c"), holdfast.Invalid)
	wantKind(t, "read what is not there", r.ReadSnapshot("c", p, 0), holdfast.NotFound)
	wantKind(t, "read beyond the end", r.ReadSnapshot("a", p, 1<<20+4096), holdfast.OutOfRange)
	wantKind(t, "read a part of a block", r.ReadSnapshot("a", p[:100], 0), holdfast.Invalid)
	wantKind(t, "restore what is not there", r.RestoreRange(s.next(), "c", 0, 4096), holdfast.NotFound)
	_, err := r.SnapshotChanged("c", "", 0, 4096)
	wantKind(t, "changes since what is not there", err, holdfast.NotFound)
	_, err = r.DropSnapshot(context.Background(), "a", "cut-a", 0)
	wantKind(t, "drop in steps of nothing", err, holdfast.Invalid)
	if more, err := r.DropSnapshot(context.Background(), "a", "other", 1); more || err != nil {
		t.Fatalf("drop of another cut: %v, %v", more, err)
	}
	if n := len(r.Snapshots()); n != 2 {
		t.Fatalf("%d snapshots, must be 2", n)
	}
}

// TestSnapshotUnderLoad reads and drops snapshots while first writes to their
// granules go on: what is read never changes.
func TestSnapshotUnderLoad(t *testing.T) {
	eachKind(t, func(t *testing.T, p *Pool) {
		const size, rounds = 8 << 20, 4
		s := &scene{t: t, r: created(t, p, size)}
		s.write(1, 0, 1<<20)
		s.write(1, 5<<20, 1<<20)
		want, err := s.r.Hash(0, size)
		s.must(err)
		s.take("first")
		s.must(p.CreateFrom(context.Background(), CloneOptions{Volume: testVolume, Replica: "clone", SizeBytes: size, Origin: testReplica, Snapshot: "first"}))
		clone, err := p.Open("clone")
		s.must(err)
		var seq atomic.Uint64
		for round := range rounds {
			id := holdfast.SnapshotID(fmt.Sprint("s", round))
			s.must(s.r.TakeSnapshot(id, "c"))
			var wg sync.WaitGroup
			var left atomic.Int32
			for w := range 6 { // each has blocks of its own in every granule
				left.Add(1)
				wg.Go(func() {
					defer left.Add(-1)
					b := fill(make([]byte, 4096), uint64(round*10+w))
					for _, g := range rand.Perm(size / int(granuleSize)) {
						n := seq.Add(1)
						e := Entry{Epoch: 1, Grant: 2, Seq: n, Committed: n - min(n, 64)}
						if err := s.r.WriteAt(e, b, int64(g)*granuleSize+int64(w)*4096, false); err != nil {
							t.Error(err)
						}
					}
				})
			}
			check := func(what string, hash func(off, n int64) ([]Hash, error)) {
				wg.Go(func() {
					for left.Load() > 0 {
						got, err := hash(0, size)
						if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
							t.Errorf("%s is not what it was: %v", what, err)
							return
						}
					}
				})
			}
			check("the snapshot", func(off, n int64) ([]Hash, error) { return s.r.HashSnapshot("first", off, n) })
			check("the clone", clone.Hash)
			if round > 0 {
				wg.Go(func() {
					for more := true; more; {
						var err error
						if more, err = s.r.DropSnapshot(context.Background(), holdfast.SnapshotID(fmt.Sprint("s", round-1)), "c", 5); err != nil {
							t.Error(err)
							return
						}
					}
				})
			}
			wg.Go(func() {
				if _, err := clone.Independent(context.Background(), 20); err != nil {
					t.Error(err)
				}
			})
			wg.Wait()
		}
		wantSound(t, p)
		s.must(clone.Close())
	})
}

// TestSnapshotFull: a pool that is full, or has given snapshots all they may
// take, refuses a first write as any other, changes nothing, and goes on later.
func TestSnapshotFull(t *testing.T) {
	mem := disk.NewMem(64 << 20)
	if _, err := FormatFS(mem, testIdentity()); err != nil {
		t.Fatal(err)
	}
	p, err := OpenFS(FSOptions{FS: mem, Memory: mem.Volatile(), Cluster: testCluster, BootID: "b", ReserveBytes: 1 << 20, SnapshotPercent: 10})
	if err != nil {
		t.Fatal(err)
	}
	s := &scene{t: t, r: created(t, p, 40<<20)}
	s.write(1, 0, 40<<20)
	before, err := mem.Usage()
	s.must(err)
	s.take("a")
	refused := 0
	for off := int64(0); off < 40<<20; off += 4096 {
		switch err := s.r.WriteAt(s.next(), fill(make([]byte, 4096), 2), off, false); {
		case errors.Is(err, holdfast.NoSpace):
			refused++
			s.value("", off, 1)
		case err != nil:
			t.Fatal(err)
		}
		s.value("a", off, 1)
	}
	if refused == 0 {
		t.Fatal("no write was refused")
	}
	wantKind(t, "take beyond the limit", s.r.TakeSnapshot("b", "c"), holdfast.NoSpace)
	wantSound(t, p)
	s.drop("a")
	if after, err := mem.Usage(); err != nil || after.FreeBytes < before.FreeBytes-64<<10 {
		t.Fatalf("%d bytes are free, were %d before the snapshot: %v", after.FreeBytes, before.FreeBytes, err)
	}
	s.write(3, 0, 40<<20)
	s.take("b")
	s.value("b", 39<<20, 3)
	// Without room for another block nothing shared can be overwritten.
	u, err := mem.Usage()
	s.must(err)
	mem.SetCapacity(u.TotalBytes - u.FreeBytes + 1<<20 + 512<<10)
	p.space.forget()
	err = s.r.WriteAt(s.next(), fill(make([]byte, 1<<20), 4), 0, false)
	wantKind(t, "overwrite what is shared on a full pool", err, holdfast.NoSpace)
	s.value("", 0, 3)
	s.write(5, 4096, 4096) // for which there is room
	s.value("b", 0, 3)
	s.value("b", 4096, 3)
	if err := s.r.Err(); err != nil {
		t.Fatal(err)
	}
}

// TestCloneKeepsOrigin: neither the snapshot nor the origin goes while a clone
// reads from them, also when the origin is closed and the pool was closed.
func TestCloneKeepsOrigin(t *testing.T) {
	ctx := context.Background()
	eachCrash(t, func(t *testing.T, _ *disk.Mem, _ *disk.Rules, p *Pool, cut func(bool) *Replica) {
		s := &scene{t: t, r: created(t, p, 1<<20)}
		s.write(1, 0, 1<<20)
		s.take("a")
		o := CloneOptions{Volume: testVolume, Replica: "clone", SizeBytes: 2 << 20, Origin: testReplica, Snapshot: "a"}
		small, none := o, o
		small.SizeBytes, none.Snapshot = 4096, "b"
		wantKind(t, "a clone that is too small", p.CreateFrom(ctx, small), holdfast.Invalid)
		wantKind(t, "a clone of nothing", p.CreateFrom(ctx, none), holdfast.NotFound)
		s.must(p.CreateFrom(ctx, o))
		s.must(p.CreateFrom(ctx, o))
		_, err := s.r.DropSnapshot(ctx, "a", "cut-a", 1)
		wantKind(t, "drop what a clone needs", err, holdfast.Busy)
		if !strings.Contains(err.Error(), "replica clone") {
			t.Fatalf("the clone is not named: %v", err)
		}
		s.write(2, 0, 1<<20)
		s.must(s.r.Flush())
		s.r = cut(true)
		p = s.r.pool
		s.must(s.r.Close())
		wantKind(t, "remove what a clone needs", p.Remove(ctx, testReplica), holdfast.Busy)
		clone, err := p.Open("clone")
		s.must(err)
		c := &scene{t: t, r: clone}
		c.value("", 1<<20-4096, 1)
		c.value("", 1<<20, 0)
		c.write(3, 1<<20-4096, 8192)
		for more := true; more; {
			more, err = clone.Independent(ctx, 3)
			s.must(err)
		}
		s.must(p.Remove(ctx, testReplica))
		c.value("", 0, 1)
		c.value("", 1<<20, 3)
		wantSound(t, p)
	})
}

// TestOldReplica: one that never had a snapshot has, once it is closed, the first
// version's meta; one that has, or is open or was killed, says so with a version
// that older releases refuse.
func TestOldReplica(t *testing.T) {
	mem := disk.NewMem(1 << 30)
	p := fsPool(t, mem)
	s := &scene{t: t, r: created(t, p, 1<<20)}
	version := func(want string) {
		t.Helper()
		data, err := disk.ReadFile(mem, replicaPath(testReplica)+"/"+metaFile, 1<<20)
		if err != nil || !strings.HasPrefix(string(data), "holdfast replica "+want+" ") {
			t.Fatalf("meta begins with %.30q, %v; must be %s", data, err, want)
		}
	}
	reopen := func() {
		t.Helper()
		var err error
		if s.r, err = p.Open(testReplica); err != nil {
			t.Fatal(err)
		}
		version("v3") // while it is open: its files lack what is in memory
	}
	shut := func() {
		t.Helper()
		if err := s.r.Close(); err != nil {
			t.Fatal(err)
		}
	}
	version("v3")
	shut()
	version("v1")
	reopen()
	s.take("a")
	shut()
	version("v2")
	reopen()
	s.drop("a")
	shut()
	version("v2") // its numbers of files are used up
}

// TestSnapshotErrors: an error of the disk while old content is kept fails the
// replica, and the snapshot is what it was.
func TestSnapshotErrors(t *testing.T) {
	for _, op := range []disk.Op{disk.OpClone, disk.OpMapped, disk.OpAllocate} {
		eachCrash(t, func(t *testing.T, _ *disk.Mem, rules *disk.Rules, p *Pool, cut func(bool) *Replica) {
			s := &scene{t: t, r: created(t, p, 1<<20)}
			s.write(1, 0, 4096)
			s.write(1, 8192, 4096)
			s.take("a")
			rules.Add(disk.Rule{Op: op, Path: ".snapshot", Count: 1, Errno: syscall.EIO})
			if op == disk.OpMapped {
				rules.Add(disk.Rule{Op: op, Path: dataFile, Count: 1, Errno: syscall.EIO})
			}
			err := s.r.WriteAt(s.next(), fill(make([]byte, 4096), 2), 0, false)
			wantKind(t, "a write whose old content cannot be kept", err, holdfast.Corrupt)
			rules.Clear()
			s.r = cut(true)
			s.value("a", 0, 1)
			s.value("", 0, 1)
			s.write(2, 0, 4096)
			s.value("a", 0, 1)
		})
	}
}

// TestUnfinishedStaysGone: what was taken over in part when the power went is
// removed for good, so that it does not count after the next crash either.
func TestUnfinishedStaysGone(t *testing.T) {
	eachCrash(t, func(t *testing.T, _ *disk.Mem, rules *disk.Rules, p *Pool, cut func(bool) *Replica) {
		s := &scene{t: t, r: created(t, p, 1<<20)}
		for off := int64(0); off < granuleSize; off += 8192 {
			s.write(1, off, 4096)
		}
		s.take("a")
		rules.Add(disk.Rule{Op: disk.OpPunch, Path: ".snapshot", Errno: syscall.EIO})
		err := s.r.WriteAt(s.next(), fill(make([]byte, 4096), 2), 0, false)
		wantKind(t, "a write whose old content is kept in part", err, holdfast.Corrupt)
		cut(true)
		s.r = cut(false)
		for off := int64(0); off < granuleSize; off += 8192 {
			s.value("a", off, 1)
		}
	})
}
