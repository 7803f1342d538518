package csi

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/controller/lifecycle"
)

// CreateSnapshot takes a snapshot and answers when it is ready to use.
func (s *Server) CreateSnapshot(ctx context.Context, q *csipb.CreateSnapshotRequest) (*csipb.CreateSnapshotResponse, error) {
	op := "create snapshot " + q.GetName()
	x, err := s.createSnapshot(ctx, op, q)
	return done(&csipb.CreateSnapshotResponse{Snapshot: x}, err)
}

func (s *Server) createSnapshot(ctx context.Context, op string, q *csipb.CreateSnapshotRequest) (*csipb.Snapshot, error) {
	if err := needID(op, "source_volume_id", q.GetSourceVolumeId()); err != nil {
		return nil, err
	}
	if err := holdfast.ValidateName(q.GetName()); err != nil {
		return nil, holdfast.Wrap("create snapshot", err)
	}
	freeze, err := s.snapshotParameters(op, q.GetParameters())
	if err != nil {
		return nil, err
	}
	src, err := s.volume(ctx, op, q.GetSourceVolumeId())
	if err != nil {
		return nil, err
	}
	rec, x, err := s.cfg.Lifecycle.CreateSnapshot(ctx, lifecycle.SnapshotRequest{Volume: string(src.ID), Name: q.GetName(), Freeze: freeze})
	if err != nil {
		return nil, err
	}
	return describeSnapshot(rec, x), nil
}

// snapshotParameters reads those of a VolumeSnapshotClass or VolumeGroupSnapshotClass.
func (s *Server) snapshotParameters(op string, params map[string]string) (freeze bool, err error) {
	for _, key := range slices.Sorted(maps.Keys(params)) {
		switch value := params[key]; {
		case key == "freeze":
			if freeze, err = strconv.ParseBool(value); err != nil {
				return false, invalid(op, "the parameter freeze is %q; it is true or false", value)
			}
		case !strings.HasPrefix(key, kubernetesPrefix) && !s.cfg.IgnoreUnknownParameters:
			return false, invalid(op, "the parameter %q is unknown; snapshots have freeze", key)
		}
	}
	return freeze, nil
}

func describeSnapshot(rec holdfast.Record, x holdfast.Snapshot) *csipb.Snapshot {
	return &csipb.Snapshot{
		SnapshotId: lifecycle.SnapshotRef{Volume: rec.ID, Snapshot: x.ID}.String(), SourceVolumeId: string(rec.ID),
		SizeBytes: x.SizeBytes, CreationTime: timestamppb.New(x.Created), ReadyToUse: x.State == holdfast.SnapshotReady,
		GroupSnapshotId: x.Group,
	}
}

// DeleteSnapshot removes a snapshot. One that does not exist is fine, and so are
// clones: they are independent.
func (s *Server) DeleteSnapshot(ctx context.Context, q *csipb.DeleteSnapshotRequest) (*csipb.DeleteSnapshotResponse, error) {
	op := "delete snapshot"
	err := needID(op, "snapshot_id", q.GetSnapshotId())
	if ref, ok := lifecycle.ParseSnapshotRef(q.GetSnapshotId()); ok && err == nil {
		err = s.cfg.Lifecycle.DeleteSnapshot(ctx, ref)
	}
	return done(&csipb.DeleteSnapshotResponse{}, err)
}

// GetSnapshot shows one snapshot.
func (s *Server) GetSnapshot(ctx context.Context, q *csipb.GetSnapshotRequest) (*csipb.GetSnapshotResponse, error) {
	op := "get snapshot"
	if err := needID(op, "snapshot_id", q.GetSnapshotId()); err != nil {
		return done[csipb.GetSnapshotResponse](nil, err)
	}
	rec, x, err := s.findSnapshot(ctx, q.GetSnapshotId())
	return done(&csipb.GetSnapshotResponse{Snapshot: describeSnapshot(rec, x)}, err)
}

// findSnapshot finds a snapshot by its id, not by its name.
func (s *Server) findSnapshot(ctx context.Context, id string) (holdfast.Record, holdfast.Snapshot, error) {
	if _, ok := lifecycle.ParseSnapshotRef(id); !ok {
		return holdfast.Record{}, holdfast.Snapshot{}, holdfast.E("find snapshot", holdfast.NotFound, fmt.Sprintf("there is no snapshot %q", id))
	}
	return s.cfg.Lifecycle.FindSnapshot(ctx, id)
}

// ListSnapshots lists snapshots: all on one page unless a maximum is given. Those
// that are taken to clone a volume are nobody's business.
func (s *Server) ListSnapshots(ctx context.Context, q *csipb.ListSnapshotsRequest) (*csipb.ListSnapshotsResponse, error) {
	const op = "list snapshots"
	recs, _, err := s.snapshot(ctx, op)
	if err != nil {
		return done[csipb.ListSnapshotsResponse](nil, err)
	}
	byID := map[string]*csipb.Snapshot{}
	for _, r := range recs {
		for _, x := range r.Snapshots {
			d := describeSnapshot(r, x)
			wanted := (q.GetSourceVolumeId() == "" || q.GetSourceVolumeId() == d.GetSourceVolumeId()) && (q.GetSnapshotId() == "" || q.GetSnapshotId() == d.GetSnapshotId())
			if wanted && x.Name != "" && x.State != holdfast.SnapshotDeleting {
				byID[d.GetSnapshotId()] = d
			}
		}
	}
	ids := slices.Sorted(maps.Keys(byID))
	from, to, next, err := page(op, q, ids)
	if err != nil {
		return done[csipb.ListSnapshotsResponse](nil, err)
	}
	out := &csipb.ListSnapshotsResponse{NextToken: next}
	for _, id := range ids[from:to] {
		out.Entries = append(out.Entries, &csipb.ListSnapshotsResponse_Entry{Snapshot: byID[id]})
	}
	return out, nil
}

// source reads what a volume is to be made of; nil: it is to be empty. That it
// exists is found out later: what was made of it may outlive it.
func (s *Server) source(ctx context.Context, op string, c *csipb.VolumeContentSource) (*lifecycle.Source, error) {
	switch t := c.GetType().(type) {
	case nil:
		if c != nil {
			return nil, invalid(op, "the volume_content_source names neither a snapshot nor a volume")
		}
		return nil, nil
	case *csipb.VolumeContentSource_Snapshot:
		id := t.Snapshot.GetSnapshotId()
		if err := needID(op, "snapshot_id in the volume_content_source", id); err != nil {
			return nil, err
		}
		ref, ok := lifecycle.ParseSnapshotRef(id)
		if !ok {
			return nil, holdfast.E(op, holdfast.NotFound, fmt.Sprintf("there is no snapshot %q", id))
		}
		return &lifecycle.Source{Snapshot: ref}, nil
	case *csipb.VolumeContentSource_Volume:
		id := t.Volume.GetVolumeId()
		if err := needID(op, "volume_id in the volume_content_source", id); err != nil {
			return nil, err
		}
		rec, err := s.cfg.Lifecycle.Get(ctx, id)
		switch {
		case errors.Is(err, holdfast.NotFound):
			return &lifecycle.Source{Volume: holdfast.VolumeID(id)}, nil
		case err != nil:
			return nil, holdfast.Wrap(op, err)
		}
		return &lifecycle.Source{Volume: rec.ID}, nil
	}
	return nil, invalid(op, "the volume_content_source is of a kind that is not known")
}

// contentSource is what a clone was made of, as its creator named it.
func contentSource(rec holdfast.Record) *csipb.VolumeContentSource {
	o := rec.Origin
	switch {
	case o == nil:
		return nil
	case o.Temporary:
		return &csipb.VolumeContentSource{Type: &csipb.VolumeContentSource_Volume{
			Volume: &csipb.VolumeContentSource_VolumeSource{VolumeId: string(o.Volume)}}}
	}
	return &csipb.VolumeContentSource{Type: &csipb.VolumeContentSource_Snapshot{
		Snapshot: &csipb.VolumeContentSource_SnapshotSource{SnapshotId: lifecycle.SnapshotRef{Volume: o.Volume, Snapshot: o.Snapshot}.String()}}}
}
