package engine

import (
	"encoding/binary"
	"errors"
	"path"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/engine/disk"
)

const (
	memoryMagic   = "HFMEMORY"
	memoryVersion = 1    // history: 1, the first
	memoryHeader  = 4096 // bytes before the content
	memoryID      = 32   // bytes of an id
)

// memory is where an open replica keeps what every write stores to: its tail and
// the bits of its change maps. It is a folder of a filesystem that is in the
// machine's memory, so that storing there waits for no disk, and what was stored
// survives the process, but not the machine.
//
// Its id is in every piece of it and, while the replica is open or was not closed
// in good order, in the replica's meta: so that it is known whether what is found
// is this replica's, whole, and the newest.
type memory struct {
	fs  disk.FS
	dir string
	id  string
}

// piece of memory: a mapped file of a header and the content.
type shadow struct {
	f   disk.File
	m   disk.Mapping
	mem []byte // the content
}

func encodeMemoryHeader(p []byte, id, name string) {
	clear(p[:memoryHeader])
	copy(p, memoryMagic)
	binary.LittleEndian.PutUint32(p[8:], memoryVersion)
	copy(p[16:16+memoryID], id)
	binary.LittleEndian.PutUint32(p[12:], memoryHeaderSum(p, name))
}

// memoryHeaderSum is of all but itself, and of the piece's name.
func memoryHeaderSum(p []byte, name string) uint32 {
	return checksum(append(append(append([]byte(nil), p[:12]...), p[16:16+memoryID]...), name...))
}

// decodeMemoryHeader checks the header of the piece of that name; kind Corrupt if
// it is not that of id.
func decodeMemoryHeader(p []byte, id, name string) error {
	const op = "decode memory"
	if len(p) < memoryHeader || string(p[:8]) != memoryMagic || binary.LittleEndian.Uint32(p[12:]) != memoryHeaderSum(p, name) {
		return errorf(op, holdfast.Corrupt, "its header is damaged")
	}
	if v := binary.LittleEndian.Uint32(p[8:]); v != memoryVersion {
		return errorf(op, holdfast.Corrupt, "it has version %d; this release reads version %d", v, memoryVersion)
	}
	if len(id) != memoryID || string(p[16:16+memoryID]) != id {
		return errorf(op, holdfast.Corrupt, "it is of another opening of the replica")
	}
	return nil
}

// create makes a piece with n bytes of content, all zeros, in place of one that is
// there. Nothing is allocated.
func (y memory) create(name string, n int64) (*shadow, error) {
	f, err := y.fs.Open(path.Join(y.dir, name), disk.Create)
	if err != nil {
		return nil, err
	}
	err = f.Truncate(0)
	if err == nil {
		err = f.Truncate(memoryHeader + n)
	}
	if err == nil {
		err = f.Allocate(0, memoryHeader)
	}
	s := &shadow{f: f}
	if err == nil {
		err = s.remap(n)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	encodeMemoryHeader(s.m.Bytes(), y.id, name)
	return s, nil
}

// open maps a piece that is there, which has n bytes of content or is lengthened
// to that. Kinds: NotFound; Corrupt when it is not of this memory.
func (y memory) open(name string, n int64) (*shadow, error) {
	f, err := y.fs.Open(path.Join(y.dir, name), 0)
	if err != nil {
		return nil, err
	}
	s := &shadow{f: f}
	head := make([]byte, memoryHeader)
	if err = readPage(f, head, 0); err == nil {
		err = decodeMemoryHeader(head, y.id, name)
	}
	if err == nil {
		err = s.lengthen(n)
	}
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

// lengthen maps at least n bytes of content; what is new is zeros.
func (s *shadow) lengthen(n int64) error {
	info, err := s.f.Stat()
	if err != nil {
		return err
	}
	if s.m != nil {
		err := s.m.Close()
		s.m, s.mem = nil, nil
		if err != nil {
			return err
		}
	}
	if info.SizeBytes < memoryHeader+n {
		if err := s.f.Truncate(memoryHeader + n); err != nil {
			return err
		}
	}
	return s.remap(n)
}

func (s *shadow) remap(n int64) error {
	m, err := s.f.Map(memoryHeader + n)
	if err != nil {
		return err
	}
	s.m, s.mem = m, m.Bytes()[memoryHeader:]
	return nil
}

// allocate makes [off, off+n) of the content fit to be stored to: kind NoSpace when
// the machine has no memory for it. Storing there is no page fault afterwards:
// even one of a file in memory may wait for memory to be reclaimed.
func (s *shadow) allocate(off, n int64) error {
	if err := s.f.Allocate(memoryHeader+off, n); err != nil {
		return err
	}
	return s.m.Populate(memoryHeader+off, n)
}

// stored lists what of the content may have been stored to, in whole pages.
func (s *shadow) stored() ([]holdfast.Extent, error) {
	xs, err := s.f.Extents(memoryHeader, int64(len(s.mem)))
	for i := range xs {
		xs[i].Offset -= memoryHeader
	}
	return xs, err
}

func (s *shadow) close() error {
	if s.m == nil {
		return s.f.Close()
	}
	return closeAll(s.m, s.f)
}

// forget removes all of the memory, whatever its id.
func (y memory) forget() error { return disk.RemoveAll(y.fs, y.dir) }

func (y memory) remove(name string) error {
	err := y.fs.Remove(path.Join(y.dir, name))
	if errors.Is(err, holdfast.NotFound) {
		return nil
	}
	return err
}

// fresh makes an empty memory with an id of its own.
func (y memory) fresh() (memory, error) {
	y.id = string(holdfast.NewPoolID())
	if err := y.forget(); err != nil {
		return y, err
	}
	return y, y.fs.Mkdir(y.dir)
}
