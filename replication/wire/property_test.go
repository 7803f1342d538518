package wire_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"reflect"
	"testing"

	"pgregory.net/rapid"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/buf"
	"github.com/holdfast-storage/holdfast/replication"
	"github.com/holdfast-storage/holdfast/replication/wire"
)

// diff says how got differs from want; "" if it does not. No extents and no
// list of extents are the same on the wire.
func diff(want, got *replication.Message) string {
	w, g := *want, *got
	if (w.Buf == nil) != (g.Buf == nil) || w.Buf != nil && !bytes.Equal(w.Buf.B, g.Buf.B) {
		return "the data differs"
	}
	w.Buf, g.Buf = nil, nil
	if len(w.Extents) == 0 && len(g.Extents) == 0 {
		w.Extents, g.Extents = nil, nil
	}
	if len(w.Hashes) == 0 && len(g.Hashes) == 0 {
		w.Hashes, g.Hashes = nil, nil
	}
	if !reflect.DeepEqual(w, g) {
		return fmt.Sprintf("got %+v, want %+v", g, w)
	}
	return ""
}

func drawMessage(t *rapid.T) *replication.Message {
	m := full(replication.MsgType(rapid.IntRange(1, int(replication.MsgTypeEnd)-1).Draw(t, "type")), rapid.Bool().Draw(t, "answer"))
	u64 := rapid.Uint64()
	m.ID, m.Seq, m.Committed = u64.Draw(t, "id"), u64.Draw(t, "seq"), u64.Draw(t, "committed")
	m.Epoch, m.Since = holdfast.Epoch(u64.Draw(t, "epoch")), holdfast.Epoch(u64.Draw(t, "since"))
	m.Offset, m.Length = rapid.Int64Min(0).Draw(t, "offset"), rapid.Int64Min(0).Draw(t, "length")
	m.FUA, m.More, m.Copied = rapid.Bool().Draw(t, "fua"), rapid.Bool().Draw(t, "more"), rapid.Bool().Draw(t, "copied")
	if m.Extents != nil {
		m.Extents = rapid.SliceOf(rapid.Custom(func(t *rapid.T) holdfast.Extent {
			return holdfast.Extent{Offset: rapid.Int64Range(0, 1<<62).Draw(t, "at"), Length: rapid.Int64Range(1, 1<<61).Draw(t, "n")}
		})).Draw(t, "extents")
	}
	if m.Buf != nil {
		m.Buf = buf.Get(rapid.IntRange(1, 9000).Draw(t, "bytes"))
		for i := range m.Buf.B {
			m.Buf.B[i] = byte(m.ID) + byte(i)
		}
	}
	return m
}

func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var stream []byte
		want := rapid.SliceOfN(rapid.Custom(drawMessage), 1, 6).Draw(t, "messages")
		for _, m := range want {
			var err error
			if stream, err = wire.AppendHeader(stream, m); err != nil {
				t.Fatal(err)
			}
			stream = append(stream, wire.Data(m)...)
		}
		r := bufio.NewReaderSize(bytes.NewReader(stream), wire.ReaderSize)
		for _, w := range want {
			got, err := wire.Decode(r)
			if err != nil {
				t.Fatal(err)
			}
			if d := diff(w, got); d != "" {
				t.Fatal(d)
			}
			got.Buf.Release()
			w.Buf.Release()
		}
	})
}

// FuzzDecode: whatever arrives, decoding ends, and what it accepts says the same
// when it is encoded and decoded again.
func FuzzDecode(f *testing.F) {
	every(func(_ string, m *replication.Message) {
		b, err := wire.AppendHeader(nil, m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(append(b, wire.Data(m)...), true)
	})
	f.Fuzz(func(t *testing.T, b []byte, seal bool) {
		if seal && len(b) >= wire.HeaderSize {
			b = reseal(bytes.Clone(b)) // else nothing gets past the checksums
		}
		r := bufio.NewReaderSize(bytes.NewReader(b), wire.ReaderSize)
		m, err := wire.Decode(r)
		if err != nil {
			if err != io.EOF && holdfast.KindOf(err) != holdfast.Corrupt && holdfast.KindOf(err) != holdfast.Unavailable {
				t.Fatalf("error of kind %v: %v", holdfast.KindOf(err), err)
			}
			return
		}
		again, err := decode(frame(t, m))
		if err != nil {
			t.Fatalf("what was accepted cannot be sent on: %v", err)
		}
		if d := diff(m, again); d != "" {
			t.Fatal(d)
		}
		m.Buf.Release()
		again.Buf.Release()
	})
}

func BenchmarkEncode(b *testing.B) {
	m := &replication.Message{Type: replication.MsgWrite, ID: 1, Epoch: 2, Seq: 3, Offset: 4096, Length: 4096, Buf: buf.Get(4096)}
	dst := make([]byte, 0, wire.HeaderSize)
	b.SetBytes(4096)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := wire.AppendHeader(dst, m); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecode(b *testing.B) {
	one := frame(b, &replication.Message{Type: replication.MsgWrite, ID: 1, Epoch: 2, Seq: 3, Offset: 4096, Length: 4096, Buf: dataBuf(4096)})
	src := bytes.NewReader(one)
	r := bufio.NewReaderSize(src, wire.ReaderSize)
	b.SetBytes(4096)
	b.ReportAllocs()
	for b.Loop() {
		src.Reset(one)
		r.Reset(src)
		m, err := wire.Decode(r)
		if err != nil {
			b.Fatal(err)
		}
		m.Buf.Release()
	}
}
