package disk

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/engine/disk/aio"
)

// Dir is a directory of a real filesystem as an FS.
type Dir struct {
	root string
	// copies says that the filesystem cannot share blocks: found out by trying.
	copies atomic.Bool
	rings  rings
	pace   pace
	// contexts are what single reads and syncs are done with.
	contexts *aio.Pool
}

// OpenDir gives the directory at root, which must be there.
func OpenDir(root string) (*Dir, error) {
	var st unix.Stat_t
	if err := retry(func() error { return unix.Stat(root, &st) }); err != nil {
		return nil, sysErr("open directory", root, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil, Errno("open directory", root, syscall.ENOTDIR)
	}
	d := &Dir{root: root, contexts: contexts}
	var fs unix.Statfs_t
	if err := retry(func() error { return unix.Statfs(root, &fs) }); err != nil {
		return nil, sysErr("statfs", root, err)
	}
	d.copies.Store(fs.Type != unix.XFS_SUPER_MAGIC && fs.Type != unix.BTRFS_SUPER_MAGIC)
	return d, nil
}

// Root is the directory's path.
func (d *Dir) Root() string { return d.root }

func (d *Dir) at(name string) string { return filepath.Join(d.root, filepath.FromSlash(name)) }

// retry repeats a call that a signal interrupted.
func retry(f func() error) error {
	for {
		if err := f(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func sysErr(op, name string, err error) error {
	if err == nil {
		return nil
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return Errno(op, name, errno)
	}
	return holdfast.Wrap(op+" "+name, err)
}

// Open implements FS.
func (d *Dir) Open(name string, flags Flag) (File, error) {
	mode := unix.O_RDWR | unix.O_CLOEXEC | unix.O_NOFOLLOW
	if flags&Create != 0 {
		mode |= unix.O_CREAT
	}
	if flags&Exclusive != 0 {
		mode |= unix.O_EXCL
	}
	if flags&Direct != 0 {
		mode |= unix.O_DIRECT
	}
	fd := -1
	err := retry(func() (err error) { fd, err = unix.Open(d.at(name), mode, 0o600); return })
	if err != nil {
		return nil, sysErr("open", d.at(name), err)
	}
	if flags&Direct != 0 {
		fd = d.untimed(fd, unix.O_RDWR|unix.O_DIRECT)
	}
	if flags&Lock != 0 {
		if err := retry(func() error { return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) }); err != nil {
			_ = unix.Close(fd)
			return nil, sysErr("lock", d.at(name), err)
		}
	}
	return &dirFile{fs: d, fd: fd, name: d.at(name), direct: flags&Direct != 0, late: flags&Late != 0}, nil
}

// Mkdir implements FS.
func (d *Dir) Mkdir(name string) error {
	return sysErr("make directory", d.at(name), retry(func() error { return unix.Mkdir(d.at(name), 0o700) }))
}

// Remove implements FS.
func (d *Dir) Remove(name string) error {
	err := retry(func() error { return unix.Unlink(d.at(name)) })
	if errors.Is(err, unix.EISDIR) {
		err = retry(func() error { return unix.Rmdir(d.at(name)) })
	}
	return sysErr("remove", d.at(name), err)
}

// Rename implements FS.
func (d *Dir) Rename(from, to string) error {
	return sysErr("rename", d.at(from), retry(func() error { return unix.Rename(d.at(from), d.at(to)) }))
}

// SyncDir implements FS.
func (d *Dir) SyncDir(name string) error {
	fd := -1
	err := retry(func() (err error) {
		fd, err = unix.Open(d.at(name), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		return
	})
	if err != nil {
		return sysErr("open directory", d.at(name), err)
	}
	err = retry(func() error { return unix.Fsync(fd) })
	_ = unix.Close(fd)
	return sysErr("sync directory", d.at(name), err)
}

// List implements FS.
func (d *Dir) List(name string) ([]Entry, error) {
	found, err := os.ReadDir(d.at(name))
	if err != nil {
		return nil, sysErr("list", d.at(name), err)
	}
	entries := make([]Entry, len(found))
	for i, e := range found {
		entries[i] = Entry{Name: e.Name(), Dir: e.IsDir()}
	}
	return entries, nil
}

// Usage implements FS.
func (d *Dir) Usage() (Usage, error) {
	var st unix.Statfs_t
	if err := retry(func() error { return unix.Statfs(d.root, &st) }); err != nil {
		return Usage{}, sysErr("statfs", d.root, err)
	}
	return Usage{TotalBytes: int64(st.Blocks) * st.Bsize, FreeBytes: int64(st.Bavail) * st.Bsize}, nil
}

type dirFile struct {
	fs     *Dir
	fd     int
	name   string
	direct bool
	late   bool
}

// bounce lends an aligned copy when direct I/O is asked for on memory that is
// not aligned to a page.
type bounce struct{ mem []byte }

var bounces = sync.Pool{New: func() any { return new(bounce) }}

func (f *dirFile) unaligned(p []byte) bool {
	return f.direct && len(p) > 0 && uintptr(unsafe.Pointer(&p[0]))%PageSize != 0
}

func (b *bounce) get(n int) []byte {
	if len(b.mem) < n+PageSize {
		b.mem = make([]byte, n+PageSize)
	}
	skip := int(-uintptr(unsafe.Pointer(&b.mem[0])) & (PageSize - 1))
	return b.mem[skip : skip+n]
}

func (f *dirFile) ReadAt(p []byte, off int64) (int, error) {
	if f.unaligned(p) {
		b := bounces.Get().(*bounce)
		defer bounces.Put(b)
		q := b.get(len(p))
		n, err := f.ReadAt(q, off)
		copy(p, q[:n])
		return n, err
	}
	done := 0
	if len(p) > 0 {
		o := aio.Op{P: p, Off: off}
		if f.async(&o); o.Errno != 0 && !o.Refused {
			return 0, Errno("read", f.name, o.Errno)
		}
		done = o.N
	}
	return f.read(p, done, off)
}

// read goes on after the first done bytes.
func (f *dirFile) read(p []byte, done int, off int64) (int, error) {
	if done < len(p) {
		defer since(time.Now())
	}
	for done < len(p) {
		n, err := unix.Pread(f.fd, p[done:], off+int64(done))
		switch {
		case err == unix.EINTR:
		case err != nil:
			return done, sysErr("read", f.name, err)
		case n == 0:
			return done, io.EOF
		default:
			done += n
		}
	}
	return done, nil
}

func (f *dirFile) WriteAt(p []byte, off int64, dsync bool) (int, error) {
	if f.unaligned(p) {
		b := bounces.Get().(*bounce)
		defer bounces.Put(b)
		q := b.get(len(p))
		copy(q, p)
		p = q
	}
	if dsync || len(p) > aloneMost {
		return f.write(p, off, dsync)
	}
	if done, err := f.alone(p, off); done {
		return len(p), err
	} else if err != nil {
		return 0, err
	}
	began := time.Now()
	n, err := f.write(p, off, false)
	f.fs.pace.took(since(began))
	return n, err
}

func (f *dirFile) write(p []byte, off int64, dsync bool) (int, error) {
	done := 0
	for done < len(p) {
		var n int
		var err error
		if dsync {
			n, err = unix.Pwritev2(f.fd, [][]byte{p[done:]}, off+int64(done), unix.RWF_DSYNC)
		} else {
			n, err = unix.Pwrite(f.fd, p[done:], off+int64(done))
		}
		switch {
		case err == unix.EINTR:
		case err != nil:
			return done, sysErr("write", f.name, err)
		case n == 0:
			return done, Errno("write", f.name, syscall.EIO)
		default:
			done += n
		}
	}
	return done, nil
}

func (f *dirFile) Sync() error {
	o := aio.Op{Sync: true}
	if f.async(&o); !o.Refused {
		return Errno("sync", f.name, o.Errno)
	}
	defer since(time.Now())
	return sysErr("sync", f.name, retry(func() error { return unix.Fdatasync(f.fd) }))
}

func (f *dirFile) Close() error { return sysErr("close", f.name, unix.Close(f.fd)) }

func (f *dirFile) Stat() (Info, error) {
	var st unix.Stat_t
	if err := retry(func() error { return unix.Fstat(f.fd, &st) }); err != nil {
		return Info{}, sysErr("stat", f.name, err)
	}
	return Info{SizeBytes: st.Size, AllocatedBytes: st.Blocks * 512}, nil
}

func (f *dirFile) Truncate(size int64) error {
	return sysErr("truncate", f.name, retry(func() error { return unix.Ftruncate(f.fd, size) }))
}

func (f *dirFile) Allocate(off, n int64) error {
	return sysErr("allocate", f.name, retry(func() error { return unix.Fallocate(f.fd, 0, off, n) }))
}

func (f *dirFile) Punch(off, n int64) error {
	const mode = unix.FALLOC_FL_KEEP_SIZE | unix.FALLOC_FL_PUNCH_HOLE
	return sysErr("punch hole", f.name, retry(func() error { return unix.Fallocate(f.fd, mode, off, n) }))
}

func (f *dirFile) Extents(off, n int64) ([]holdfast.Extent, error) {
	var out []holdfast.Extent
	for at, end := off, off+n; at < end; {
		data, err := f.seek(at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) || err == nil && data >= end {
			return out, nil
		}
		if err != nil {
			return nil, sysErr("list extents", f.name, err)
		}
		hole, err := f.seek(data, unix.SEEK_HOLE)
		if err != nil {
			return nil, sysErr("list extents", f.name, err)
		}
		data = max(data/PageSize*PageSize, off)
		hole = min((hole+PageSize-1)/PageSize*PageSize, end)
		if k := len(out) - 1; k >= 0 && out[k].End() >= data {
			out[k].Length = hole - out[k].Offset
		} else {
			out = append(out, holdfast.Extent{Offset: data, Length: hole - data})
		}
		at = hole
	}
	return out, nil
}

func (f *dirFile) seek(off int64, whence int) (at int64, err error) {
	err = retry(func() (err error) { at, err = unix.Seek(f.fd, off, whence); return })
	return at, err
}

func (f *dirFile) Map(n int64) (Mapping, error) {
	mem, err := unix.Mmap(f.fd, 0, int(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, sysErr("map", f.name, err)
	}
	return &dirMapping{mem: mem, f: f}, nil
}

type dirMapping struct {
	mem []byte
	f   *dirFile
}

func (m *dirMapping) Bytes() []byte { return m.mem }

func (m *dirMapping) Populate(off, n int64) error {
	err := retry(func() error { return unix.Madvise(m.mem[off:off+n], unix.MADV_POPULATE_WRITE) })
	if errors.Is(err, unix.EINVAL) { // Linux before 5.14
		return nil
	}
	return sysErr("populate", m.f.name, err)
}

func (m *dirMapping) Sync() error {
	return sysErr("msync", m.f.name, retry(func() error { return unix.Msync(m.mem, unix.MS_SYNC) }))
}

func (m *dirMapping) Close() error {
	mem := m.mem
	m.mem = nil
	return sysErr("unmap", m.f.name, unix.Munmap(mem))
}
