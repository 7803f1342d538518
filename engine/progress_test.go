package engine

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"testing"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/engine/disk"
)

const progressUnit = 1 << 20 // what the repair in these tests copies at once

// repaired is a replica under repair: what is copied goes to a unit after the
// other, live writes to the last block of any unit.
type repaired struct {
	t    *testing.T
	r    *Replica
	seq  uint64
	live map[int64]byte // by unit: the last live write there
}

func unitBytes(unit int64) []byte { return bytes.Repeat([]byte{byte(unit + 1)}, int(blockSize)) }

// copied writes three blocks of a unit as a repair does.
func (x *repaired) copied(unit int64) error {
	for b := range int64(3) {
		x.seq++
		e := Entry{Epoch: 2, Grant: 1, Seq: x.seq, Committed: x.seq - 1, Copied: true}
		if err := x.r.WriteAt(e, unitBytes(unit), unit*progressUnit+b*blockSize, false); err != nil {
			return err
		}
	}
	return nil
}

// write is one of the application's writes.
func (x *repaired) write(unit int64, v byte) error {
	x.seq++
	e := Entry{Epoch: 2, Grant: 1, Seq: x.seq}
	if err := x.r.WriteAt(e, bytes.Repeat([]byte{v}, int(blockSize)), (unit+1)*progressUnit-blockSize, false); err != nil {
		return err
	}
	x.live[unit] = v
	return nil
}

func upTo(units int64) Progress {
	return Progress{Since: 1, Parts: []ProgressPart{{End: units * progressUnit, AsOf: 2}}}
}

// wantClaimed fails if something before the end of the progress is neither as it
// was written nor named by the tail or the suspects.
func (x *repaired) wantClaimed(when string) {
	x.t.Helper()
	st := x.r.State()
	named := merge(append(st.Tail, st.Suspects...))
	end := int64(0)
	if n := len(st.Progress.Parts); n > 0 {
		end = st.Progress.Parts[n-1].End
	}
	want := func(off int64, data []byte) {
		got := make([]byte, len(data))
		if err := x.r.ReadAt(got, off); err != nil {
			x.t.Fatal(err)
		}
		if !bytes.Equal(got, data) && !within(holdfast.Extent{Offset: off, Length: int64(len(data))}, named) {
			x.t.Fatalf("%s: the block at %d is lost, before the progress of %d, and not among %v", when, off, end, named)
		}
	}
	for unit := range end / progressUnit {
		for b := range int64(3) {
			want(unit*progressUnit+b*blockSize, unitBytes(unit))
		}
		if v := x.live[unit]; v != 0 {
			want((unit+1)*progressUnit-blockSize, bytes.Repeat([]byte{v}, int(blockSize)))
		}
	}
}

// TestProgressClaimsOnlyWhatIsDurable ends the process, with or without a power
// loss, at every operation of the disk while a replica is repaired and its
// progress is kept.
func TestProgressClaimsOnlyWhatIsDurable(t *testing.T) {
	for _, power := range []bool{false, true} {
		kept := map[int]bool{}
		for at := 0; ; at++ {
			left, ended := progressCrash(t, at, power)
			kept[left] = true
			if ended {
				break
			}
		}
		for parts := range 3 {
			if !kept[parts*4] {
				t.Errorf("power loss %v: no crash left a progress of %d units, only %v", power, parts*4, kept)
			}
		}
	}
}

// progressCrash repairs until operation at of the disk, and says of how many
// units there was progress afterwards, and whether the repair ended before.
func progressCrash(t *testing.T, at int, power bool) (units int, ended bool) {
	t.Helper()
	mem := disk.NewMem(1 << 30)
	f := &fuse{left: -1, kill: mem.Kill}
	fs := disk.NewFaulty(mem, f.hook)
	x := &repaired{t: t, r: created(t, fsPool(t, fs), 16*progressUnit), live: map[int64]byte{}}
	f.left = at
	atLeast, err := x.twoSteps()
	when := fmt.Sprintf("ended at operation %d, power loss %v, progress of %d returned (%v)", at, power, atLeast, err)
	boot := "boot-1"
	mem.Kill()
	if power {
		mem.Crash(rand.New(rand.NewPCG(uint64(at), 7)))
		boot = "boot-2"
	}
	p := reopened(t, mem, boot)
	if x.r, err = p.Open(testReplica); err != nil {
		t.Fatalf("%s: %v", when, err)
	}
	x.wantClaimed(when)
	wantSound(t, p)
	g := x.r.State().Progress
	for n := int64(0); n <= 8; n += 4 {
		if n == 0 && len(g.Parts) == 0 || reflect.DeepEqual(g, upTo(n)) {
			units = int(n)
			if n < atLeast {
				t.Fatalf("%s: %+v is left", when, g)
			}
			return units, !f.blown
		}
	}
	t.Fatalf("%s: the progress is %+v", when, g)
	return 0, false
}

// twoSteps copies 4 units, keeps the progress, 4 more, and again; it returns of
// how many the progress was kept.
func (x *repaired) twoSteps() (kept int64, err error) {
	for step := range int64(2) {
		for unit := 4 * step; unit < 4*step+4; unit++ {
			if err := x.copied(unit); err != nil {
				return kept, err
			}
		}
		for unit := range int64(6) { // also where no progress is yet
			if err := x.write(unit, byte(100+10*step+unit)); err != nil {
				return kept, err
			}
		}
		if err := x.r.SetProgress(upTo(4*step + 4)); err != nil {
			return kept, err
		}
		kept = 4*step + 4
	}
	for unit := int64(8); unit < 10; unit++ {
		if err := x.copied(unit); err != nil {
			return kept, err
		}
	}
	return kept, x.write(1, 200)
}

// TestProgressNeedsTheFlush: what cannot be made durable is not claimed.
func TestProgressNeedsTheFlush(t *testing.T) {
	mem := disk.NewMem(1 << 30)
	var rules disk.Rules
	x := &repaired{t: t, r: created(t, fsPool(t, disk.NewFaulty(mem, rules.Hook)), 16*progressUnit), live: map[int64]byte{}}
	if err := x.copied(0); err != nil {
		t.Fatal(err)
	}
	rules.Add(disk.Rule{Op: disk.OpSync, Path: dataFile, Errno: 5})
	if err := x.r.SetProgress(upTo(1)); err == nil {
		t.Fatal("progress was kept although the data could not be flushed")
	}
	if g := x.r.State().Progress; len(g.Parts) != 0 {
		t.Fatalf("progress: %+v", g)
	}
	mem.Kill()
	r, err := reopened(t, mem, "boot-1").Open(testReplica)
	if err == nil && len(r.State().Progress.Parts) != 0 {
		t.Fatalf("progress after opening it again: %+v", r.State().Progress)
	}
	if err != nil && !errors.Is(err, holdfast.Corrupt) {
		t.Fatal(err)
	}
}

// TestProgressAndSuspects: what the repair has compared is suspect no more, what
// lies across its end or behind it still is, also after a second power loss; and
// when the replica is in sync nothing is left of it.
func TestProgressAndSuspects(t *testing.T) {
	mem := disk.NewMem(1 << 30)
	r := created(t, fsPool(t, mem), 64<<20)
	b := make([]byte, blockSize)
	for i, region := range []int64{0, 2, 4, 6} {
		if err := r.WriteAt(Entry{Epoch: 1, Grant: 1, Seq: uint64(i + 1)}, b, region*regionSize, false); err != nil {
			t.Fatal(err)
		}
	}
	lost := func(boot string, seed uint64) {
		t.Helper()
		mem.Kill()
		mem.Crash(rand.New(rand.NewPCG(seed, 1)))
		var err error
		if r, err = reopened(t, mem, boot).Open(testReplica); err != nil {
			t.Fatal(err)
		}
	}
	suspects := func(regions ...int64) {
		t.Helper()
		var want []holdfast.Extent
		for _, x := range regions {
			want = append(want, holdfast.Extent{Offset: x * regionSize, Length: regionSize})
		}
		if got := r.State().Suspects; !reflect.DeepEqual(merge(got), want) {
			t.Fatalf("suspects %v, want regions %v", got, regions)
		}
	}
	lost("boot-2", 1)
	suspects(0, 2, 4, 6)
	g := Progress{Since: 1, Parts: []ProgressPart{{End: 4*regionSize + blockSize, AsOf: 2}, {End: 6 * regionSize, AsOf: 1}}}
	if err := r.SetProgress(g); err != nil {
		t.Fatal(err)
	}
	suspects(4, 6)
	lost("boot-3", 2)
	suspects(4, 6)
	if got := r.State().Progress; !reflect.DeepEqual(got, g) {
		t.Fatalf("progress %+v, want %+v", got, g)
	}
	if err := r.Settle(1, 0); err != nil {
		t.Fatal(err)
	}
	lost("boot-4", 3)
	if st := r.State(); len(st.Progress.Parts) != 0 || len(st.Suspects) != 0 {
		t.Fatalf("left after it was in sync: %+v, suspects %v", st.Progress, st.Suspects)
	}
}
