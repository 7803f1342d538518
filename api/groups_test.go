package api_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/holdfast-storage/holdfast"
	control "github.com/holdfast-storage/holdfast/controller/lifecycle"
	"github.com/holdfast-storage/holdfast/internal/grpcstatus"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

// groups keeps group snapshots as names only.
type groups struct {
	made    map[string]control.GroupSnapshot
	deleted []string
}

func (g *groups) CreateGroupSnapshot(_ context.Context, q control.GroupRequest) (control.GroupSnapshot, error) {
	out := control.GroupSnapshot{Group: holdfast.Group{ID: holdfast.GroupID("id-" + q.Name), Name: q.Name, State: holdfast.GroupReady, Labels: q.Labels}}
	for _, v := range q.Volumes {
		out.Members = append(out.Members, control.Member{Record: holdfast.Record{ID: "v-" + holdfast.VolumeID(v), Name: v}, Snapshot: holdfast.Snapshot{ID: "s", Name: q.Name + "/" + v, State: holdfast.SnapshotReady, Group: "id-" + q.Name}})
	}
	g.made[q.Name] = out
	return out, nil
}

func (g *groups) Groups(context.Context) ([]control.GroupSnapshot, error) {
	var out []control.GroupSnapshot
	for _, x := range g.made {
		out = append(out, x)
	}
	return out, nil
}

func (g *groups) FindGroup(_ context.Context, name string) (control.GroupSnapshot, error) {
	x, ok := g.made[name]
	if !ok {
		return x, holdfast.E("find", holdfast.NotFound, "none")
	}
	return x, nil
}

func (g *groups) DeleteGroup(_ context.Context, name string) error {
	g.deleted = append(g.deleted, name)
	return nil
}

func TestGroupSnapshots(t *testing.T) {
	c := newCluster(t)
	for _, name := range []string{"db", "log"} {
		if _, err := c.vol.CreateVolume(t.Context(), &holdfastv1.CreateVolumeRequest{Name: name, SizeBytes: 1 << 30}); err != nil {
			t.Fatal(err)
		}
	}
	conn, err := c.conns.Conn(c.unix)
	if err != nil {
		t.Fatal(err)
	}
	cl, ctx := holdfastv1.NewGroupSnapshotServiceClient(conn), t.Context()
	_, err = cl.CreateGroupSnapshot(ctx, &holdfastv1.CreateGroupSnapshotRequest{Name: "g", Volumes: []string{"db", "nowhere"}})
	if err := grpcstatus.From(err); holdfast.KindOf(err) != holdfast.NotFound || !strings.Contains(err.Error(), "nowhere") {
		t.Errorf("an unknown volume: %v", err)
	}
	g, err := cl.CreateGroupSnapshot(ctx, &holdfastv1.CreateGroupSnapshotRequest{Name: "g", Volumes: []string{"log", "db"}, Labels: map[string]string{"a": "b"}})
	if err != nil || len(g.GetSnapshots()) != 2 || g.GetSnapshots()[0].GetName() != "g/db" || g.GetSnapshots()[0].GetGroup() != g.GetId() || g.GetState() != "ready" {
		t.Errorf("created is %v, %v", g, err)
	}
	for label, want := range map[string]int{"b": 1, "c": 0} {
		if ls, err := cl.ListGroupSnapshots(ctx, &holdfastv1.ListGroupSnapshotsRequest{Labels: map[string]string{"a": label}}); err != nil || len(ls.GetGroups()) != want {
			t.Errorf("label %s lists %v, %v", label, ls, err)
		}
	}
	_, err = cl.GetGroupSnapshot(ctx, &holdfastv1.GetGroupSnapshotRequest{Group: "h"})
	if err := grpcstatus.From(err); holdfast.KindOf(err) != holdfast.NotFound || !strings.Contains(err.Error(), "holdfast group snapshot list") {
		t.Errorf("an unknown group: %v", err)
	}
	if _, err := cl.DeleteGroupSnapshot(ctx, &holdfastv1.DeleteGroupSnapshotRequest{}); holdfast.KindOf(grpcstatus.From(err)) != holdfast.Invalid {
		t.Errorf("no name: %v", err)
	}
	if _, err := cl.DeleteGroupSnapshot(ctx, &holdfastv1.DeleteGroupSnapshotRequest{Group: "g"}); err != nil || fmt.Sprint(c.groups.deleted) != "[g]" {
		t.Errorf("deleted are %v, %v", c.groups.deleted, err)
	}
	if code, m := c.rest(t, "GET", "/v1/group-snapshots/g", ""); code != 200 || m["name"] != "g" || len(m["snapshots"].([]any)) != 2 {
		t.Errorf("over REST: %d %v", code, m)
	}
}
