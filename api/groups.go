package api

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/controller/lifecycle"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

// Groups carries out what users ask of group snapshots. Every method is idempotent.
type Groups interface {
	CreateGroupSnapshot(ctx context.Context, q lifecycle.GroupRequest) (lifecycle.GroupSnapshot, error)
	Groups(ctx context.Context) ([]lifecycle.GroupSnapshot, error)
	FindGroup(ctx context.Context, idOrName string) (lifecycle.GroupSnapshot, error)
	DeleteGroup(ctx context.Context, idOrName string) error
}

// CreateGroupSnapshot implements the service; see api.proto.
func (s *Server) CreateGroupSnapshot(ctx context.Context, q *holdfastv1.CreateGroupSnapshotRequest) (*holdfastv1.GroupSnapshot, error) {
	op := "create group snapshot " + q.GetName()
	if err := validateLabels(q.GetLabels()); err != nil {
		return nil, holdfast.Wrap(op, err)
	}
	for _, v := range q.GetVolumes() {
		if err := s.known(ctx, op+" of volume "+v, v); err != nil {
			return nil, err
		}
	}
	g, err := s.cfg.Groups.CreateGroupSnapshot(ctx, lifecycle.GroupRequest{Name: q.GetName(), Volumes: q.GetVolumes(), Labels: q.GetLabels(), Freeze: q.GetFreeze()})
	if err != nil {
		return nil, err
	}
	return groupProto(g), nil
}

// ListGroupSnapshots implements the service; see api.proto.
func (s *Server) ListGroupSnapshots(ctx context.Context, q *holdfastv1.ListGroupSnapshotsRequest) (*holdfastv1.ListGroupSnapshotsResponse, error) {
	gs, err := s.cfg.Groups.Groups(ctx)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(gs, func(a, b lifecycle.GroupSnapshot) int { return cmp.Compare(a.Group.Name, b.Group.Name) })
	out := &holdfastv1.ListGroupSnapshotsResponse{}
	for _, g := range gs {
		if hasLabels(g.Group.Labels, q.GetLabels()) {
			out.Groups = append(out.Groups, groupProto(g))
		}
	}
	return out, nil
}

// GetGroupSnapshot implements the service; see api.proto.
func (s *Server) GetGroupSnapshot(ctx context.Context, q *holdfastv1.GetGroupSnapshotRequest) (*holdfastv1.GroupSnapshot, error) {
	g, err := s.cfg.Groups.FindGroup(ctx, q.GetGroup())
	if errors.Is(err, holdfast.NotFound) {
		return nil, &holdfast.Error{Op: "inspect group snapshot " + q.GetGroup(), Kind: holdfast.NotFound, Msg: "there is no such group snapshot; holdfast group snapshot list shows those there are"}
	}
	if err != nil {
		return nil, err
	}
	return groupProto(g), nil
}

// DeleteGroupSnapshot implements the service; see api.proto.
func (s *Server) DeleteGroupSnapshot(ctx context.Context, q *holdfastv1.DeleteGroupSnapshotRequest) (*holdfastv1.DeleteGroupSnapshotResponse, error) {
	if q.GetGroup() == "" {
		return nil, holdfast.E("delete group snapshot", holdfast.Invalid, "name the group snapshot to delete")
	}
	if err := s.cfg.Groups.DeleteGroup(ctx, q.GetGroup()); err != nil {
		return nil, err
	}
	return &holdfastv1.DeleteGroupSnapshotResponse{}, nil
}

func groupProto(g lifecycle.GroupSnapshot) *holdfastv1.GroupSnapshot {
	out := &holdfastv1.GroupSnapshot{Id: string(g.Group.ID), Name: g.Group.Name, Created: timestamppb.New(g.Group.Created), State: string(g.Group.State), Labels: maps.Clone(g.Group.Labels), HeldMillis: g.Group.HeldMillis}
	for i := range g.Members {
		m := &g.Members[i]
		out.Snapshots = append(out.Snapshots, snapshotProto(&m.Record, m.Snapshot))
	}
	slices.SortFunc(out.Snapshots, func(a, b *holdfastv1.Snapshot) int { return cmp.Compare(a.GetVolume(), b.GetVolume()) })
	return out
}
