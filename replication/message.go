package replication

import (
	"slices"

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
	MsgProgress  MsgType = 16 // Progress of this replica's repair, to be kept durably with all that is applied
	// About snapshots. All requests have Snapshot.
	MsgSnapshot      MsgType = 17 // take it: what was applied becomes durable, then its content is fixed, durably
	MsgDropSnapshot  MsgType = 18 // a bounded step of dropping it; answer More: not the last one
	MsgRestore       MsgType = 19 // Seq, Offset, Length: a write whose data is the snapshot's
	MsgDiff          MsgType = 20 // Offset, Length: what may differ between From and ID; answer Extents
	MsgSnapRead      MsgType = 21 // as Read, of the snapshot; so are the next two
	MsgSnapAllocated MsgType = 22
	MsgSnapHash      MsgType = 23
	// MsgRoom: Length bytes are to be copied to or from this replica by a repair
	// that has Offset bytes left, or 0 at its source. Answered when there is room.
	// Only sent to replicas that report Room.
	MsgRoom    MsgType = 24
	MsgTypeEnd MsgType = 25
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
	StatusBusy       Status = 8 // MsgDropSnapshot: something, a clone, depends on it
	StatusNoSnapshot Status = 9 // there is no such snapshot here
	StatusEnd        Status = 10
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
	// Copied: MsgRead, MsgWrite, MsgTrim, MsgHash of a repair. What is written so is
	// applied on every in-sync replica already: it needs no place in the tail. Only
	// sent to replicas that report Progress.
	Copied bool
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
	Progress  *Progress
	Snapshot  *SnapshotArg
}

// SnapshotArg says which snapshot a message or task is about.
type SnapshotArg struct {
	ID holdfast.SnapshotID `json:"id,omitempty"` // "" stands for what is live, where that makes sense
	// Cut names the attempt, of MsgSnapshot and MsgDropSnapshot.
	Cut string `json:"cut,omitempty"`
	// From is the older side of MsgDiff.
	From holdfast.SnapshotID `json:"from,omitempty"`
}

// SnapshotRef is a snapshot that a replica has.
type SnapshotRef struct {
	ID  holdfast.SnapshotID `json:"id"`
	Cut string              `json:"cut"`
}

// Hello opens a session: the primary of Grant asks the replica to promise
// Message.Epoch and to refuse everybody older. Without a Replica it opens none: it
// asks what the node's replicas of the volume know, whatever the record says of
// them; the answer has the highest epoch promised, and Welcome.Shown.
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
	// Snapshots are those that the replica has, oldest first.
	Snapshots []SnapshotRef `json:"snapshots,omitempty"`
	// Progress is how far a repair of this replica had come; without Parts if
	// there is none. Releases that do not keep any leave it out, and are not asked
	// to.
	Progress *Progress `json:"progress,omitempty"`
	// Room: a repair asks for room before it copies (MsgRoom).
	Room bool `json:"room,omitempty"`
	// Shown answers a Hello without a replica: the newest record shown to one.
	Shown *holdfast.Record `json:"shown,omitempty"`
}

// MaxParts bounds a Progress.
const MaxParts = 16

// Progress is what a replica under repair durably knows of it: up to the end of
// the last part it holds what the in-sync replicas hold, but for what its tail
// and its suspects name, and for what was written in the parts' epochs or later.
type Progress struct {
	// Since is the epoch since which the replica lacks writes, as in the record:
	// of another one the progress says nothing.
	Since holdfast.Epoch `json:"since"`
	// Parts are in order of their offsets, each from the end of the one before.
	Parts []ProgressPart `json:"parts,omitempty"`
}

// ProgressPart is a range of a volume.
type ProgressPart struct {
	End  int64          `json:"end"`  // in bytes from the volume's begin
	AsOf holdfast.Epoch `json:"asOf"` // changes of this epoch and later ones are lacking
}

// Sound says whether the parts follow each other and are of epochs that can be:
// what does not came from a bug or a damaged disk.
func (g *Progress) Sound() bool {
	at := int64(0)
	for _, x := range g.Parts {
		if x.End <= at || x.End%holdfast.BlockSize != 0 || x.AsOf < g.Since || x.AsOf == 0 {
			return false
		}
		at = x.End
	}
	return len(g.Parts) <= MaxParts
}

// Clone is a deep copy.
func (g Progress) Clone() Progress {
	g.Parts = slices.Clone(g.Parts)
	return g
}
