package lifecycle_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/controller/internal/fakes"
	"github.com/holdfast-storage/holdfast/controller/lifecycle"
)

// mountedVolume is a volume that is attached to n1 and mounted there.
func mountedVolume(t *testing.T) (*fakes.Cluster, *lifecycle.Service, holdfast.Record) {
	t.Helper()
	c, s := three(t)
	rec := mustCreate(t, s, "db", size(gib))
	if _, _, err := s.Attach(t.Context(), "db", "n1", false); err != nil {
		t.Fatal(err)
	}
	c.Node("n1").Mount(rec.ID, true)
	return c, s, rec
}

func frozenSnapshot(ctx context.Context, s *lifecycle.Service, name string) (holdfast.Snapshot, error) {
	_, x, err := s.CreateSnapshot(ctx, lifecycle.SnapshotRequest{Volume: "db", Name: name, Freeze: true})
	return x, err
}

func TestFrozenSnapshots(t *testing.T) {
	c, s, rec := mountedVolume(t)
	primaries(t, c)
	for range 2 { // again is the same one
		x, err := frozenSnapshot(t.Context(), s, "a")
		if err != nil || !x.Frozen || x.State != holdfast.SnapshotReady {
			t.Fatalf("%+v, %v", x, err)
		}
	}
	ref := take(t, s, "db", "b")
	if _, x, err := s.FindSnapshot(t.Context(), ref.String()); err != nil || x.Frozen {
		t.Errorf("nobody asked to freeze: %+v, %v", x, err)
	}
	if _, x, err := s.FindSnapshot(t.Context(), "a"); err != nil || !x.Frozen {
		t.Errorf("it is forgotten that it was frozen: %+v, %v", x, err)
	}
	c.Node("n1").Mount(rec.ID, false)
	if x, err := frozenSnapshot(t.Context(), s, "c"); err != nil || x.Frozen {
		t.Errorf("it is not mounted: %+v, %v", x, err)
	}
	if _, err := s.Detach(t.Context(), "db", false); err != nil {
		t.Fatal(err)
	}
	if x, err := frozenSnapshot(t.Context(), s, "d"); err != nil || x.Frozen {
		t.Errorf("it is not attached: %+v, %v", x, err)
	}
	if got := c.Frozen(rec.ID); got != "" {
		t.Errorf("frozen by %s at the end", got)
	}
}

// What goes wrong leaves nothing frozen, and never a snapshot that says so falsely.
func TestFrozenSnapshotsThatFail(t *testing.T) {
	broken := holdfast.E("", holdfast.Unavailable, "no answer")
	for name, o := range map[string]struct {
		method string
		after  bool
		taken  bool // though not under a freeze that is known to have lasted
	}{
		"asked in vain": {"Freeze", false, false}, "answer lost": {"Freeze", true, false},
		"thawed, answer lost": {"Thaw", true, true},
	} {
		t.Run(name, func(t *testing.T) {
			c, s, rec := mountedVolume(t)
			primaries(t, c)
			c.SetFault(func(_ holdfast.NodeID, method string, after bool) error {
				if method == o.method && after == o.after {
					return broken
				}
				return nil
			})
			x, err := frozenSnapshot(t.Context(), s, "a")
			if o.taken && (err != nil || x.Frozen) || !o.taken && !errors.Is(err, holdfast.Unavailable) {
				t.Errorf("%+v, %v", x, err)
			}
			if _, _, err := s.FindSnapshot(t.Context(), "a"); (err == nil) != o.taken {
				t.Errorf("taken %v: %v", err == nil, err)
			}
			if got := c.Frozen(rec.ID); got != "" {
				t.Errorf("still frozen by %s", got)
			}
		})
	}
}

// The freeze ends by itself before the snapshot is taken, or whoever asked leaves.
func TestFrozenSnapshotsThatTakeTooLong(t *testing.T) {
	c, s, rec := mountedVolume(t) // nobody takes snapshots yet
	began := make(chan error, 1)
	go func() {
		x, err := frozenSnapshot(t.Context(), s, "late")
		if err == nil && x.Frozen {
			err = errors.New("it says that it was frozen")
		}
		began <- err
	}()
	eventually(t, "it is frozen", func() bool { return c.Frozen(rec.ID) != "" })
	c.ThawByItself(rec.ID)
	ctx, leave := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer leave()
	if _, err := frozenSnapshot(ctx, s, "given up"); !errors.Is(err, holdfast.Unavailable) {
		t.Errorf("given up: %v", err)
	}
	if got := c.Frozen(rec.ID); got != "" {
		t.Errorf("its caller has gone, and it is frozen by %s", got)
	}
	primaries(t, c)
	if err := <-began; err != nil {
		t.Error(err)
	}
	// Somebody has put it down before; when it was taken is not known.
	if x, err := frozenSnapshot(t.Context(), s, "given up"); err != nil || x.Frozen {
		t.Errorf("%+v, %v", x, err)
	}
}
