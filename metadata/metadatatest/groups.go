package metadatatest

import (
	"reflect"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
)

// testGroups stores, changes, lists and drops group snapshots: who was late
// learns what there is.
func testGroups(t *testing.T, h *Harness) {
	s, ctx := h.Open(t), t.Context()
	stored := must[holdfast.Group](t)
	group := func(name string) holdfast.Group {
		return holdfast.Group{Version: holdfast.GroupVersion, ID: holdfast.NewGroupID(), Name: name, Created: time.Now().UTC().Round(0), State: holdfast.GroupTaking,
			Members: []holdfast.GroupMember{{Volume: "a", Snapshot: "1"}, {Volume: "b", Snapshot: "2"}}, Owner: "me", Until: time.Now().UTC().Round(0)}
	}
	if all, err := s.Groups(ctx); err != nil || len(all) != 0 {
		t.Fatalf("at first: %v, %v", all, err)
	}
	_, err := s.Group(ctx, "nightly")
	wantKind(t, err, holdfast.NotFound)
	first := stored(s.PutGroup(ctx, group("nightly")))
	other := stored(s.PutGroup(ctx, group("100% other")))
	now, err := s.PutGroup(ctx, group("nightly"))
	wantKind(t, err, holdfast.Busy)
	if now.ID != first.ID || now.Revision != first.Revision {
		t.Errorf("who was late is told %+v, not %+v", now, first)
	}
	next := first.Clone()
	next.State, next.Owner, next.Until = holdfast.GroupReady, "", time.Time{}
	next = stored(s.PutGroup(ctx, next))
	got := stored(s.Group(ctx, "nightly"))
	if !reflect.DeepEqual(got, next) || got.State != holdfast.GroupReady || got.Revision <= first.Revision {
		t.Errorf("reads %+v, stored %+v", got, next)
	}
	wantKind(t, s.DropGroup(ctx, first), holdfast.Busy)
	all, err := s.Groups(ctx)
	ok(t, err)
	if len(all) != 2 || all[0].Name != other.Name || !reflect.DeepEqual(all[1], next) {
		t.Errorf("lists %+v", all)
	}
	ok(t, s.DropGroup(ctx, next))
	ok(t, s.DropGroup(ctx, next))
	_, err = s.PutGroup(ctx, next)
	wantKind(t, err, holdfast.Busy)
	_, err = s.Group(ctx, "nightly")
	wantKind(t, err, holdfast.NotFound)
	for what, change := range map[string]func(*holdfast.Group){
		"no members": func(g *holdfast.Group) { g.Members = nil }, "the same twice": func(g *holdfast.Group) { g.Members[1].Volume = "a" },
		"an unknown state": func(g *holdfast.Group) { g.State = "gone" }, "a name with a slash": func(g *holdfast.Group) { g.Name = "a/b" },
		"another version": func(g *holdfast.Group) { g.Version = 2 },
	} {
		g := group("bad")
		change(&g)
		if _, err := s.PutGroup(ctx, g); holdfast.KindOf(err) != holdfast.Invalid {
			t.Errorf("%s: %v", what, err)
		}
	}
}
