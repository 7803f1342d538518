package engine

import (
	"slices"
	"sync"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/engine/disk"
)

// claims lets one at a time work on a granule. A claim covers all that its owner
// wants, and is waited for as a whole, so that nobody waits while holding one.
type claims struct {
	mu   sync.Mutex
	cond sync.Cond
	busy [][2]int64
}

func (c *claims) take(first, last int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for slices.ContainsFunc(c.busy, func(b [2]int64) bool { return b[0] <= last && first <= b[1] }) {
		c.cond.Wait()
	}
	c.busy = append(c.busy, [2]int64{first, last})
}

func (c *claims) release(first, last int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.Index(c.busy, [2]int64{first, last})
	c.busy = slices.Delete(c.busy, i, i+1)
	c.cond.Broadcast()
}

// settled says whether [first, last] can be written to without more ado.
func (c *chain) settled(first, last int64) bool {
	if c.target == nil && c.base == nil {
		return true
	}
	for g := first; g <= last; g++ {
		if c.needs(g) {
			return false
		}
	}
	return true
}

// needs says whether a granule has to be taken over or kept before it is changed.
func (c *chain) needs(g int64) bool {
	return c.target != nil && g < c.touched.n && !c.touched.has(g) || c.base != nil && !c.base.owns(g)
}

// touch gets [off, off+n) of the data ready for being changed: a clone takes over
// what it does not own yet, and what the newest snapshot lacks goes there. The
// order of which blocks files have (see disk.Sharing) makes it crash-safe: that
// the granule is in the snapshot is durable before any change of it, as no block
// that is shared is written to in place. trim says that holes stay holes.
func (c *chain) touch(off, n int64, trim bool) error {
	first, last := off/granuleSize, (off+n-1)/granuleSize
	if c.settled(first, last) {
		return nil
	}
	const most = 64 // granules at once
	for ; first <= last; first += most {
		if end := min(first+most-1, last); !c.settled(first, end) {
			if err := c.touchClaimed(first, end, trim); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *chain) touchClaimed(first, last int64, trim bool) error {
	c.claims.take(first, last)
	defer c.claims.release(first, last)
	if c.settled(first, last) {
		return nil // by who had the claim before
	}
	if err := c.pool.space.room((last - first + 1) * copyUnit); err != nil {
		return err
	}
	touch := func() error { return c.touchNow(first, last, trim) }
	if c.allAhead(first, last) {
		return touch() // nothing is to be shared
	}
	return c.turns.run(touch)
}

func (c *chain) touchNow(first, last int64, trim bool) error {
	if c.base != nil {
		if err := c.own(first, last); err != nil {
			return err
		}
	}
	if c.target == nil {
		return nil
	}
	last = min(last, c.touched.n-1)
	for g := first; g <= last; {
		done, end := alike(g, last, c.touched.has)
		if !done {
			if err := c.keep(g, end, trim); err != nil {
				return err
			}
		}
		g = end + 1
	}
	return nil
}

// keep puts granules that nobody changed since the target was taken into it.
func (c *chain) keep(first, last int64, trim bool) error {
	if err := c.pool.snapshots.room((last - first + 1) * granuleSize); err != nil {
		return err
	}
	for g := first; g <= last; {
		there, end := alike(g, last, c.ahead.has)
		kept := [][2]int64{{g, end}}
		if there {
			c.target.note(g, end)
		} else {
			var err error
			if kept, err = c.shareAround(g, end, trim); err != nil {
				return err
			}
		}
		for _, k := range kept {
			c.touched.add(k[0], k[1])
		}
		g = end + 1
	}
	return nil
}

// lot is what is shared at once: granules, and the pieces that they have in the
// file that they are shared from.
type lot struct {
	first, last int64
	pieces      []disk.Piece
}

// take makes the snapshot hold [first, last] with the content that they have in
// another file, which does not change meanwhile.
func (s *snapshot) take(from disk.File, first, last int64) error {
	x := granuleExtent(first, last, s.meta.SizeBytes)
	pieces, err := from.Mapped(x.Offset, x.Length)
	if err != nil {
		return err
	}
	empty, err := s.fetch(from, lot{first, last, pieces})
	if err != nil {
		return err
	}
	_, err = s.hold(first, last, empty, false)
	return err
}

// fetch shares what data a lot has in another file, which does not change
// meanwhile, and gives its granules that have none. They are not held yet.
//
// A granule whose data is in several pieces is cloned in several steps, of which
// a crash may leave some: it is marked meanwhile.
func (s *snapshot) fetch(from disk.File, l lot) (empty func(g int64) bool, err error) {
	counts := make([]int, l.last-l.first+1)
	var data holdfast.Extent // from the first data to the last
	split := false
	for _, p := range l.pieces {
		if p.Unwritten {
			continue
		}
		for g := p.Offset / granuleSize; g <= (p.End()-1)/granuleSize; g++ {
			counts[g-l.first]++
			split = split || counts[g-l.first] > 1
		}
		if data.Length == 0 {
			data.Offset = p.Offset
		}
		data.Length = p.End() - data.Offset
	}
	// Whole granules, so that their holes replace what an attempt that failed left.
	data = clip(widenExtent(data), granuleExtent(l.first, l.last, s.meta.SizeBytes))
	return func(g int64) bool { return counts[g-l.first] == 0 }, s.cloneIn(from, data, split)
}

// hold makes the snapshot hold [first, last], whose data was fetched. Granules
// without data get one page, never written, which says that they are held; with
// skip they are left out. It gives the ranges that are held now.
func (s *snapshot) hold(first, last int64, empty func(g int64) bool, skip bool) (kept [][2]int64, err error) {
	for g := first; g <= last; {
		none, end := alike(g, last, empty)
		switch {
		case none && skip:
		case none:
			if err := s.holdEmpty(g, end); err != nil {
				return nil, err
			}
			kept = append(kept, [2]int64{g, end})
		default:
			s.note(g, end)
			kept = append(kept, [2]int64{g, end})
		}
		g = end + 1
	}
	return kept, nil
}

// note says that granules whose data the file has are held.
func (s *snapshot) note(first, last int64) {
	s.held.add(first, last)
	s.grew((last - first + 1) * granuleSize)
}

func widenExtent(x holdfast.Extent) holdfast.Extent {
	from := x.Offset / granuleSize * granuleSize
	to := granulesOf(x.End()) * granuleSize
	return holdfast.Extent{Offset: from, Length: to - from}
}

// cloneIn shares [x.Offset, x.End()), whole granules of which none is held, with
// a mark at each while it lasts if they are split.
func (s *snapshot) cloneIn(from disk.File, x holdfast.Extent, split bool) error {
	if x.Length <= 0 {
		return nil
	}
	if !split {
		return s.f.CloneRange(from, x.Offset, x.Length)
	}
	mark := markOffset(s.meta.SizeBytes, x.Offset/granuleSize)
	n := granulesOf(x.Length) * blockSize
	err := s.f.Allocate(mark, n)
	if err == nil {
		err = s.f.CloneRange(from, x.Offset, x.Length)
	}
	if holdfast.KindOf(err) == holdfast.NoSpace {
		// It may be tried again with fewer granules, without marks: none may be left
		// then, nor a part of a granule without its mark.
		if bad := s.f.Punch(x.Offset, x.Length); bad != nil {
			return holdfast.WrapKind("remove what was shared in part", holdfast.Corrupt, bad)
		}
		if bad := s.f.Punch(mark, n); bad != nil {
			return holdfast.WrapKind("remove marks", holdfast.Corrupt, bad)
		}
	}
	if err != nil {
		return err
	}
	return s.f.Punch(mark, n)
}

// grew counts blocks that the file refers to from now on.
func (s *snapshot) grew(n int64) {
	s.bytes.Add(n)
	s.share.used.Add(n)
}

func (s *snapshot) holdEmpty(first, last int64) error {
	for g := first; g <= last; g++ {
		if err := s.f.Allocate(g*granuleSize, blockSize); err != nil {
			return err
		}
	}
	s.held.add(first, last)
	s.grew((last - first + 1) * blockSize)
	return nil
}

// turns runs jobs one after the other, those that wait together without a pause.
// Sharing blocks takes the file's lock alone and waits for the writes under way:
// done between writes it would stop them each time, and many at once would only
// spin for the lock. What is shared ahead relies on it, too: nobody else shares.
type turns struct {
	mu      sync.Mutex
	running bool
	queue   []*job
}

type job struct {
	do   func() error
	err  error
	wake chan bool // true: it is done; false: it is to lead the next ones
}

// run returns when do has run, on this goroutine or another.
func (t *turns) run(do func() error) error {
	j := &job{do: do, wake: make(chan bool, 1)}
	t.mu.Lock()
	t.queue = append(t.queue, j)
	if t.running {
		t.mu.Unlock()
		if <-j.wake {
			return j.err
		}
		t.mu.Lock()
	}
	t.running = true
	batch := t.queue
	t.queue = nil
	t.mu.Unlock()
	for _, b := range batch {
		b.err = b.do()
	}
	for _, b := range batch {
		if b != j {
			b.wake <- true
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.running = len(t.queue) > 0; t.running {
		t.queue[0].wake <- false
	}
	return j.err
}
