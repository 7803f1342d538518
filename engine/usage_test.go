package engine

import (
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
)

// TestSnapshotExclusive: what is counted is what nothing else refers to.
func TestSnapshotExclusive(t *testing.T) {
	eachKind(t, func(t *testing.T, p *Pool) {
		s := &scene{t: t, r: created(t, p, 2<<20)}
		want := func(id holdfast.SnapshotID, bytes int64) {
			t.Helper()
			count := func() (got int64) {
				for off := int64(0); off < 2<<20; off += 96 << 10 { // steps that end within granules
					n, err := s.r.SnapshotExclusive(id, off, min(96<<10, 2<<20-off))
					s.must(err)
					got += n
				}
				return got
			}
			// XFS takes blocks away from a removed file some time later.
			got := count()
			for end := time.Now().Add(10 * time.Second); got != bytes && time.Now().Before(end); got = count() {
				<-time.After(10 * time.Millisecond)
			}
			if got != bytes {
				t.Errorf("only snapshot %s refers to %d bytes; want %d", id, got, bytes)
			}
		}
		s.write(1, 0, 3*granuleSize)
		s.take("a")
		want("a", 0)
		s.write(2, granuleSize+4096, 8192)
		want("a", 8192)
		s.write(3, 1<<20, 4096) // a hole: the page that says so
		want("a", 8192+4096)
		s.take("b")
		s.write(4, 0, 4096)
		want("b", 0) // "a" reads it there
		want("a", 8192+4096)
		s.drop("a")
		want("b", 4096)
		if _, err := s.r.SnapshotExclusive("a", 0, 4096); holdfast.KindOf(err) != holdfast.NotFound {
			t.Errorf("a dropped one: %v", err)
		}
	})
}
