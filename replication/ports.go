package replication

import (
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/buf"
)

// Clock tells monotonic time since some fixed moment.
type Clock interface {
	Now() time.Duration
}

// Conn is one connection between a primary and a replica. Messages arrive in
// the order in which they were sent, or the connection is closed.
type Conn interface {
	// Send queues a message. It takes over one reference to m.Buf. After Close,
	// or when the peer is gone, it drops the message; the closing is reported
	// to the machine as an event of its own.
	Send(m *Message)
	// Close ends the connection; what is queued may or may not arrive. Messages
	// received earlier but not yet delivered are not delivered any more.
	Close()
}

// Dialer starts a connection to a replica. The answer arrives as
// Primary.OnConnected or Primary.OnDialFailed with the same attempt number. A
// failure of kind NotFound says that nobody listens where the replica's process
// would: that is gone.
type Dialer interface {
	Dial(to holdfast.Replica, attempt uint64)
}

// Records is the volume's key in the metadata store.
type Records interface {
	// Swap replaces the record if its revision is still want.Revision. The
	// answer arrives as Primary.OnSwap: nil error and the record as stored; kind
	// Busy and the record as it is now if somebody changed it; NotFound if it
	// was deleted; any other error when the outcome is unknown, in which case
	// the adapter has not retried.
	Swap(want holdfast.Record)
	// Read asks for the newest record, which arrives as Primary.OnRead.
	Read()
}

// Outsiders are the nodes that may have a replica of the volume which the record
// does not name.
type Outsiders interface {
	// Ask asks all nodes that live what the replicas of the volume there were shown
	// and have promised. The answers arrive together as Primary.OnOutsiders, when
	// all are there, or it is given up to wait for more.
	Ask()
}

// Outsider is what a node has said of its replicas: the newest record that one was
// shown, and the highest epoch that one has promised. Both are zero if it has none.
type Outsider struct {
	Node    holdfast.NodeID
	Record  holdfast.Record
	Promise holdfast.Epoch
}

// RepairGate is what the primaries of one node share, so that their repairs
// together keep to the node's limits. A nil one bounds nothing.
type RepairGate interface {
	// Turn says whether the repair of a replica may copy much: "" from when it is
	// its turn until Done, otherwise what it waits for; it asks again then.
	Turn(id holdfast.ReplicaID) string
	// Done ends a turn, or the waiting for it.
	Done(id holdfast.ReplicaID)
	// Take takes n bytes from what the node may copy and compare now. When there
	// are none it says false, and calls again, once, as an event of the machine,
	// when there are.
	Take(n int64, again func()) bool
	// Served tells how long one of the application's reads or writes took.
	Served(op Op, bytes int64, took time.Duration)
}

// Events tells the owner what happened. Fields may be nil. They are called from
// inside the machine: they may note and schedule, never call back.
type Events struct {
	// Serving: the primary has taken over and answers I/O.
	Serving func()
	// Ended: the primary serves no more and has answered all its requests; err
	// is nil after Release, of kind Fenced when it was superseded, Corrupt when
	// it would have had to carry on over lost writes.
	Ended func(err error)
	// Resized: the device may grow to this many bytes.
	Resized func(sizeBytes int64)
	// Changed: something that Status shows has changed (replica dropped, in
	// sync again, waiting, repair finished). what is one readable line.
	Changed func(what string)
	// Silent: a replica on this node does not answer, though its connection seems to
	// be there: all that has volumes at rest with replicas there is to Probe it.
	Silent func(node holdfast.NodeID)
}

// Store is one replica's data and durable state on its pool, as the Replica
// machine uses it. The adapter in node runs tasks on worker goroutines, several
// at once; the machine never submits two overlapping writes at once.
type Store interface {
	// State is what the store found when it was opened and has been told since.
	// It is in memory and does not block.
	State() StoreState
	// Submit starts a task. Its result arrives later, never from inside Submit,
	// as Replica.OnDone. Buffers belong to the task until then.
	Submit(t *Task)
}

// StoreState describes a replica's durable state.
type StoreState struct {
	Promise   Promise
	Record    holdfast.Record // the newest shown; zero Version if none
	SizeBytes int64
	// Tail lists what writes may be applied here and nowhere else.
	Tail []holdfast.Extent
	// Suspects lists the regions that may have lost writes in a power loss.
	Suspects []holdfast.Extent
	// Progress is how far a repair of this replica had come.
	Progress Progress
	// MapSince is the oldest epoch from which the change maps are complete;
	// asking for changes since an earlier one fails with kind NotFound.
	MapSince holdfast.Epoch
	// Boot identifies the boot of the host: it is another one after a power loss
	// or a reboot, and the same after the daemon alone was killed.
	Boot string
	// Snapshots are those that can be read, oldest first.
	Snapshots []SnapshotRef
}

// Promise is the durable word of a replica: it serves the primary of this grant
// at this epoch, and nothing older.
type Promise struct {
	Epoch holdfast.Epoch `json:"epoch"`
	Grant holdfast.Epoch `json:"grant"`
}

// TaskKind is what a store is asked to do.
type TaskKind uint8

// The tasks, with what is durable when they are done.
const (
	// TaskRead fills Buf from Offset. Holes read as zeros.
	TaskRead TaskKind = iota + 1
	// TaskWrite writes Buf at Offset: tail, intent (durable), data, change map
	// of Epoch, in this order. With FUA the data is durable when done.
	TaskWrite
	// TaskTrim makes [Offset, Offset+Length) read as zeros and frees its space.
	// It is a write in all other respects. Write-zeroes is the same task.
	TaskTrim
	// TaskFlush makes every task done before it was submitted durable.
	TaskFlush
	// TaskPromise makes Promise and Record durable.
	TaskPromise
	// TaskMark adds Extents to the change map of Epoch, durably.
	TaskMark
	// TaskChanged answers with Extents: what was written in epochs >= Since.
	TaskChanged
	// TaskAllocated answers with Extents: where data is within [Offset, +Length).
	TaskAllocated
	// TaskHash answers with Hashes, one per HashBlock of [Offset, +Length).
	TaskHash
	// TaskGrow makes the replica Length bytes long, durably. Never shrinks.
	TaskGrow
	// TaskSettle forgets suspects and the tail entries of grants other than
	// Grant, durably, and change maps of epochs older than Since (0 keeps all).
	TaskSettle
	// TaskCommit only tells Committed of Grant, without a write. Not durable.
	TaskCommit
	// TaskProgress makes every task done before it was submitted durable, and then
	// Progress, in place of the one before. Suspects before the end of its first
	// part are forgotten: this repair has compared them. TaskSettle forgets it.
	TaskProgress
	// TaskSnapshot makes everything done before durable, then the present content
	// a snapshot, durably. No write is under way. Again for the same Cut is fine.
	TaskSnapshot
	// TaskDropSnapshot does a bounded step of dropping Snapshot with its Cut; the
	// first makes it invisible, durably. More: not the last one. One that is not
	// there is dropped. Busy: something depends on it.
	TaskDropSnapshot
	// TaskRestore is a write of [Offset, Offset+Length), like TaskWrite in all
	// respects, whose data is Snapshot's there.
	TaskRestore
	// TaskDiff answers with Extents: a superset, within [Offset, +Length), of what
	// differs between Snapshot.From and Snapshot.ID, the newer one, or what is
	// live if that is "".
	TaskDiff
)

// HashBlock is the unit of comparison where only coarse knowledge is left.
const HashBlock = 64 << 10

// Task is one request to a Store and its answer.
type Task struct {
	Kind      TaskKind
	FUA       bool
	Copied    bool // of a repair: see Message.Copied
	Epoch     holdfast.Epoch
	Grant     holdfast.Epoch // with Seq, names the write in the tail
	Seq       uint64
	Committed uint64 // writes of Grant up to this one need no tail entry any more
	Offset    int64
	Length    int64
	Since     holdfast.Epoch
	Buf       *buf.Buf // of Length bytes, for TaskRead and TaskWrite
	Extents   []holdfast.Extent
	Promise   Promise
	Record    *holdfast.Record // to be kept, not changed
	Progress  *Progress        // likewise
	Hashes    []Hash
	// Snapshot says which one, for the tasks about snapshots. TaskRead,
	// TaskAllocated and TaskHash are of what is live without an ID.
	Snapshot SnapshotArg
	More     bool // the answer of TaskDropSnapshot

	// Err is the answer: nil; NoSpace when the pool is full and nothing was
	// written (the same task may be submitted again); for tasks about snapshots
	// also NotFound, Busy, Exists, Invalid and Unsupported, with nothing done; anything else fails
	// the replica.
	Err error

	job job // the machine's own
}

// Hash is the SHA-256 of one HashBlock, cut to 128 bits.
type Hash [16]byte
