package disk

import (
	"math/rand/v2"
	"syscall"

	"github.com/holdfast-storage/holdfast"
)

// change says which block a page has from now on.
type change struct {
	c  *content
	no int64
	to place
}

// changeLog has the changes that are not durable yet, in their order: the
// filesystem's log. Each member is there after a power loss as a whole or not.
type changeLog struct {
	first   int64 // number of the first one
	pending [][]change
}

// change makes changes of one file's pages that are one step of the log.
func (m *Mem) change(c *content, cs []change) {
	if len(cs) == 0 {
		return
	}
	for _, ch := range cs {
		pg := c.at(ch.no, true)
		if ch.to.b != nil {
			ch.to.b.refs++
			if ch.to.b.refs == 1 {
				m.used++
			}
			c.allocated++
		}
		m.unref(c, pg.cur.b)
		pg.cur = ch.to
	}
	m.log.pending = append(m.log.pending, cs)
	c.lastChange = m.log.first + int64(len(m.log.pending))
}

// unref takes a page's block away from it.
func (m *Mem) unref(c *content, b *block) {
	if b == nil {
		return
	}
	c.allocated--
	if b.refs--; b.refs == 0 {
		m.used--
	}
}

// forget takes all blocks away from a file that has no name any more, or is kept
// in another way; what a power loss leaves is not changed.
func (c *content) forget(m *Mem) {
	for _, l := range c.leaves {
		for i := 0; l != nil && i < len(l); i++ {
			m.unref(c, l[i].cur.b)
			l[i].cur = place{}
		}
	}
}

// force makes the log durable up to and with change number upTo.
func (m *Mem) force(upTo int64) {
	n := min(upTo-m.log.first, int64(len(m.log.pending)))
	for i := int64(0); i < n; i++ {
		apply(m.log.pending[i])
		m.log.pending[i] = nil
	}
	if n > 0 {
		m.log.first += n
		m.log.pending = m.log.pending[n:]
	}
}

func apply(cs []change) {
	for _, ch := range cs {
		if ch.c.mapped == nil {
			ch.c.at(ch.no, true).durable = ch.to
		}
	}
}

// crashLog leaves a prefix of the log, and of each block's content the present
// or the durable form.
func (m *Mem) crashLog(rng *rand.Rand, odds float64, keep func() bool) {
	lost := m.log.pending
	n := len(lost)
	if odds > 0 && odds < 1 {
		n = rng.IntN(n + 1)
	} else if odds == 0 {
		n = 0
	}
	m.force(m.log.first + int64(n))
	m.log.first += int64(len(m.log.pending))
	m.log.pending = nil
	for _, b := range m.dirtys {
		if b.data != b.durable && !keep() {
			b.data = b.durable
		}
		b.durable = b.data
	}
	m.dirtys = nil
	m.root.eachFile(func(c *content) {
		for _, l := range c.leaves {
			for i := 0; l != nil && i < len(l); i++ {
				if b := l[i].durable.b; b != nil {
					b.refs = 0
				}
			}
		}
	})
}

// eachFile visits all files that may be there after a power loss.
func (n *inode) eachFile(visit func(*content)) {
	if n.file != nil {
		visit(n.file)
	}
	for _, child := range n.durable {
		child.eachFile(visit)
	}
	for _, ch := range n.pending {
		if ch.node != nil {
			ch.node.eachFile(visit)
		}
	}
}

// newBlock takes a block of the disk; nil when it is full.
func (m *Mem) newBlock() *block {
	if m.used >= m.capacity {
		return nil
	}
	m.next++
	return &block{at: m.next}
}

func (m *Mem) newData() *blockData { return new(blockData) }

// settle makes a block's content durable.
func (m *Mem) settle(b *block) { b.durable = b.data }

// dirty notes a block whose content is not durable.
func (m *Mem) dirty(b *block) {
	if len(m.dirtys) > 0 && len(m.dirtys) == cap(m.dirtys) {
		kept := m.dirtys[:0]
		for _, x := range m.dirtys {
			if x.data != x.durable {
				kept = append(kept, x)
			}
		}
		m.dirtys = kept
	}
	m.dirtys = append(m.dirtys, b)
}

// allocate gives the pages that have none a block; each run of them is one
// change. It says whether there was space for all.
func (c *content) allocate(m *Mem, off, n int64) bool {
	var run []change
	full := false
	for no := off / PageSize; no*PageSize < off+n && !full; no++ {
		if c.mapped != nil {
			full = !c.allocMapped(m, no)
			continue
		}
		if pg := c.at(no, false); pg != nil && pg.cur.b != nil {
			m.change(c, run)
			run = nil
			continue
		}
		if m.used+int64(len(run)) >= m.capacity {
			full = true
			continue
		}
		b := m.newBlock()
		b.data = &zeroPage
		b.durable = b.data
		run = append(run, change{c: c, no: no, to: place{b: b, unwritten: true}})
	}
	m.change(c, run)
	return !full
}

// pieces lists what has blocks within [off, end).
func (c *content) pieces(off, end int64) []Piece {
	var out []Piece
	var last place
	for no := off / PageSize; no*PageSize < end; no++ {
		pg := c.at(no, false)
		if pg == nil || pg.cur.b == nil {
			last = place{}
			continue
		}
		x := Piece{Extent: holdfast.Extent{Offset: no * PageSize, Length: min(PageSize, end-no*PageSize)},
			Unwritten: pg.cur.unwritten, Shared: pg.cur.b.refs > 1, Place: pg.cur.b.at * PageSize}
		k := len(out) - 1
		if last.b != nil && last.b.at+1 == pg.cur.b.at && out[k].Unwritten == x.Unwritten && out[k].Shared == x.Shared {
			out[k].Length += x.Length
		} else {
			out = append(out, x)
		}
		last = pg.cur
	}
	return out
}

// clone shares the pages of [off, off+n) of another file: each run of holes, and
// of blocks that are next to each other, is one change.
func (c *content) clone(m *Mem, from *content, off, n int64) {
	var run []change
	var last place
	for no := off / PageSize; no*PageSize < off+n; no++ {
		var to place
		if pg := from.at(no, false); pg.readable() {
			to = pg.cur
		}
		joined := len(run) > 0 && (to.b == nil && last.b == nil || to.b != nil && last.b != nil && last.b.at+1 == to.b.at)
		if !joined {
			m.change(c, run)
			run = nil
		}
		if last = to; c.pageAt(no) != to {
			run = append(run, change{c: c, no: no, to: to})
		}
	}
	m.change(c, run)
}

func (c *content) pageAt(no int64) place {
	if pg := c.at(no, false); pg != nil {
		return pg.cur
	}
	return place{}
}

// CloneRange implements Sharing.
func (f *memFile) CloneRange(from File, off, n int64) error {
	src, ok := from.(*memFile)
	if !ok || src.m != f.m {
		return Errno("clone", f.name, syscall.EXDEV)
	}
	defer f.m.mu.Unlock()
	if err := f.enter("clone"); err != nil {
		return err
	}
	if src.closed || src.life != f.m.life {
		return Errno("clone", src.name, syscall.EBADF)
	}
	whole := off >= 0 && n > 0 && off%PageSize == 0 && n%PageSize == 0
	if !whole || off+n > src.c.size || off+n > f.c.size || src.c == f.c || src.c.mapped != nil || f.c.mapped != nil {
		return Errno("clone", f.name, syscall.EINVAL)
	}
	f.c.clone(f.m, src.c, off, n)
	return nil
}

// Mapped implements Sharing.
func (f *memFile) Mapped(off, n int64) ([]Piece, error) {
	defer f.m.mu.Unlock()
	if err := f.enter("list pieces"); err != nil {
		return nil, err
	}
	if f.c.mapped != nil {
		return nil, Errno("list pieces", f.name, syscall.EINVAL)
	}
	return f.c.pieces(off, min(off+n, f.c.size)), nil
}
