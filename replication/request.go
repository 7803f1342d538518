package replication

import (
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/buf"
)

// Op is what a device asks of its volume.
type Op uint8

// The operations, as the kernel's block layer knows them.
const (
	OpRead Op = iota + 1
	OpWrite
	OpTrim  // discard and write-zeroes: the range reads as zeros afterwards
	OpFlush // everything completed before it becomes durable on every in-sync replica
	opRestore
)

// Request is one I/O of a device. Its maker fills the exported fields and does
// not touch it until Done is called, exactly once.
type Request struct {
	Op     Op
	FUA    bool // OpWrite, OpTrim: durable before it is done
	Offset int64
	Length int64
	// Buf holds the data of OpWrite and receives that of OpRead, Length bytes,
	// at most buf.Max. The primary keeps references of its own for as long as it
	// needs the data. It may put another buffer in its place for OpRead, taking
	// over the reference to the first: Done finds the data in Buf.
	Buf *buf.Buf
	// Done is called when the request is over, under the volume's lock: it must
	// not block or call the primary. Errors: OutOfRange, Fenced (the device is
	// to be closed), Unavailable (released, or the volume's limit for waiting is
	// over: a write may then have happened or not).
	Done func(r *Request, err error)

	at   time.Duration       // when it was submitted, in the primary's waking time
	snap holdfast.SnapshotID // of opRestore
}
