package lifecycle

import (
	"context"
	"testing"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/metadata"
)

// storeOf fails to create, or calls then.
type storeOf struct {
	metadata.Store
	then func(holdfast.Record) error
}

func (s storeOf) CreateVolume(_ context.Context, r holdfast.Record) (holdfast.Record, error) {
	return r, s.then(r)
}

// TestWhatIsPromisedIsKnown: of volumes that are reported, that are being stored, and
// of none that is gone.
func TestWhatIsPromisedIsKnown(t *testing.T) {
	p := newPromised()
	want := func(when string, on1, on2 int64) {
		t.Helper()
		if p.sums["p1"] != on1 || p.sums["p2"] != on2 {
			t.Errorf("%s: promised are %v, want %d and %d", when, p.sums, on1, on2)
		}
	}
	record := func(id holdfast.VolumeID, revision, size int64, pools ...holdfast.PoolID) holdfast.Record {
		r := holdfast.Record{ID: id, Revision: revision, SizeBytes: size}
		for _, pool := range pools {
			r.Replicas = append(r.Replicas, holdfast.Replica{Pool: pool})
		}
		return r
	}
	see := func(r holdfast.Record) { p.onEvent(metadata.VolumeEvent{ID: r.ID, Record: r}) }
	see(record("a", 1, 100, "p1", "p2"))
	see(record("b", 2, 10, "p1"))
	p.onEvent(metadata.VolumeEvent{Synced: true})
	want("two volumes", 110, 100)
	see(record("b", 3, 10, "p2"))
	want("one moved", 100, 110)
	p.onEvent(metadata.VolumeEvent{ID: "a", Deleted: true})
	want("one deleted", 0, 10)

	var fails error
	s := &Service{promised: p, cfg: Config{Store: storeOf{then: func(r holdfast.Record) error {
		want("while it is stored", 1, 10)
		p.forget()
		want("while it is stored and all else forgotten", 1, 0)
		see(record("b", 3, 10, "p2"))
		p.onEvent(metadata.VolumeEvent{Synced: true})
		want("while it is stored and not reported yet", 1, 10)
		return fails
	}}}}
	store := func(id holdfast.VolumeID) {
		_, _ = s.store(t.Context(), record(id, 0, 1, "p1"))
	}
	fails = holdfast.E("store", holdfast.Unavailable, "no answer")
	store("c")
	want("after it failed", 0, 10)
	see(record("c", 5, 1, "p1"))
	want("reported though it failed", 1, 10)
	p.onEvent(metadata.VolumeEvent{ID: "c", Deleted: true})
	fails = nil
	store("d")
	want("stored and not reported", 1, 10)
	see(record("d", 6, 1, "p1"))
	want("stored and reported", 1, 10)
	p.onEvent(metadata.VolumeEvent{ID: "d", Deleted: true})
	store("e")
	p.onEvent(metadata.VolumeEvent{Synced: true})
	want("deleted before it was reported", 0, 10)
}
