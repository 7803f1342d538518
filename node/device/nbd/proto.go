package nbd

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// The transmission phase of the NBD protocol with simple replies
// (doc/proto.md of the nbd project): everything is big-endian.
const (
	requestMagic = 0x25609513
	replyMagic   = 0x67446698

	// requestSize: magic 4, flags 2, type 2, cookie 8, offset 8, length 4.
	requestSize = 28
	// replySize: magic 4, error 4, cookie 8.
	replySize = 16

	opRead        = 0
	opWrite       = 1
	opDisconnect  = 2
	opFlush       = 3
	opTrim        = 4
	opWriteZeroes = 6

	flagFUA = 1 << 0 // of a request

	// What a server can, told to the kernel.
	hasFlags        = 1 << 0
	readOnly        = 1 << 1
	sendFlush       = 1 << 2
	sendFUA         = 1 << 3
	sendTrim        = 1 << 5
	sendWriteZeroes = 1 << 6
)

// header is a request without its data.
type header struct {
	flags, op uint16
	cookie    uint64
	offset    int64
	length    int64
}

// parseHeader reads requestSize bytes; false if they are no request.
func parseHeader(p []byte) (header, bool) {
	b := binary.BigEndian
	h := header{flags: b.Uint16(p[4:]), op: b.Uint16(p[6:]), cookie: b.Uint64(p[8:]),
		offset: int64(b.Uint64(p[16:])), length: int64(b.Uint32(p[24:]))}
	return h, b.Uint32(p) == requestMagic
}

// putReply writes replySize bytes.
func putReply(p []byte, cookie uint64, e unix.Errno) {
	b := binary.BigEndian
	b.PutUint32(p, replyMagic)
	b.PutUint32(p[4:], uint32(e))
	b.PutUint64(p[8:], cookie)
}
