package replication

import (
	"slices"

	"github.com/holdfast-storage/holdfast"
)

// extentSet is a set of bytes as sorted extents that neither overlap nor touch.
type extentSet []holdfast.Extent

// union gives the set of all bytes in any of the lists, which need no order.
func union(lists ...[]holdfast.Extent) extentSet {
	var all extentSet
	for _, l := range lists {
		all = append(all, l...)
	}
	slices.SortFunc(all, func(a, b holdfast.Extent) int {
		switch {
		case a.Offset < b.Offset:
			return -1
		case a.Offset > b.Offset:
			return 1
		}
		return 0
	})
	out := all[:0]
	for _, e := range all {
		if e.Length <= 0 {
			continue
		}
		if n := len(out); n > 0 && e.Offset <= out[n-1].End() {
			out[n-1].Length = max(out[n-1].End(), e.End()) - out[n-1].Offset
			continue
		}
		out = append(out, e)
	}
	return out
}

// minus gives what is in s and not in o.
func (s extentSet) minus(o extentSet) extentSet {
	var out extentSet
	i := 0
	for _, e := range s {
		for i < len(o) && o[i].End() <= e.Offset {
			i++
		}
		at := e.Offset
		for j := i; j < len(o) && o[j].Offset < e.End(); j++ {
			if o[j].Offset > at {
				out = append(out, holdfast.Extent{Offset: at, Length: o[j].Offset - at})
			}
			at = max(at, o[j].End())
		}
		if at < e.End() {
			out = append(out, holdfast.Extent{Offset: at, Length: e.End() - at})
		}
	}
	return out
}

// both gives what is in s and in o.
func (s extentSet) both(o extentSet) extentSet { return s.minus(s.minus(o)) }

// from cuts off what is before a place.
func (s extentSet) from(at int64) extentSet { return s.minus(extentSet{{Offset: 0, Length: at}}) }

// until cuts off what is after a place.
func (s extentSet) until(at int64) extentSet {
	return s.both(extentSet{{Offset: 0, Length: at}})
}

// widen rounds every extent outwards to a multiple of unit, within [0, limit).
func (s extentSet) widen(unit, limit int64) extentSet {
	out := make([]holdfast.Extent, 0, len(s))
	for _, e := range s {
		start := e.Offset / unit * unit
		end := min((e.End()+unit-1)/unit*unit, limit)
		if start < end {
			out = append(out, holdfast.Extent{Offset: start, Length: end - start})
		}
	}
	return union(out)
}

// coarsen gives a superset of at most so many extents, within [0, limit).
func (s extentSet) coarsen(extents int, limit int64) extentSet {
	for unit := int64(holdfast.RegionSize); len(s) > extents; unit *= 2 {
		s = s.widen(unit, limit)
	}
	return s
}

// bytes counts the set.
func (s extentSet) bytes() int64 {
	var n int64
	for _, e := range s {
		n += e.Length
	}
	return n
}

// take cuts up to limit bytes of one extent off the front, ending at a multiple
// of limit, so that pieces of the same place always have the same borders.
func (s *extentSet) take(limit int64) (holdfast.Extent, bool) {
	if len(*s) == 0 {
		return holdfast.Extent{}, false
	}
	first := &(*s)[0]
	end := min(first.End(), (first.Offset/limit+1)*limit)
	piece := holdfast.Extent{Offset: first.Offset, Length: end - first.Offset}
	if end == first.End() {
		*s = (*s)[1:]
	} else {
		first.Length -= piece.Length
		first.Offset = end
	}
	return piece, true
}

// blockRange is the smallest range of whole blocks around a range of bytes.
func blockRange(off, n int64) holdfast.Extent {
	start := off / holdfast.BlockSize * holdfast.BlockSize
	return holdfast.Extent{Offset: start, Length: holdfast.RoundUp(off+n) - start}
}

// page cuts a listing to what fits into one message, from offset on.
func page(xs []holdfast.Extent, offset int64) ([]holdfast.Extent, bool) {
	i := 0
	for i < len(xs) && xs[i].End() <= offset {
		i++
	}
	xs = xs[i:]
	if len(xs) > MaxExtents {
		return xs[:MaxExtents], true
	}
	return xs, false
}

// within cuts marks to the replica's size. One that has not grown yet is shown
// marks beyond its end, too; it learns them before it is in sync.
func (r *Replica) within(marks []holdfast.Extent) []holdfast.Extent {
	return clip(marks, r.size)
}
