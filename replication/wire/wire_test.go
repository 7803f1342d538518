package wire_test

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"
	"unsafe"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/buf"
	"github.com/holdfast-storage/holdfast/replication"
	"github.com/holdfast-storage/holdfast/replication/wire"
)

var update = flag.Bool("update", false, "write the golden files anew")

var typeNames = map[replication.MsgType]string{
	replication.MsgHello: "hello", replication.MsgEpoch: "epoch", replication.MsgPing: "ping",
	replication.MsgWrite: "write", replication.MsgTrim: "trim", replication.MsgFlush: "flush",
	replication.MsgRead: "read", replication.MsgChanged: "changed", replication.MsgAllocated: "allocated",
	replication.MsgHash: "hash", replication.MsgMark: "mark", replication.MsgGrow: "grow",
	replication.MsgSettle: "settle", replication.MsgRecord: "record", replication.MsgQuiet: "quiet",
	replication.MsgProgress: "progress", replication.MsgRoom: "room",
	replication.MsgSnapshot: "snapshot", replication.MsgDropSnapshot: "dropsnapshot", replication.MsgRestore: "restore", replication.MsgDiff: "diff",
	replication.MsgSnapRead: "snapread", replication.MsgSnapAllocated: "snapallocated", replication.MsgSnapHash: "snaphash",
}

// frame encodes m into one slice.
func frame(t testing.TB, m *replication.Message) []byte {
	t.Helper()
	b, err := wire.AppendHeader(nil, m)
	if err != nil {
		t.Fatalf("encode: %v", err)
	}
	return append(b, wire.Data(m)...)
}

func decode(b []byte) (*replication.Message, error) {
	return wire.Decode(bufio.NewReaderSize(bytes.NewReader(b), wire.ReaderSize))
}

func dataBuf(n int) *buf.Buf {
	b := buf.Get(n)
	for i := range b.B {
		b.B[i] = byte(i * 7)
	}
	return b
}

func someRecord() *holdfast.Record {
	return &holdfast.Record{Version: holdfast.RecordVersion, ID: "11112222333344445555666677778888", Name: "db-1",
		Created: time.Date(2025, 11, 22, 15, 0, 0, 0, time.UTC), Phase: holdfast.PhaseReady, SizeBytes: 1 << 30, Epoch: 9,
		Spec:    holdfast.Spec{SizeBytes: 1 << 30, Replicas: 2, MinInSync: 1, FSType: "xfs", LogicalBlk: 4096, Locality: holdfast.LocalityPreferred},
		Primary: &holdfast.Primary{Node: "n1", Kind: holdfast.ClientPrimary, Grant: 9},
		Replicas: []holdfast.Replica{
			{ID: "aaaa", Node: "n1", Pool: "p1", State: holdfast.InSync, Since: 1},
			{ID: "bbbb", Node: "n2", Pool: "p2", State: holdfast.Stale, Since: 7}}}
}

func someProgress() *replication.Progress {
	return &replication.Progress{Since: 5, Parts: []replication.ProgressPart{{End: 1 << 20, AsOf: 8}, {End: 1 << 24, AsOf: 6}}}
}

// full is a message of a type with everything that it can carry.
func full(t replication.MsgType, answer bool) *replication.Message {
	m := &replication.Message{Type: t, Answer: answer, ID: 0x0102030405060708, Epoch: 9, Seq: 42, Committed: 41, Since: 7, Offset: 8192, Length: 4096}
	extents := []holdfast.Extent{{Offset: 0, Length: 4096}, {Offset: 1 << 40, Length: 65536}}
	switch {
	case t == replication.MsgHello && !answer:
		m.Hello = &replication.Hello{Cluster: "c1", Volume: "v1", Replica: "bbbb", Node: "n1", Grant: 9, Record: *someRecord()}
	case t == replication.MsgHello:
		m.Welcome = &replication.Welcome{Boot: "boot-1", SizeBytes: 1 << 30, MapSince: 3, Tail: extents, Suspects: extents[:1], QuietNanos: 5e9, Progress: someProgress()}
	case t == replication.MsgEpoch && !answer:
		m.Record, m.Extents = someRecord(), extents
	case t == replication.MsgRecord && !answer:
		m.Record = someRecord()
	case t == replication.MsgProgress && !answer:
		m.Progress = someProgress()
	case t == replication.MsgTrim && !answer:
		m.Copied = true
	case t == replication.MsgWrite && !answer:
		m.Buf, m.FUA, m.Length = dataBuf(64), true, 64
	case t >= replication.MsgSnapshot && t <= replication.MsgSnapHash && !answer:
		m.Snapshot = &replication.SnapshotArg{ID: "5555", Cut: "9-1", From: "4444"}
	case t == replication.MsgDropSnapshot:
		m.More = true
	case (t == replication.MsgRead || t == replication.MsgSnapRead) && answer:
		m.Buf = dataBuf(64)
	case t == replication.MsgMark && !answer:
		m.Extents = extents
	case (t == replication.MsgChanged || t == replication.MsgAllocated || t == replication.MsgDiff || t == replication.MsgSnapAllocated) && answer:
		m.Extents, m.More = extents, true
	case (t == replication.MsgHash || t == replication.MsgSnapHash) && answer:
		m.Hashes = []replication.Hash{{1, 2, 3}, {0xff}}
	}
	return m
}

// every calls f with one full request and answer of every type, and with an
// answer of every status.
func every(f func(name string, m *replication.Message)) {
	for t := replication.MsgType(1); t < replication.MsgTypeEnd; t++ {
		f(typeNames[t]+"-request", full(t, false))
		f(typeNames[t]+"-answer", full(t, true))
	}
	for s := replication.StatusOK + 1; s < replication.StatusEnd; s++ {
		f(fmt.Sprintf("refused-%d", s), &replication.Message{Type: replication.MsgRead, Answer: true, Status: s, ID: 3, Epoch: 10})
	}
}

// TestGolden fixes the bytes of every frame: a release that changes one must
// raise the version.
func TestGolden(t *testing.T) {
	every(func(name string, m *replication.Message) {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join("testdata", "golden", name+".hex")
			got := hex.Dump(frame(t, m))
			if *update {
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("frame changed:\n%s\nwant\n%s\n(raise wire.Version, or run with -update before the first release)", got, want)
			}
		})
	})
}

func TestRoundTripOfEveryFrame(t *testing.T) {
	var stream []byte
	var want []*replication.Message
	every(func(_ string, m *replication.Message) {
		stream = append(stream, frame(t, m)...)
		want = append(want, m)
	})
	// One byte at a time: a frame may come in pieces of any size.
	r := bufio.NewReaderSize(iotest.OneByteReader(bytes.NewReader(stream)), wire.ReaderSize)
	for _, w := range want {
		m, err := wire.Decode(r)
		if err != nil {
			t.Fatalf("%s: %v", typeNames[w.Type], err)
		}
		if d := diff(w, m); d != "" {
			t.Errorf("%s (answer %t): %s", typeNames[w.Type], w.Answer, d)
		}
	}
	if _, err := wire.Decode(r); err != io.EOF {
		t.Errorf("after the last frame: %v, want io.EOF", err)
	}
}

// TestLargePayloads passes the bounds of every payload.
func TestLargePayloads(t *testing.T) {
	es := make([]holdfast.Extent, replication.MaxExtents)
	for i := range es {
		es[i] = holdfast.Extent{Offset: int64(i) * 8192, Length: 4096}
	}
	for name, m := range map[string]*replication.Message{
		"data":    {Type: replication.MsgWrite, ID: 1, Buf: dataBuf(replication.MaxData), Length: replication.MaxData},
		"extents": {Type: replication.MsgChanged, Answer: true, ID: 1, Extents: es},
		"hashes":  {Type: replication.MsgHash, Answer: true, ID: 1, Hashes: make([]replication.Hash, replication.MaxHashes)},
		"epoch":   {Type: replication.MsgEpoch, ID: 1, Extents: es, Record: someRecord()},
	} {
		got, err := decode(frame(t, m))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if d := diff(m, got); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
}

func TestEncodeRefuses(t *testing.T) {
	long := someRecord()
	long.Name = strings.Repeat("x", wire.MaxJSON)
	for name, m := range map[string]*replication.Message{
		"no type":             {},
		"unknown type":        {Type: replication.MsgTypeEnd},
		"status in a request": {Type: replication.MsgPing, Status: replication.StatusFenced},
		"unknown status":      {Type: replication.MsgPing, Answer: true, Status: replication.StatusEnd},
		"write without data":  {Type: replication.MsgWrite},
		"data in a ping":      {Type: replication.MsgPing, Buf: dataBuf(1)},
		"empty data":          {Type: replication.MsgWrite, Buf: dataBuf(0)},
		"negative offset":     {Type: replication.MsgRead, Offset: -1},
		"extents in a read":   {Type: replication.MsgRead, Extents: []holdfast.Extent{{Length: 1}}},
		"empty extent":        {Type: replication.MsgMark, Extents: []holdfast.Extent{{}}},
		"too many extents":    {Type: replication.MsgMark, Extents: make([]holdfast.Extent, replication.MaxExtents+1)},
		"too many hashes":     {Type: replication.MsgHash, Answer: true, Hashes: make([]replication.Hash, replication.MaxHashes+1)},
		"no hello":            {Type: replication.MsgHello},
		"no record":           {Type: replication.MsgEpoch},
		"too much JSON":       {Type: replication.MsgRecord, Record: long},
	} {
		keep := []byte("before")
		got, err := wire.AppendHeader(keep, m)
		if !errors.Is(err, holdfast.Invalid) {
			t.Errorf("%s: %v, want an Invalid error", name, err)
		}
		if string(got) != "before" {
			t.Errorf("%s: what was there before changed to %q", name, got)
		}
	}
}

// TestTruncated cuts every frame at every byte.
func TestTruncated(t *testing.T) {
	every(func(name string, m *replication.Message) {
		b := frame(t, m)
		for n := range b {
			got, err := decode(b[:n])
			want := n == 0 && err == io.EOF || n > 0 && errors.Is(err, holdfast.Unavailable)
			if got != nil || !want {
				t.Fatalf("%s cut after %d of %d bytes: message %v, error %v", name, n, len(b), got, err)
			}
		}
	})
}

// TestBitFlips changes every bit of every frame: none gets through.
func TestBitFlips(t *testing.T) {
	every(func(name string, m *replication.Message) {
		b := frame(t, m)
		for i := range len(b) * 8 {
			b[i/8] ^= 1 << (i % 8)
			if got, err := decode(b); !errors.Is(err, holdfast.Corrupt) {
				t.Fatalf("%s with bit %d of byte %d flipped: message %v, error %v; want Corrupt", name, i%8, i/8, got, err)
			}
			b[i/8] ^= 1 << (i % 8)
		}
	})
}

// reseal makes both checksums right again, as a forger or a buggy peer would.
func reseal(b []byte) []byte {
	table := crc32.MakeTable(crc32.Castagnoli)
	binary.LittleEndian.PutUint32(b[64:], uint32(len(b)-wire.HeaderSize))
	binary.LittleEndian.PutUint32(b[68:], crc32.Checksum(b[wire.HeaderSize:], table))
	binary.LittleEndian.PutUint32(b[72:], crc32.Checksum(b[:72], table))
	return b
}

func TestDecodeRefusesWellSealedNonsense(t *testing.T) {
	edit := func(m *replication.Message, f func(b []byte) []byte) []byte { return reseal(f(frame(t, m))) }
	set := func(i int, v byte) func([]byte) []byte { return func(b []byte) []byte { b[i] = v; return b } }
	add := func(x string) func([]byte) []byte { return func(b []byte) []byte { return append(b, x...) } }
	cut := func(n int) func([]byte) []byte { return func(b []byte) []byte { return b[:len(b)-n] } }
	ping := func() *replication.Message { return full(replication.MsgPing, false) }
	for name, b := range map[string][]byte{
		"magic":                     edit(ping(), set(0, 'X')),
		"version":                   edit(ping(), set(3, 9)),
		"type 0":                    edit(ping(), set(4, 0)),
		"type end":                  edit(ping(), set(4, byte(replication.MsgTypeEnd))),
		"unknown flag":              edit(ping(), set(5, 0x80)),
		"reserved":                  edit(ping(), set(7, 1)),
		"status end":                edit(full(replication.MsgPing, true), set(6, byte(replication.StatusEnd))),
		"status in request":         edit(ping(), set(6, 1)),
		"negative offset":           edit(ping(), set(55, 0x80)),
		"negative length":           edit(ping(), set(63, 0x80)),
		"payload in ping":           edit(ping(), add("x")),
		"payload in refusal":        edit(&replication.Message{Type: replication.MsgRead, Answer: true, Status: 1}, add("x")),
		"write without data":        edit(full(replication.MsgWrite, false), cut(64)),
		"extents trailing":          edit(full(replication.MsgMark, false), add("x")),
		"extent empty":              edit(full(replication.MsgMark, false), add(strings.Repeat("\x00", 16))),
		"extent past the end":       edit(full(replication.MsgMark, false), add(strings.Repeat("\xff", 7)+"\x7f"+strings.Repeat("\xff", 7)+"\x7f")),
		"hashes trailing":           edit(full(replication.MsgHash, true), add("x")),
		"JSON trailing":             edit(full(replication.MsgHello, false), add("{}")),
		"JSON cut":                  edit(full(replication.MsgHello, false), cut(1)),
		"JSON null":                 edit(full(replication.MsgRecord, false), func(b []byte) []byte { return append(b[:wire.HeaderSize], "null"...) }),
		"epoch's record too long":   edit(full(replication.MsgEpoch, false), set(wire.HeaderSize+2, 1)),
		"epoch's record too short":  edit(full(replication.MsgEpoch, false), set(wire.HeaderSize, 3)),
		"welcome missing":           edit(full(replication.MsgHello, true), func(b []byte) []byte { return b[:wire.HeaderSize] }),
		"sum of an empty payload":   badEmptySum(frame(t, ping())),
		"length of 4 GiB":           hugeLength(frame(t, full(replication.MsgWrite, false))),
		"length one over the bound": edit(full(replication.MsgWrite, false), add(strings.Repeat("x", replication.MaxData))),
	} {
		if m, err := decode(b); !errors.Is(err, holdfast.Corrupt) {
			t.Errorf("%s: message %v, error %v; want Corrupt", name, m, err)
		}
	}
}

func badEmptySum(b []byte) []byte {
	b[68] = 1
	binary.LittleEndian.PutUint32(b[72:], crc32.Checksum(b[:72], crc32.MakeTable(crc32.Castagnoli)))
	return b
}

func hugeLength(b []byte) []byte {
	binary.LittleEndian.PutUint32(b[64:], 0xffffffff)
	binary.LittleEndian.PutUint32(b[72:], crc32.Checksum(b[:72], crc32.MakeTable(crc32.Castagnoli)))
	return b
}

func TestDataIsAligned(t *testing.T) {
	m, err := decode(frame(t, full(replication.MsgWrite, false)))
	if err != nil {
		t.Fatal(err)
	}
	if uintptr(unsafe.Pointer(&m.Buf.B[0]))%4096 != 0 {
		t.Error("the data is not aligned")
	}
}

func TestReady(t *testing.T) {
	one := frame(t, full(replication.MsgWrite, false))
	r := bufio.NewReaderSize(bytes.NewReader(append(append([]byte{}, one...), one[:len(one)-1]...)), wire.ReaderSize)
	if wire.Ready(r) {
		t.Error("ready although nothing is buffered")
	}
	for i, want := range []bool{true, false} {
		if _, err := r.Peek(wire.HeaderSize); err != nil {
			t.Fatal(err)
		}
		if got := wire.Ready(r); got != want {
			t.Errorf("frame %d: ready %t, want %t", i, got, want)
		}
		if m, err := wire.Decode(r); (err == nil) != want {
			t.Errorf("frame %d: %v %v", i, m, err)
		}
	}
}
