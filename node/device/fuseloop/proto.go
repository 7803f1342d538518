package fuseloop

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// The FUSE protocol as include/uapi/linux/fuse.h of Linux 6.18 defines it, in
// the host's byte order. Only what one file needs is here.

// Operation codes.
const (
	opLookup      = 1
	opForget      = 2
	opGetattr     = 3
	opSetattr     = 4
	opOpen        = 14
	opRead        = 15
	opWrite       = 16
	opStatfs      = 17
	opRelease     = 18
	opFsync       = 20
	opInit        = 26
	opOpendir     = 27
	opReaddir     = 28
	opReleasedir  = 29
	opAccess      = 34
	opInterrupt   = 36
	opDestroy     = 38
	opBatchForget = 42
	opFallocate   = 43
)

// Sizes of what the kernel sends and expects, in bytes.
const (
	inHeaderSize  = 40
	writeInSize   = 40
	outHeaderSize = 16
	initOutSize   = 64
	attrSize      = 88
	attrOutSize   = 16 + attrSize
	entryOutSize  = 40 + attrSize
	openOutSize   = 16
	statfsOutSize = 80
	writeOutSize  = 8
	// writeHead is what stands before a WRITE's data.
	writeHead = inHeaderSize + writeInSize
)

// Flags of INIT; the numbers from 32 up travel in a second word.
const (
	initAsyncRead  = 1 << 0  // several reads of one file at once
	initBigWrites  = 1 << 5  // more than 4 KiB per WRITE
	initAsyncDIO   = 1 << 15 // direct I/O in parallel: without it one request at a time arrives
	initAbortError = 1 << 21 // reading after an abort says ECONNABORTED
	initMaxPages   = 1 << 22 // maxPages below counts
	initExt        = 1 << 30 // the second word of flags counts
	initHasResend  = 1 << 39 // a process that takes over may ask for what is in flight again
)

const (
	protoMajor    = 7
	protoMinor    = 41
	protoMinMinor = 28 // the first with maxPages: Linux 4.20

	// maxBackground is how many asynchronous requests the kernel may have
	// outstanding; its default of 12 halves the throughput. It stays above the
	// loop driver's queue of 128.
	maxBackground = 512
	maxWrite      = 1 << 20 // bytes in one READ or WRITE
	maxPages      = maxWrite / 4096
)

// Flags of an OPEN's answer.
const (
	fopenDirectIO       = 1 << 0 // never through the page cache
	fopenNoFlush        = 1 << 5 // no FLUSH on close
	fopenParallelWrites = 1 << 6 // direct writes do not exclude each other
)

// setattrSize is the bit of SETATTR that says that the size is given;
// setattrHarmless are those that change nothing here (times, handle, owner of
// locks, killing of set-uid bits).
const (
	setattrSize     = 1 << 3
	setattrHarmless = 1<<4 | 1<<5 | 1<<6 | 1<<7 | 1<<8 | 1<<9 | 1<<10 | 1<<11
)

// The two inodes.
const (
	nodeRoot = 1
	nodeFile = 2
)

// validSeconds is how long the kernel may keep names and attributes: they only
// change through Grow, which tells it.
const validSeconds = 10 * 365 * 24 * 3600

var order = binary.NativeEndian

// inHeader begins every request.
type inHeader struct {
	op     uint32
	unique uint64
	node   uint64
}

func parseInHeader(p []byte) inHeader {
	return inHeader{op: order.Uint32(p[4:]), unique: order.Uint64(p[8:]), node: order.Uint64(p[16:])}
}

// putOutHeader fills the header of an answer of n bytes, header included. An
// errno of 0 is success.
func putOutHeader(p []byte, n int, unique uint64, errno unix.Errno) {
	order.PutUint32(p[0:], uint32(n))
	order.PutUint32(p[4:], uint32(-int32(errno)))
	order.PutUint64(p[8:], unique)
}

// attr is what the kernel is told about an inode.
type attr struct {
	node      uint64
	sizeBytes int64
	mode      uint32
}

func (a attr) put(p []byte) {
	clear(p[:attrSize])
	order.PutUint64(p[0:], a.node)
	order.PutUint64(p[8:], uint64(a.sizeBytes))
	order.PutUint64(p[16:], uint64(a.sizeBytes/512))
	order.PutUint32(p[60:], a.mode)
	order.PutUint32(p[64:], 1)
	order.PutUint32(p[80:], 4096)
}
