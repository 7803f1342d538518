package engine

import (
	"cmp"
	"slices"

	"github.com/holdfast-storage/holdfast"
)

// merge sorts extents and joins those that touch; the argument is not changed.
func merge(xs []holdfast.Extent) []holdfast.Extent {
	if len(xs) == 0 {
		return nil
	}
	s := slices.Clone(xs)
	slices.SortFunc(s, func(a, b holdfast.Extent) int { return cmp.Compare(a.Offset, b.Offset) })
	out := s[:1]
	for _, x := range s[1:] {
		last := &out[len(out)-1]
		if x.Offset <= last.End() {
			last.Length = max(last.End(), x.End()) - last.Offset
		} else {
			out = append(out, x)
		}
	}
	return out
}

// widen rounds extents outward to units, and merges them.
func widen(xs []holdfast.Extent, unit int64) []holdfast.Extent {
	out := make([]holdfast.Extent, 0, len(xs))
	for _, x := range xs {
		from := x.Offset / unit * unit
		to := (x.End() + unit - 1) / unit * unit
		out = append(out, holdfast.Extent{Offset: from, Length: to - from})
	}
	return merge(out)
}

// within says whether all of x lies in the sorted, merged extents.
func within(x holdfast.Extent, xs []holdfast.Extent) bool {
	i, found := slices.BinarySearchFunc(xs, x.Offset, func(e holdfast.Extent, off int64) int { return cmp.Compare(e.Offset, off) })
	if !found {
		i--
	}
	return i >= 0 && x.Offset >= xs[i].Offset && x.End() <= xs[i].End()
}

// regionsOf gives the first and last region that [off, off+n) touches.
func regionsOf(off, n int64) (first, last int64) {
	return off / regionSize, (off + n - 1) / regionSize
}
