package agent_test

import (
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/metadata/memory"
	"github.com/holdfast-storage/holdfast/replication"
)

func TestAScrubIsDoneAndItsOutcomeNoted(t *testing.T) {
	db := memory.New()
	a := newRig(t, db, "a").start()
	rec := volume(t, db, "v", "a", "b")
	if _, err := a.Attach(t.Context(), rec.ID); err != nil {
		t.Fatal(err)
	}
	change(t, db, rec.ID, func(r *holdfast.Record) { r.SetScrub(holdfast.Scrub{ID: "one", Asked: time.Unix(1, 0)}) })
	eventually(t, "its outcome is noted", func() bool { return !read(t, db, rec.ID).Scrub.Pending() })
	if s := read(t, db, rec.ID).Scrub; s.ID != "one" || s.Blocks != 5 || s.Mismatches != 2 || s.Healed != 2 || s.Unhealed != 0 {
		t.Errorf("%+v", s)
	}
}

func TestAScrubThatIsCancelledEnds(t *testing.T) {
	db := memory.New()
	a := newRig(t, db, "a").start()
	rec := volume(t, db, "v", "a", "b")
	if _, err := a.Attach(t.Context(), rec.ID); err != nil {
		t.Fatal(err)
	}
	v := a.plane.volume(rec.ID)
	v.setEndless()
	change(t, db, rec.ID, func(r *holdfast.Record) { r.SetScrub(holdfast.Scrub{ID: "one", Asked: time.Unix(1, 0)}) })
	eventually(t, "it runs", func() bool { return v.Status().Scrub.State == replication.ScrubRunning })
	change(t, db, rec.ID, func(r *holdfast.Record) {
		s := *r.Scrub
		s.Ended, s.Cancelled = time.Unix(2, 0), true
		r.SetScrub(s)
	})
	eventually(t, "it is cancelled", func() bool { return v.Status().Scrub.State == replication.ScrubCancelled })
}

// TestScrubsAreScheduled: the node where a volume is attached, or that of its first
// in-sync replica, asks for a scrub when the last one is old enough; volumes with
// one copy need none.
func TestScrubsAreScheduled(t *testing.T) {
	db := memory.New()
	a := newRig(t, db, "a")
	a.cfg.ScrubEvery = 50 * time.Millisecond
	mine, others, single := volume(t, db, "mine", "a", "b"), volume(t, db, "others", "b", "a"), volume(t, db, "single", "a")
	a.start()
	scheduled := func(id holdfast.VolumeID) bool { s := read(t, db, id).Scrub; return s != nil && s.Scheduled }
	eventually(t, "it is asked for", func() bool { return scheduled(mine.ID) })
	if _, err := a.Attach(t.Context(), mine.ID); err != nil {
		t.Fatal(err)
	}
	first := read(t, db, mine.ID).Scrub.ID
	eventually(t, "it is done, and asked for again", func() bool { return read(t, db, mine.ID).Scrub.ID != first })
	if scheduled(others.ID) || scheduled(single.ID) {
		t.Error("a scrub was asked for that is another node's to ask for, or that compares nothing")
	}
}
