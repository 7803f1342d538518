package reconcile

import (
	"context"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/metadata"
)

// counted counts how often all records are read.
type counted struct {
	metadata.Store
	reads int
}

func (c *counted) Volumes(context.Context) ([]holdfast.Record, error) {
	c.reads++
	return []holdfast.Record{{ID: "read"}}, nil
}

// TestAPassWorksOnWhatTheWatchReported: once that is all, and read anew now and then.
func TestAPassWorksOnWhatTheWatchReported(t *testing.T) {
	store, now := &counted{}, time.Unix(1000, 0)
	r := &Reconciler{cfg: Config{Store: store, Now: func() time.Time { return now }}}
	r.forgetPast()
	want := func(when string, reads int, ids ...holdfast.VolumeID) {
		t.Helper()
		recs, err := r.volumes(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var got []holdfast.VolumeID
		for _, x := range recs {
			got = append(got, x.ID)
		}
		if store.reads != reads || len(got) != len(ids) {
			t.Fatalf("%s: %v after %d reads, want %v after %d", when, got, store.reads, ids, reads)
		}
		for i := range ids {
			if got[i] != ids[i] {
				t.Errorf("%s: %v, want %v", when, got, ids)
			}
		}
	}
	see := func(id holdfast.VolumeID) {
		r.seen.note(metadata.VolumeEvent{ID: id, Record: holdfast.Record{ID: id}})
	}
	see("b")
	want("before all was reported", 1, "read")
	see("a")
	r.seen.note(metadata.VolumeEvent{Synced: true})
	want("when all was reported", 1, "a", "b")
	r.seen.note(metadata.VolumeEvent{ID: "b", Deleted: true})
	now = now.Add(readEvery - time.Second)
	want("after one was deleted", 1, "a")
	now = now.Add(time.Second)
	want("after a minute", 2, "read")
	want("after that", 2, "a")
	r.seen.forget()
	want("when the watch ended", 3, "read")
}
