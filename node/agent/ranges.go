package agent

import (
	"context"
	"fmt"

	"google.golang.org/grpc"

	"github.com/holdfast-storage/holdfast"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

// SnapshotQuery asks where a snapshot of a replica has data or, with a base, what
// may differ from that older one.
type SnapshotQuery struct {
	Replica        holdfast.ReplicaID
	Snapshot, Base holdfast.SnapshotID // Base: "" for where there is data
	Cut, BaseCut   string              // the attempts that took them
	Offset         int64               // where to begin
	WithExclusive  bool                // also count what only the snapshot refers to
}

// SnapshotStep is one step of the answer, in order.
type SnapshotStep struct {
	End            int64 // what lies before it is listed
	Ranges         []holdfast.Extent
	ExclusiveBytes int64
}

// rangeLister is a Pool that can list ranges of snapshots; step's error ends it.
// Errors: NotFound when it does not have them, by id and cut.
type rangeLister interface {
	ListSnapshot(ctx context.Context, q SnapshotQuery, step func(SnapshotStep) error) error
}

// ListSnapshot implements NodeService.
func (s *Service) ListSnapshot(r *holdfastv1.ListSnapshotRequest, out grpc.ServerStreamingServer[holdfastv1.ListSnapshotResponse]) error {
	p, err := s.agent.findPool(holdfast.PoolID(r.GetPoolId()))
	if err != nil {
		return err
	}
	op := fmt.Sprintf("list snapshot %s of replica %s", r.GetSnapshotId(), r.GetReplicaId())
	l, able := p.(rangeLister)
	if !able {
		return holdfast.E(op, holdfast.Unsupported, "the pool cannot list snapshots")
	}
	q := SnapshotQuery{
		Replica: holdfast.ReplicaID(r.GetReplicaId()), Snapshot: holdfast.SnapshotID(r.GetSnapshotId()), Cut: r.GetCut(),
		Base: holdfast.SnapshotID(r.GetBaseId()), BaseCut: r.GetBaseCut(), Offset: r.GetOffset(), WithExclusive: r.GetBaseId() == "",
	}
	err = l.ListSnapshot(out.Context(), q, func(x SnapshotStep) error {
		m := &holdfastv1.ListSnapshotResponse{End: x.End, ExclusiveBytes: x.ExclusiveBytes}
		for _, y := range x.Ranges {
			m.Ranges = append(m.Ranges, &holdfastv1.ByteRange{Offset: y.Offset, Length: y.Length})
		}
		return out.Send(m)
	})
	return holdfast.Wrap(op, err)
}

// snapshotHolder is a Pool that knows what its snapshots take.
type snapshotHolder interface {
	// SnapshotBytes is what the files of all snapshots refer to. It does no I/O.
	SnapshotBytes() int64
}

// poolUsage is what snapshots take of each open pool.
func (a *Agent) poolUsage() []*holdfastv1.PoolUsage {
	var out []*holdfastv1.PoolUsage
	for _, p := range a.openedPools() {
		if h, able := p.pool.(snapshotHolder); able {
			out = append(out, &holdfastv1.PoolUsage{PoolId: string(p.id), TotalBytes: a.totalBytes(p), SnapshotBytes: h.SnapshotBytes()})
		}
	}
	return out
}

// totalBytes is a pool's size, as it was registered if it was.
func (a *Agent) totalBytes(p opened) int64 {
	for _, info := range a.Node().Pools {
		if info.ID == p.id {
			return info.TotalBytes
		}
	}
	return p.pool.Info().TotalBytes
}
