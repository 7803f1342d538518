package engine

import (
	"slices"

	"github.com/holdfast-storage/holdfast/engine/disk"
)

// scanHeld reads from the file which granules it holds: those with blocks but
// those with a mark, which were not finished.
func (s *snapshot) scanHeld() (held, unfinished *granules, err error) {
	n := granulesOf(s.meta.SizeBytes)
	held, unfinished = newGranules(n), newGranules(n)
	marks := markOffset(s.meta.SizeBytes, 0)
	const window = int64(4 << 30)
	for at := marks; at < markOffset(s.meta.SizeBytes, n); at += window {
		ps, err := s.f.Mapped(at, min(window, markOffset(s.meta.SizeBytes, n)-at))
		if err != nil {
			return nil, nil, err
		}
		for _, p := range ps {
			unfinished.add((p.Offset-marks)/blockSize, (p.End()-marks-1)/blockSize)
		}
	}
	for at := int64(0); at < marks; at += window {
		ps, err := s.f.Mapped(at, min(window, marks-at))
		if err != nil {
			return nil, nil, err
		}
		for _, p := range ps {
			for g := p.Offset / granuleSize; g <= (p.End()-1)/granuleSize; g++ {
				if !unfinished.has(g) {
					held.add(g, g)
				}
			}
		}
	}
	return held, unfinished, nil
}

// rebuild finds out what snapshot number i holds after a crash, and removes what
// was not finished. The newer ones are known.
//
// What the file has of a granule is the snapshot's content of it, so that holding
// it is never wrong; but what was only shared ahead is not changed. A granule whose
// blocks are the very ones that the snapshot has without its own file, those of the
// next newer snapshot that holds it or of the data, is the same either way, and not
// held. all says that everything is held, for a clone: where its content comes from
// is not known yet, and it shares nothing ahead.
func (c *chain) rebuild(i int, all bool) error {
	s := c.snaps[i]
	there, unfinished, err := s.scanHeld()
	if err != nil {
		return err
	}
	unfinished.each(0, func(g int64) bool {
		// In this order, so that a crash in between changes nothing.
		if err = s.f.Punch(g*granuleSize, granuleSize); err == nil {
			err = s.f.Punch(markOffset(s.meta.SizeBytes, g), blockSize)
		}
		return err == nil
	})
	if s.held = there; all || err != nil {
		return err
	}
	s.held = newGranules(there.n)
	done := int64(-1)
	there.each(0, func(g int64) bool {
		if g <= done {
			return true
		}
		var next *snapshot
		next, done = alike(g, min(g+leafGranules, there.n)-1, func(g int64) *snapshot {
			if !there.has(g) {
				return s // the run ends before it
			}
			return c.holder(i+1, g)
		})
		from := c.data
		if next != nil {
			from = next.f
		}
		err = s.holdOthers(from, g, done)
		return err == nil
	})
	return err
}

// holdOthers makes the snapshot hold those of [first, last], which its file has,
// whose blocks are not the ones that they have in another file.
func (s *snapshot) holdOthers(than disk.File, first, last int64) error {
	x := granuleExtent(first, last, s.meta.SizeBytes)
	mine, err := s.f.Mapped(x.Offset, x.Length)
	if err != nil {
		return err
	}
	theirs, err := than.Mapped(x.Offset, x.Length)
	if err != nil {
		return err
	}
	pages := x.Length / blockSize
	a, b := places(mine, x.Offset, pages), places(theirs, x.Offset, pages)
	const per = granuleSize / blockSize
	for g := first; g <= last; g++ {
		from, to := (g-first)*per, min((g-first+1)*per, pages)
		if !slices.Equal(a[from:to], b[from:to]) || slices.Contains(a[from:to], unknownPlace) {
			s.held.add(g, g)
		}
	}
	return nil
}

// unknownPlace is that of a page whose block is not known.
const unknownPlace = int64(-1)

// places says where on the disk each page is; 0 for a hole.
func places(ps []disk.Piece, off, pages int64) []int64 {
	out := make([]int64, pages)
	for _, p := range ps {
		for at := int64(0); at < p.Length; at += blockSize {
			to := p.Place + at
			if p.Place == 0 {
				to = unknownPlace
			}
			out[(p.Offset+at-off)/blockSize] = to
		}
	}
	return out
}
