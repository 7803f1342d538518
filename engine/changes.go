package engine

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"path"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/engine/disk"
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

// changeMap is the mapped bitmap of one epoch.
type changeMap struct {
	epoch holdfast.Epoch
	name  string
	f     disk.File
	m     disk.Mapping
	words []uint64
	ready []atomic.Bool // per step: bits may be stored
	dirty atomic.Bool   // stored to since the last sync
	mu    sync.Mutex    // allocating
}

// openMap maps an existing map, lengthening it to size if need be.
func openMap(fs disk.FS, dir string, epoch holdfast.Epoch, size int64) (*changeMap, error) {
	c := &changeMap{epoch: epoch, name: path.Join(dir, mapName(epoch))}
	f, err := fs.Open(c.name, 0)
	if err != nil {
		return nil, err
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
		_ = f.Close()
		return nil, holdfast.Wrap(c.name, err)
	}
	return c, nil
}

// resize maps the file at the length that a replica of size bytes needs; the
// length is durable. Nobody else uses the map meanwhile.
func (c *changeMap) resize(size int64) error {
	want := mapHeader + bitmapBytes(size)
	info, err := c.f.Stat()
	if err != nil {
		return err
	}
	if c.m != nil {
		if err := c.m.Close(); err != nil {
			return err
		}
		c.m, c.words = nil, nil
	}
	if info.SizeBytes < want {
		if err = errors.Join(c.f.Truncate(want), c.f.Sync()); err != nil {
			want = info.SizeBytes // go on as before
		}
	}
	var errMap error
	if c.m, errMap = c.f.Map(want); errMap != nil {
		return errors.Join(err, errMap)
	}
	mem := c.m.Bytes()[mapHeader:]
	c.words = unsafe.Slice((*uint64)(unsafe.Pointer(&mem[0])), len(mem)/8)
	c.ready = make([]atomic.Bool, (len(mem)+mapStep-1)/mapStep)
	return err
}

// prepare allocates the space for the bits of [off, off+n): kind NoSpace if
// there is none.
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
	if err := c.f.Allocate(mapHeader+i*mapStep, n); err != nil {
		return err
	}
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
		b = (w + 1) * 64
	}
	// After the bits: a sync that begins in between has them, or leaves the map
	// dirty for the next one.
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
	if !c.dirty.Swap(false) {
		return nil
	}
	if err := c.m.Sync(); err != nil {
		c.dirty.Store(true)
		return corrupt(c.name, err) // final, whatever it was
	}
	return nil
}

func (c *changeMap) close() error {
	if c.m == nil {
		return c.f.Close()
	}
	return closeAll(c.m, c.f)
}

// changes are the change maps of an open replica. The owner's lock keeps grow
// and prune away from all other methods.
type changes struct {
	fs   disk.FS
	dir  string
	cur  atomic.Pointer[changeMap]
	mu   sync.Mutex
	maps []*changeMap // by epoch
	size int64
}

// openChanges opens all maps; those of epochs before since were given up
// durably, and are removed.
func openChanges(fs disk.FS, dir string, since holdfast.Epoch, size int64) (*changes, error) {
	c := &changes{fs: fs, dir: dir, size: size}
	entries, err := fs.List(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		epoch, ok := parseMapName(e.Name)
		switch {
		case disk.IsTemporary(e.Name), ok && epoch < since:
			err = fs.Remove(path.Join(dir, e.Name))
		case ok:
			var m *changeMap
			if m, err = openMap(fs, dir, epoch, size); err == nil {
				c.maps = append(c.maps, m)
			}
		}
		if err != nil {
			return nil, errors.Join(err, c.close())
		}
	}
	return c, nil
}

// of gives the epoch's map, and makes it if there is none; its being there is
// durable.
func (c *changes) of(epoch holdfast.Epoch) (*changeMap, error) {
	if m := c.cur.Load(); m != nil && m.epoch == epoch {
		return m, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	i, found := slices.BinarySearchFunc(c.maps, epoch, func(m *changeMap, e holdfast.Epoch) int { return cmp.Compare(m.epoch, e) })
	if !found {
		head := make([]byte, mapHeader)
		encodeMapHeader(head, epoch)
		if err := disk.ReplaceFile(c.fs, path.Join(c.dir, mapName(epoch)), head); err != nil {
			return nil, err
		}
		m, err := openMap(c.fs, c.dir, epoch, c.size)
		if err != nil {
			return nil, err
		}
		c.maps = slices.Insert(c.maps, i, m)
	}
	c.cur.Store(c.maps[i])
	return c.maps[i], nil
}

// newest is the latest epoch that has a map; 0 if none has.
func (c *changes) newest() holdfast.Epoch {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.maps) == 0 {
		return 0
	}
	return c.maps[len(c.maps)-1].epoch
}

// all gives the maps of epochs from since on.
func (c *changes) all(since holdfast.Epoch) []*changeMap {
	c.mu.Lock()
	defer c.mu.Unlock()
	i, _ := slices.BinarySearchFunc(c.maps, since, func(m *changeMap, e holdfast.Epoch) int { return cmp.Compare(m.epoch, e) })
	return slices.Clone(c.maps[i:])
}

func (c *changes) sync() error {
	for _, m := range c.all(0) {
		if err := m.sync(); err != nil {
			return err
		}
	}
	return nil
}

// since is the union of the maps of epochs from epoch on.
func (c *changes) since(epoch holdfast.Epoch) []holdfast.Extent {
	maps := c.all(epoch)
	if len(maps) == 0 {
		return nil
	}
	word := func(i int) (w uint64) {
		for _, m := range maps {
			w |= atomic.LoadUint64(&m.words[i])
		}
		return w
	}
	return bitExtents(nil, word, len(maps[0].words), blockSize, c.size)
}

func (c *changes) grow(size int64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range c.maps {
		if err := m.resize(size); err != nil {
			return err
		}
	}
	c.size = size
	return nil
}

// prune removes the maps of epochs before since, which nobody will ask for.
func (c *changes) prune(since holdfast.Epoch) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cur.Store(nil)
	for len(c.maps) > 0 && c.maps[0].epoch < since {
		m := c.maps[0]
		c.maps = c.maps[1:]
		if err := errors.Join(m.close(), c.fs.Remove(m.name)); err != nil {
			return err
		}
	}
	return nil
}

func (c *changes) close() error {
	var errs []error
	for _, m := range c.maps {
		errs = append(errs, m.close())
	}
	return errors.Join(errs...)
}

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
