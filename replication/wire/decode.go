package wire

import (
	"bufio"
	"encoding/json"
	"errors"
	"hash/crc32"
	"io"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/buf"
	"github.com/holdfast-storage/holdfast/replication"
)

// ReaderSize is the size of the buffered reader that Decode is made for: larger
// payloads go past it, straight into their buffer.
const ReaderSize = 128 << 10

// Decode reads one frame. The caller owns the message and the reference of its
// Buf. Errors: io.EOF (as it is) when the stream ends between two frames;
// Unavailable with the cause when it breaks within one; Corrupt for everything
// that is no valid frame. After an error the stream cannot be used any more.
func Decode(r *bufio.Reader) (*replication.Message, error) {
	h, err := r.Peek(HeaderSize)
	if err != nil {
		if len(h) == 0 && errors.Is(err, io.EOF) {
			return nil, io.EOF
		}
		return nil, broken("read header", err)
	}
	m, kind, err := parseHeader(h)
	if err != nil {
		return nil, err
	}
	length, sum := int(le.Uint32(h[64:])), le.Uint32(h[68:])
	_, _ = r.Discard(HeaderSize) // it was just peeked
	if err := readPayload(r, m, payload{kind, length, sum}); err != nil {
		return nil, err
	}
	return m, nil
}

// Ready says whether Decode would return without waiting for the stream: a
// whole frame is buffered, or a header that is wrong.
func Ready(r *bufio.Reader) bool {
	n := r.Buffered()
	if n < HeaderSize {
		return false
	}
	h, _ := r.Peek(HeaderSize)
	return n-HeaderSize >= int(le.Uint32(h[64:]))
}

func parseHeader(h []byte) (*replication.Message, body, error) {
	switch {
	case [3]byte(h) != magic:
		return nil, 0, corrupt("it begins with %q instead of %q: this is no Holdfast peer, or the stream is out of step", h[:3], magic[:])
	case h[3] != Version:
		return nil, 0, corrupt("it has version %d; this release reads version %d: bring both nodes to releases that understand each other", h[3], Version)
	case crc32.Checksum(h[:72], castagnoli) != le.Uint32(h[72:]):
		return nil, 0, corrupt("the header's checksum is wrong")
	case h[5]&^flagsKnown != 0 || h[7] != 0:
		return nil, 0, corrupt("flags %#x, reserved byte %#x: some are unknown", h[5], h[7])
	}
	m := &replication.Message{
		Type:      replication.MsgType(h[4]),
		Answer:    h[5]&flagAnswer != 0,
		FUA:       h[5]&flagFUA != 0,
		More:      h[5]&flagMore != 0,
		Copied:    h[5]&flagCopied != 0,
		Status:    replication.Status(h[6]),
		ID:        le.Uint64(h[8:]),
		Epoch:     holdfast.Epoch(le.Uint64(h[16:])),
		Seq:       le.Uint64(h[24:]),
		Committed: le.Uint64(h[32:]),
		Since:     holdfast.Epoch(le.Uint64(h[40:])),
		Offset:    int64(le.Uint64(h[48:])),
		Length:    int64(le.Uint64(h[56:])),
	}
	kind := bodyOf(m.Type, m.Answer, m.Status)
	least, most := kind.bounds()
	n := le.Uint32(h[64:])
	switch {
	case m.Type == 0 || m.Type >= replication.MsgTypeEnd:
		return nil, 0, corrupt("the message type %d is unknown", m.Type)
	case m.Status >= replication.StatusEnd:
		return nil, 0, corrupt("the status %d is unknown", m.Status)
	case !m.Answer && m.Status != replication.StatusOK:
		return nil, 0, corrupt("a request of type %d has status %d", m.Type, m.Status)
	case m.Offset < 0 || m.Length < 0:
		return nil, 0, corrupt("offset %d or length %d is negative", m.Offset, m.Length)
	case int64(n) < int64(least) || int64(n) > int64(most):
		return nil, 0, corrupt("the payload of a message of type %d has %d bytes; %d to %d are possible", m.Type, n, least, most)
	}
	return m, kind, nil
}

type payload struct {
	kind   body
	length int
	sum    uint32
}

func readPayload(r *bufio.Reader, m *replication.Message, p payload) error {
	if p.kind == bodyData {
		b := buf.Get(p.length)
		if err := p.read(r, b.B); err != nil {
			b.Release()
			return err
		}
		m.Buf = b
		return nil
	}
	if p.length == 0 {
		return p.check(nil)
	}
	raw := make([]byte, p.length)
	if err := p.read(r, raw); err != nil {
		return err
	}
	return parseBody(raw, m, p.kind)
}

func (p payload) read(r *bufio.Reader, into []byte) error {
	if _, err := io.ReadFull(r, into); err != nil {
		return broken("read payload", err)
	}
	return p.check(into)
}

func (p payload) check(b []byte) error {
	if crc32.Checksum(b, castagnoli) != p.sum {
		return corrupt("the payload's checksum is wrong (%d bytes)", p.length)
	}
	return nil
}

func parseBody(raw []byte, m *replication.Message, kind body) (err error) {
	switch kind {
	case bodyExtents:
		m.Extents, err = parseExtents(raw)
		return err
	case bodyHashes:
		if len(raw)%hashSize != 0 {
			return corrupt("%d bytes of hashes are not a multiple of %d", len(raw), hashSize)
		}
		m.Hashes = make([]replication.Hash, len(raw)/hashSize)
		for i := range m.Hashes {
			copy(m.Hashes[i][:], raw[i*hashSize:])
		}
		return nil
	case bodyHello:
		m.Hello = new(replication.Hello)
		return parseJSON(raw, m.Hello)
	case bodyWelcome:
		m.Welcome = new(replication.Welcome)
		return parseJSON(raw, m.Welcome)
	case bodyRecord:
		m.Record = new(holdfast.Record)
		return parseJSON(raw, m.Record)
	case bodyProgress:
		m.Progress = new(replication.Progress)
		return parseJSON(raw, m.Progress)
	case bodySnapshot:
		m.Snapshot = new(replication.SnapshotArg)
		if err := parseJSON(raw, m.Snapshot); err != nil || !longArg(m.Snapshot) {
			return err
		}
		return corrupt("a snapshot's name is longer than %d bytes", maxSnapshotID)
	case bodyEpoch:
		return parseEpoch(raw, m)
	}
	return corrupt("a payload stands where none belongs")
}

func parseEpoch(raw []byte, m *replication.Message) (err error) {
	n := le.Uint32(raw)
	rest := raw[4:]
	if n > MaxJSON || int64(n) > int64(len(rest)) {
		return corrupt("a record of %d bytes in a payload of %d", n, len(raw))
	}
	m.Record = new(holdfast.Record)
	if err := parseJSON(rest[:n], m.Record); err != nil {
		return err
	}
	if rest = rest[n:]; len(rest) > 0 {
		m.Extents, err = parseExtents(rest)
	}
	return err
}

func parseExtents(raw []byte) ([]holdfast.Extent, error) {
	n := len(raw) / extentSize
	if len(raw)%extentSize != 0 || n > replication.MaxExtents {
		return nil, corrupt("%d bytes of extents are not a multiple of %d, or more than %d extents", len(raw), extentSize, replication.MaxExtents)
	}
	es := make([]holdfast.Extent, n)
	for i := range es {
		e := holdfast.Extent{Offset: int64(le.Uint64(raw[i*extentSize:])), Length: int64(le.Uint64(raw[i*extentSize+8:]))}
		if e.Offset < 0 || e.Length <= 0 || e.End() < 0 {
			return nil, corrupt("an extent of %d bytes at %d", e.Length, e.Offset)
		}
		es[i] = e
	}
	return es, nil
}

func parseJSON(raw []byte, into any) error {
	if raw[0] != '{' {
		return corrupt("its JSON is no object")
	}
	return holdfast.WrapKind("decode frame: JSON", holdfast.Corrupt, json.Unmarshal(raw, into))
}

// broken wraps what ended the stream within a frame.
func broken(what string, err error) error {
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return holdfast.WrapKind("decode frame: "+what, holdfast.Unavailable, err)
}
