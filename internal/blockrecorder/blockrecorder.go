// Package blockrecorder serves one file that records every write and every flush
// that reaches it, in order: with a loop device over that file a test knows what
// a disk was told, and can make what a power loss at any point would have left.
//
// It promises that a record is in the log before its request is answered, so that
// the length of the log, looked at by another process, is a point in the order
// that comes after all that was answered. It knows the dozen operations of FUSE
// that a loop device needs, handles one request at a time, and keeps no secrets:
// it is for tests only. Serve must run in a process that does not open the file
// itself: it would wait for itself for ever. It owns no goroutine.
package blockrecorder

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Name is the file's name in the directory that Serve is told.
const Name = "disk"

// Kind says what a record is.
type Kind uint32

// The kinds.
const (
	Write Kind = 1
	Flush Kind = 2
)

// Record is one request that was answered.
type Record struct {
	Kind   Kind
	Offset int64
	Data   []byte
	// End is the length of the log with this record.
	End int64
}

const recordHeader = 16 // kind u32, length u32, offset u64; little-endian

var order = binary.LittleEndian

// Read visits the records of a log; one that is not complete ends it.
func Read(r io.Reader, visit func(Record) error) error {
	b := bufio.NewReaderSize(r, 1<<20)
	var head [recordHeader]byte
	at := int64(0)
	for {
		if _, err := io.ReadFull(b, head[:]); errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		} else if err != nil {
			return err
		}
		n := order.Uint32(head[4:])
		if n > maxWrite {
			return fmt.Errorf("a record of %d bytes at %d is not possible", n, at)
		}
		rec := Record{Kind: Kind(order.Uint32(head[:])), Offset: int64(order.Uint64(head[8:])), Data: make([]byte, n)}
		if _, err := io.ReadFull(b, rec.Data); errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		} else if err != nil {
			return err
		}
		at += recordHeader + int64(n)
		rec.End = at
		if err := visit(rec); err != nil {
			return err
		}
	}
}

const (
	maxWrite   = 1 << 20
	inHeader   = 40
	outHeader  = 16
	rootNode   = 1
	fileNode   = 2
	cacheSecs  = 3600
	wholeInput = maxWrite + 4096
)

// FUSE's operations, see linux/fuse.h.
const (
	opLookup  = 1
	opForget  = 2
	opGetattr = 3
	opSetattr = 4
	opOpen    = 14
	opRead    = 15
	opWrite   = 16
	opStatfs  = 17
	opRelease = 18
	opFsync   = 20
	opFlush   = 25
	opInit    = 26
	opAccess  = 34
	opIntr    = 36
	opDestroy = 38
	opForgets = 42
)

type server struct {
	fd    int
	image *os.File
	log   *os.File
	size  int64
	out   []byte
}

// Serve mounts at dir a directory with the file Name, whose content is that of
// image, and appends records to log, until it is unmounted.
func Serve(dir, image, log string) error {
	s := &server{out: make([]byte, outHeader, outHeader+maxWrite)}
	var err error
	if s.image, err = os.OpenFile(image, os.O_RDWR, 0); err != nil {
		return err
	}
	defer s.image.Close()
	if s.log, err = os.OpenFile(log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600); err != nil {
		return err
	}
	defer s.log.Close()
	info, err := s.image.Stat()
	if err != nil {
		return err
	}
	s.size = info.Size()
	if s.fd, err = unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
		return fmt.Errorf("open /dev/fuse: %w", err)
	}
	defer unix.Close(s.fd)
	opts := fmt.Sprintf("fd=%d,rootmode=40700,user_id=0,group_id=0,max_read=%d", s.fd, maxWrite)
	if err := unix.Mount("hf-test-recorder", dir, "fuse.holdfast-recorder", unix.MS_NOSUID|unix.MS_NODEV, opts); err != nil {
		return fmt.Errorf("mount at %s: %w", dir, err)
	}
	return s.loop()
}

func (s *server) loop() error {
	in := make([]byte, wholeInput)
	for {
		n, err := unix.Read(s.fd, in)
		switch {
		case err == unix.EINTR || err == unix.EAGAIN || err == unix.ENOENT:
			continue
		case err == unix.ENODEV:
			return nil // unmounted
		case err != nil:
			return fmt.Errorf("read request: %w", err)
		case n < inHeader:
			return fmt.Errorf("a request of %d bytes", n)
		}
		if err := s.handle(in[:n]); err != nil {
			return err
		}
	}
}

func (s *server) handle(in []byte) error {
	op, node := order.Uint32(in[4:]), order.Uint64(in[16:])
	body := in[inHeader:]
	s.out = s.out[:outHeader]
	errno := unix.Errno(0)
	switch op {
	case opForget, opForgets, opIntr:
		return nil
	case opInit:
		s.init()
	case opLookup:
		if name := body[:len(body)-1]; node != rootNode || string(name) != Name {
			errno = unix.ENOENT
			break
		}
		s.u64(fileNode, 0, cacheSecs, cacheSecs)
		s.u32(0, 0)
		s.attr(fileNode)
	case opGetattr, opSetattr:
		s.u64(cacheSecs)
		s.u32(0, 0)
		s.attr(node)
	case opOpen:
		s.u64(1)
		s.u32(1, 0) // FOPEN_DIRECT_IO
	case opStatfs:
		s.out = append(s.out, make([]byte, 80)...)
	case opRelease, opFlush, opAccess, opDestroy:
	case opRead:
		errno = s.read(int64(order.Uint64(body[8:])), order.Uint32(body[16:]))
	case opWrite:
		errno = s.write(int64(order.Uint64(body[8:])), body[40:][:order.Uint32(body[16:])])
	case opFsync:
		errno = s.record(Flush, 0, nil)
	default:
		errno = unix.ENOSYS
	}
	return s.reply(order.Uint64(in[8:]), errno)
}

func (s *server) u64(vs ...uint64) {
	for _, v := range vs {
		s.out = order.AppendUint64(s.out, v)
	}
}

func (s *server) u32(vs ...uint32) {
	for _, v := range vs {
		s.out = order.AppendUint32(s.out, v)
	}
}

func (s *server) init() {
	const bigWrites, maxPages = 1 << 5, 1 << 22
	s.u32(7, 31, 0, bigWrites|maxPages, 64|48<<16, maxWrite, 1, maxWrite/4096)
	s.u32(0, 0, 0, 0, 0, 0, 0, 0)
}

func (s *server) attr(node uint64) {
	mode, size := uint32(unix.S_IFDIR|0o700), uint64(0)
	if node == fileNode {
		mode, size = unix.S_IFREG|0o600, uint64(s.size)
	}
	s.u64(node, size, size/512, 0, 0, 0)
	s.u32(0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)
}

func (s *server) read(off int64, n uint32) unix.Errno {
	if n > maxWrite || off < 0 {
		return unix.EINVAL
	}
	s.out = s.out[:outHeader+int(n)]
	k, err := s.image.ReadAt(s.out[outHeader:], off)
	s.out = s.out[:outHeader+k]
	if err != nil && !errors.Is(err, io.EOF) {
		return unix.EIO
	}
	return 0
}

func (s *server) write(off int64, p []byte) unix.Errno {
	if errno := s.record(Write, off, p); errno != 0 {
		return errno
	}
	if _, err := s.image.WriteAt(p, off); err != nil {
		return unix.EIO
	}
	s.u32(uint32(len(p)), 0)
	return 0
}

func (s *server) record(k Kind, off int64, p []byte) unix.Errno {
	rec := make([]byte, recordHeader, recordHeader+len(p))
	order.PutUint32(rec, uint32(k))
	order.PutUint32(rec[4:], uint32(len(p)))
	order.PutUint64(rec[8:], uint64(off))
	if _, err := s.log.Write(append(rec, p...)); err != nil {
		return unix.EIO
	}
	return 0
}

func (s *server) reply(unique uint64, errno unix.Errno) error {
	if errno != 0 {
		s.out = s.out[:outHeader]
	}
	order.PutUint32(s.out, uint32(len(s.out)))
	order.PutUint32(s.out[4:], uint32(-int32(errno)))
	order.PutUint64(s.out[8:], unique)
	if _, err := unix.Write(s.fd, s.out); err != nil && err != unix.ENOENT {
		return fmt.Errorf("answer: %w", err)
	}
	return nil
}
