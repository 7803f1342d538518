package engine

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"path"
	"strconv"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/engine/disk"
	"github.com/holdfast-storage/holdfast/internal/buf"
)

const (
	mapMagic   = "HFCHANGE"
	mapVersion = 1        // history: 1, the first
	mapHeader  = 4096     // bytes before the bitmap
	mapStep    = 64 << 10 // bytes of bitmap that are allocated at once: 2 GiB of volume
)

func encodeMapHeader(p []byte, epoch holdfast.Epoch) {
	clear(p[:mapHeader])
	copy(p, mapMagic)
	binary.LittleEndian.PutUint32(p[8:], mapVersion)
	binary.LittleEndian.PutUint64(p[16:], uint64(epoch))
	binary.LittleEndian.PutUint32(p[12:], mapHeaderSum(p))
}

func mapHeaderSum(p []byte) uint32 {
	var b [20]byte
	copy(b[:12], p[:12])
	copy(b[12:], p[16:24])
	return checksum(b[:])
}

// decodeMapHeader checks a change map's header; kind Corrupt if it is not that
// of the epoch.
func decodeMapHeader(p []byte, epoch holdfast.Epoch) error {
	const op = "decode change map"
	if len(p) < mapHeader || string(p[:8]) != mapMagic || binary.LittleEndian.Uint32(p[12:]) != mapHeaderSum(p) {
		return errorf(op, holdfast.Corrupt, "its header is damaged")
	}
	if v := binary.LittleEndian.Uint32(p[8:]); v != mapVersion {
		return errorf(op, holdfast.Corrupt, "it has version %d; this release reads version %d", v, mapVersion)
	}
	if e := binary.LittleEndian.Uint64(p[16:]); e != uint64(epoch) {
		return errorf(op, holdfast.Corrupt, "it is of epoch %d, its name says %d", e, epoch)
	}
	return nil
}

func mapName(epoch holdfast.Epoch) string { return fmt.Sprintf("%020d", epoch) }

func parseMapName(name string) (holdfast.Epoch, bool) {
	e, err := strconv.ParseUint(name, 10, 64)
	return holdfast.Epoch(e), err == nil && mapName(holdfast.Epoch(e)) == name
}

// bitmapBytes is the length of a bitmap for size bytes, in whole pages.
func bitmapBytes(size int64) int64 {
	bytes := (size/blockSize + 7) / 8
	return (bytes + disk.PageSize - 1) / disk.PageSize * disk.PageSize
}

// changeMap is the bitmap of one epoch. Its bits are in the replica's memory; its
// file has those that a sync has made durable.
type changeMap struct {
	epoch holdfast.Epoch
	name  string
	f     disk.File
	bits  *shadow
	words []uint64
	ready []atomic.Bool // per step: bits may be stored
	used  []atomic.Bool // per step: there may be some
	stale []atomic.Bool // per page: stored to since it was last written to the file
	dirty atomic.Bool   // any of them is, or the file was never synced
	mu    sync.Mutex    // allocating
	// syncing lets one at a time write the file: who comes while another one is
	// at it must not return before that is durable.
	syncing sync.Mutex
}

// openMap opens an existing map whose bits are in a piece of memory, lengthening
// it to size if need be. On error the piece is closed.
func openMap(fs disk.FS, dir string, bits *shadow, epoch holdfast.Epoch, size int64) (*changeMap, error) {
	c := &changeMap{epoch: epoch, name: path.Join(dir, mapName(epoch)), bits: bits}
	f, err := fs.Open(c.name, 0)
	if err != nil {
		return nil, errors.Join(err, bits.close())
	}
	c.f = f
	c.dirty.Store(true) // by a process before, perhaps
	head := make([]byte, mapHeader)
	if _, err = f.ReadAt(head, 0); err == nil {
		err = decodeMapHeader(head, epoch)
	} else if errors.Is(err, io.EOF) {
		err = errorf("open change map", holdfast.Corrupt, "it is shorter than its header")
	}
	if err == nil {
		err = c.resize(size)
	}
	if err != nil {
		return nil, holdfast.Wrap(c.name, errors.Join(err, c.close()))
	}
	return c, nil
}

// resize gives the file and the memory the length that a replica of size bytes
// needs; the file's is durable. Nobody else uses the map meanwhile. On error it is
// as it was.
func (c *changeMap) resize(size int64) error {
	want := bitmapBytes(size)
	info, err := c.f.Stat()
	if err != nil {
		return err
	}
	if info.SizeBytes < mapHeader+want {
		if err := errors.Join(c.f.Truncate(mapHeader+want), c.f.Sync()); err != nil {
			return err
		}
	}
	if err := c.bits.lengthen(max(want, int64(len(c.words))*8)); err != nil {
		return err
	}
	mem := c.bits.mem
	c.words = unsafe.Slice((*uint64)(unsafe.Pointer(&mem[0])), len(mem)/8)
	steps := (len(mem) + mapStep - 1) / mapStep
	c.ready = make([]atomic.Bool, steps) // one of them may have become longer
	c.used = longer(c.used, steps)
	c.stale = longer(c.stale, len(mem)/disk.PageSize)
	return nil
}

// longer gives n flags, the first ones as they were.
func longer(old []atomic.Bool, n int) []atomic.Bool {
	out := make([]atomic.Bool, n)
	for i := range old {
		out[i].Store(old[i].Load())
	}
	return out
}

// recall makes what a killed process has stored the map's, to be written to the
// file by the next sync.
func (c *changeMap) recall() error {
	xs, err := c.bits.stored()
	if err != nil {
		return err
	}
	for _, x := range xs {
		if err := c.prepareBits(x); err != nil {
			return err
		}
		for p := x.Offset / disk.PageSize; p*disk.PageSize < x.End(); p++ {
			c.stale[p].Store(true)
		}
	}
	return nil
}

// read fills the memory, which is empty, with what the file has.
func (c *changeMap) read() error {
	xs, err := c.f.Extents(mapHeader, int64(len(c.bits.mem)))
	if err != nil {
		return err
	}
	for _, x := range xs {
		x.Offset -= mapHeader
		if err := c.prepareBits(x); err != nil {
			return err
		}
		n, err := c.f.ReadAt(c.bits.mem[x.Offset:x.End()], mapHeader+x.Offset)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		clear(c.bits.mem[x.Offset+int64(n) : x.End()])
	}
	return nil
}

// prepareBits is prepare for a range of the bitmap's bytes.
func (c *changeMap) prepareBits(x holdfast.Extent) error {
	const each = 8 * blockSize
	return c.prepare(x.Offset*each, x.Length*each)
}

// prepare allocates the space for the bits of [off, off+n), on the disk and in
// memory: kind NoSpace if there is none.
func (c *changeMap) prepare(off, n int64) error {
	const span = mapStep * 8 * blockSize
	for i := off / span; i <= (off+n-1)/span; i++ {
		if !c.ready[i].Load() {
			if err := c.allocate(i); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *changeMap) allocate(i int64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ready[i].Load() {
		return nil
	}
	n := min(mapStep, int64(len(c.words))*8-i*mapStep)
	if err := errors.Join(c.f.Allocate(mapHeader+i*mapStep, n), c.bits.allocate(i*mapStep, n)); err != nil {
		return err
	}
	c.used[i].Store(true)
	c.ready[i].Store(true)
	return nil
}

// set marks the blocks of [off, off+n), which were prepared.
func (c *changeMap) set(off, n int64) {
	first, end := off/blockSize, (off+n)/blockSize
	for b := first; b < end; {
		w := b / 64
		lo, hi := b%64, min(end-w*64, 64)
		mask := ^uint64(0) << lo
		if hi < 64 {
			mask &= 1<<hi - 1
		}
		if atomic.LoadUint64(&c.words[w])&mask != mask {
			atomic.OrUint64(&c.words[w], mask)
		}
		// After the bits: a sync that begins in between has them, or leaves the page
		// stale for the next one. Also when the bits were there: who has set them may
		// not have come so far.
		if p := &c.stale[w*8/disk.PageSize]; !p.Load() {
			p.Store(true)
		}
		b = (w + 1) * 64
	}
	if !c.dirty.Load() {
		c.dirty.Store(true)
	}
}

// mark sets the blocks of extents, durably.
func (c *changeMap) mark(xs []holdfast.Extent) error {
	for _, x := range xs {
		if err := c.prepare(x.Offset, x.Length); err != nil {
			return err
		}
	}
	for _, x := range xs {
		c.set(x.Offset, x.Length)
	}
	return c.sync()
}

// sync makes the bits set before it durable.
func (c *changeMap) sync() error {
	c.syncing.Lock()
	defer c.syncing.Unlock()
	if !c.dirty.Swap(false) {
		return nil
	}
	err := c.write()
	if err == nil {
		err = c.f.Sync()
	}
	if err != nil {
		c.dirty.Store(true)
		return corrupt(c.name, err) // final, whatever it was
	}
	return nil
}

// write writes the stale pages to the file.
func (c *changeMap) write() error {
	const perPage = disk.PageSize / 8
	b := buf.Get(disk.PageSize)
	defer b.Release()
	for p := range c.stale {
		if !c.stale[p].Load() || !c.stale[p].Swap(false) {
			continue
		}
		for i := range perPage {
			binary.LittleEndian.PutUint64(b.B[8*i:], atomic.LoadUint64(&c.words[p*perPage+i]))
		}
		if _, err := c.f.WriteAt(b.B, mapHeader+int64(p)*disk.PageSize, false); err != nil {
			c.stale[p].Store(true)
			return err
		}
	}
	return nil
}

func (c *changeMap) close() error { return errors.Join(c.bits.close(), c.f.Close()) }

// strayBits counts the bits that a bitmap has beyond size.
func strayBits(bitmap []byte, size int64) int {
	stray := 0
	blocks := size / blockSize
	for i, b := range bitmap {
		switch from := int64(i) * 8; {
		case b == 0 || from+8 <= blocks:
		case from >= blocks:
			stray += bits.OnesCount8(b)
		default:
			stray += bits.OnesCount8(b >> (blocks - from))
		}
	}
	return stray
}
