package engine

import (
	"bytes"
	"testing"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/engine/disk"
)

// The decoders of everything on disk must refuse or accept any bytes without a
// panic, accept what the encoders made, and accept nothing that was changed.

func FuzzSealed(f *testing.F) {
	for _, v := range []any{Promise{4, 3}, testIdentity(), meta{Volume: "v", Suspects: []holdfast.Extent{{Offset: 0, Length: 4}}}} {
		data, err := seal("thing", v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte("holdfast thing v1 crc32c=00000000\n{}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var p Promise
		if err := unseal("thing", data, &p); err == nil {
			// It was sealed: sealing its body again gives the same first line.
			_, body, _ := bytes.Cut(data, []byte("\n"))
			if !bytes.Equal(data, append([]byte(sealHeader("thing", 1, body)), body...)) {
				t.Fatalf("accepted %q", data)
			}
		} else if holdfast.KindOf(err) != holdfast.Corrupt {
			t.Fatalf("kind of %v", err)
		}
	})
}

func FuzzIdentity(f *testing.F) {
	good, err := seal("pool", testIdentity())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Fuzz(func(t *testing.T, data []byte) {
		id, err := decodeIdentity(data)
		if err == nil && id.validate() != nil {
			t.Fatalf("accepted %+v", id)
		}
		if err != nil && holdfast.KindOf(err) != holdfast.Corrupt {
			t.Fatalf("kind of %v", err)
		}
	})
}

func FuzzIntent(f *testing.F) {
	head, page := make([]byte, disk.PageSize), make([]byte, disk.PageSize)
	encodeIntentHeader(head, "boot-1")
	page[5] = 1
	sealPage(page)
	f.Add(head, page)
	f.Add(make([]byte, disk.PageSize), make([]byte, disk.PageSize))
	f.Fuzz(func(t *testing.T, head, page []byte) {
		instance, err := decodeIntentHeader(head)
		if err == nil {
			again := make([]byte, disk.PageSize)
			encodeIntentHeader(again, instance)
			if n := 14 + len(instance); !bytes.Equal(again[:n], head[:n]) {
				t.Fatalf("accepted %q", head[:n])
			}
		}
		page = append(page, make([]byte, disk.PageSize)...)[:disk.PageSize]
		words := make([]uint64, intentWords)
		if !decodeIntentPage(page, words) && words[0] != ^uint64(0) {
			t.Fatal("a damaged page does not name all its regions")
		}
	})
}

func FuzzTail(f *testing.F) {
	y, err := memory{fs: disk.NewMem(1 << 20), dir: "r"}.fresh()
	if err != nil {
		f.Fatal(err)
	}
	tl, err := newTail(y, nil, 1<<20)
	if err != nil {
		f.Fatal(err)
	}
	for i := range uint64(3) {
		tl.add(Entry{Epoch: 1, Grant: 1, Seq: i}, int64(i)*4096, 4096)
	}
	good := bytes.Clone(tl.mem)
	f.Add(0, []byte{})
	f.Add(70, []byte{1, 2, 3})
	f.Add(24, []byte{1})
	f.Fuzz(func(t *testing.T, at int, patch []byte) {
		p := bytes.Clone(good)
		if at >= 0 && at < len(p) {
			copy(p[at:], patch)
		}
		entries, _, err := decodeTail(p, 1<<20)
		if err != nil {
			if holdfast.KindOf(err) != holdfast.Corrupt {
				t.Fatalf("kind of %v", err)
			}
			return
		}
		for _, e := range entries {
			if e.length < 0 || e.offset < 0 || e.offset+e.length > 1<<20 {
				t.Fatalf("accepted %+v", e)
			}
		}
	})
}

func FuzzChangeMap(f *testing.F) {
	head := make([]byte, mapHeader)
	encodeMapHeader(head, 7)
	f.Add(head, uint64(7), mapName(7))
	f.Add([]byte{}, uint64(0), "7")
	f.Fuzz(func(t *testing.T, head []byte, epoch uint64, name string) {
		if err := decodeMapHeader(head, holdfast.Epoch(epoch)); err == nil {
			again := make([]byte, mapHeader)
			encodeMapHeader(again, holdfast.Epoch(epoch))
			if !bytes.Equal(again[:24], head[:24]) {
				t.Fatal("accepted what was not encoded")
			}
		}
		if e, ok := parseMapName(name); ok && mapName(e) != name {
			t.Fatalf("%q is taken for %q", name, mapName(e))
		}
	})
}
