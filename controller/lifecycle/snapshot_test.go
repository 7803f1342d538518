package lifecycle_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/controller/internal/fakes"
	"github.com/holdfast-storage/holdfast/controller/lifecycle"
)

func primaries(t *testing.T, c *fakes.Cluster) { c.TakeSnapshots(t) }

func take(t *testing.T, s *lifecycle.Service, vol, name string) lifecycle.SnapshotRef {
	t.Helper()
	rec, x, err := s.CreateSnapshot(t.Context(), lifecycle.SnapshotRequest{Volume: vol, Name: name})
	if err != nil {
		t.Fatal(err)
	}
	if x.State != holdfast.SnapshotReady || x.Name != name || x.SizeBytes != rec.SizeBytes {
		t.Fatalf("taken was %+v", x)
	}
	return lifecycle.SnapshotRef{Volume: rec.ID, Snapshot: x.ID}
}

func TestSnapshotsAreTakenFoundAndDeleted(t *testing.T) {
	c, s := three(t)
	primaries(t, c)
	rec := mustCreate(t, s, "db", size(gib))
	mustCreate(t, s, "other", size(gib))
	ref := take(t, s, "db", "monday")
	if again := take(t, s, "db", "monday"); again != ref {
		t.Errorf("again made %v", again)
	}
	_, _, err := s.CreateSnapshot(t.Context(), lifecycle.SnapshotRequest{Volume: "other", Name: "monday"})
	wantKind(t, err, holdfast.Exists, string(rec.ID))
	for _, by := range []string{"monday", ref.String()} {
		if got, x, err := s.FindSnapshot(t.Context(), by); err != nil || got.ID != rec.ID || x.ID != ref.Snapshot {
			t.Errorf("found %+v, %v by %s", x, err, by)
		}
	}
	wantKind(t, s.Delete(t.Context(), "db"), holdfast.InUse, "1 snapshots")
	if err := s.DeleteSnapshot(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
	_, _, err = s.FindSnapshot(t.Context(), "monday")
	wantKind(t, err, holdfast.NotFound)
	for range 2 { // gone, and never there
		if err := s.DeleteSnapshot(t.Context(), ref); err != nil {
			t.Error(err)
		}
		ref.Volume = "nowhere"
	}
	take(t, s, "other", "monday") // the name is free again
	eventually(t, "the volume can be deleted", func() bool { return s.Delete(t.Context(), "db") == nil })
}

// TestANameThatNothingCameOfIsTakenOver: a process died after it had claimed the
// name, and another one after it had taken a deleted snapshot out of its record.
func TestANameThatNothingCameOfIsTakenOver(t *testing.T) {
	c, s := three(t)
	primaries(t, c)
	rec := mustCreate(t, s, "db", size(gib))
	for name, owner := range map[string]string{
		"a": lifecycle.SnapshotRef{Volume: "gone", Snapshot: "x"}.String(),
		"b": lifecycle.SnapshotRef{Volume: mustCreate(t, s, "other", size(gib)).ID, Snapshot: "x"}.String(),
		"c": lifecycle.SnapshotRef{Volume: rec.ID, Snapshot: "x"}.String(),
		"d": "nonsense",
	} {
		if _, err := c.Store.SwapClaim(t.Context(), name, "", owner); err != nil {
			t.Fatal(err)
		}
		if ref := take(t, s, "db", name); ref.Volume != rec.ID {
			t.Errorf("%s is of volume %s", name, ref.Volume)
		}
	}
}

func TestSnapshotsThatCannotBe(t *testing.T) {
	c, s := three(t)
	primaries(t, c)
	mustCreate(t, s, "db", size(gib))
	for _, q := range []struct {
		q    lifecycle.SnapshotRequest
		kind holdfast.Kind
	}{
		{lifecycle.SnapshotRequest{Volume: "db"}, holdfast.Invalid},
		{lifecycle.SnapshotRequest{Volume: "db", Name: "a/b"}, holdfast.Invalid},
		{lifecycle.SnapshotRequest{Volume: "nothing", Name: "x"}, holdfast.NotFound},
	} {
		_, _, err := s.CreateSnapshot(t.Context(), q.q)
		wantKind(t, err, q.kind)
	}
	for i := range 3 {
		_, _, err := s.CreateSnapshot(t.Context(), lifecycle.SnapshotRequest{Volume: "db", Name: fmt.Sprint("x", i), Max: 2})
		switch {
		case i < 2 && err != nil:
			t.Fatal(err)
		case i == 2:
			wantKind(t, err, holdfast.NoSpace, "2 snapshots")
		}
	}
	if owner, err := c.Store.Claim(t.Context(), "x2"); err != nil || owner != "" {
		t.Errorf("the refused snapshot's name belongs to %q, %v", owner, err)
	}
}

// TestASnapshotThatTakesLongGoesOn and is withdrawn when it is deleted.
func TestASnapshotThatTakesLongGoesOn(t *testing.T) {
	c, s := three(t)
	rec := mustCreate(t, s, "db", size(gib))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, _, err := s.CreateSnapshot(ctx, lifecycle.SnapshotRequest{Volume: "db", Name: "late"})
	wantKind(t, err, holdfast.Unavailable)
	_, x, err := s.FindSnapshot(t.Context(), "late")
	if err != nil || x.State != holdfast.SnapshotWanted {
		t.Fatalf("wanted is %+v, %v", x, err)
	}
	ended := make(chan error, 1)
	go func() {
		_, _, err := s.CreateSnapshot(t.Context(), lifecycle.SnapshotRequest{Volume: "db", Name: "late"})
		ended <- err
	}()
	if err := s.DeleteSnapshot(t.Context(), lifecycle.SnapshotRef{Volume: rec.ID, Snapshot: x.ID}); err != nil {
		t.Fatal(err)
	}
	// Who waits for it is told, or had come too late and wants it anew.
	select {
	case err := <-ended:
		wantKind(t, err, holdfast.Unavailable, "deleted")
	case <-time.After(100 * time.Millisecond):
		primaries(t, c)
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

func TestRestore(t *testing.T) {
	c, s := three(t)
	rec := mustCreate(t, s, "db", size(gib))
	rec.PutSnapshot(holdfast.Snapshot{ID: "s1", Name: "one", State: holdfast.SnapshotReady, Epoch: 1, Cut: "1", SizeBytes: gib})
	rec.PutSnapshot(holdfast.Snapshot{ID: "s2", Name: "two", State: holdfast.SnapshotReady, Epoch: 1, Cut: "2", SizeBytes: gib})
	rec, err := c.Store.SwapVolume(t.Context(), rec)
	if err != nil {
		t.Fatal(err)
	}
	one, two := lifecycle.SnapshotRef{Volume: rec.ID, Snapshot: "s1"}, lifecycle.SnapshotRef{Volume: rec.ID, Snapshot: "s2"}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err = s.Restore(ctx, one)
	wantKind(t, err, holdfast.Unavailable)
	_, err = s.Restore(t.Context(), two)
	wantKind(t, err, holdfast.InUse, "s1")
	wantKind(t, s.DeleteSnapshot(t.Context(), one), holdfast.InUse)
	primaries(t, c)
	if rec, err = s.Restore(t.Context(), one); err != nil || rec.Restore != nil {
		t.Fatalf("restored: %+v, %v", rec.Restore, err)
	}
	_, err = s.Restore(t.Context(), lifecycle.SnapshotRef{Volume: rec.ID, Snapshot: "s3"})
	wantKind(t, err, holdfast.NotFound)
	if _, _, err := s.Attach(t.Context(), "db", "n1", false); err != nil {
		t.Fatal(err)
	}
	_, err = s.Restore(t.Context(), two)
	if !errors.Is(err, holdfast.InUse) {
		t.Errorf("restore while it is attached: %v", err)
	}
}
