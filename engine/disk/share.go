package disk

import (
	"errors"
	"io"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
)

// fiemap is struct fiemap of linux/fiemap.h with room for some extents.
type fiemap struct {
	start, length uint64
	flags         uint32
	mapped        uint32
	count         uint32
	_             uint32
	extents       [fiemapExtents]fiemapExtent
}

type fiemapExtent struct {
	logical, physical, length uint64
	_                         [2]uint64
	flags                     uint32
	_                         [3]uint32
}

const (
	fiemapExtents = 128

	fsIocFiemap           = 0xc020660b
	fiemapExtentLast      = 0x1
	fiemapExtentUnwritten = 0x800
	fiemapExtentShared    = 0x2000
	fiemapExtentNoPlace   = 0x2 | 0x4 | 0x8 | 0x100 | 0x200 | 0x400 // unknown, delayed, encoded, not aligned, inline, tail
)

var fiemaps = sync.Pool{New: func() any { return new(fiemap) }}

// Mapped implements Sharing with FIEMAP. Where blocks cannot be shared, each
// page is a piece of its own: what CloneRange copies is not one change.
func (f *dirFile) Mapped(off, n int64) ([]Piece, error) {
	m := fiemaps.Get().(*fiemap)
	defer fiemaps.Put(m)
	var out []Piece
	for at, end := off, off+n; at < end; {
		m.start, m.length, m.flags, m.count, m.mapped = uint64(at), uint64(end-at), 0, fiemapExtents, 0
		if err := retry(func() error { return ioctl(f.fd, fsIocFiemap, unsafe.Pointer(m)) }); err != nil {
			return nil, sysErr("list pieces", f.name, err)
		}
		if m.mapped == 0 {
			break
		}
		for _, x := range m.extents[:m.mapped] {
			from, to := max(int64(x.logical)/PageSize*PageSize, off), min((int64(x.logical+x.length)+PageSize-1)/PageSize*PageSize, end)
			if at = int64(x.logical + x.length); x.flags&fiemapExtentLast != 0 {
				at = end
			}
			if to <= from {
				continue
			}
			p := Piece{Extent: holdfast.Extent{Offset: from, Length: to - from},
				Unwritten: x.flags&fiemapExtentUnwritten != 0, Shared: x.flags&fiemapExtentShared != 0}
			if x.flags&fiemapExtentNoPlace == 0 && x.logical%PageSize == 0 {
				p.Place = int64(x.physical) + from - int64(x.logical)
			}
			out = append(out, p)
		}
	}
	if f.fs.copies.Load() {
		out = splitPages(out)
	}
	return out, nil
}

func splitPages(ps []Piece) []Piece {
	var out []Piece
	for _, p := range ps {
		for at := p.Offset; at < p.End(); at += PageSize {
			q := p
			q.Extent = holdfast.Extent{Offset: at, Length: PageSize}
			if p.Place > 0 {
				q.Place = p.Place + at - p.Offset
			}
			out = append(out, q)
		}
	}
	return out
}

func ioctl(fd int, op uintptr, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), op, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}

// Reclaimer is an FS that keeps space back for later writes near earlier ones, as
// XFS does in files that share blocks.
type Reclaimer interface {
	// Reclaim gives back what is kept for files that nobody writes to at the
	// moment. It takes some 20 µs for each place that was written to.
	Reclaim() error
}

const (
	fsIocFreeEOFBlocks  = 0x8080583a // XFS_IOC_FREE_EOFBLOCKS of xfs/xfs_fs.h
	eofBlocksVersion    = 1
	eofBlocksFlagsSync  = 1
	freeEOFBlocksLength = 128
)

// Reclaim implements Reclaimer for XFS; elsewhere nothing is kept back. Without
// the flag the kernel leaves files alone that are open for writing (since 6.12).
func (d *Dir) Reclaim() error {
	arg := [freeEOFBlocksLength / 4]uint32{eofBlocksVersion, eofBlocksFlagsSync}
	fd := -1
	err := retry(func() (err error) {
		fd, err = unix.Open(d.root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		return
	})
	if err != nil {
		return sysErr("open directory", d.root, err)
	}
	err = retry(func() error { return ioctl(fd, fsIocFreeEOFBlocks, unsafe.Pointer(&arg)) })
	_ = unix.Close(fd)
	if errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return sysErr("give back space", d.root, err)
}

// CloneRange implements Sharing with FICLONERANGE.
func (f *dirFile) CloneRange(from File, off, n int64) error {
	src, ok := from.(*dirFile)
	if !ok || src.fs != f.fs {
		return Errno("clone", f.name, syscall.EXDEV)
	}
	if f.fs.copies.Load() {
		return f.copyRange(src, off, n)
	}
	arg := unix.FileCloneRange{Src_fd: int64(src.fd), Src_offset: uint64(off), Src_length: uint64(n), Dest_offset: uint64(off)}
	err := retry(func() error { return unix.IoctlFileCloneRange(f.fd, &arg) })
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOTTY) {
		f.fs.copies.Store(true)
		return f.copyRange(src, off, n)
	}
	return sysErr("clone", f.name, err)
}

// copyRange stands in for sharing on a filesystem that has none.
func (f *dirFile) copyRange(src *dirFile, off, n int64) error {
	data, err := src.Extents(off, n)
	if err != nil {
		return err
	}
	p := make([]byte, 64<<10)
	if err := f.Punch(off, n); err != nil {
		return err
	}
	for _, x := range data {
		for at := x.Offset; at < x.End(); at += int64(len(p)) {
			q := p[:min(int64(len(p)), x.End()-at)]
			if _, err := src.ReadAt(q, at); err != nil && !errors.Is(err, io.EOF) {
				return err
			}
			if _, err := f.WriteAt(q, at, false); err != nil {
				return err
			}
		}
	}
	return f.Sync()
}
