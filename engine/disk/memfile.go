package disk

import (
	"io"
	"syscall"

	"github.com/holdfast-storage/holdfast"
)

// memFile is an open file of a Mem.
type memFile struct {
	m      *Mem
	n      *inode
	c      *content
	name   string
	direct bool
	life   int
	closed bool
}

// enter locks the disk and checks that the handle is alive; the caller unlocks
// also when there is an error.
func (f *memFile) enter(op string) error {
	f.m.mu.Lock()
	if f.closed || f.life != f.m.life {
		return Errno(op, f.name, syscall.EBADF)
	}
	return nil
}

func (f *memFile) aligned(off int64, n int) bool {
	return !f.direct || off%PageSize == 0 && n%PageSize == 0
}

func (f *memFile) ReadAt(p []byte, off int64) (int, error) {
	defer f.m.mu.Unlock()
	if err := f.enter("read"); err != nil {
		return 0, err
	}
	if off < 0 || !f.aligned(off, len(p)) {
		return 0, Errno("read", f.name, syscall.EINVAL)
	}
	n := int(max(0, min(int64(len(p)), f.c.size-off)))
	if n > 0 {
		f.c.read(p[:n], off)
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *memFile) WriteAt(p []byte, off int64, dsync bool) (int, error) {
	defer f.m.mu.Unlock()
	if err := f.enter("write"); err != nil {
		return 0, err
	}
	if off < 0 || !f.aligned(off, len(p)) {
		return 0, Errno("write", f.name, syscall.EINVAL)
	}
	n := f.c.write(f.m, p, off, how{direct: f.direct, dsync: dsync})
	if n < len(p) {
		return n, Errno("write", f.name, syscall.ENOSPC)
	}
	return n, nil
}

func (f *memFile) Sync() error {
	defer f.m.mu.Unlock()
	if err := f.enter("sync"); err != nil {
		return err
	}
	f.c.sync(f.m)
	return nil
}

func (f *memFile) Close() error {
	defer f.m.mu.Unlock()
	if err := f.enter("close"); err != nil {
		return err
	}
	f.closed = true
	if f.n.lock == f {
		f.n.lock = nil
	}
	return nil
}

func (f *memFile) Stat() (Info, error) {
	defer f.m.mu.Unlock()
	if err := f.enter("stat"); err != nil {
		return Info{}, err
	}
	return Info{SizeBytes: f.c.size, AllocatedBytes: f.c.allocated * PageSize}, nil
}

func (f *memFile) Truncate(size int64) error {
	defer f.m.mu.Unlock()
	if err := f.enter("truncate"); err != nil {
		return err
	}
	if mp := f.c.mapped; size < 0 || mp != nil && mp.life == f.m.life && mp.open > 0 {
		return Errno("truncate", f.name, syscall.EINVAL)
	}
	f.c.resize(f.m, size)
	return nil
}

func (f *memFile) Allocate(off, n int64) error {
	defer f.m.mu.Unlock()
	if err := f.enter("allocate"); err != nil {
		return err
	}
	if off < 0 || n <= 0 || off+n > f.c.size {
		return Errno("allocate", f.name, syscall.EINVAL)
	}
	if !f.c.allocate(f.m, off, n) {
		return Errno("allocate", f.name, syscall.ENOSPC)
	}
	return nil
}

func (f *memFile) Punch(off, n int64) error {
	defer f.m.mu.Unlock()
	if err := f.enter("punch hole"); err != nil {
		return err
	}
	if off < 0 || n <= 0 {
		return Errno("punch hole", f.name, syscall.EINVAL)
	}
	f.c.punch(f.m, off, n)
	return nil
}

func (f *memFile) Extents(off, n int64) ([]holdfast.Extent, error) {
	defer f.m.mu.Unlock()
	if err := f.enter("list extents"); err != nil {
		return nil, err
	}
	return f.c.extents(off, min(off+n, f.c.size)), nil
}

func (f *memFile) Map(n int64) (Mapping, error) {
	defer f.m.mu.Unlock()
	if err := f.enter("map"); err != nil {
		return nil, err
	}
	if n <= 0 || n > f.c.size {
		return nil, Errno("map", f.name, syscall.EINVAL)
	}
	if f.c.mapped == nil {
		f.c.toMapped(f.m)
	}
	mp := f.c.mapped
	if mp.life != f.m.life {
		mp.life, mp.open = f.m.life, 0
	}
	mp.open++
	return &memMapping{f: f, mp: mp, mem: mp.cur[:n:n]}, nil
}

type memMapping struct {
	f   *memFile
	mp  *mapped
	mem []byte
}

func (m *memMapping) Bytes() []byte { return m.mem }

func (m *memMapping) Populate(off, n int64) error { return nil }

func (m *memMapping) Sync() error {
	defer m.f.m.mu.Unlock()
	if err := m.f.enter("msync"); err != nil {
		return err
	}
	m.f.c.sync(m.f.m)
	return nil
}

func (m *memMapping) Close() error {
	defer m.f.m.mu.Unlock()
	if err := m.f.enter("unmap"); err != nil {
		return err
	}
	m.mp.open--
	m.mem = nil
	return nil
}
