package csi

import (
	"context"
	"errors"
	"fmt"
	"slices"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/controller/lifecycle"
)

// GroupControllerGetCapabilities lists what the group controller offers.
func (s *Server) GroupControllerGetCapabilities(context.Context, *csipb.GroupControllerGetCapabilitiesRequest) (*csipb.GroupControllerGetCapabilitiesResponse, error) {
	return &csipb.GroupControllerGetCapabilitiesResponse{Capabilities: []*csipb.GroupControllerServiceCapability{{
		Type: &csipb.GroupControllerServiceCapability_Rpc{Rpc: &csipb.GroupControllerServiceCapability_RPC{
			Type: csipb.GroupControllerServiceCapability_RPC_CREATE_DELETE_GET_VOLUME_GROUP_SNAPSHOT}}}}}, nil
}

// CreateVolumeGroupSnapshot takes snapshots of several volumes at one point in time
// and answers when all are ready to use.
func (s *Server) CreateVolumeGroupSnapshot(ctx context.Context, q *csipb.CreateVolumeGroupSnapshotRequest) (*csipb.CreateVolumeGroupSnapshotResponse, error) {
	g, err := s.createGroup(ctx, q)
	return done(&csipb.CreateVolumeGroupSnapshotResponse{GroupSnapshot: g}, err)
}

func (s *Server) createGroup(ctx context.Context, q *csipb.CreateVolumeGroupSnapshotRequest) (*csipb.VolumeGroupSnapshot, error) {
	op := "create group snapshot " + q.GetName()
	if err := holdfast.ValidateName(q.GetName()); err != nil {
		return nil, holdfast.Wrap("create group snapshot", err)
	}
	freeze, err := s.snapshotParameters(op, q.GetParameters())
	if err != nil {
		return nil, err
	}
	if len(q.GetSourceVolumeIds()) == 0 {
		return nil, invalid(op, "source_volume_ids are needed; there are none")
	}
	for _, id := range q.GetSourceVolumeIds() {
		if err := needID(op, "source_volume_id", id); err != nil {
			return nil, err
		}
	}
	g, err := s.cfg.Lifecycle.CreateGroupSnapshot(ctx, lifecycle.GroupRequest{Name: q.GetName(), Volumes: q.GetSourceVolumeIds(), Freeze: freeze})
	if err != nil {
		return nil, err
	}
	return describeGroup(g), nil
}

func describeGroup(g lifecycle.GroupSnapshot) *csipb.VolumeGroupSnapshot {
	out := &csipb.VolumeGroupSnapshot{GroupSnapshotId: string(g.Group.ID), CreationTime: timestamppb.New(g.Group.Created), ReadyToUse: g.Group.State == holdfast.GroupReady}
	for _, m := range g.Members {
		x := describeSnapshot(m.Record, m.Snapshot)
		out.ReadyToUse = out.ReadyToUse && x.GetReadyToUse()
		out.Snapshots = append(out.Snapshots, x)
	}
	return out
}

// group finds a group by its id, not by its name, and checks which snapshots the
// caller takes for its members; none named is no mismatch.
func (s *Server) group(ctx context.Context, op, id string, members []string) (lifecycle.GroupSnapshot, error) {
	if err := needID(op, "group_snapshot_id", id); err != nil {
		return lifecycle.GroupSnapshot{}, err
	}
	g, err := s.cfg.Lifecycle.FindGroup(ctx, id)
	if err != nil {
		return g, holdfast.Wrap(op, err)
	}
	if string(g.Group.ID) != id {
		return g, holdfast.E(op, holdfast.NotFound, fmt.Sprintf("there is no group snapshot %q", id))
	}
	for _, m := range members {
		ref, ok := lifecycle.ParseSnapshotRef(m)
		if !ok || !g.Group.Has(ref.Volume, ref.Snapshot) {
			return g, invalid(op, "snapshot %q is not part of it; name its own snapshots", m)
		}
	}
	if named := slices.Compact(slices.Sorted(slices.Values(members))); len(named) != 0 && len(named) != len(g.Group.Members) {
		return g, invalid(op, "%d of its %d snapshots are named; name all", len(named), len(g.Group.Members))
	}
	return g, nil
}

// DeleteVolumeGroupSnapshot removes a group with its snapshots. One that does not
// exist is fine.
func (s *Server) DeleteVolumeGroupSnapshot(ctx context.Context, q *csipb.DeleteVolumeGroupSnapshotRequest) (*csipb.DeleteVolumeGroupSnapshotResponse, error) {
	const op = "delete group snapshot"
	g, err := s.group(ctx, op, q.GetGroupSnapshotId(), q.GetSnapshotIds())
	switch {
	case err == nil:
		err = s.cfg.Lifecycle.DeleteGroup(ctx, string(g.Group.ID))
	case errors.Is(err, holdfast.NotFound):
		err = nil // or half deleted, which reconcile goes on with
	}
	return done(&csipb.DeleteVolumeGroupSnapshotResponse{}, err)
}

// GetVolumeGroupSnapshot shows one group.
func (s *Server) GetVolumeGroupSnapshot(ctx context.Context, q *csipb.GetVolumeGroupSnapshotRequest) (*csipb.GetVolumeGroupSnapshotResponse, error) {
	g, err := s.group(ctx, "get group snapshot", q.GetGroupSnapshotId(), q.GetSnapshotIds())
	return done(&csipb.GetVolumeGroupSnapshotResponse{GroupSnapshot: describeGroup(g)}, err)
}
