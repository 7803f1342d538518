package disk

import (
	"bytes"
	"sync/atomic"
	"unsafe"

	"github.com/holdfast-storage/holdfast"
)

// content is a file's pages: those that a reader sees, and those that would be
// there after a power loss.
type content struct {
	size, durableSize int64
	allocated         int64 // pages
	leaves            []*leaf
	dirty             []int64 // pages that may differ from their durable form, in order of first change
	mapped            *mapped // instead of leaves once the file was mapped
}

const leafPages = 128

type leaf [leafPages]page

// page holds its present and its durable block; the same pointer when synced,
// nil for a hole. A block that is durable is never changed in place.
type page struct {
	cur, durable *block
	listed       bool // in content.dirty
}

// mapped is a file as one piece of memory, as mappings need it.
type mapped struct {
	cur, durable []byte
	alloc        []bool // per page
	open         int    // mappings open in the present life
	life         int
}

// at finds a page, making its leaf if asked; nil when there is none.
func (c *content) at(no int64, grow bool) *page {
	i := int(no / leafPages)
	if i >= len(c.leaves) {
		if !grow {
			return nil
		}
		c.leaves = append(c.leaves, make([]*leaf, i+1-len(c.leaves))...)
	}
	if c.leaves[i] == nil {
		if !grow {
			return nil
		}
		c.leaves[i] = new(leaf)
	}
	return &c.leaves[i][no%leafPages]
}

func (c *content) note(no int64, p *page) {
	if !p.listed {
		p.listed = true
		c.dirty = append(c.dirty, no)
	}
}

// read fills p, which lies within the size.
func (c *content) read(p []byte, off int64) {
	if c.mapped != nil {
		copy(p, c.mapped.cur[off:])
		return
	}
	for len(p) > 0 {
		no, skip := off/PageSize, off%PageSize
		n := min(int64(len(p)), PageSize-skip)
		if pg := c.at(no, false); pg != nil && pg.cur != nil {
			copy(p[:n], pg.cur[skip:])
		} else {
			clear(p[:n])
		}
		p, off = p[n:], off+n
	}
}

// write applies as much of p as there is space for and says how much.
func (c *content) write(m *Mem, p []byte, off int64, dsync bool) int {
	done := 0
	for done < len(p) {
		no, skip := off/PageSize, off%PageSize
		n := int(min(int64(len(p)-done), PageSize-skip))
		if !c.writePage(m, no, skip, p[done:done+n], dsync) {
			return done
		}
		done, off = done+n, off+int64(n)
		c.size = max(c.size, off)
		if dsync {
			c.durableSize = max(c.durableSize, off)
		}
	}
	return done
}

func (c *content) writePage(m *Mem, no, skip int64, p []byte, dsync bool) bool {
	if c.mapped != nil {
		return c.writeMapped(m, no, skip, p, dsync)
	}
	pg := c.at(no, true)
	if pg.cur == nil {
		if !m.take(1) {
			return false
		}
		c.allocated++
	}
	if pg.cur == nil || pg.cur == pg.durable {
		b := m.newBlock()
		switch {
		case len(p) == PageSize:
		case pg.cur != nil:
			*b = *pg.cur
		default:
			*b = block{}
		}
		pg.cur = b
	}
	copy(pg.cur[skip:], p)
	if dsync {
		c.settle(m, pg)
	} else {
		c.note(no, pg)
	}
	return true
}

// settle makes a page's present form its durable one.
func (c *content) settle(m *Mem, pg *page) {
	if pg.durable != pg.cur {
		m.freeBlock(pg.durable)
		pg.durable = pg.cur
	}
}

func (c *content) writeMapped(m *Mem, no, skip int64, p []byte, dsync bool) bool {
	if !c.allocMapped(m, no) {
		return false
	}
	at := no*PageSize + skip
	if at+int64(len(p)) > int64(len(c.mapped.cur)) {
		c.resizeMapped(at + int64(len(p)))
	}
	copy(c.mapped.cur[at:], p)
	if dsync {
		copy(c.mapped.durable[at:], p)
	}
	return true
}

func (c *content) allocMapped(m *Mem, no int64) bool {
	for int(no) >= len(c.mapped.alloc) {
		c.mapped.alloc = append(c.mapped.alloc, false)
	}
	if !c.mapped.alloc[no] {
		if !m.take(1) {
			return false
		}
		c.mapped.alloc[no] = true
		c.allocated++
	}
	return true
}

// sync makes the present durable.
func (c *content) sync(m *Mem) {
	c.durableSize = c.size
	if mp := c.mapped; mp != nil {
		snapshot(mp.durable, mp.cur)
		check(mp.durable, mp.alloc)
		return
	}
	for _, no := range c.dirty {
		pg := c.at(no, false)
		c.settle(m, pg)
		pg.listed = false
	}
	c.dirty = c.dirty[:0]
}

// punch makes whole pages within [off, off+n) holes and clears the rest.
func (c *content) punch(m *Mem, off, n int64) {
	end := min(off+n, c.size)
	for off < end {
		no, skip := off/PageSize, off%PageSize
		k := min(end-off, PageSize-skip)
		whole := k == PageSize || skip == 0 && off+k == c.size
		switch pg := c.at(no, false); {
		case c.mapped != nil:
			clear(c.mapped.cur[off : off+k])
		case pg == nil || pg.cur == nil:
		case whole:
			c.drop(m, no, pg)
		default:
			c.writePage(m, no, skip, make([]byte, k), false)
		}
		off += k
	}
}

// drop makes a page a hole.
func (c *content) drop(m *Mem, no int64, pg *page) {
	if pg.cur == nil {
		return
	}
	if pg.cur != pg.durable {
		m.freeBlock(pg.cur)
	}
	pg.cur = nil
	m.used--
	c.allocated--
	c.note(no, pg)
}

// resize sets the size; pages past it are dropped.
func (c *content) resize(m *Mem, size int64) {
	if size < c.size && c.mapped == nil {
		c.punch(m, size, c.size-size)
	}
	if c.mapped != nil {
		c.resizeMapped(size)
	}
	c.size = size
}

func (c *content) resizeMapped(size int64) {
	fit := func(old []byte) []byte {
		p := make([]byte, size)
		copy(p, old)
		return p
	}
	c.mapped.cur, c.mapped.durable = fit(c.mapped.cur), fit(c.mapped.durable)
	if pages := int((size + PageSize - 1) / PageSize); pages < len(c.mapped.alloc) {
		c.mapped.alloc = c.mapped.alloc[:pages]
	}
}

// toMapped turns a file of pages into one piece of memory.
func (c *content) toMapped() {
	mp := &mapped{cur: make([]byte, c.size), durable: make([]byte, c.size)}
	mp.alloc = make([]bool, (c.size+PageSize-1)/PageSize)
	for no := range mp.alloc {
		pg := c.at(int64(no), false)
		if pg == nil {
			continue
		}
		if pg.cur != nil {
			mp.alloc[no] = true
			copy(mp.cur[no*PageSize:], pg.cur[:])
		}
		if pg.durable != nil {
			copy(mp.durable[no*PageSize:], pg.durable[:])
		}
	}
	c.leaves, c.dirty, c.mapped = nil, nil, mp
}

// snapshot copies memory that others may be storing to, word by word, as the
// kernel would find it.
func snapshot(to, from []byte) {
	i := 0
	for ; i+8 <= len(from); i += 8 {
		w := atomic.LoadUint64((*uint64)(unsafe.Pointer(&from[i])))
		if *(*uint64)(unsafe.Pointer(&to[i])) != w {
			*(*uint64)(unsafe.Pointer(&to[i])) = w
		}
	}
	copy(to[i:], from[i:])
}

// check panics when something was stored where nothing is allocated.
func check(mem []byte, alloc []bool) {
	for no := 0; no*PageSize < len(mem); no++ {
		p := mem[no*PageSize : min((no+1)*PageSize, len(mem))]
		if (no >= len(alloc) || !alloc[no]) && !bytes.Equal(p, zeroPage[:len(p)]) {
			panic("disk: stored through a mapping where nothing was allocated: a full disk would kill the process here")
		}
	}
}

var zeroPage block

// crash leaves of each page the present or the durable form.
func (c *content) crash(m *Mem, keep func() bool) {
	if c.size != c.durableSize && !keep() {
		c.resize(m, c.durableSize)
	}
	if c.mapped != nil {
		c.mapped.crash(keep)
		c.durableSize = c.size
		return
	}
	for _, no := range c.dirty {
		pg := c.at(no, false)
		pg.listed = false
		beyond := no*PageSize >= c.size
		if pg.cur != pg.durable && !beyond && !keep() {
			c.revert(m, pg)
		}
		c.settle(m, pg)
	}
	c.dirty = c.dirty[:0]
	c.durableSize = c.size
}

// revert goes back to a page's durable form.
func (c *content) revert(m *Mem, pg *page) {
	switch {
	case pg.cur == nil:
		c.allocated++
	case pg.durable == nil:
		c.allocated--
	}
	m.freeBlock(pg.cur)
	pg.cur = pg.durable
}

func (mp *mapped) crash(keep func() bool) {
	// The memory of the life before may still be looked at by somebody; it is
	// not the disk's any more.
	cur := make([]byte, len(mp.cur))
	snapshot(cur, mp.cur)
	check(cur, mp.alloc)
	for at := 0; at < len(cur); at += PageSize {
		end := min(at+PageSize, len(cur))
		if !bytes.Equal(cur[at:end], mp.durable[at:end]) && !keep() {
			copy(cur[at:end], mp.durable[at:end])
		}
	}
	mp.cur = cur
	copy(mp.durable, cur)
}

// extents lists the pages with data within [off, end), which lie in the size.
func (c *content) extents(off, end int64) []holdfast.Extent {
	var out []holdfast.Extent
	for at := off / PageSize * PageSize; at < end; at += PageSize {
		no := at / PageSize
		var data bool
		if c.mapped != nil {
			data = int(no) < len(c.mapped.alloc) && c.mapped.alloc[no]
		} else {
			if i := int(no / leafPages); i >= len(c.leaves) || c.leaves[i] == nil {
				at = (no/leafPages+1)*leafPages*PageSize - PageSize
				continue
			}
			data = c.at(no, false).cur != nil
		}
		if !data {
			continue
		}
		from, to := max(at, off), min(at+PageSize, end)
		if k := len(out) - 1; k >= 0 && out[k].End() == from {
			out[k].Length = to - out[k].Offset
		} else {
			out = append(out, holdfast.Extent{Offset: from, Length: to - from})
		}
	}
	return out
}
