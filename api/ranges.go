package api

import (
	"google.golang.org/grpc"

	"github.com/holdfast-storage/holdfast/controller/lifecycle"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

// ListSnapshotRanges implements the service; see api.proto.
func (s *Server) ListSnapshotRanges(q *holdfastv1.ListSnapshotRangesRequest, out grpc.ServerStreamingServer[holdfastv1.SnapshotRanges]) error {
	ctx, op := out.Context(), "list ranges of snapshot "+q.GetSnapshot()
	ref, err := s.findSnapshot(ctx, op, q.GetSnapshot())
	if err != nil {
		return err
	}
	r := lifecycle.RangesRequest{Snapshot: ref, Offset: q.GetStartingOffset(), Max: int(q.GetMaxRanges())}
	if q.GetBase() != "" {
		base, err := s.findSnapshot(ctx, op, q.GetBase())
		if err != nil {
			return err
		}
		r.Base = &base
	}
	ls, err := s.cfg.Snapshots.OpenRanges(ctx, r)
	if err != nil {
		return err
	}
	sent := false
	send := func(x lifecycle.RangesStep) error {
		m := &holdfastv1.SnapshotRanges{SizeBytes: ls.Snapshot.SizeBytes, ExclusiveBytes: x.ExclusiveBytes}
		for _, y := range x.Ranges {
			m.Ranges = append(m.Ranges, &holdfastv1.ByteRange{Offset: y.Offset, Length: y.Length})
		}
		sent = true
		return out.Send(m)
	}
	if err = ls.Each(ctx, send); err == nil && !sent {
		err = send(lifecycle.RangesStep{})
	}
	return err
}
