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
	dirty             []int64 // pages whose content was written since the last sync
	lastChange        int64   // number of the last change of which blocks it has
	mapped            *mapped // instead of leaves once the file was mapped
}

const leafPages = 128

type leaf [leafPages]page

// page says which block a page has, for a reader and after a power loss.
type page struct {
	cur, durable place
	listed       bool // in content.dirty
}

// place is a block that a page has: none for a hole.
type place struct {
	b         *block
	unwritten bool // allocated, and never written
}

// block is a block of the disk; files may share it.
type block struct {
	at int64 // where it is on the disk
	// data is what a reader sees; durable what is left by a power loss, the same
	// array when nothing was written since.
	data, durable *blockData
	refs          int // pages that have it
}

type blockData = [PageSize]byte

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
		if pg := c.at(no, false); pg.readable() {
			copy(p[:n], pg.cur.b.data[skip:])
		} else {
			clear(p[:n])
		}
		p, off = p[n:], off+n
	}
}

// readable says whether a page has content: pg may be nil.
func (pg *page) readable() bool { return pg != nil && pg.cur.b != nil && !pg.cur.unwritten }

// how says how a write is done.
type how struct {
	direct bool // past the page cache: content is on the disk before its block is
	dsync  bool
}

// write applies as much of p as there is space for and says how much.
func (c *content) write(m *Mem, p []byte, off int64, h how) int {
	done := 0
	for done < len(p) {
		no, skip := off/PageSize, off%PageSize
		n := int(min(int64(len(p)-done), PageSize-skip))
		if !c.writePage(m, no, skip, p[done:done+n], h) {
			break
		}
		done, off = done+n, off+int64(n)
		c.size = max(c.size, off)
		if h.dsync {
			c.durableSize = max(c.durableSize, off)
		}
	}
	if h.dsync {
		m.force(c.lastChange)
	}
	return done
}

func (c *content) writePage(m *Mem, no, skip int64, p []byte, h how) bool {
	if c.mapped != nil {
		return c.writeMapped(m, no, skip, p, h.dsync)
	}
	pg := c.at(no, true)
	if !pg.readable() || pg.cur.b.refs > 1 {
		return c.writeNew(m, no, skip, p, h)
	}
	b := pg.cur.b
	if b.data == b.durable {
		b.data = m.newData()
		if len(p) < PageSize {
			*b.data = *b.durable
		}
	}
	copy(b.data[skip:], p)
	if h.dsync {
		m.settle(b)
		return true
	}
	m.dirty(b)
	c.note(no, pg)
	return true
}

// writeNew writes to a page that has no block of its own yet: a hole, one that
// is shared, or one that was never written.
func (c *content) writeNew(m *Mem, no, skip int64, p []byte, h how) bool {
	pg := c.at(no, true)
	b := pg.cur.b
	if b == nil || b.refs > 1 {
		if b = m.newBlock(); b == nil {
			return false
		}
	}
	data := m.newData()
	switch {
	case pg.readable():
		*data = *pg.cur.b.data
	case len(p) < PageSize:
		*data = blockData{}
	}
	copy(data[skip:], p)
	b.data = data
	if h.direct || h.dsync {
		b.durable = data
	} else {
		b.durable = &zeroPage // written back some time later
		m.dirty(b)
		c.note(no, pg)
	}
	m.change(c, []change{{c: c, no: no, to: place{b: b}}})
	return true
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
		if pg.cur.b != nil {
			m.settle(pg.cur.b)
		}
		pg.listed = false
	}
	c.dirty = c.dirty[:0]
	m.force(c.lastChange)
}

// punch makes whole pages within [off, off+n) holes and clears the rest.
func (c *content) punch(m *Mem, off, n int64) {
	end := min(off+n, c.size)
	var changes []change
	for off < end {
		no, skip := off/PageSize, off%PageSize
		k := min(end-off, PageSize-skip)
		whole := k == PageSize || skip == 0 && off+k == c.size
		switch pg := c.at(no, false); {
		case c.mapped != nil:
			clear(c.mapped.cur[off : off+k])
		case pg == nil || pg.cur.b == nil:
		case whole:
			changes = append(changes, change{c: c, no: no})
		case pg.readable():
			c.writePage(m, no, skip, make([]byte, k), how{})
		}
		off += k
	}
	m.change(c, changes)
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
func (c *content) toMapped(m *Mem) {
	mp := &mapped{cur: make([]byte, c.size), durable: make([]byte, c.size)}
	mp.alloc = make([]bool, (c.size+PageSize-1)/PageSize)
	for no := range mp.alloc {
		pg := c.at(int64(no), false)
		if pg == nil {
			continue
		}
		if pg.cur.b != nil {
			mp.alloc[no] = true
		}
		if pg.readable() {
			copy(mp.cur[no*PageSize:], pg.cur.b.data[:])
		}
		if d := pg.durable; d.b != nil && !d.unwritten {
			copy(mp.durable[no*PageSize:], d.b.durable[:])
		}
	}
	used, allocated := m.used, c.allocated
	c.forget(m)
	m.used, c.allocated = used, allocated // the same blocks
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

var zeroPage blockData

// crash leaves of the size, and of what is mapped, the present or the durable
// form; Mem.crashLog has seen to pages.
func (c *content) crash(m *Mem, keep func() bool) {
	if c.size != c.durableSize && !keep() {
		c.crashSize(c.durableSize)
	}
	c.durableSize = c.size
	if c.mapped != nil {
		c.mapped.crash(keep)
		m.used += c.allocated
	}
}

// crashSize goes back to a size. What lies beyond is not there any more.
func (c *content) crashSize(size int64) {
	if c.mapped != nil {
		c.resizeMapped(size)
	}
	for no := (size + PageSize - 1) / PageSize; c.mapped == nil && no < (c.size+PageSize-1)/PageSize; no++ {
		if pg := c.at(no, false); pg != nil {
			*pg = page{}
		}
	}
	c.size = size
}

// recount gives the pages the blocks that they have after a power loss, and
// takes these into account again.
func (c *content) recount(m *Mem) {
	if c.mapped != nil {
		return
	}
	c.allocated, c.dirty = 0, c.dirty[:0]
	for _, l := range c.leaves {
		if l == nil {
			continue
		}
		for i := range l {
			l[i].listed, l[i].cur = false, l[i].durable
			b := l[i].cur.b
			if b == nil {
				continue
			}
			c.allocated++
			if b.refs++; b.refs == 1 {
				m.used++
			}
		}
	}
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
			data = c.at(no, false).readable()
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
