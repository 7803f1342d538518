package engine

import (
	"cmp"
	"errors"
	"path"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/engine/disk"
)

// changes are the change maps of an open replica. The owner's lock keeps grow
// and prune away from all other methods.
type changes struct {
	fs   disk.FS
	dir  string
	mem  memory
	cur  atomic.Pointer[changeMap]
	mu   sync.Mutex
	maps []*changeMap // by epoch
	size int64
}

// openChanges opens all maps; those of epochs before since were given up
// durably, and are removed. kept says that their bits are in memory, which then is
// whole, or the error is of kind NotFound or Corrupt; otherwise the memory is
// fresh, and filled from the files.
func openChanges(fs disk.FS, dir string, y memory, o openedMaps) (*changes, error) {
	c := &changes{fs: fs, dir: dir, mem: y, size: o.size}
	entries, err := fs.List(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		epoch, ok := parseMapName(e.Name)
		switch {
		case disk.IsTemporary(e.Name), ok && epoch < o.since:
			err = fs.Remove(path.Join(dir, e.Name))
		case ok:
			var m *changeMap
			if m, err = c.open(epoch, o.kept); err == nil {
				c.maps = append(c.maps, m)
			}
		}
		if err != nil {
			return nil, errors.Join(err, c.close())
		}
	}
	return c, nil
}

// openedMaps says how the maps are opened.
type openedMaps struct {
	since holdfast.Epoch
	size  int64
	kept  bool
}

// open opens the map of an epoch whose file is there.
func (c *changes) open(epoch holdfast.Epoch, kept bool) (*changeMap, error) {
	piece := c.mem.create
	if kept {
		piece = c.mem.open
	}
	bits, err := piece(mapName(epoch), bitmapBytes(c.size))
	if err != nil {
		return nil, err
	}
	m, err := openMap(c.fs, c.dir, bits, epoch, c.size)
	if err != nil {
		return nil, err
	}
	fill := m.read
	if kept {
		fill = m.recall
	}
	if err := fill(); err != nil {
		return nil, errors.Join(err, m.close())
	}
	return m, nil
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
		m, err := c.make(epoch)
		if err != nil {
			return nil, err
		}
		c.maps = slices.Insert(c.maps, i, m)
	}
	c.cur.Store(c.maps[i])
	return c.maps[i], nil
}

// make makes a map: first its piece of memory, as a file without one is that of a
// memory which is lost; a piece without a file is nobody's.
func (c *changes) make(epoch holdfast.Epoch) (*changeMap, error) {
	bits, err := c.mem.create(mapName(epoch), bitmapBytes(c.size))
	if err != nil {
		return nil, err
	}
	head := make([]byte, mapHeader)
	encodeMapHeader(head, epoch)
	if err := disk.ReplaceFile(c.fs, path.Join(c.dir, mapName(epoch)), head); err != nil {
		return nil, errors.Join(err, bits.close())
	}
	return openMap(c.fs, c.dir, bits, epoch, c.size)
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
			// What was never stored to has no memory, and gets none. One map is
			// shorter when the others have grown and it could not.
			if i < len(m.words) && m.used[i*8/mapStep].Load() {
				w |= atomic.LoadUint64(&m.words[i])
			}
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
		if err := errors.Join(m.close(), c.fs.Remove(m.name), c.mem.remove(mapName(m.epoch))); err != nil {
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
