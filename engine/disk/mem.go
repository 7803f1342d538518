package disk

import (
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
)

// Mem is a disk in memory that knows what is durable. It is deterministic: the
// same calls, and the same random numbers handed to Crash, give the same disk.
//
// The model of a power loss is that of a journalling filesystem such as XFS:
// of the changes of which blocks files have, over all files, a prefix is there,
// at least up to the last sync of each (see Sharing); every page that was
// written in place and not synced, or stored to through a mapping and not
// synced, is the old or the new one, each by itself; a file's size is the old or
// the new one; of the changes to a directory since its last SyncDir any prefix
// in their order is there. Renames stay within one directory. Small structures
// (names, sizes, lists of blocks) take no space. It also panics where a real disk
// might only fail once it is full: when something was stored through a mapping
// where nothing was allocated.
type Mem struct {
	mu       sync.Mutex
	root     *inode
	capacity int64 // pages
	used     int64 // pages
	// life counts Crash and Kill: handles of an earlier life are dead.
	life   int
	next   int64 // where the next new block is
	log    changeLog
	dirtys []*block // that may have content which is not durable
	// volatile is a filesystem in the memory of the machine that has the disk.
	volatile *Mem
}

// NewMem makes an empty disk of so many bytes.
func NewMem(capacityBytes int64) *Mem {
	return &Mem{root: newDirInode(), capacity: capacityBytes / PageSize}
}

// inode is a directory or a file.
type inode struct {
	// Directories.
	names   map[string]*inode // nil for a file
	durable map[string]*inode
	pending []dirChange

	file *content // nil for a directory
	lock *memFile // holder of the exclusive lock
}

// dirChange is one change to a directory's entries: from is removed, then to is
// set to node, each unless empty.
type dirChange struct {
	from, to string
	node     *inode
}

func (c dirChange) apply(names map[string]*inode) {
	if c.from != "" {
		delete(names, c.from)
	}
	if c.to != "" {
		names[c.to] = c.node
	}
}

func newDirInode() *inode {
	return &inode{names: map[string]*inode{}, durable: map[string]*inode{}}
}

func (n *inode) change(c dirChange) {
	c.apply(n.names)
	n.pending = append(n.pending, c)
}

// SetCapacity changes the disk's size, for tests that fill and empty it.
func (m *Mem) SetCapacity(bytes int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.capacity = bytes / PageSize
}

// Kill is the death of the process: everything written stays, stores through
// mappings too; open files are dead and locks free. What the dead process still
// stores through its mappings, having been stopped in the middle of something
// only in the eyes of the test, does not count.
func (m *Mem) Kill() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.life++
	m.root.unmap()
	if m.volatile != nil {
		m.volatile.Kill()
	}
}

// Volatile is a filesystem in the memory of the machine that has the disk, as
// tmpfs is: a killed process leaves it as it is, Crash empties it. It has as much
// space as the disk, at first.
func (m *Mem) Volatile() FS {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.volatile == nil {
		m.volatile = &Mem{root: newDirInode(), capacity: m.capacity}
	}
	return m.volatile
}

// empty is what a power loss leaves of memory.
func (m *Mem) empty() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.life++
	m.root.unmap()
	m.root, m.used, m.log, m.dirtys = newDirInode(), 0, changeLog{}, nil
}

// unmap takes the memory of all mapped files away from those who mapped them.
func (n *inode) unmap() {
	if n.file != nil && n.file.mapped != nil {
		cur := make([]byte, len(n.file.mapped.cur))
		snapshot(cur, n.file.mapped.cur)
		check(cur, n.file.mapped.alloc)
		n.file.mapped.cur = cur
	}
	for _, child := range n.names { // the order does not matter
		child.unmap()
	}
}

// Crash is a power loss, decided by rng as the type's comment says. Everything
// that is left is durable afterwards. Open files are dead and locks free.
func (m *Mem) Crash(rng *rand.Rand) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.life++
	// How much of the unflushed survives differs from crash to crash: now and
	// then nothing, now and then all.
	odds := []float64{0, 0.1, 0.5, 0.9, 1}[rng.IntN(5)]
	keep := func() bool { return rng.Float64() < odds }
	m.used = 0
	m.crashLog(rng, odds, keep)
	m.crashDir(m.root, rng, keep)
	if m.volatile != nil {
		m.volatile.empty()
	}
}

func (m *Mem) crashDir(d *inode, rng *rand.Rand, keep func() bool) {
	for _, c := range d.pending[:rng.IntN(len(d.pending)+1)] {
		c.apply(d.durable)
	}
	d.pending = nil
	d.names = maps.Clone(d.durable)
	for _, name := range slices.Sorted(maps.Keys(d.names)) {
		n := d.names[name]
		if n.file == nil {
			m.crashDir(n, rng, keep)
			continue
		}
		n.file.crash(m, keep)
		n.file.recount(m)
	}
}

// find walks to a path's inode; nil if there is none.
func (m *Mem) find(name string) *inode {
	n := m.root
	for part := range strings.SplitSeq(path.Clean("/" + name)[1:], "/") {
		if part == "" {
			continue
		}
		if n.names == nil {
			return nil
		}
		if n = n.names[part]; n == nil {
			return nil
		}
	}
	return n
}

// parent finds the directory of a path and the last name in it.
func (m *Mem) parent(op, name string) (*inode, string, error) {
	clean := path.Clean("/" + name)
	d := m.find(path.Dir(clean))
	switch {
	case clean == "/":
		return nil, "", Errno(op, name, syscall.EINVAL)
	case d == nil:
		return nil, "", Errno(op, name, syscall.ENOENT)
	case d.names == nil:
		return nil, "", Errno(op, name, syscall.ENOTDIR)
	}
	return d, path.Base(clean), nil
}

// Open implements FS.
func (m *Mem) Open(name string, flags Flag) (File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	d, base, err := m.parent("open", name)
	if err != nil {
		return nil, err
	}
	n := d.names[base]
	switch {
	case n == nil && flags&Create == 0:
		return nil, Errno("open", name, syscall.ENOENT)
	case n == nil:
		n = &inode{file: &content{}}
		d.change(dirChange{to: base, node: n})
	case n.file == nil:
		return nil, Errno("open", name, syscall.EISDIR)
	case flags&Exclusive != 0:
		return nil, Errno("open", name, syscall.EEXIST)
	}
	f := &memFile{m: m, n: n, c: n.file, name: name, direct: flags&Direct != 0, life: m.life}
	if flags&Lock != 0 {
		if n.lock != nil && n.lock.life == m.life {
			return nil, Errno("lock", name, syscall.EWOULDBLOCK)
		}
		n.lock = f
	}
	return f, nil
}

// Mkdir implements FS.
func (m *Mem) Mkdir(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	d, base, err := m.parent("make directory", name)
	if err != nil {
		return err
	}
	if d.names[base] != nil {
		return Errno("make directory", name, syscall.EEXIST)
	}
	d.change(dirChange{to: base, node: newDirInode()})
	return nil
}

// Remove implements FS.
func (m *Mem) Remove(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	d, base, err := m.parent("remove", name)
	if err != nil {
		return err
	}
	n := d.names[base]
	switch {
	case n == nil:
		return Errno("remove", name, syscall.ENOENT)
	case len(n.names) > 0:
		return Errno("remove", name, syscall.ENOTEMPTY)
	}
	m.drop(n)
	d.change(dirChange{from: base})
	return nil
}

// drop gives back the space of a file whose name is gone.
func (m *Mem) drop(n *inode) {
	switch {
	case n == nil || n.file == nil:
	case n.file.mapped != nil:
		m.used -= n.file.allocated
	default:
		n.file.forget(m)
	}
}

// Rename implements FS.
func (m *Mem) Rename(from, to string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	d, oldBase, err := m.parent("rename", from)
	if err != nil {
		return err
	}
	d2, newBase, err := m.parent("rename", to)
	if err != nil {
		return err
	}
	n, old := d.names[oldBase], d2.names[newBase]
	switch {
	case d != d2:
		return Errno("rename", to, syscall.EXDEV)
	case n == nil:
		return Errno("rename", from, syscall.ENOENT)
	case n == old:
		return nil
	case old != nil && len(old.names) > 0:
		return Errno("rename", to, syscall.ENOTEMPTY)
	}
	m.drop(old)
	d.change(dirChange{from: oldBase, to: newBase, node: n})
	return nil
}

// SyncDir implements FS.
func (m *Mem) SyncDir(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	d := m.find(name)
	if d == nil || d.names == nil {
		return Errno("sync directory", name, syscall.ENOENT)
	}
	for _, c := range d.pending {
		c.apply(d.durable)
	}
	d.pending = nil
	return nil
}

// List implements FS.
func (m *Mem) List(name string) ([]Entry, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	d := m.find(name)
	if d == nil || d.names == nil {
		return nil, Errno("list", name, syscall.ENOENT)
	}
	entries := make([]Entry, 0, len(d.names))
	for _, base := range slices.Sorted(maps.Keys(d.names)) {
		entries = append(entries, Entry{Name: base, Dir: d.names[base].file == nil})
	}
	return entries, nil
}

// Usage implements FS.
func (m *Mem) Usage() (Usage, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return Usage{TotalBytes: m.capacity * PageSize, FreeBytes: max(0, m.capacity-m.used) * PageSize}, nil
}

// take reserves pages; false when the disk is full.
func (m *Mem) take(pages int64) bool {
	if m.used+pages > m.capacity {
		return false
	}
	m.used += pages
	return true
}
