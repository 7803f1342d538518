package engine

import (
	"context"
	"fmt"
	"testing"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/engine/disk"
)

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
	boot := r.State().Boot
	mem.Kill()
	f, err := mem.Volatile().Open(string(testReplica)+"/"+tailFile, 0)
	if err != nil {
		t.Fatal(err)
	}
	used, b := int64(0), make([]byte, 1)
	for b[0] == 0 {
		used++
		if _, err := f.ReadAt(b, memoryHeader+used*tailSlotSize); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.WriteAt([]byte{0xff}, memoryHeader+used*tailSlotSize+30, false); err != nil {
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
	if st := r.State(); fmt.Sprint(st.Suspects) != "[{4194304 4194304}]" || len(st.Tail) != 0 || st.Boot == boot {
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
