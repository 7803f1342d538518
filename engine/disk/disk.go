// Package disk is the one seam between Holdfast's storage engine and the
// operating system: a small filesystem interface with three implementations.
//
//   - Dir: a directory of a real filesystem, with O_DIRECT, fdatasync, holes and
//     shared mappings.
//   - Mem: a disk in memory for simulations. It knows what is durable: Crash is
//     a power loss (what was not flushed vanishes or stays, each 4 KiB page by
//     the toss of a seeded coin), Kill is a killed process (all stays). Volatile
//     is the memory of its machine: Kill leaves it, Crash empties it.
//   - Faulty: a wrapper whose hook fails, delays or tears chosen operations.
//
// It promises that every error is a *holdfast.Error that wraps the errno, with
// kind NoSpace for a full disk, NotFound, Exists, InUse (a lock held by another
// process), Invalid (misaligned direct I/O), and Other for the rest, EIO
// included. It retries interrupted calls and nothing else. Paths are relative to
// the filesystem's root, with slashes. Nothing is durable before the Sync that
// the contract names. It owns no goroutine.
package disk

import (
	"errors"
	"io"
	"path"
	"syscall"

	"github.com/holdfast-storage/holdfast"
)

// PageSize is the unit of tearing, of holes and of direct I/O, in bytes.
const PageSize = holdfast.BlockSize

// Flag says how to open a file. Files are always opened for reading and writing.
type Flag uint8

// The flags.
const (
	Create    Flag = 1 << iota // make the file when it is not there
	Exclusive                  // with Create: fail with kind Exists when it is there
	Direct                     // O_DIRECT: offsets and lengths in whole blocks of the device; on XFS writes leave the file's times alone
	Lock                       // hold an exclusive lock until Close; kind InUse when somebody else does
	// Late allows that a write is under way when its process has ended already, and
	// even the process's lock is gone: who opens the file next waits for it.
	Late
)

// FS is a filesystem, or a directory of one.
type FS interface {
	// Open opens a file; kind NotFound when it is not there and Create not set.
	Open(name string, flags Flag) (File, error)
	// Mkdir makes a directory; its parent must be there.
	Mkdir(name string) error
	// Remove removes a file or an empty directory.
	Remove(name string) error
	// Rename replaces to, atomically. Both are in the same directory. Durable
	// after SyncDir of it.
	Rename(from, to string) error
	// SyncDir makes the directory's entries durable.
	SyncDir(name string) error
	// List gives a directory's entries, sorted by name.
	List(name string) ([]Entry, error)
	// Usage tells the space of the whole filesystem.
	Usage() (Usage, error)
}

// Entry is one entry of a directory.
type Entry struct {
	Name string
	Dir  bool
}

// Usage is a filesystem's space in bytes.
type Usage struct {
	TotalBytes int64
	FreeBytes  int64
}

// File is an open file. Methods may be called by several goroutines at once,
// Close only when no other call is under way.
type File interface {
	// ReadAt is io.ReaderAt's: io.EOF when fewer bytes are there. Holes read as
	// zeros.
	ReadAt(p []byte, off int64) (int, error)
	// WriteAt writes all of p or fails, and says how many bytes were applied
	// before it failed. With dsync those bytes are durable on return.
	WriteAt(p []byte, off int64, dsync bool) (int, error)
	// Sync makes the file's content and size durable (fdatasync). An error is
	// final: what was written since the last one may be lost for good.
	Sync() error
	Close() error
	Space
	Sharing
}

// Sharing is how files have blocks in common. Which blocks files have (by first
// writes, overwriting of what is shared, Allocate, Punch and CloneRange) becomes
// durable in the order in which it was changed, over all files: a power loss
// leaves a prefix of these changes, and content never comes later than the block
// it was written to. XFS's log has this order; Mem models it.
type Sharing interface {
	// CloneRange makes [off, off+n) of this file what it is in from, another open
	// file of the same filesystem, by sharing its blocks: holes, and what was
	// allocated and never written, become holes. Neither is written to in place
	// from then on while they share. Both files must reach to off+n; off and n
	// are whole pages. Each piece that Mapped lists of from's range is one change
	// when this file has a hole there; several pieces are several changes. A
	// filesystem that cannot share gets a copy, durable on return.
	CloneRange(from File, off, n int64) error
	// Mapped lists the pieces of [off, off+n) that have blocks, sorted, cut at
	// whole pages. Neighbouring pieces are not joined.
	Mapped(off, n int64) ([]Piece, error)
}

// Piece is a range of a file that has blocks.
type Piece struct {
	holdfast.Extent
	Unwritten bool // it was allocated and never written: it reads as zeros
	Shared    bool // other files may have the same blocks
	// Place is where on the disk it begins, in bytes; 0 when that is not known. Two
	// files that have a page at the same place have the same block.
	Place int64
}

// Space is what a file can do with its size and its holes.
type Space interface {
	Stat() (Info, error)
	// Truncate sets the size; a longer file grows by a hole. Durable after Sync.
	// It waits for all writes under way, also those of a process that has ended.
	Truncate(size int64) error
	// Allocate gives [off, off+n) space within the file's size, so that storing
	// there through a mapping cannot run out of it.
	Allocate(off, n int64) error
	// Punch makes [off, off+n) a hole. Durable after Sync.
	Punch(off, n int64) error
	// Extents lists where data is within [off, off+n), sorted, in whole pages.
	// Space that was allocated and never written may be left out.
	Extents(off, n int64) ([]holdfast.Extent, error)
	// Map maps the first n bytes of the file, shared: what is stored there
	// survives the process at once, and a power loss after Sync of the mapping.
	// Only allocated ranges may be stored to. A store may wait for the disk, and is
	// then one that the runtime's garbage collector waits for: what must go on while
	// a disk hangs maps files of a filesystem in memory.
	Map(n int64) (Mapping, error)
}

// Info describes a file.
type Info struct {
	SizeBytes      int64
	AllocatedBytes int64
}

// Mapping is a part of a file as memory.
type Mapping interface {
	// Bytes is the memory, valid until Close.
	Bytes() []byte
	// Populate takes the page faults of [off, off+n), which is allocated, in a
	// system call: storing there later is none, for a file in memory. Where the
	// system cannot do that it does nothing.
	Populate(off, n int64) error
	// Sync makes what was stored before it durable (msync and the file's
	// metadata).
	Sync() error
	Close() error
}

// Errno makes the error that an operation on a path gives for an errno; nil for
// 0. Implementations, wrappers and tests use it, so that all give the same.
func Errno(op, name string, errno syscall.Errno) error {
	if errno == 0 {
		return nil
	}
	kind := holdfast.Other
	switch errno {
	case syscall.ENOSPC, syscall.EDQUOT:
		kind = holdfast.NoSpace
	case syscall.ENOENT:
		kind = holdfast.NotFound
	case syscall.EEXIST, syscall.ENOTEMPTY:
		kind = holdfast.Exists
	case syscall.EWOULDBLOCK, syscall.EBUSY:
		kind = holdfast.InUse
	case syscall.EINVAL, syscall.EISDIR, syscall.ENOTDIR:
		kind = holdfast.Invalid
	}
	return holdfast.WrapKind(op+" "+name, kind, errno)
}

// ReadFile reads a whole file of at most limit bytes; kind Corrupt when it is
// longer.
func ReadFile(fs FS, name string, limit int64) ([]byte, error) {
	f, err := fs.Open(name, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.SizeBytes > limit {
		return nil, holdfast.E("read "+name, holdfast.Corrupt, "the file is longer than it can be")
	}
	p := make([]byte, info.SizeBytes)
	n, err := f.ReadAt(p, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return p[:n], nil
}

// tmpSuffix marks a file that ReplaceFile has not finished.
const tmpSuffix = ".tmp"

// IsTemporary says whether a name is a left-over of a ReplaceFile that never
// finished: it was never renamed to its final name, so nobody relies on it.
func IsTemporary(name string) bool { return path.Ext(name) == tmpSuffix }

// ReplaceFile makes the file's content data, atomically and durably: a crash at
// any point leaves the old content or the new.
func ReplaceFile(fs FS, name string, data []byte) error {
	if err := writeWhole(fs, name+tmpSuffix, data); err != nil {
		return err
	}
	if err := fs.Rename(name+tmpSuffix, name); err != nil {
		return err
	}
	return fs.SyncDir(path.Dir(name))
}

func writeWhole(fs FS, name string, data []byte) error {
	f, err := fs.Open(name, Create)
	if err != nil {
		return err
	}
	err = f.Truncate(0)
	if err == nil {
		_, err = f.WriteAt(data, 0, false)
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// RemoveAll removes a file or a directory with all that is in it; nil when
// there is none.
func RemoveAll(fs FS, name string) error {
	err := fs.Remove(name)
	if err == nil || errors.Is(err, holdfast.NotFound) {
		return nil
	}
	if !errors.Is(err, holdfast.Exists) {
		return err
	}
	entries, err := fs.List(name)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := RemoveAll(fs, path.Join(name, e.Name)); err != nil {
			return err
		}
	}
	return fs.Remove(name)
}

// MkdirIfMissing makes a directory unless it is there.
func MkdirIfMissing(fs FS, name string) error {
	if err := fs.Mkdir(name); err != nil && !errors.Is(err, holdfast.Exists) {
		return err
	}
	return nil
}
