package engine

import (
	"fmt"

	"github.com/holdfast-storage/holdfast"
)

const (
	blockSize  = int64(holdfast.BlockSize)
	regionSize = int64(holdfast.RegionSize)
	// HashBlock is the unit of Replica.Hash, in bytes.
	HashBlock = 64 << 10
)

// Entry names a write: under which epoch and grant, its number in the grant, and
// up to which number writes of this grant are applied on every in-sync replica.
type Entry struct {
	Epoch     holdfast.Epoch
	Grant     holdfast.Epoch
	Seq       uint64
	Committed uint64
	// Copied: what is written is applied on every in-sync replica already (a repair
	// copied it), so that the tail need not name it.
	Copied bool
}

// Promise is the durable word of a replica: it serves the primary of this grant
// at this epoch, and nothing older.
type Promise struct {
	Epoch holdfast.Epoch `json:"epoch"`
	Grant holdfast.Epoch `json:"grant"`
}

// State is what a replica found when it was opened and has been told since.
type State struct {
	Promise   Promise
	Record    holdfast.Record // the newest shown; zero Version if none
	SizeBytes int64
	// Tail lists what writes may be applied here and nowhere else.
	Tail []holdfast.Extent
	// Suspects lists the regions that may have lost writes in a power loss.
	Suspects []holdfast.Extent
	// MapSince is the oldest epoch from which the change maps are complete.
	MapSince holdfast.Epoch
	// Boot identifies the boot of the host and the mounting of the pool: while it
	// is the same, nothing that was written can have been lost.
	Boot string
	// Progress is how far a repair of this replica had come, see SetProgress.
	Progress Progress
}

// Progress says that up to the end of its last part the replica has what a repair
// gave it, as of the parts' epochs.
type Progress struct {
	Since holdfast.Epoch `json:"since"` // which repair: the epoch since which the replica lacks writes
	Parts []ProgressPart `json:"parts,omitempty"`
}

// ProgressPart is a range of bytes, from the end of the part before.
type ProgressPart struct {
	End  int64          `json:"end"`
	AsOf holdfast.Epoch `json:"asOf"`
}

// Hash is the SHA-256 of one HashBlock, cut to 128 bits.
type Hash [16]byte

// ReplicaInfo describes a replica on a pool.
type ReplicaInfo struct {
	Volume         holdfast.VolumeID
	Replica        holdfast.ReplicaID
	SizeBytes      int64
	AllocatedBytes int64
	// Err says why the replica cannot be used, if so; the other members but
	// Replica may then be empty.
	Err error
}

// Problem is something that Check found.
type Problem struct {
	Replica holdfast.ReplicaID // "" for the pool itself
	Path    string             // relative to the pool
	Message string
}

// String is the problem as one line.
func (p Problem) String() string { return p.Path + ": " + p.Message }

func errorf(op string, kind holdfast.Kind, format string, a ...any) error {
	return holdfast.E(op, kind, fmt.Sprintf(format, a...))
}

// corrupt makes err, if there is one, an error of kind Corrupt and of no other:
// its own kind is only told in words, so that a missing file of a replica, say,
// does not look like a missing replica to errors.Is.
func corrupt(op string, err error) error {
	if err == nil {
		return nil
	}
	return holdfast.E(op, holdfast.Corrupt, err.Error())
}

// bitExtents appends the extents of set bits in words, each bit standing for
// unit bytes, cut at size; adjacent ones are merged.
func bitExtents(out []holdfast.Extent, word func(i int) uint64, words int, unit, size int64) []holdfast.Extent {
	for i := range words {
		w := word(i)
		for b := int64(0); w != 0; b, w = b+1, w>>1 {
			off := (int64(i)*64 + b) * unit
			if w&1 == 0 || off >= size {
				continue
			}
			n := min(unit, size-off)
			if k := len(out) - 1; k >= 0 && out[k].End() == off {
				out[k].Length += n
			} else {
				out = append(out, holdfast.Extent{Offset: off, Length: n})
			}
		}
	}
	return out
}
