package engine

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/engine/disk"
)

// spoil takes a replica's memory away from it as a machine may that has lost none
// of its disk: all, a piece of it, or a piece is that of an opening long ago.
func spoil(t testing.TB, rng *rand.Rand, y disk.FS, rep holdfast.ReplicaID) string {
	t.Helper()
	dir := string(rep)
	pieces, err := y.List(dir)
	if err != nil || len(pieces) == 0 {
		return "no memory to spoil"
	}
	one := path.Join(dir, pieces[rng.IntN(len(pieces))].Name)
	switch rng.IntN(3) {
	case 0:
		if err := disk.RemoveAll(y, dir); err != nil {
			t.Fatal(err)
		}
		return "removed " + dir
	case 1:
		if err := y.Remove(one); err != nil {
			t.Fatal(err)
		}
		return "removed " + one
	}
	f, err := y.Open(one, 0)
	if err != nil {
		t.Fatal(err)
	}
	head := make([]byte, memoryHeader)
	encodeMemoryHeader(head, string(holdfast.NewPoolID()), path.Base(one))
	if _, err := f.WriteAt(head, 0, false); err != nil {
		t.Fatal(err)
	}
	return "made stale " + one
}

// TestMemory: what was written and neither flushed nor committed is known after a
// kill by the memory; without that, all that has an intent is suspect and changed,
// and the boot is another one; after a good close the files have it all.
func TestMemory(t *testing.T) {
	x := holdfast.Extent{Offset: 5 << 20, Length: 8192}
	region := holdfast.Extent{Offset: 4 << 20, Length: 4 << 20}
	for seed := range uint64(12) {
		for _, how := range []string{"killed", "spoiled", "closed", "closed and spoiled"} {
			t.Run(fmt.Sprint(how, seed), func(t *testing.T) {
				mem := disk.NewMem(1 << 30)
				p := fsPool(t, mem)
				r := created(t, p, 64<<20)
				must(t, r.SetPromise(2, 1, holdfast.Record{}))
				must(t, r.WriteAt(Entry{Epoch: 1, Grant: 1, Seq: 1}, make([]byte, 8192), x.Offset, false))
				boot := r.State().Boot
				if how[0] == 'c' {
					must(t, r.Close())
				}
				mem.Kill()
				if strings.HasSuffix(how, "spoiled") {
					t.Log(spoil(t, rand.New(rand.NewPCG(seed, 9)), mem.Volatile(), testReplica))
				}
				p = reopened(t, mem, "boot-1")
				wantSound(t, p)
				r, err := p.Open(testReplica)
				must(t, err)
				st := r.State()
				changed, err := r.Changed(1)
				must(t, err)
				if how == "spoiled" {
					if fmt.Sprint(st.Suspects) != fmt.Sprint([]holdfast.Extent{region}) || len(st.Tail) != 0 || st.Boot == boot || !within(region, changed) {
						t.Fatalf("state %+v, changed %v", st, changed)
					}
				} else if len(st.Suspects) != 0 || !within(x, st.Tail) || st.Boot != boot || fmt.Sprint(changed) != fmt.Sprint([]holdfast.Extent{x}) {
					t.Fatalf("state %+v, changed %v", st, changed)
				}
				wantSound(t, p)
			})
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestMemorySpoiledAndKilled kills, at every operation, the opening of a replica
// whose memory is gone: nothing of what it must find out is forgotten.
func TestMemorySpoiledAndKilled(t *testing.T) {
	region := holdfast.Extent{Offset: 4 << 20, Length: 4 << 20}
	for at, blown := 0, true; blown; at++ {
		mem := disk.NewMem(1 << 30)
		f := &fuse{left: -1, kill: mem.Kill}
		fs := disk.NewFaulty(mem, f.hook)
		r := created(t, fsPool(t, fs), 64<<20)
		must(t, r.SetPromise(2, 1, holdfast.Record{}))
		must(t, r.WriteAt(Entry{Epoch: 1, Grant: 1, Seq: 1}, make([]byte, 8192), 5<<20, false))
		boot := r.State().Boot
		mem.Kill()
		spoil(t, rand.New(rand.NewPCG(uint64(at), 9)), mem.Volatile(), testReplica)
		p := reopened(t, fs, "boot-1")
		f.left = at
		_, err := p.Open(testReplica)
		if blown = f.blown; !blown {
			must(t, err)
		}
		for _, power := range []bool{false, at%2 == 0} {
			*f = fuse{left: -1}
			if mem.Kill(); power {
				mem.Crash(rand.New(rand.NewPCG(uint64(at), 3)))
			}
			p = reopened(t, fs, "boot-1")
			r, err = p.Open(testReplica)
			must(t, err)
			changed, err := r.Changed(1)
			must(t, err)
			if st := r.State(); !within(region, st.Suspects) || st.Boot == boot || !within(region, changed) {
				t.Fatalf("stopped at %d, power loss %v: %+v, changed %v", at, power, st, changed)
			}
			wantSound(t, p)
		}
	}
}

// TestFilesOfAnOlderRelease: what a release left that had no memory, closed or
// killed, is in the files, and is believed.
func TestFilesOfAnOlderRelease(t *testing.T) {
	mem := disk.NewMem(1 << 30)
	p := fsPool(t, mem)
	r := created(t, p, 64<<20)
	must(t, r.SetPromise(2, 1, holdfast.Record{}))
	must(t, r.WriteAt(Entry{Epoch: 1, Grant: 1, Seq: 1}, make([]byte, 4096), 0, false))
	must(t, r.Close())
	// Its tail and change maps were mapped files: a write more.
	dir := replicaPath(testReplica)
	patch := func(name string, off int64, p []byte) {
		t.Helper()
		f, err := mem.Open(path.Join(dir, name), 0)
		must(t, err)
		_, err = f.WriteAt(p, off, false)
		must(t, err)
	}
	y, err := memory{fs: disk.NewMem(1 << 20), dir: "r"}.fresh()
	must(t, err)
	tl, err := newTail(y, nil, 64<<20)
	must(t, err)
	tl.add(Entry{Epoch: 1, Grant: 1, Seq: 2}, 4096, 4096)
	patch(tailFile, 0, bytes.Clone(tl.mem))
	patch(changesDir+"/"+mapName(1), mapHeader, []byte{3})
	mem.Kill()
	p = reopened(t, mem, "boot-1")
	r, err = p.Open(testReplica)
	must(t, err)
	changed, err := r.Changed(1)
	must(t, err)
	if st := r.State(); fmt.Sprint(st.Tail) != "[{4096 4096}]" || len(st.Suspects) != 0 || fmt.Sprint(changed) != "[{0 8192}]" {
		t.Fatalf("state %+v, changed %v", st, changed)
	}
}

// TestMemoryOfRemovedReplicas: it goes with the replica, and when a pool is opened
// that has it no more.
func TestMemoryOfRemovedReplicas(t *testing.T) {
	mem := disk.NewMem(1 << 30)
	p := fsPool(t, mem)
	y := mem.Volatile()
	left := func(want int) {
		t.Helper()
		if es, err := y.List("."); err != nil || len(es) != want {
			t.Fatalf("memory: %v, %v", es, err)
		}
	}
	created(t, p, 1<<20)
	left(1)
	mem.Kill()
	must(t, y.Mkdir("stranger"))
	p = reopened(t, mem, "boot-1")
	left(1)
	must(t, p.Remove(t.Context(), testReplica))
	left(0)
	r := created(t, p, 1<<20)
	left(1)
	must(t, r.Close())
	left(0)
}

// A memory that somebody cuts short is a fault of the processor for who uses it:
// the replica fails, and not the process.
func TestTruncatedMemoryFailsTheReplicaAndNotTheProcess(t *testing.T) {
	for name, use := range map[string]func(*Replica) error{
		"write": func(r *Replica) error {
			return r.WriteAt(Entry{Epoch: 1, Grant: 1, Seq: 2}, make([]byte, 4096), 0, false)
		},
		"commit": func(r *Replica) error { r.Commit(1, 1); return r.Err() },
		"mark":   func(r *Replica) error { return r.Mark(1, []holdfast.Extent{{Offset: 0, Length: 4096}}) },
		"settle": func(r *Replica) error { return r.Settle(2, 0) },
	} {
		t.Run(name, func(t *testing.T) {
			image, root, _ := formatted(t)
			p := mustOpenPool(t, image, root)
			r := created(t, p, 16<<20)
			must(t, r.WriteAt(Entry{Epoch: 1, Grant: 1, Seq: 1}, make([]byte, 4096), 0, false))
			pieces, _ := filepath.Glob(filepath.Join(memoryRoot(root), "*", string(testReplica), "*"))
			if len(pieces) != 2 {
				t.Fatalf("pieces: %v", pieces)
			}
			for _, x := range pieces {
				must(t, os.Truncate(x, 0))
			}
			wantKind(t, name, use(r), holdfast.Corrupt)
			wantKind(t, "the replica", r.Err(), holdfast.Corrupt)
			must(t, r.Close())
			r, err := p.Open(testReplica)
			must(t, err)
			if st := r.State(); !within(holdfast.Extent{Offset: 0, Length: 4 << 20}, st.Suspects) {
				t.Errorf("opened again: %+v", st)
			}
			wantSound(t, p)
			_ = p.Close()
		})
	}
}
