package replication

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/holdfast-storage/holdfast"
)

const setUnits = 96 // of 512 bytes

func drawExtents(t *rapid.T, name string) []holdfast.Extent {
	n := rapid.IntRange(0, 8).Draw(t, name)
	var xs []holdfast.Extent
	for range n {
		off := rapid.Int64Range(0, setUnits-1).Draw(t, "offset")
		xs = append(xs, holdfast.Extent{Offset: off * 512, Length: rapid.Int64Range(0, setUnits-off).Draw(t, "length") * 512})
	}
	return xs
}

// cells says of every 512 bytes whether they are in a list.
func cells(xs []holdfast.Extent) (in [setUnits]bool) {
	for _, x := range xs {
		for c := x.Offset / 512; c < x.End()/512; c++ {
			in[c] = true
		}
	}
	return in
}

// normal checks that a set is sorted, and that its extents do not touch.
func normal(t *rapid.T, s extentSet) {
	for i, x := range s {
		if x.Length <= 0 || i > 0 && x.Offset <= s[i-1].End() {
			t.Fatalf("not a normal set: %v", s)
		}
	}
}

func TestSetsAreSets(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := drawExtents(t, "a"), drawExtents(t, "b")
		u := union(a, b)
		normal(t, u)
		m := union(a).minus(union(b))
		normal(t, m)
		ca, cb, cu, cm := cells(a), cells(b), cells(u), cells(m)
		var bytes int64
		for i := range ca {
			if cu[i] != (ca[i] || cb[i]) || cm[i] != (ca[i] && !cb[i]) {
				t.Fatalf("cell %d: a %v, b %v, union %v, minus %v", i, ca[i], cb[i], cu[i], cm[i])
			}
			if cu[i] {
				bytes += 512
			}
		}
		if u.bytes() != bytes {
			t.Fatalf("%d bytes, not %d", u.bytes(), bytes)
		}
	})
}

func TestWidenAndCoarsenKeepEverythingBelowTheLimit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		u := union(drawExtents(t, "a"))
		limit := rapid.Int64Range(0, setUnits).Draw(t, "limit") * 512
		unit := rapid.SampledFrom([]int64{512, 1024, 4096, 16384}).Draw(t, "unit")
		w := u.widen(unit, limit)
		normal(t, w)
		cu, cw := cells(u), cells(w)
		for i := range cu {
			at := int64(i) * 512
			near := false
			for j := at / unit * unit / 512; j < (at/unit+1)*unit/512 && j < setUnits; j++ {
				near = near || cu[j]
			}
			if cw[i] != (near && at < limit) {
				t.Fatalf("cell %d: %v in %v widened by %d to %v", i, cw[i], u, unit, w)
			}
		}
		most := rapid.IntRange(1, 4).Draw(t, "most")
		c := u.coarsen(most, setUnits*512)
		if normal(t, c); len(c) > most || len(u.minus(c)) > 0 {
			t.Fatalf("%v is not a superset of %v with at most %d", c, u, most)
		}
	})
}

func TestTakeGivesEverythingOnceInAlignedPieces(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		u := union(drawExtents(t, "a"))
		limit := rapid.SampledFrom([]int64{512, 2048, 8192}).Draw(t, "limit")
		rest := append(extentSet(nil), u...)
		var got []holdfast.Extent
		for piece, ok := rest.take(limit); ok; piece, ok = rest.take(limit) {
			if piece.Length <= 0 || piece.Offset/limit != (piece.End()-1)/limit {
				t.Fatalf("%v crosses a multiple of %d", piece, limit)
			}
			if n := len(got); n > 0 && got[n-1].End() > piece.Offset {
				t.Fatalf("%v after %v", piece, got[n-1])
			}
			got = append(got, piece)
		}
		if cells(got) != cells(u) {
			t.Fatalf("%v was given of %v", got, u)
		}
	})
}

// TestRangeLock: nobody holds what conflicts, whoever is first gets a range
// first, and everybody gets it in the end.
func TestRangeLock(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var l rangeLock
		var held, queue []*hold
		grants := 0
		grant := func(h *hold) {
			grants++
			for _, o := range held {
				if h.conflicts(o) {
					t.Fatalf("%v is given while %v is held", h.ext, o.ext)
				}
			}
			for i, o := range queue {
				if o == h {
					queue = append(queue[:i:i], queue[i+1:]...)
					break
				}
				if h.conflicts(o) {
					t.Fatalf("%v overtakes %v", h.ext, o.ext)
				}
			}
			held = append(held, h)
		}
		made := 0
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			if len(held) > 0 && rapid.Bool().Draw(t, "release") {
				i := rapid.IntRange(0, len(held)-1).Draw(t, "which")
				h := held[i]
				held = append(held[:i:i], held[i+1:]...)
				l.release(h)
				continue
			}
			off := rapid.Int64Range(0, 15).Draw(t, "offset")
			h := &hold{ext: holdfast.Extent{Offset: off, Length: rapid.Int64Range(1, 16-off).Draw(t, "length")}, exclusive: rapid.Bool().Draw(t, "exclusive")}
			h.granted = func() { grant(h) }
			made++
			queue = append(queue, h)
			if l.acquire(h) {
				grant(h)
			}
		}
		for len(held) > 0 {
			h := held[0]
			held = held[1:]
			l.release(h)
		}
		if grants != made || len(l.held)+len(l.waiting) > 0 {
			t.Fatalf("%d of %d were given; %d held, %d waiting", grants, made, len(l.held), len(l.waiting))
		}
	})
}
