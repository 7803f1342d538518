package api_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/controller/schedule"
	"github.com/holdfast-storage/holdfast/internal/grpcstatus"
	"github.com/holdfast-storage/holdfast/metadata"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

func newSchedules(t *testing.T, store metadata.Store, snaps schedule.Snapshots) *schedule.Service {
	t.Helper()
	s, err := schedule.New(schedule.Config{Store: store, Snapshots: snaps})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSchedulesAreMadeShownPausedAndDeleted(t *testing.T) {
	c, rec, snaps := withSnapshots(t)
	conn, err := c.conns.Conn(c.unix)
	if err != nil {
		t.Fatal(err)
	}
	cl := holdfastv1.NewScheduleServiceClient(conn)
	q := &holdfastv1.CreateScheduleRequest{Name: "nightly", Cron: "0 3 * * *", Zone: "Europe/Berlin", Volume: "db", KeepLast: 7, KeepSeconds: 3600}
	for range 2 {
		x, err := cl.CreateSchedule(t.Context(), q)
		if err != nil || x.GetVolume() != "db" || x.GetVolumeId() != string(rec.ID) || x.GetVolumes() != 1 || !x.GetNextRun().AsTime().After(time.Now()) || x.GetLastRun() != nil {
			t.Fatalf("made is %v, %v", x, err)
		}
	}
	for _, x := range []struct {
		q    *holdfastv1.CreateScheduleRequest
		kind holdfast.Kind
	}{
		{&holdfastv1.CreateScheduleRequest{Name: "x", Cron: "at night", Volume: "db", KeepLast: 1}, holdfast.Invalid},
		{&holdfastv1.CreateScheduleRequest{Name: "x", Cron: "@daily", Volume: "nothing", KeepLast: 1}, holdfast.NotFound},
		{&holdfastv1.CreateScheduleRequest{Name: "nightly", Cron: "@daily", Volume: "db", KeepLast: 1}, holdfast.Exists},
	} {
		_, err := cl.CreateSchedule(t.Context(), x.q)
		if got := holdfast.KindOf(grpcstatus.From(err)); got != x.kind {
			t.Errorf("%v: %v, want kind %v", x.q, err, x.kind)
		}
	}
	// A snapshot that it has made, by its name and its labels.
	due := "2099-01-02T03:00:00Z"
	rec, err = c.store.Volume(t.Context(), "db")
	if err != nil {
		t.Fatal(err)
	}
	rec.PutSnapshot(holdfast.Snapshot{ID: "s9", Name: "nightly-" + string(rec.ID[:12]) + "-20990102t030000z", Created: time.Now(), State: holdfast.SnapshotReady, Epoch: 1, Cut: "1", SizeBytes: 1 << 30,
		Labels: map[string]string{schedule.Label: "nightly", schedule.DueLabel: due}})
	if _, err := c.store.SwapVolume(t.Context(), rec); err != nil {
		t.Fatal(err)
	}
	x, err := cl.GetSchedule(t.Context(), &holdfastv1.GetScheduleRequest{Schedule: "nightly"})
	if err != nil || x.GetKept() != 1 || len(x.GetSnapshots()) != 1 || x.GetSnapshots()[0].GetVolume() != "db" {
		t.Errorf("shown is %v, %v", x, err)
	}
	_, err = snaps.CreateSnapshot(t.Context(), &holdfastv1.CreateSnapshotRequest{Volume: "db", Name: "forged", Labels: map[string]string{schedule.Label: "nightly"}})
	if holdfast.KindOf(grpcstatus.From(err)) != holdfast.Invalid {
		t.Errorf("a snapshot with a label of Holdfast's: %v", err)
	}
	if x, err = cl.PauseSchedule(t.Context(), &holdfastv1.PauseScheduleRequest{Schedule: "nightly"}); err != nil || !x.GetPaused() || x.GetNextRun() != nil {
		t.Errorf("paused is %v, %v", x, err)
	}
	r, err := http.Get(c.http + "/v1/schedules")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	var listed struct {
		Schedules []struct {
			Name   string
			Paused bool
			Kept   int
		}
	}
	if err := json.NewDecoder(r.Body).Decode(&listed); err != nil || len(listed.Schedules) != 1 || !listed.Schedules[0].Paused || listed.Schedules[0].Kept != 1 {
		t.Errorf("REST lists %+v, %v", listed, err)
	}
	if x, err = cl.ResumeSchedule(t.Context(), &holdfastv1.ResumeScheduleRequest{Schedule: "nightly"}); err != nil || x.GetPaused() {
		t.Errorf("resumed is %v, %v", x, err)
	}
	for range 2 {
		if _, err := cl.DeleteSchedule(t.Context(), &holdfastv1.DeleteScheduleRequest{Schedule: "nightly"}); err != nil {
			t.Error(err)
		}
	}
	_, err = cl.GetSchedule(t.Context(), &holdfastv1.GetScheduleRequest{Schedule: "nightly"})
	if holdfast.KindOf(grpcstatus.From(err)) != holdfast.NotFound || !strings.Contains(err.Error(), "schedule list") {
		t.Errorf("a deleted one: %v", err)
	}
}
