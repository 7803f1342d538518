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

func TestFrozenGroups(t *testing.T) {
	c, s := three(t)
	recs := spread(t, c, s)
	ctx := t.Context()
	for i, name := range []string{"a", "b"} {
		if _, _, err := s.Attach(ctx, name, holdfast.NodeID([]string{"n1", "n2"}[i]), false); err != nil {
			t.Fatal(err)
		}
	}
	c.Node("n1").Mount(recs[0].ID, true) // b is attached and not mounted, c is neither
	q := groupOf("clean")
	q.Freeze = true
	for range 2 { // again is the same one
		g, err := s.CreateGroupSnapshot(ctx, q)
		if err != nil {
			t.Fatal(err)
		}
		onePoint(t, c, g, 3)
		for _, m := range g.Members {
			if want := m.Record.ID == recs[0].ID; m.Snapshot.Frozen != want {
				t.Errorf("volume %s: frozen %v, want %v", m.Record.Name, m.Snapshot.Frozen, want)
			}
		}
	}
	g, err := s.CreateGroupSnapshot(ctx, groupOf("unclean"))
	if err != nil || g.Members[0].Snapshot.Frozen || g.Members[1].Snapshot.Frozen || g.Members[2].Snapshot.Frozen {
		t.Errorf("nobody asked to freeze: %+v, %v", g, err)
	}
	if got := c.Frozen(recs[0].ID); got != "" {
		t.Errorf("frozen by %s at the end", got)
	}
}

// A group whose filesystems cannot be frozen leaves nothing behind; one that is
// not known to have been frozen until it was taken does not say so.
func TestFrozenGroupsThatFail(t *testing.T) {
	for method, taken := range map[string]bool{"Freeze": false, "Thaw": true, "Hold": false, "Cut": false} {
		t.Run(method, func(t *testing.T) {
			c, s := three(t)
			recs := spread(t, c, s)
			for i, name := range []string{"a", "b"} {
				node := holdfast.NodeID([]string{"n1", "n2"}[i])
				if _, _, err := s.Attach(t.Context(), name, node, false); err != nil {
					t.Fatal(err)
				}
				c.Node(node).Mount(recs[i].ID, true)
			}
			c.SetFault(func(node holdfast.NodeID, m string, after bool) error {
				if node == "n2" && m == method && after {
					return holdfast.E("", holdfast.Denied, "no")
				}
				return nil
			})
			q := groupOf("g")
			q.Freeze = true
			g, err := s.CreateGroupSnapshot(t.Context(), q)
			if (err == nil) != taken {
				t.Errorf("%+v, %v", g, err)
			}
			for _, m := range g.Members {
				if taken && m.Snapshot.Frozen != (m.Record.ID == recs[0].ID) {
					t.Errorf("volume %s says frozen: %v", m.Record.Name, m.Snapshot.Frozen)
				}
			}
			for _, r := range recs {
				if got := c.Frozen(r.ID); got != "" {
					t.Errorf("volume %s is frozen by %s", r.Name, got)
				}
			}
			c.SetFault(nil)
			c.LapseHolds()
			if !taken {
				nothingLeft(t, c, s)
			}
		})
	}
}
