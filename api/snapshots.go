package api

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/controller/lifecycle"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

// Snapshots carries out what users ask of snapshots. Every method is idempotent;
// snapshots are found by id or name.
type Snapshots interface {
	CreateVolume(ctx context.Context, q lifecycle.CreateRequest) (holdfast.Record, error)
	CreateSnapshot(ctx context.Context, q lifecycle.SnapshotRequest) (holdfast.Record, holdfast.Snapshot, error)
	FindSnapshot(ctx context.Context, handleOrName string) (holdfast.Record, holdfast.Snapshot, error)
	DeleteSnapshot(ctx context.Context, ref lifecycle.SnapshotRef) error
	Restore(ctx context.Context, ref lifecycle.SnapshotRef) (holdfast.Record, error)
	OpenRanges(ctx context.Context, q lifecycle.RangesRequest) (*lifecycle.Ranges, error)
}

// clone makes a volume from the source that a request names.
func (s *Server) clone(ctx context.Context, op string, q *holdfastv1.CreateVolumeRequest) (*holdfastv1.Volume, error) {
	if q.GetSourceSnapshot() != "" && q.GetSourceVolume() != "" {
		return nil, holdfast.E(op, holdfast.Invalid, "source_snapshot and source_volume exclude each other; a volume is made of one of them")
	}
	source := &lifecycle.Source{}
	if name := q.GetSourceVolume(); name != "" {
		r, err := s.cfg.Store.Volume(ctx, name)
		if err != nil {
			return nil, unknownVolume(op+" from volume "+name, err)
		}
		source.Volume = r.ID
	} else {
		ref, err := s.findSnapshot(ctx, op, q.GetSourceSnapshot())
		if err != nil {
			return nil, err
		}
		source.Snapshot = ref
	}
	r, err := s.cfg.Snapshots.CreateVolume(ctx, lifecycle.CreateRequest{Name: q.GetName(), Spec: specFrom(q), From: s.cfg.Self, Source: source})
	if err != nil {
		return nil, err
	}
	return s.show(ctx, r)
}

// findSnapshot finds a snapshot by id or name. An id of one that is gone will do:
// what was made of it may be there.
func (s *Server) findSnapshot(ctx context.Context, op, name string) (lifecycle.SnapshotRef, error) {
	rec, x, err := s.cfg.Snapshots.FindSnapshot(ctx, name)
	if err == nil {
		return lifecycle.SnapshotRef{Volume: rec.ID, Snapshot: x.ID}, nil
	}
	if ref, ok := lifecycle.ParseSnapshotRef(name); ok && errors.Is(err, holdfast.NotFound) {
		return ref, nil
	}
	return lifecycle.SnapshotRef{}, unknownSnapshot(op, err)
}

func unknownSnapshot(op string, err error) error {
	if errors.Is(err, holdfast.NotFound) {
		return &holdfast.Error{Op: op, Kind: holdfast.NotFound, Msg: "there is no such snapshot; holdfast snapshot list shows those there are"}
	}
	return holdfast.Wrap(op, err)
}

// CreateSnapshot implements the service; see api.proto.
func (s *Server) CreateSnapshot(ctx context.Context, q *holdfastv1.CreateSnapshotRequest) (*holdfastv1.Snapshot, error) {
	op := "create snapshot " + q.GetName()
	if err := validateSnapshotLabels(q.GetLabels()); err != nil {
		return nil, holdfast.Wrap(op, err)
	}
	if err := s.known(ctx, op, q.GetVolume()); err != nil {
		return nil, err
	}
	rec, x, err := s.cfg.Snapshots.CreateSnapshot(ctx, lifecycle.SnapshotRequest{Volume: q.GetVolume(), Name: q.GetName(), Labels: q.GetLabels(), Freeze: q.GetFreeze()})
	if err != nil {
		return nil, err
	}
	return s.showSnapshot(ctx, rec, x)
}

// validateSnapshotLabels refuses labels by which Holdfast knows its own snapshots.
func validateSnapshotLabels(ls map[string]string) error {
	for k := range ls {
		if strings.HasPrefix(k, holdfast.DriverName+"/") {
			return holdfast.E("validate labels", holdfast.Invalid, fmt.Sprintf("labels that begin with %s/ are Holdfast's own; choose another key than %q", holdfast.DriverName, k))
		}
	}
	return validateLabels(ls)
}

// ListSnapshots implements the service; see api.proto.
func (s *Server) ListSnapshots(ctx context.Context, q *holdfastv1.ListSnapshotsRequest) (*holdfastv1.ListSnapshotsResponse, error) {
	const op = "list snapshots"
	var recs []holdfast.Record
	var err error
	if q.GetVolume() != "" {
		recs = make([]holdfast.Record, 1)
		recs[0], err = s.cfg.Store.Volume(ctx, q.GetVolume())
		err = unknownVolume(op, err)
	} else if recs, err = s.cfg.Store.Volumes(ctx); err != nil {
		err = holdfast.Wrap(op, err)
	}
	if err != nil {
		return nil, err
	}
	slices.SortFunc(recs, func(a, b holdfast.Record) int { return cmp.Compare(a.Name, b.Name) })
	out := &holdfastv1.ListSnapshotsResponse{}
	for i := range recs {
		for _, x := range recs[i].Snapshots {
			if visible(x) && hasLabels(x.Labels, q.GetLabels()) {
				out.Snapshots = append(out.Snapshots, snapshotProto(&recs[i], x))
			}
		}
	}
	return out, nil
}

// visible says whether a snapshot is users' business: not those that are being
// deleted, nor those that are taken for a clone.
func visible(x holdfast.Snapshot) bool { return x.Name != "" && x.State != holdfast.SnapshotDeleting }

func hasLabels(have, want map[string]string) bool {
	for k, v := range want {
		if got, ok := have[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// GetSnapshot implements the service; see api.proto.
func (s *Server) GetSnapshot(ctx context.Context, q *holdfastv1.GetSnapshotRequest) (*holdfastv1.Snapshot, error) {
	rec, x, err := s.cfg.Snapshots.FindSnapshot(ctx, q.GetSnapshot())
	if err != nil {
		return nil, unknownSnapshot("inspect snapshot "+q.GetSnapshot(), err)
	}
	return s.showSnapshot(ctx, rec, x)
}

// showSnapshot is a snapshot with what the nodes say that it takes.
func (s *Server) showSnapshot(ctx context.Context, rec holdfast.Record, x holdfast.Snapshot) (*holdfastv1.Snapshot, error) {
	ns, err := s.cfg.Store.Nodes(ctx)
	if err != nil {
		return nil, holdfast.Wrap("inspect snapshot "+x.Name, err)
	}
	idx := indexNodes(ns)
	var at []holdfast.NodeID
	for _, r := range rec.Replicas {
		if idx.alive(r.Node) {
			at = append(at, r.Node)
		}
	}
	out := snapshotProto(&rec, x)
	for _, nv := range s.live.read(ctx, rec.ID, at).volumes[rec.ID] {
		for _, u := range nv.GetReplica().GetSnapshots() {
			if u.GetSnapshotId() == string(x.ID) {
				out.AllocatedBytes = max(out.AllocatedBytes, u.GetAllocatedBytes())
				out.ExclusiveBytes = max(out.ExclusiveBytes, u.GetHeldBytes())
			}
		}
	}
	return out, nil
}

// snapshotProto is a snapshot as its record has it.
func snapshotProto(rec *holdfast.Record, x holdfast.Snapshot) *holdfastv1.Snapshot {
	return &holdfastv1.Snapshot{
		Id: lifecycle.SnapshotRef{Volume: rec.ID, Snapshot: x.ID}.String(), Name: x.Name, Volume: rec.Name, VolumeId: string(rec.ID),
		Created: timestamppb.New(x.Created), State: string(x.State), SizeBytes: x.SizeBytes, Group: x.Group, Labels: maps.Clone(x.Labels), Frozen: x.Frozen,
		AllocatedBytes: -1, ExclusiveBytes: -1,
	}
}

// DeleteSnapshot implements the service; see api.proto.
func (s *Server) DeleteSnapshot(ctx context.Context, q *holdfastv1.DeleteSnapshotRequest) (*holdfastv1.DeleteSnapshotResponse, error) {
	if q.GetSnapshot() == "" {
		return nil, holdfast.E("delete snapshot", holdfast.Invalid, "name the snapshot to delete")
	}
	ref, err := s.findSnapshot(ctx, "delete snapshot "+q.GetSnapshot(), q.GetSnapshot())
	if err == nil {
		err = s.cfg.Snapshots.DeleteSnapshot(ctx, ref)
	}
	if err != nil && !errors.Is(err, holdfast.NotFound) { // gone is what is wanted
		return nil, err
	}
	return &holdfastv1.DeleteSnapshotResponse{}, nil
}

// RestoreSnapshot implements the service; see api.proto.
func (s *Server) RestoreSnapshot(ctx context.Context, q *holdfastv1.RestoreSnapshotRequest) (*holdfastv1.Volume, error) {
	rec, x, err := s.cfg.Snapshots.FindSnapshot(ctx, q.GetSnapshot())
	if err != nil {
		return nil, unknownSnapshot("restore snapshot "+q.GetSnapshot(), err)
	}
	if rec, err = s.cfg.Snapshots.Restore(ctx, lifecycle.SnapshotRef{Volume: rec.ID, Snapshot: x.ID}); err != nil {
		return nil, err
	}
	return s.show(ctx, rec)
}

// aboutSnapshots adds to a volume what its record says about snapshots.
func aboutSnapshots(v *holdfastv1.Volume, r *holdfast.Record) {
	for _, x := range r.Snapshots {
		if visible(x) {
			v.Snapshots++
		}
	}
	if o := r.Origin; o != nil {
		v.Origin = &holdfastv1.VolumeOrigin{VolumeId: string(o.Volume), SnapshotId: lifecycle.SnapshotRef{Volume: o.Volume, Snapshot: o.Snapshot}.String(), Temporary: o.Temporary}
	}
	if r.Restore == nil {
		return
	}
	v.Restoring = string(r.Restore.Snapshot)
	if x := r.Snapshot(r.Restore.Snapshot); x != nil && x.Name != "" {
		v.Restoring = x.Name
	}
	v.Problems = append(v.Problems, &holdfastv1.Problem{Severity: Notice, Subject: "volume " + r.Name, What: fmt.Sprintf("it is being restored to snapshot %s, and cannot be attached meanwhile", v.Restoring), Remedy: "wait; it goes on as soon as a replica in sync can be reached"})
}
