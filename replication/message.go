package replication

import (
	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/buf"
)

// MsgType is what a message asks for. An answer has the type of its request and
// Answer set.
type MsgType uint8

// The message types. The numbers are part of the wire format.
const (
	MsgHello     MsgType = 1  // body Hello; answer body Welcome
	MsgEpoch     MsgType = 2  // new epoch under the same grant: Record, and Extents to mark in it, durably
	MsgPing      MsgType = 3  // nothing; carries Committed
	MsgWrite     MsgType = 4  // Seq, Offset, Buf
	MsgTrim      MsgType = 5  // Seq, Offset, Length
	MsgFlush     MsgType = 6  // nothing
	MsgRead      MsgType = 7  // Offset, Length; answer Buf
	MsgChanged   MsgType = 8  // Since; answer Extents
	MsgAllocated MsgType = 9  // Offset, Length; answer Extents
	MsgHash      MsgType = 10 // Offset, Length; answer Hashes
	MsgMark      MsgType = 11 // Extents to mark in the current epoch's change map, durably
	MsgGrow      MsgType = 12 // Length: new size in bytes
	MsgSettle    MsgType = 13 // Since: the replica is in sync; forget tail, suspects and older change maps
	MsgRecord    MsgType = 14 // Record: a newer one of the same epoch, to be kept (invariant 10)
	MsgQuiet     MsgType = 15 // nothing: this primary answers no reads any more
	MsgTypeEnd   MsgType = 16
)

// Status is the outcome in an answer.
type Status uint8

// The statuses. The numbers are part of the wire format.
const (
	StatusOK      Status = 0
	StatusFenced  Status = 1 // a higher epoch was promised: Epoch says which
	StatusNoSpace Status = 2 // the pool is full, nothing was written; try again
	StatusFailed  Status = 3 // the replica's disk failed; its data cannot be relied on
	StatusInvalid Status = 4 // the request makes no sense here (a bug, or a wrong peer)
	StatusUnknown Status = 5 // no such replica here
	StatusNoMap   Status = 6 // MsgChanged: change maps do not reach back to Since
	// StatusRolledBack: the record that came with a Hello contradicts the one
	// this replica was shown before: the metadata store was rolled back since.
	StatusRolledBack Status = 7
	StatusEnd        Status = 8
)

// Limits of a message, checked by the wire's decoder.
const (
	MaxData    = buf.Max // bytes in Buf
	MaxExtents = 64 << 10
	MaxHashes  = 1 << 10
)

// Message is one request or answer between a primary and a replica.
type Message struct {
	Type   MsgType
	Answer bool
	FUA    bool // MsgWrite, MsgTrim: durable before the answer
	// More: in an answer with Extents, the listing was cut at MaxExtents: ask
	// again from the end of the last one.
	More      bool
	Status    Status
	ID        uint64         // of the request in its connection; the answer repeats it
	Epoch     holdfast.Epoch // under which the sender speaks
	Seq       uint64         // of a write in its grant
	Committed uint64         // all writes up to it are applied on every in-sync replica
	Since     holdfast.Epoch
	Offset    int64
	Length    int64
	Buf       *buf.Buf // data; one reference travels with the message
	Extents   []holdfast.Extent
	Hashes    []Hash
	Hello     *Hello
	Welcome   *Welcome
	Record    *holdfast.Record
}

// Hello opens a session: the primary of Grant asks the replica to promise
// Message.Epoch and to refuse everybody older.
type Hello struct {
	Cluster holdfast.ClusterID `json:"cluster"`
	Volume  holdfast.VolumeID  `json:"volume"`
	Replica holdfast.ReplicaID `json:"replica"`
	Node    holdfast.NodeID    `json:"node"` // the primary's
	Grant   holdfast.Epoch     `json:"grant"`
	Record  holdfast.Record    `json:"record"`
}

// Welcome answers Hello when the promise is durable and every write of older
// sessions is applied or never will be.
type Welcome struct {
	Boot      string            `json:"boot"`
	SizeBytes int64             `json:"sizeBytes"`
	MapSince  holdfast.Epoch    `json:"mapSince"`
	Tail      []holdfast.Extent `json:"tail,omitempty"`
	Suspects  []holdfast.Extent `json:"suspects,omitempty"`
	// QuietNanos is how long ago this replica last answered a session of
	// another grant whose primary answers reads: it may still do so until the
	// read window has passed since then.
	QuietNanos int64 `json:"quietNanos"`
}
