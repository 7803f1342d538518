package engine

// Sharing a large range costs as much as a small one if it is in one piece. So a
// first touch shares what lies around its granule along, as far as nobody changed
// it since the target was taken: the first touches there find their old content
// in the snapshot's file, and have nothing to share. Such granules are *ahead*:
// the file has them, but they are not held, as they are not changed. What a file
// has of a granule is always the snapshot's content of it, held or not; after a
// crash held are those whose blocks are others now, see chain.rebuild.

// aheadArea is how many granules are shared at once, at most: 4 MiB.
const aheadArea = 64

// allAhead says whether the target's file has all of [first, last] already.
func (c *chain) allAhead(first, last int64) bool {
	if c.target == nil || c.base != nil {
		return false
	}
	for g := first; g <= last; g++ {
		if !c.ahead.has(g) {
			return false
		}
	}
	return true
}

// shareAround makes the target hold [first, last], which nobody touched, and
// shares what is around them ahead. It gives the ranges held now. It is done in
// turns (see turns), and a granule is touched in one before it is changed: so what
// is shared here does not change meanwhile.
func (c *chain) shareAround(first, last int64, trim bool) ([][2]int64, error) {
	l, err := c.lotAround(first, last)
	if err != nil {
		return nil, err
	}
	empty, err := c.target.fetch(c.data, l)
	if err != nil {
		return nil, err
	}
	for g := l.first; g <= l.last; g++ {
		if (g < first || g > last) && !empty(g) {
			c.ahead.add(g, g)
		}
	}
	return c.target.hold(first, last, empty, trim)
}

// lotAround chooses what is shared with [first, last]. Each piece costs as much as
// the rest of a first touch, and so does listing many of them; what is shared for
// nobody is lost. So neighbours come along where they are in few pieces, and the
// more pieces, the more granules of the area were touched before. A clone that
// depends on an origin shares nothing ahead: what it does not own is not in its
// data.
func (c *chain) lotAround(first, last int64) (lot, error) {
	l, err := c.lotOf(first, last)
	own := int64(len(l.pieces))
	if err != nil || c.base != nil || own > 2*(last-first+1) {
		return l, err
	}
	most := int64(1)
	for g, to := aligned(first, last, aheadArea, c.touched.n); g <= to; g++ {
		if c.touched.has(g) {
			most += 2
		}
	}
	free := func(g int64) bool { return !c.touched.has(g) && !c.ahead.has(g) }
	for n := int64(4); n <= aheadArea; n *= 4 {
		lo, hi := aligned(first, last, n, c.touched.n)
		from, to := first, last
		for from > lo && free(from-1) {
			from--
		}
		for to < hi && free(to+1) {
			to++
		}
		if from == l.first && to == l.last {
			continue
		}
		wider, err := c.lotOf(from, to)
		more, granules := int64(len(wider.pieces))-own, (to-from)-(last-first)
		if err != nil || more > min(most, granules/2+1) {
			return l, err
		}
		l = wider
	}
	return l, nil
}

func (c *chain) lotOf(first, last int64) (lot, error) {
	x := granuleExtent(first, last, c.target.meta.SizeBytes)
	pieces, err := c.data.Mapped(x.Offset, x.Length)
	return lot{first, last, pieces}, err
}

// aligned widens [first, last] to whole runs of n, up to the end of a set.
func aligned(first, last, n, end int64) (from, to int64) {
	return first / n * n, min((last/n+1)*n, end) - 1
}
