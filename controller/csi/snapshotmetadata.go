package csi

import (
	"context"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/controller/lifecycle"
	"github.com/holdfast-storage/holdfast/internal/grpcstatus"
)

// snapshotMetadata is the SnapshotMetadata service: what backup tools copy.
type snapshotMetadata struct {
	csipb.UnimplementedSnapshotMetadataServer
	*Server
}

// GetMetadataAllocated lists where a snapshot has data.
func (s snapshotMetadata) GetMetadataAllocated(q *csipb.GetMetadataAllocatedRequest, out csipb.SnapshotMetadata_GetMetadataAllocatedServer) error {
	const op = "list allocated blocks"
	ref, err := s.ref(op, "snapshot_id", q.GetSnapshotId())
	if err != nil {
		return grpcstatus.To(err)
	}
	r := lifecycle.RangesRequest{Snapshot: ref, Offset: q.GetStartingOffset(), Max: int(q.GetMaxResults())}
	return grpcstatus.To(s.listRanges(out.Context(), r, func(size int64, xs []*csipb.BlockMetadata) error {
		return out.Send(&csipb.GetMetadataAllocatedResponse{BlockMetadataType: csipb.BlockMetadataType_VARIABLE_LENGTH, VolumeCapacityBytes: size, BlockMetadata: xs})
	}))
}

// GetMetadataDelta lists what may differ between an older and a newer snapshot of
// a volume: granules of 64 KiB, of which blocks may be equal.
func (s snapshotMetadata) GetMetadataDelta(q *csipb.GetMetadataDeltaRequest, out csipb.SnapshotMetadata_GetMetadataDeltaServer) error {
	const op = "list changed blocks"
	base, err := s.ref(op, "base_snapshot_id", q.GetBaseSnapshotId())
	if err != nil {
		return grpcstatus.To(err)
	}
	ref, err := s.ref(op, "target_snapshot_id", q.GetTargetSnapshotId())
	if err != nil {
		return grpcstatus.To(err)
	}
	r := lifecycle.RangesRequest{Snapshot: ref, Base: &base, Offset: q.GetStartingOffset(), Max: int(q.GetMaxResults())}
	return grpcstatus.To(s.listRanges(out.Context(), r, func(size int64, xs []*csipb.BlockMetadata) error {
		return out.Send(&csipb.GetMetadataDeltaResponse{BlockMetadataType: csipb.BlockMetadataType_VARIABLE_LENGTH, VolumeCapacityBytes: size, BlockMetadata: xs})
	}))
}

// ref reads a snapshot's id; one that cannot be one is not found.
func (s *Server) ref(op, field, id string) (lifecycle.SnapshotRef, error) {
	if err := needID(op, field, id); err != nil {
		return lifecycle.SnapshotRef{}, err
	}
	ref, ok := lifecycle.ParseSnapshotRef(id)
	if !ok {
		return ref, holdfast.E(op, holdfast.NotFound, "there is no snapshot "+id)
	}
	return ref, nil
}

// listRanges sends a listing, at least one message, which tells the size. An
// interrupted caller may begin within a range: what is sent then begins at the
// block that holds its offset.
func (s *Server) listRanges(ctx context.Context, q lifecycle.RangesRequest, send func(size int64, xs []*csipb.BlockMetadata) error) error {
	r, err := s.cfg.Lifecycle.OpenRanges(ctx, q)
	if err != nil {
		return err
	}
	sent := false
	err = r.Each(ctx, func(x lifecycle.RangesStep) error {
		var out []*csipb.BlockMetadata
		for _, y := range x.Ranges {
			out = append(out, &csipb.BlockMetadata{ByteOffset: y.Offset, SizeBytes: y.Length})
		}
		if len(out) == 0 {
			return nil
		}
		sent = true
		return send(r.Snapshot.SizeBytes, out)
	})
	if err == nil && !sent {
		err = send(r.Snapshot.SizeBytes, nil)
	}
	return err
}
