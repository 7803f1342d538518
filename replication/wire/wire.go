package wire

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/replication"
)

const (
	// Version is the format's version, see the package comment.
	Version = 1
	// HeaderSize is the length of every frame's header, in bytes.
	HeaderSize = 76
	// MaxJSON bounds a JSON document in a payload, in bytes: a Welcome with
	// some ten thousand extents.
	MaxJSON = 4 << 20

	extentSize = 16
	hashSize   = len(replication.Hash{})
)

const (
	flagAnswer = 1 << iota
	flagFUA
	flagMore
	flagCopied
	flagsKnown = flagAnswer | flagFUA | flagMore | flagCopied
)

var (
	magic      = [3]byte{'H', 'F', 'D'}
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
	le         = binary.LittleEndian
)

// body is what a frame's payload holds.
type body uint8

const (
	bodyNone body = iota
	bodyData
	bodyExtents
	bodyHashes
	bodyHello
	bodyWelcome
	bodyRecord
	bodyEpoch
	bodyProgress
	bodySnapshot
)

// maxSnapshot bounds the JSON of a replication.SnapshotArg, maxSnapshotID each of
// its members, in bytes.
const (
	maxSnapshot   = 2 << 10
	maxSnapshotID = 64
)

// longArg says whether a member is too long.
func longArg(a *replication.SnapshotArg) bool {
	return max(len(a.ID), len(a.Cut), len(a.From)) > maxSnapshotID
}

// bodyOf says what the payload of such a message is.
func bodyOf(t replication.MsgType, answer bool, s replication.Status) body {
	if !answer {
		switch t {
		case replication.MsgHello:
			return bodyHello
		case replication.MsgEpoch:
			return bodyEpoch
		case replication.MsgWrite:
			return bodyData
		case replication.MsgMark:
			return bodyExtents
		case replication.MsgRecord:
			return bodyRecord
		case replication.MsgProgress:
			return bodyProgress
		case replication.MsgSnapshot, replication.MsgDropSnapshot, replication.MsgRestore, replication.MsgDiff,
			replication.MsgSnapRead, replication.MsgSnapAllocated, replication.MsgSnapHash:
			return bodySnapshot
		}
		return bodyNone
	}
	if s != replication.StatusOK {
		return bodyNone
	}
	switch t {
	case replication.MsgHello:
		return bodyWelcome
	case replication.MsgRead, replication.MsgSnapRead:
		return bodyData
	case replication.MsgChanged, replication.MsgAllocated, replication.MsgSnapAllocated, replication.MsgDiff:
		return bodyExtents
	case replication.MsgHash, replication.MsgSnapHash:
		return bodyHashes
	}
	return bodyNone
}

// bounds gives the least and the largest payload of a body, in bytes.
func (b body) bounds() (least, most int) {
	switch b {
	case bodyData:
		return 1, replication.MaxData
	case bodyExtents:
		return 0, replication.MaxExtents * extentSize
	case bodyHashes:
		return 0, replication.MaxHashes * hashSize
	case bodyHello, bodyWelcome, bodyRecord, bodyProgress:
		return 2, MaxJSON
	case bodySnapshot:
		return 2, maxSnapshot
	case bodyEpoch:
		return 4 + 2, 4 + MaxJSON + replication.MaxExtents*extentSize
	}
	return 0, 0
}

func corrupt(format string, a ...any) error {
	return holdfast.E("decode frame", holdfast.Corrupt, fmt.Sprintf(format, a...))
}
