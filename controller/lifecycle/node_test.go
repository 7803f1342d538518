package lifecycle_test

import (
	"testing"

	"github.com/holdfast-storage/holdfast"
)

func TestDrainUndrainCordon(t *testing.T) {
	c, s := three(t)
	n, err := s.Drain(t.Context(), "n1")
	if err != nil || !n.Cordoned || !n.Draining || !n.Alive {
		t.Fatalf("got %+v, %v", n, err)
	}
	_, err = s.Create(t.Context(), "db", size(gib))
	wantKind(t, err, holdfast.NoSpace, "n1 is draining")
	if n, err := s.Undrain(t.Context(), "n1"); err != nil || n.Cordoned || n.Draining {
		t.Fatalf("got %+v, %v", n, err)
	}
	mustCreate(t, s, "db", size(gib))
	if n, err := s.Cordon(t.Context(), "n1"); err != nil || !n.Cordoned || n.Draining {
		t.Fatalf("got %+v, %v", n, err)
	}
	_, err = s.Drain(t.Context(), "n9")
	wantKind(t, err, holdfast.NotFound)
	c.CheckClean()
}

func TestForget(t *testing.T) {
	c, s := three(t)
	ctx := t.Context()
	mustCreate(t, s, "db", size(gib))
	only := mustCreate(t, s, "only", holdfast.Spec{SizeBytes: gib, Replicas: 1, Preferred: []holdfast.Domain{{Host: "n1"}}})
	seen := mustCreate(t, s, "seen", size(gib))
	if _, _, err := s.Attach(ctx, "db", "n1", false); err != nil {
		t.Fatal(err)
	}
	_, err := s.Forget(ctx, "n1")
	wantKind(t, err, holdfast.InUse, "alive")
	c.Node("n1").Kill()
	if _, _, err := s.Attach(ctx, "seen", "n2", false); err != nil {
		t.Fatal(err)
	}
	rec, _ := c.Store.Volume(ctx, string(seen.ID))
	rec.On("n1").State = holdfast.Stale // its primary has dropped it
	if _, err := c.Store.SwapVolume(ctx, rec); err != nil {
		t.Fatal(err)
	}
	f, err := s.Forget(ctx, "n1")
	if err != nil || f.Removed != 1 || f.Leaving != 1 || len(f.Only) != 1 || f.Only[0] != only.ID {
		t.Fatalf("got %+v, %v", f, err)
	}
	rec, _ = s.Get(ctx, "db")
	if x := rec.On("n1"); x == nil || !x.Leaving || x.State != holdfast.InSync || rec.Primary != nil {
		t.Errorf("db: %+v", rec)
	}
	if rec, _ := s.Get(ctx, "seen"); rec.On("n1") != nil {
		t.Errorf("seen: %+v", rec.Replicas)
	}
	if rec, _ := s.Get(ctx, "only"); rec.On("n1") == nil || rec.On("n1").Leaving {
		t.Errorf("the only copy was given up: %+v", rec.Replicas)
	}
	_, err = s.Forget(ctx, "n9")
	wantKind(t, err, holdfast.NotFound)
	c.Check()
}
