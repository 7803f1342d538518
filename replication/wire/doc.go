// Package wire is the binary framing of replication.Message on a byte stream.
//
// It promises that what Decode gives is exactly what was encoded, or an error of
// kind Corrupt: lengths are bounded before anything is allocated, header and
// payload carry a CRC32C each, and an unknown version, type, flag or status, a
// payload where none belongs, a missing one, and trailing bytes are errors.
// Data is read straight into an aligned buf.Buf. It does not know what messages
// mean, and does not protect against somebody who forges checksums: that is TLS,
// below it. It owns no goroutine.
//
// # Format
//
// A frame is a header of HeaderSize bytes and a payload of the length that the
// header gives. All numbers are little-endian.
//
//	offset size
//	     0    3  magic "HFD"
//	     3    1  version, see below
//	     4    1  type, replication.MsgType
//	     5    1  flags: 1 answer, 2 FUA, 4 more, 8 copied; the others are 0
//	     6    1  status, replication.Status; 0 in a request
//	     7    1  0
//	     8    8  id
//	    16    8  epoch
//	    24    8  seq
//	    32    8  committed
//	    40    8  since
//	    48    8  offset, not negative
//	    56    8  length, not negative
//	    64    4  payload length
//	    68    4  CRC32C (Castagnoli) of the payload; 0 when it is empty
//	    72    4  CRC32C of bytes 0 to 71
//	    76       payload
//
// What the payload is follows from type and answer alone:
//
//	message                        payload
//	Write request, Read and        data: 1 to replication.MaxData bytes
//	SnapRead answer
//	Mark request                   extents, may be none
//	Changed, Allocated, Diff and   extents, may be none
//	SnapAllocated answer
//	Hash and SnapHash answer       hashes, 16 bytes each, may be none
//	request about a snapshot       JSON of replication.SnapshotArg, at most 2 KiB
//	Hello request                  JSON of replication.Hello
//	Hello answer                   JSON of replication.Welcome
//	Record request                 JSON of holdfast.Record
//	Progress request               JSON of replication.Progress
//	Epoch request                  u32 length of the JSON, the JSON of
//	                               holdfast.Record, extents
//	all others                     none
//
// An answer whose status is not OK never has a payload. An extent is its offset
// and its length, 8 bytes each; the offset is not negative, the length is
// positive. Unknown members of JSON are ignored, so that a newer release can add
// some.
//
// A message type or flag that a release does not know is an error of kind
// Corrupt that ends the connection, so nothing of the kind is sent to a peer that
// has not shown that it knows it: Progress and the copied flag only go to a
// replica whose Welcome has a progress. A Hello without a replica ends with its
// answer; a release that does not know it answers StatusUnknown.
//
// # Versions
//
//	1  the first
package wire
