package engine

import (
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/engine/disk"
)

// wantChanged expects whole granules to be listed as changed between two
// snapshots, and held to be counted in the older one.
func (s *scene) wantChanged(from, to holdfast.SnapshotID, granules ...int64) {
	s.t.Helper()
	xs, err := s.r.SnapshotChanged(from, to, 0, s.r.State().SizeBytes)
	s.must(err)
	var got []int64
	for _, x := range xs {
		for g := x.Offset / granuleSize; g*granuleSize < x.End(); g++ {
			got = append(got, g)
		}
	}
	if fmt.Sprint(got) != fmt.Sprint(granules) {
		s.t.Fatalf("changed from %q to %q: granules %v, must be %v", from, to, got, granules)
	}
}

// wantHeld expects so many granules, all full of data, to count for a snapshot.
func (s *scene) wantHeld(id holdfast.SnapshotID, granules int64) {
	s.t.Helper()
	for _, i := range s.r.Snapshots() {
		if n := granules * granuleSize; i.ID == id && (i.HeldBytes != n || i.AllocatedBytes != n) {
			s.t.Fatalf("snapshot %q holds %d bytes and refers to %d, must be %d", id, i.HeldBytes, i.AllocatedBytes, n)
		}
	}
}

// TestSharedAheadIsNotHeld: what a first touch shares along with its granule needs
// no sharing later, and counts as changed only when it is, also after a crash.
func TestSharedAheadIsNotHeld(t *testing.T) {
	for _, power := range []bool{false, true} {
		eachCrash(t, func(t *testing.T, _ *disk.Mem, rules *disk.Rules, p *Pool, cut func(bool) *Replica) {
			s := &scene{t: t, r: created(t, p, 80*granuleSize)}
			s.write(1, 0, 80*granuleSize)
			s.take("a")
			s.write(2, 5*granuleSize, 4096)
			rules.Add(disk.Rule{Op: disk.OpClone, Path: ".snapshot", Errno: syscall.EIO})
			s.write(2, 7*granuleSize+8192, 4096)
			s.write(2, 63*granuleSize, 4096)
			rules.Clear()
			s.wantChanged("a", "", 5, 7, 63)
			s.wantHeld("a", 3)
			s.take("b")
			s.write(3, 8*granuleSize, granuleSize)
			s.write(3, 79*granuleSize, 4096)
			s.must(s.r.Trim(s.next(), 9*granuleSize, 8192, false))
			s.must(s.r.Flush())
			s.r = cut(power)
			s.wantChanged("a", "b", 5, 7, 63)
			s.wantChanged("b", "", 8, 9, 79)
			s.wantChanged("a", "", 5, 7, 8, 9, 63, 79)
			s.wantHeld("a", 3)
			s.wantHeld("b", 3)
			s.write(4, 10*granuleSize, 4096)
			s.wantChanged("b", "", 8, 9, 10, 79)
			for _, id := range []holdfast.SnapshotID{"a", "b"} {
				s.value(id, 8*granuleSize, 1)
				s.value(id, 9*granuleSize, 1)
				s.value(id, 10*granuleSize, 1)
			}
			s.value("a", 5*granuleSize, 1)
			s.value("b", 5*granuleSize, 2)
			s.drop("b")
			s.r = cut(power)
			s.wantChanged("a", "", 5, 7, 8, 9, 10, 63, 79)
			s.value("a", 8*granuleSize, 1)
		})
	}
}

// TestFarTouchesShareLittle: where data is in many pieces, a first touch shares
// few more than its own; all touches of an area together share a few times only.
func TestFarTouchesShareLittle(t *testing.T) {
	for seed := range uint64(20) {
		rules, shares := &disk.Rules{}, 0
		rules.Add(disk.Rule{Op: disk.OpClone, Path: ".snapshot", Before: func(disk.Call) { shares++ }})
		s := &scene{t: t, r: created(t, fsPool(t, disk.NewFaulty(disk.NewMem(1<<30), rules.Hook)), 64*granuleSize)}
		for _, first := range []int64{0, 2} { // one piece for two granules
			for g := first; g < 64; g += 4 {
				s.write(1, g*granuleSize, 2*granuleSize)
			}
		}
		s.take("a")
		for i, g := range rand.New(rand.NewPCG(seed, 1)).Perm(64) {
			s.write(2, int64(g)*granuleSize, 4096)
			ps, err := s.r.chain.target.f.Mapped(0, 64*granuleSize)
			s.must(err)
			if i == 0 && len(ps) > 2+2 { // the page that is written parts one
				t.Fatalf("seed %d: the first touch shared %d pieces", seed, len(ps))
			}
		}
		if shares > 16 {
			t.Fatalf("seed %d: 64 touches shared %d times", seed, shares)
		}
	}
}

// TestNoSpaceLeavesNoMarks: sharing several pieces that failed for lack of space
// is tried again with others; what is held then stays after a crash.
func TestNoSpaceLeavesNoMarks(t *testing.T) {
	for _, op := range []disk.Op{disk.OpClone, disk.OpAllocate} {
		eachCrash(t, func(t *testing.T, _ *disk.Mem, rules *disk.Rules, p *Pool, cut func(bool) *Replica) {
			s := &scene{t: t, r: created(t, p, 1<<20)}
			for off := int64(0); off < granuleSize; off += 8192 {
				s.write(1, off, 4096)
			}
			s.write(1, granuleSize, granuleSize)
			s.take("a")
			whole := fill(make([]byte, 2*granuleSize), 2)
			if op == disk.OpAllocate { // the marks are there, and one thing more fails
				rules.Add(disk.Rule{Op: disk.OpClone, Path: ".snapshot", Count: 1, Errno: syscall.ENOSPC})
				rules.Add(disk.Rule{Op: op, Path: ".snapshot", Skip: 1, Count: 1, Errno: syscall.ENOSPC})
				wantKind(t, "a write whose old content finds no space", s.r.WriteAt(s.next(), whole, 0, false), holdfast.NoSpace)
			} else {
				rules.Add(disk.Rule{Op: op, Path: ".snapshot", Count: 1, Errno: syscall.ENOSPC})
			}
			wantKind(t, "a write whose old content finds no space", s.r.WriteAt(s.next(), whole, 0, false), holdfast.NoSpace)
			s.value("a", 0, 1)
			s.write(2, granuleSize, 4096) // in one piece
			s.must(s.r.Flush())
			s.r = cut(true)
			s.value("a", granuleSize, 1)
			s.value("", granuleSize, 2)
			s.value("a", 0, 1)
			s.wantChanged("a", "", 1)
		})
	}
}
