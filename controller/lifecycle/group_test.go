package lifecycle_test

import (
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/controller/internal/fakes"
	"github.com/holdfast-storage/holdfast/controller/lifecycle"
	"github.com/holdfast-storage/holdfast/metadata/memory"
)

// spread makes volumes a, b and c with one replica each, on nodes n1, n2, n3.
func spread(t *testing.T, c *fakes.Cluster, s *lifecycle.Service) []holdfast.Record {
	t.Helper()
	primaries(t, c)
	var out []holdfast.Record
	for i, name := range []string{"a", "b", "c"} {
		spec := size(gib)
		spec.Replicas = 1
		spec.Requisite = []holdfast.Domain{{Host: []string{"n1", "n2", "n3"}[i]}}
		out = append(out, mustCreate(t, s, name, spec))
	}
	return out
}

func groupOf(name string) lifecycle.GroupRequest {
	return lifecycle.GroupRequest{Name: name, Volumes: []string{"c", "a", "b"}}
}

// onePoint fails unless all of a group's members were held at one moment, and each
// was cut under that hold.
func onePoint(t *testing.T, c *fakes.Cluster, g lifecycle.GroupSnapshot, members int) {
	t.Helper()
	if g.Group.State != holdfast.GroupReady || len(g.Members) != members {
		t.Fatalf("the group is %+v with %d members", g.Group, len(g.Members))
	}
	var allHeld, firstCut time.Time
	for _, m := range g.Members {
		cut := c.Cuts()[m.Snapshot.ID]
		if m.Snapshot.State != holdfast.SnapshotReady || cut.At.IsZero() {
			t.Fatalf("member %+v was not cut", m.Snapshot)
		}
		if cut.Held.After(allHeld) {
			allHeld = cut.Held
		}
		if firstCut.IsZero() || cut.At.Before(firstCut) {
			firstCut = cut.At
		}
	}
	if !allHeld.Before(firstCut) {
		t.Errorf("the last was held at %v, the first cut at %v", allHeld, firstCut)
	}
}

// nothingLeft fails if anything of a group stays: a snapshot, a group, a hold.
func nothingLeft(t *testing.T, c *fakes.Cluster, s *lifecycle.Service) {
	t.Helper()
	if gs, err := c.Store.Groups(t.Context()); err != nil || len(gs) != 0 {
		t.Errorf("groups stay: %+v, %v", gs, err)
	}
	eventually(t, "no snapshot and no hold stays", func() bool {
		recs, err := s.List(t.Context())
		return err == nil && !slices.ContainsFunc(recs, func(r holdfast.Record) bool { return len(r.Snapshots) > 0 || c.Held(r.ID) })
	})
}

func TestGroupsAreTakenFoundAndDeleted(t *testing.T) {
	c, s := three(t)
	recs := spread(t, c, s)
	ctx := t.Context()
	if _, _, err := s.Attach(ctx, "a", "n1", false); err != nil {
		t.Fatal(err)
	}
	g, err := s.CreateGroupSnapshot(ctx, groupOf("nightly"))
	if err != nil {
		t.Fatal(err)
	}
	onePoint(t, c, g, 3)
	again, err := s.CreateGroupSnapshot(ctx, lifecycle.GroupRequest{Name: "nightly", Volumes: []string{string(recs[2].ID), "b", "a"}})
	if err != nil || again.Group.ID != g.Group.ID || !slices.Equal(again.Group.Members, g.Group.Members) {
		t.Errorf("again gives %+v, %v", again.Group, err)
	}
	for _, by := range []string{"nightly", string(g.Group.ID)} {
		if got, err := s.FindGroup(ctx, by); err != nil || got.Group.ID != g.Group.ID || len(got.Members) != 3 {
			t.Errorf("by %s found %+v, %v", by, got, err)
		}
	}
	rec, x, err := s.FindSnapshot(ctx, "nightly/b")
	if err != nil || rec.ID != recs[1].ID || x.Group != string(g.Group.ID) || x.Name != "nightly/b" {
		t.Errorf("by its name a member is %+v, %v", x, err)
	}
	for _, unknown := range []string{"nightly/d", "other/a"} {
		_, _, err = s.FindSnapshot(ctx, unknown)
		wantKind(t, err, holdfast.NotFound)
	}
	wantKind(t, s.DeleteSnapshot(ctx, lifecycle.SnapshotRef{Volume: rec.ID, Snapshot: x.ID}), holdfast.Invalid, "nightly")
	for range 2 {
		if err := s.DeleteGroup(ctx, string(g.Group.ID)); err != nil {
			t.Fatal(err)
		}
	}
	_, err = s.FindGroup(ctx, "nightly")
	wantKind(t, err, holdfast.NotFound)
	nothingLeft(t, c, s)
}

func TestGroupsThatCannotBe(t *testing.T) {
	c, s := three(t)
	spread(t, c, s)
	ctx := t.Context()
	for _, tc := range []struct {
		q     lifecycle.GroupRequest
		kind  holdfast.Kind
		words string
	}{
		{lifecycle.GroupRequest{Name: "x"}, holdfast.Invalid, "0 volumes"},
		{lifecycle.GroupRequest{Volumes: []string{"a"}}, holdfast.Invalid, "name"},
		{lifecycle.GroupRequest{Name: "a/b", Volumes: []string{"a"}}, holdfast.Invalid, "slashes"},
		{lifecycle.GroupRequest{Name: "x", Volumes: []string{"a", "d"}}, holdfast.NotFound, "d"},
		{lifecycle.GroupRequest{Name: "x", Volumes: []string{"a", "b", "a"}}, holdfast.Invalid, "twice"},
		{lifecycle.GroupRequest{Name: "x", Volumes: make([]string, 65)}, holdfast.Invalid, "65"},
	} {
		_, err := s.CreateGroupSnapshot(ctx, tc.q)
		wantKind(t, err, tc.kind, tc.words)
	}
	if _, err := s.CreateGroupSnapshot(ctx, groupOf("x")); err != nil {
		t.Fatal(err)
	}
	_, err := s.CreateGroupSnapshot(ctx, lifecycle.GroupRequest{Name: "x", Volumes: []string{"a", "b"}})
	wantKind(t, err, holdfast.Exists, "other volumes")
	_, err = s.CreateGroupSnapshot(ctx, lifecycle.GroupRequest{Name: "y", Volumes: []string{"a", "b"}, Max: 1})
	wantKind(t, err, holdfast.NoSpace, "delete some")
	if err := s.DeleteGroup(ctx, "x"); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t, c, s)
}

// quick is a service that gives up soon.
func quick(t *testing.T, c *fakes.Cluster) *lifecycle.Service {
	t.Helper()
	s, err := lifecycle.New(lifecycle.Config{Store: c.Store, Nodes: c, Poll: time.Millisecond, CallTimeout: 5 * time.Second,
		GroupTimeout: time.Second, HoldFor: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// Whatever one member's node fails at, the group fails, and nothing stays: no
// snapshot, and no volume held for longer than the others take to be told.
func TestAGroupFailsAsAWhole(t *testing.T) {
	for _, method := range []string{"PrepareHold", "Hold", "Cut", "Unhold"} {
		for _, after := range []bool{false, true} {
			c, patient := three(t)
			s := quick(t, c)
			spread(t, c, s)
			c.SetFault(func(n holdfast.NodeID, m string, a bool) error {
				if n == "n2" && m == method && a == after {
					return holdfast.E("", holdfast.Unavailable, "the network is down")
				}
				return nil
			})
			if _, err := s.CreateGroupSnapshot(t.Context(), groupOf("g")); !errors.Is(err, holdfast.Unavailable) && !errors.Is(err, holdfast.Busy) {
				t.Errorf("%s after %v: %v", method, after, err)
			}
			c.SetFault(nil)
			c.LapseHolds()
			nothingLeft(t, c, s)
			if g, err := patient.CreateGroupSnapshot(t.Context(), groupOf("g")); err != nil {
				t.Errorf("%s after %v, repeated: %v", method, after, err)
			} else {
				onePoint(t, c, g, 3)
			}
		}
	}
}

// A node that hangs while others are held: they are released in time, and the
// group fails.
func TestAGroupWithAMemberThatHangs(t *testing.T) {
	for _, method := range []string{"Hold", "Cut"} {
		c, _ := three(t)
		s := quick(t, c)
		recs := spread(t, c, s)
		hangs := make(chan struct{})
		var asked atomic.Bool
		c.SetFault(func(n holdfast.NodeID, m string, a bool) error {
			if n == "n2" && m == method && !a {
				asked.Store(true)
				<-hangs
				return holdfast.E("", holdfast.Unavailable, "it hung")
			}
			return nil
		})
		_, err := s.CreateGroupSnapshot(t.Context(), groupOf("g"))
		wantKind(t, err, holdfast.Unavailable)
		if !asked.Load() {
			t.Fatal("nobody asked")
		}
		eventually(t, "nothing is held though the node hangs still", func() bool {
			return !slices.ContainsFunc(recs, func(r holdfast.Record) bool { return c.Held(r.ID) })
		})
		close(hangs)
		nothingLeft(t, c, s)
	}
}

// A volume that nobody can serve fails the group before any is held.
func TestAGroupWithoutAServer(t *testing.T) {
	c, _ := three(t)
	s := quick(t, c)
	spread(t, c, s)
	if _, _, err := s.Attach(t.Context(), "b", "n2", false); err != nil {
		t.Fatal(err)
	}
	c.Node("n2").Kill()
	c.SetFault(func(n holdfast.NodeID, m string, _ bool) error {
		if m == "Hold" {
			t.Errorf("%s was held", n)
		}
		return nil
	})
	_, err := s.CreateGroupSnapshot(t.Context(), groupOf("g"))
	wantKind(t, err, holdfast.Unavailable, "does not live")
	nothingLeft(t, c, s)
}

// A group's creation is killed at every step, before the step and after it, or only
// that step fails; then it is repeated by another process, which ends with one group
// of one point in time, or given up, and nothing stays.
func TestGroupsKilledAtEveryStep(t *testing.T) {
	for _, mode := range []struct{ after, once bool }{{}, {after: true}, {once: true}, {once: true, after: true}} {
		for _, repeat := range []bool{true, false} {
			t.Run(fmt.Sprintf("after=%v/once=%v/repeat=%v", mode.after, mode.once, repeat), func(t *testing.T) {
				t.Parallel()
				for at := 1; killGroupAt(t, &fakes.Death{At: at, After: mode.after, Once: mode.once}, repeat); at++ {
					if at > 200 {
						t.Fatal("it never ends")
					}
				}
			})
		}
	}
}

func killGroupAt(t *testing.T, d *fakes.Death, repeat bool) (reached bool) {
	c, healthy := three(t)
	spread(t, c, healthy)
	process := func(store *memory.Store) *lifecycle.Service { // of the same node: each knows that the one before it is gone
		s, err := lifecycle.New(lifecycle.Config{Store: store, Nodes: c, Poll: time.Millisecond, Self: "n1"})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Close)
		return s
	}
	store := c.Store.Client()
	doomed, next := process(store), process(c.Store)
	d.On(c, store)
	g, err := doomed.CreateGroupSnapshot(until(t, d), groupOf("g"))
	if err == nil {
		onePoint(t, c, g, 3)
	}
	doomed.Close()
	reached = d.Struck()
	if !reached && err != nil {
		t.Fatalf("without a fault it fails: %v", err)
	}
	c.SetFault(nil)
	c.LapseHolds()
	if repeat {
		if g, err = next.CreateGroupSnapshot(t.Context(), groupOf("g")); err != nil {
			t.Fatalf("step %d: repeated, it fails: %v", d.At, err)
		}
		onePoint(t, c, g, 3)
	} else if err := next.FinishGroup(t.Context(), "g"); err != nil {
		t.Fatal(err)
	}
	want := 0
	if found, err := next.FindGroup(t.Context(), "g"); err == nil {
		onePoint(t, c, found, 3)
		want = 1
	}
	eventually(t, "no other snapshot stays, and nothing is held", func() bool {
		recs, err := healthy.List(t.Context())
		return err == nil && !slices.ContainsFunc(recs, func(r holdfast.Record) bool { return len(r.Snapshots) != want || c.Held(r.ID) })
	})
	if t.Failed() {
		t.Fatalf("killed at step %d", d.At)
	}
	return reached
}
