package wire

import (
	"encoding/json"
	"fmt"
	"hash/crc32"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/replication"
)

// AppendHeader appends m's frame to dst, all but the data of m.Buf, which
// follows it on the wire as it is: the caller writes dst and then Data(m), and
// can gather many messages in one writev. It neither changes nor keeps m. A
// message that the format cannot carry is an error of kind Invalid that leaves
// dst as it was: a bug of the sender.
func AppendHeader(dst []byte, m *replication.Message) ([]byte, error) {
	start := len(dst)
	kind := bodyOf(m.Type, m.Answer, m.Status)
	if err := checkEncode(m, kind); err != nil {
		return dst, err
	}
	var head [HeaderSize]byte
	out, err := appendBody(append(dst, head[:]...), m, kind)
	if err != nil {
		return dst, err
	}
	length, sum := len(out)-start-HeaderSize, uint32(0)
	if kind == bodyData {
		length = len(m.Buf.B)
	}
	if least, most := kind.bounds(); length < least || length > most {
		return dst, invalid(m, "its payload has %d bytes; %d to %d are possible", length, least, most)
	}
	if kind == bodyData {
		sum = m.Buf.Checksum() // one for all the replicas that a write goes to
	} else {
		sum = crc32.Checksum(out[start+HeaderSize:], castagnoli)
	}
	putHeader(out[start:start+HeaderSize], m, length, sum)
	return out, nil
}

// Data is what follows what AppendHeader made: the bytes of m.Buf in a write or
// in the answer to a read, nil in every other message.
func Data(m *replication.Message) []byte {
	if bodyOf(m.Type, m.Answer, m.Status) == bodyData && m.Buf != nil {
		return m.Buf.B
	}
	return nil
}

func putHeader(h []byte, m *replication.Message, length int, sum uint32) {
	copy(h, magic[:])
	h[3] = Version
	h[4] = byte(m.Type)
	h[5] = flagsOf(m)
	h[6] = byte(m.Status)
	le.PutUint64(h[8:], m.ID)
	le.PutUint64(h[16:], uint64(m.Epoch))
	le.PutUint64(h[24:], m.Seq)
	le.PutUint64(h[32:], m.Committed)
	le.PutUint64(h[40:], uint64(m.Since))
	le.PutUint64(h[48:], uint64(m.Offset))
	le.PutUint64(h[56:], uint64(m.Length))
	le.PutUint32(h[64:], uint32(length))
	le.PutUint32(h[68:], sum)
	le.PutUint32(h[72:], crc32.Checksum(h[:72], castagnoli))
}

func flagsOf(m *replication.Message) byte {
	var f byte
	if m.Answer {
		f |= flagAnswer
	}
	if m.FUA {
		f |= flagFUA
	}
	if m.More {
		f |= flagMore
	}
	if m.Copied {
		f |= flagCopied
	}
	return f
}

// checkEncode refuses what Decode would refuse, and members that would be lost.
// Those of an answer that is not OK mean nothing and are left out.
func checkEncode(m *replication.Message, kind body) error {
	switch {
	case m.Type == 0 || m.Type >= replication.MsgTypeEnd:
		return invalid(m, "the type is unknown")
	case m.Status >= replication.StatusEnd || !m.Answer && m.Status != replication.StatusOK:
		return invalid(m, "the status %d is unknown, or stands in a request", m.Status)
	case m.Offset < 0 || m.Length < 0:
		return invalid(m, "offset %d or length %d is negative", m.Offset, m.Length)
	case m.Status != replication.StatusOK:
		return nil
	}
	return checkBody(m, kind)
}

func checkBody(m *replication.Message, kind body) error {
	switch {
	case (m.Buf != nil) != (kind == bodyData):
		return invalid(m, "data is missing, or stands where none belongs")
	case m.Extents != nil && kind != bodyExtents && kind != bodyEpoch:
		return invalid(m, "extents stand where none belong")
	case m.Hashes != nil && kind != bodyHashes:
		return invalid(m, "hashes stand where none belong")
	case (m.Hello != nil) != (kind == bodyHello), (m.Welcome != nil) != (kind == bodyWelcome):
		return invalid(m, "hello or welcome is missing, or stands where none belongs")
	case (m.Record != nil) != (kind == bodyRecord || kind == bodyEpoch):
		return invalid(m, "the record is missing, or stands where none belongs")
	case (m.Progress != nil) != (kind == bodyProgress):
		return invalid(m, "the progress is missing, or stands where none belongs")
	case (m.Snapshot != nil) != (kind == bodySnapshot):
		return invalid(m, "the snapshot is missing, or stands where none belongs")
	case len(m.Extents) > replication.MaxExtents:
		return invalid(m, "it has %d extents; at most %d are possible", len(m.Extents), replication.MaxExtents)
	}
	for _, e := range m.Extents {
		if e.Offset < 0 || e.Length <= 0 || e.End() < 0 {
			return invalid(m, "the extent of %d bytes at %d is not possible", e.Length, e.Offset)
		}
	}
	return nil
}

func appendBody(dst []byte, m *replication.Message, kind body) ([]byte, error) {
	switch kind {
	case bodyExtents:
		return appendExtents(dst, m.Extents), nil
	case bodyHashes:
		for i := range m.Hashes {
			dst = append(dst, m.Hashes[i][:]...)
		}
		return dst, nil
	case bodyHello:
		return appendJSON(dst, m, m.Hello)
	case bodyWelcome:
		return appendJSON(dst, m, m.Welcome)
	case bodyRecord:
		return appendJSON(dst, m, m.Record)
	case bodyProgress:
		return appendJSON(dst, m, m.Progress)
	case bodySnapshot:
		if longArg(m.Snapshot) {
			return dst, invalid(m, "a snapshot's name is longer than %d bytes", maxSnapshotID)
		}
		return appendJSON(dst, m, m.Snapshot)
	case bodyEpoch:
		at := len(dst)
		dst, err := appendJSON(append(dst, 0, 0, 0, 0), m, m.Record)
		if err != nil {
			return dst, err
		}
		le.PutUint32(dst[at:], uint32(len(dst)-at-4))
		return appendExtents(dst, m.Extents), nil
	}
	return dst, nil
}

func appendExtents(dst []byte, es []holdfast.Extent) []byte {
	for _, e := range es {
		dst = le.AppendUint64(dst, uint64(e.Offset))
		dst = le.AppendUint64(dst, uint64(e.Length))
	}
	return dst
}

func appendJSON(dst []byte, m *replication.Message, v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return dst, holdfast.WrapKind(opEncode(m), holdfast.Invalid, err)
	}
	if len(b) > MaxJSON {
		return dst, invalid(m, "its JSON has %d bytes; at most %d are possible", len(b), MaxJSON)
	}
	return append(dst, b...), nil
}

func opEncode(m *replication.Message) string {
	return fmt.Sprintf("encode message of type %d (answer %t)", m.Type, m.Answer)
}

func invalid(m *replication.Message, format string, a ...any) error {
	return holdfast.E(opEncode(m), holdfast.Invalid, fmt.Sprintf(format, a...))
}
