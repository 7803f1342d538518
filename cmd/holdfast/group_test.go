package main

import (
	"context"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/holdfast-storage/holdfast/internal/rpc"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

// groupServer knows one group, nightly.
type groupServer struct {
	holdfastv1.UnimplementedGroupSnapshotServiceServer
	created *holdfastv1.CreateGroupSnapshotRequest
	deleted string
}

func nightly() *holdfastv1.GroupSnapshot {
	g := &holdfastv1.GroupSnapshot{Id: "0a1b", Name: "nightly", State: "ready", Created: timestamppb.Now(), Labels: map[string]string{"tier": "gold"}}
	for _, v := range []string{"data", "log"} {
		g.Snapshots = append(g.Snapshots, &holdfastv1.Snapshot{Id: v + ".1", Name: "nightly/" + v, Volume: v, State: "ready", SizeBytes: 1 << 30, Group: "0a1b"})
	}
	return g
}

func (s *groupServer) CreateGroupSnapshot(_ context.Context, q *holdfastv1.CreateGroupSnapshotRequest) (*holdfastv1.GroupSnapshot, error) {
	s.created = q
	return nightly(), nil
}

func (s *groupServer) ListGroupSnapshots(_ context.Context, q *holdfastv1.ListGroupSnapshotsRequest) (*holdfastv1.ListGroupSnapshotsResponse, error) {
	if len(q.GetLabels()) > 0 {
		return &holdfastv1.ListGroupSnapshotsResponse{}, nil
	}
	return &holdfastv1.ListGroupSnapshotsResponse{Groups: []*holdfastv1.GroupSnapshot{nightly()}}, nil
}

func (s *groupServer) GetGroupSnapshot(context.Context, *holdfastv1.GetGroupSnapshotRequest) (*holdfastv1.GroupSnapshot, error) {
	return nightly(), nil
}

func (s *groupServer) DeleteGroupSnapshot(_ context.Context, q *holdfastv1.DeleteGroupSnapshotRequest) (*holdfastv1.DeleteGroupSnapshotResponse, error) {
	s.deleted = q.GetGroup()
	return &holdfastv1.DeleteGroupSnapshotResponse{}, nil
}

func TestGroupSnapshots(t *testing.T) {
	s := &groupServer{}
	at := "unix://" + filepath.Join(t.TempDir(), "a.sock")
	var cfg rpc.Config
	l, err := cfg.Listen(t.Context(), at)
	if err != nil {
		t.Fatal(err)
	}
	g := cfg.NewLocalServer()
	holdfastv1.RegisterGroupSnapshotServiceServer(g, s)
	go func() { _ = g.Serve(l) }()
	t.Cleanup(g.Stop)
	for line, want := range map[string]string{
		"create nightly data log --label tier=gold": "Group snapshot nightly of 2 volumes is ready, id 0a1b",
		"list":                    "data, log",
		"list --label tier=x":     "No group snapshots. Take one with",
		"inspect nightly":         "nightly/log",
		"delete nightly":          "Group snapshot nightly is deleted",
		"inspect nightly -o json": `"nightly/data"`,
	} {
		code, out, says := do(t, at, append([]string{"group", "snapshot"}, strings.Fields(line)...)...)
		if code != exitOK || !strings.Contains(out, want) {
			t.Errorf("%s: %d %s %s", line, code, out, says)
		}
	}
	if q := s.created; q.GetName() != "nightly" || strings.Join(q.GetVolumes(), " ") != "data log" || q.GetLabels()["tier"] != "gold" || s.deleted != "nightly" {
		t.Errorf("asked for %v, deleted %q", q, s.deleted)
	}
	if code, _, says := do(t, at, "group", "snapshot", "create", "nightly"); code != exitUsage || !strings.Contains(says, "at least one volume") {
		t.Errorf("without a volume: %d %s", code, says)
	}
}
