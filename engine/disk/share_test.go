package disk

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/holdfast-storage/holdfast"
)

// TestSharing is what every implementation does alike, those that copy included.
func TestSharing(t *testing.T) {
	each(t, func(t *testing.T, fs FS) {
		a, b := open(t, fs, "a", Create|Direct), open(t, fs, "b", Create|Direct)
		must(t, errors.Join(a.Truncate(32*PageSize), b.Truncate(64*PageSize)))
		write := func(f File, v byte, page int64) {
			t.Helper()
			_, err := f.WriteAt(pageOf(v), page*PageSize, false)
			must(t, err)
		}
		want := func(f File, v byte, page int64) {
			t.Helper()
			p := make([]byte, PageSize)
			if _, err := f.ReadAt(p, page*PageSize); err != nil || !bytes.Equal(p, pageOf(v)) {
				t.Fatalf("page %d begins with %d, %v; must be %d", page, p[0], err, v)
			}
		}
		write(a, 1, 2)
		write(a, 2, 4)
		write(b, 9, 3)
		write(b, 9, 20)
		must(t, a.Allocate(6*PageSize, PageSize))
		must(t, b.CloneRange(a, 0, 16*PageSize))
		for page, v := range []byte{0, 0, 1, 0, 2, 0, 0} {
			want(b, v, int64(page))
		}
		want(b, 9, 20)
		alike := func(page int64) bool {
			t.Helper()
			x, err := a.Mapped(page*PageSize, PageSize)
			must(t, err)
			y, err := b.Mapped(page*PageSize, PageSize)
			must(t, err)
			return len(x) == 1 && len(y) == 1 && x[0].Place != 0 && x[0].Place == y[0].Place
		}
		d, real := fs.(*Dir)
		shared := alike(4)
		if copies := real && d.copies.Load(); shared == copies {
			t.Fatalf("page 4, copied %v, is at the same place: %v", copies, shared)
		}
		write(a, 3, 2)
		if alike(2) || alike(4) != shared {
			t.Fatalf("pages 2 and 4, shared %v, one was written to: at the same place: %v, %v", shared, alike(2), alike(4))
		}
		write(b, 4, 4)
		want(a, 3, 2)
		want(b, 1, 2)
		want(a, 2, 4)
		want(b, 4, 4)
		ps, err := a.Mapped(0, 32*PageSize)
		must(t, err)
		var got []string
		for _, p := range ps {
			got = append(got, fmt.Sprint(p.Offset/PageSize, p.Length/PageSize, p.Unwritten))
		}
		if fmt.Sprint(got) != "[2 1 false 4 1 false 6 1 true]" {
			t.Fatalf("pieces: %v", got)
		}
		if ps, err := b.Mapped(5*PageSize, PageSize); err != nil || len(ps) != 0 {
			t.Fatalf("pieces of a hole: %v, %v", ps, err)
		}
		must(t, errors.Join(a.Close(), b.Close()))
	})
}

// TestMemLog: of the changes of which blocks files have, over all files, a power
// loss leaves a prefix, which reaches at least to the last sync; what is shared
// is not written to in place.
func TestMemLog(t *testing.T) {
	seen := map[string]int{}
	for seed := range uint64(300) {
		m := NewMem(1 << 20)
		a, b := open(t, m, "a", Create|Direct), open(t, m, "b", Create|Direct)
		must(t, errors.Join(a.Truncate(4*PageSize), b.Truncate(4*PageSize), m.SyncDir(".")))
		for page := range int64(2) {
			_, err := a.WriteAt(pageOf(1), page*PageSize, false)
			must(t, err)
		}
		must(t, errors.Join(a.Sync(), b.Sync()))
		must(t, b.CloneRange(a, 0, 2*PageSize))
		_, err := a.WriteAt(pageOf(2), 0, false)
		must(t, err)
		if seed%2 == 0 {
			must(t, a.Sync())
		}
		must(t, b.Allocate(3*PageSize, PageSize))
		_, err = a.WriteAt(pageOf(2), 3*PageSize, false)
		must(t, err)
		m.Crash(rand.New(rand.NewPCG(seed, 5)))
		a, b = open(t, m, "a", Direct), open(t, m, "b", Direct)
		first := func(f File, page int64) byte {
			p := make([]byte, 1<<12)
			_, err := f.ReadAt(p, page*PageSize)
			must(t, err)
			return p[0]
		}
		pb, err := b.Mapped(0, 4*PageSize)
		must(t, err)
		cloned, marked := len(pb) > 0, len(pb) > 0 && pb[len(pb)-1].End() == 4*PageSize
		overwritten, written := first(a, 0) == 2, first(a, 3) == 2
		seen[fmt.Sprint(cloned, overwritten, marked, written)]++
		if overwritten && !cloned || marked && !overwritten || written && !marked || seed%2 == 0 && !overwritten ||
			cloned && (first(b, 0) != 1 || first(b, 1) != 1) || first(a, 1) != 1 {
			t.Fatalf("seed %d: cloned %v, overwritten %v, marked %v, written %v", seed, cloned, overwritten, marked, written)
		}
		if u, err := m.Usage(); err != nil || u.TotalBytes-u.FreeBytes > 6*PageSize {
			t.Fatalf("seed %d: %d bytes used, %v", seed, u.TotalBytes-u.FreeBytes, err)
		}
		wantKind(t, "clone beyond the end", b.CloneRange(a, 0, 8*PageSize), holdfast.Invalid)
	}
	if len(seen) != 5 {
		t.Fatalf("not all prefixes were seen: %v", seen)
	}
}
