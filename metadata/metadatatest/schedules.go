package metadatatest

import (
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
)

// testSchedules: schedules are stored, read, swapped by revision, listed without
// those that are not understood, and dropped.
func testSchedules(t *testing.T, h *Harness) {
	s, other := h.Open(t), h.Open(t)
	now := time.Now().UTC().Round(0)
	want := holdfast.Schedule{Version: holdfast.ScheduleVersion, Name: "a b ü", Cron: "0 3 * * *", Zone: "Europe/Berlin",
		Labels: map[string]string{"k": "v"}, KeepLast: 3, KeepSeconds: 60, Created: now, Since: now}
	_, err := s.Schedule(t.Context(), want.Name)
	wantKind(t, err, holdfast.NotFound)
	stored, err := s.PutSchedule(t.Context(), want)
	if err != nil || stored.Revision == 0 {
		t.Fatalf("stored %+v, %v", stored, err)
	}
	want.Revision = stored.Revision
	if got, err := other.Schedule(t.Context(), want.Name); err != nil || !reflect.DeepEqual(got, want) || !reflect.DeepEqual(stored, want) {
		t.Errorf("read %+v, %v; want %+v", got, err, want)
	}
	again := want
	again.Revision = 0
	now1, err := s.PutSchedule(t.Context(), again)
	wantKind(t, err, holdfast.Busy)
	if now1.Revision != want.Revision {
		t.Errorf("stored is %+v", now1)
	}
	next := want
	next.Paused, next.LastRun, next.Problem = true, now, "why"
	if next, err = other.PutSchedule(t.Context(), next); err != nil {
		t.Fatal(err)
	}
	_, err = s.PutSchedule(t.Context(), want)
	wantKind(t, err, holdfast.Busy)
	want.KeepLast, want.KeepSeconds = 0, 0
	_, err = s.PutSchedule(t.Context(), want)
	wantKind(t, err, holdfast.Invalid)
	first := holdfast.Schedule{Version: holdfast.ScheduleVersion, Name: "a", Cron: "@daily", Volume: "v", KeepLast: 1, Created: now, Since: now}
	if first, err = s.PutSchedule(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	h.Put(t, "schedules/aa", `{"version":99}`)
	got, err := other.Schedules(t.Context())
	if err != nil || !reflect.DeepEqual(got, []holdfast.Schedule{first, next}) {
		t.Errorf("listed are %+v, %v", got, err)
	}
	if !slices.Contains(h.Skipped(), "schedules/aa") {
		t.Errorf("skipped are %q", h.Skipped())
	}
	for range 2 {
		if err := s.DropSchedule(t.Context(), next.Name); err != nil {
			t.Error(err)
		}
	}
	_, err = other.Schedule(t.Context(), next.Name)
	wantKind(t, err, holdfast.NotFound)
	_, err = s.Schedule(t.Context(), "")
	wantKind(t, err, holdfast.Invalid)
}
