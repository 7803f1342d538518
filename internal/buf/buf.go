// Package buf has reference-counted, 4 KiB-aligned byte buffers, as O_DIRECT
// wants them, with headroom in front of the data for a header.
//
// It promises that a buffer goes back to its pool when its last reference is
// released and not before, and that a released buffer never is used by
// accident: releasing twice panics. It does not clear memory. It owns no
// goroutine.
package buf

import (
	"hash/crc32"
	"sync"
	"sync/atomic"
	"unsafe"
)

const (
	align    = 4096
	pageSize = 4096 // or a multiple
	// Headroom is how many bytes stand before B in the same memory: a front end
	// puts its reply header there, so that header and data leave in one write.
	Headroom = align
	// Max is the largest buffer that Get gives, in bytes.
	Max = 1 << 20
)

var classes = [...]int{4 << 10, 16 << 10, 64 << 10, 256 << 10, Max}

var pools [len(classes)]sync.Pool

// Buf is a buffer with a reference count. Many may read it; only who made it
// writes to it, and only before sharing it.
type Buf struct {
	// B is the data: aligned to 4096 bytes, of the length asked for.
	B     []byte
	mem   []byte // headroom and data, whole class size
	class int
	there bool // see Present
	refs  atomic.Int32
	sum   atomic.Uint64 // see Checksum; summed is set when it has one
}

const summed = 1 << 32

// Get gives a buffer of n bytes (0 to Max) with one reference. Its content is
// whatever it was.
func Get(n int) *Buf {
	class := classOf(n)
	b, _ := pools[class].Get().(*Buf)
	if b == nil {
		b = &Buf{mem: aligned(Headroom + classes[class]), class: class}
	}
	b.B = b.mem[Headroom : Headroom+n]
	b.refs.Store(1)
	b.sum.Store(0)
	return b
}

// Retain adds a reference and returns the same buffer; nil stays nil.
func (b *Buf) Retain() *Buf {
	if b != nil && b.refs.Add(1) <= 1 {
		panic("buf: retained after its last release")
	}
	return b
}

// Release takes a reference away; the last one gives the memory back. Nil is
// allowed.
func (b *Buf) Release() {
	if b == nil {
		return
	}
	switch n := b.refs.Add(-1); {
	case n < 0:
		panic("buf: released more often than retained")
	case n == 0:
		pools[b.class].Put(b)
	}
}

// Present makes all pages of the buffer present, so that whoever stores to them
// from now on meets no page fault: they stay as long as the buffer lives, which is
// repeated use too. Only who made it may call it, before sharing it.
func (b *Buf) Present() {
	if b.there {
		return
	}
	b.there = true
	for i := 0; i < len(b.mem); i += pageSize {
		b.mem[i] = 0
	}
	b.mem[len(b.mem)-1] = 0
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Checksum is the CRC-32C of B. It is computed once: what several connections
// carry needs one. From the first call on nobody may change B, neither its bytes
// nor its length.
func (b *Buf) Checksum() uint32 {
	if s := b.sum.Load(); s&summed != 0 {
		return uint32(s)
	}
	s := crc32.Checksum(b.B, castagnoli)
	b.sum.Store(uint64(s) | summed)
	return s
}

// WithHead is the n bytes of headroom before B followed by the first m bytes of
// B, as one slice. n is at most Headroom.
func (b *Buf) WithHead(n, m int) []byte { return b.mem[Headroom-n : Headroom+m] }

func classOf(n int) int {
	for i, size := range classes {
		if n <= size {
			return i
		}
	}
	panic("buf: more than Max bytes asked for")
}

func aligned(n int) []byte {
	raw := make([]byte, n+align)
	skip := int(-uintptr(unsafe.Pointer(&raw[0])) & (align - 1))
	return raw[skip : skip+n : skip+n]
}
