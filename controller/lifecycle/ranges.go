package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/grpcstatus"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

// RangesRequest asks where a snapshot has data or, with a base, what may differ
// from that older one.
type RangesRequest struct {
	Snapshot SnapshotRef
	Base     *SnapshotRef // nil: where there is data
	Offset   int64        // where to begin
	Max      int          // ranges handed over at once; 0: as many as suit
}

// Ranges is a listing that may begin. What is listed is what a snapshot holds for
// ever, so that it may be listed again, or on from anywhere, with the same result
// or a part more: ranges are whole, and never less than what differs.
type Ranges struct {
	Snapshot holdfast.Snapshot
	svc      *Service
	q        RangesRequest
	rec      holdfast.Record
	base     holdfast.Snapshot
}

// RangesStep is a part of a listing, in order.
type RangesStep struct {
	Ranges []holdfast.Extent
	// ExclusiveBytes counts, without a base, what only the snapshot refers to.
	ExclusiveBytes int64
}

// maxRanges is how many ranges are handed over at once.
const maxRanges = 4096

// OpenRanges checks a request. Errors: Invalid for two that are not an older and
// a newer snapshot of one volume; NotFound; OutOfRange for an offset that is not
// within the snapshot; Unavailable while one is being taken.
func (s *Service) OpenRanges(ctx context.Context, q RangesRequest) (*Ranges, error) {
	op := "list ranges of snapshot " + q.Snapshot.String()
	bad := func(k holdfast.Kind, format string, a ...any) (*Ranges, error) {
		return nil, holdfast.E(op, k, fmt.Sprintf(format, a...))
	}
	rec, x, err := s.FindSnapshot(ctx, q.Snapshot.String())
	if err != nil {
		return nil, holdfast.Wrap(op, err)
	}
	r := &Ranges{Snapshot: x, svc: s, q: q, rec: rec}
	if q.Base != nil {
		if _, r.base, err = s.FindSnapshot(ctx, q.Base.String()); err != nil {
			return nil, holdfast.Wrap(op, err)
		}
	}
	place := func(id holdfast.SnapshotID) int {
		return slices.IndexFunc(rec.Snapshots, func(y holdfast.Snapshot) bool { return y.ID == id })
	}
	switch {
	case q.Max < 0:
		return bad(holdfast.Invalid, "at most %d ranges at once is not possible; ask for 0 (as many as suit) or more", q.Max)
	case q.Base != nil && q.Base.Volume != q.Snapshot.Volume:
		return bad(holdfast.Invalid, "snapshot %s is of another volume; only snapshots of one volume can be compared", shown(r.base))
	case x.State == holdfast.SnapshotWanted || q.Base != nil && r.base.State == holdfast.SnapshotWanted:
		return bad(holdfast.Unavailable, "it or its base is being taken; try again when it is ready")
	case q.Base != nil && place(q.Base.Snapshot) >= place(q.Snapshot.Snapshot):
		return bad(holdfast.Invalid, "snapshot %s was not taken before snapshot %s; name the older one as the base", shown(r.base), shown(x))
	case q.Offset < 0 || q.Offset > x.SizeBytes:
		return bad(holdfast.OutOfRange, "the offset %d is not within its %d bytes", q.Offset, x.SizeBytes)
	}
	if q.Max == 0 || q.Max > maxRanges {
		r.q.Max = maxRanges
	}
	return r, nil
}

// shown is how people know a snapshot.
func shown(x holdfast.Snapshot) string {
	if x.Name != "" {
		return x.Name
	}
	return string(x.ID)
}

// Each lists: yield gets what is found in order, each step with at most the
// maximum of ranges, and ends the listing with an error. A replica that fails is
// replaced by the next one in sync. Errors: NotFound when the snapshot was deleted
// meanwhile; Unavailable when no in-sync replica answers.
func (r *Ranges) Each(ctx context.Context, yield func(RangesStep) error) error {
	op := "list ranges of snapshot " + r.q.Snapshot.String()
	at := r.q.Offset / holdfast.BlockSize * holdfast.BlockSize
	m := merger{max: r.q.Max, yield: yield}
	tried := map[holdfast.ReplicaID]bool{}
	last := holdfast.E(op, holdfast.Unavailable, "no replica is in sync")
	for at < r.Snapshot.SizeBytes {
		rec, err := r.stillThere(ctx)
		if err != nil {
			return holdfast.Wrap(op, err)
		}
		i := slices.IndexFunc(rec.Replicas, func(x holdfast.Replica) bool { return x.State == holdfast.InSync && !tried[x.ID] })
		if i < 0 {
			return last
		}
		tried[rec.Replicas[i].ID] = true
		err = r.listAt(ctx, rec.Replicas[i], &at, &m)
		if m.err != nil || ctx.Err() != nil {
			return errors.Join(m.err, ctx.Err())
		}
		if err != nil {
			last = holdfast.WrapKind(op, holdfast.Unavailable, err)
		}
	}
	m.flush()
	return m.err
}

// stillThere reads the record again, and fails when a snapshot was deleted.
func (r *Ranges) stillThere(ctx context.Context) (holdfast.Record, error) {
	rec, _, err := r.svc.FindSnapshot(ctx, r.q.Snapshot.String())
	if err == nil && r.q.Base != nil {
		_, _, err = r.svc.FindSnapshot(ctx, r.q.Base.String())
	}
	return rec, err
}

// listAt lists from *at on by one replica, and notes how far it came.
func (r *Ranges) listAt(ctx context.Context, x holdfast.Replica, at *int64, m *merger) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	return r.svc.call(ctx, x.Node, func(ctx context.Context, c holdfastv1.NodeServiceClient) error {
		stream, err := c.ListSnapshot(ctx, &holdfastv1.ListSnapshotRequest{
			PoolId: string(x.Pool), ReplicaId: string(x.ID), SnapshotId: string(r.Snapshot.ID), Cut: r.Snapshot.Cut,
			BaseId: string(r.base.ID), BaseCut: r.base.Cut, Offset: *at,
		})
		for err == nil {
			var a *holdfastv1.ListSnapshotResponse
			if a, err = stream.Recv(); err == nil {
				m.add(a)
				*at = max(*at, a.GetEnd())
				err = m.err
			}
		}
		if errors.Is(err, io.EOF) {
			err = nil
		}
		return grpcstatus.From(err)
	})
}

// merger joins ranges that touch, and hands them over.
type merger struct {
	max   int
	yield func(RangesStep) error
	next  RangesStep
	err   error // yield's
}

func (m *merger) add(a *holdfastv1.ListSnapshotResponse) {
	m.next.ExclusiveBytes += a.GetExclusiveBytes()
	for _, x := range a.GetRanges() {
		k := len(m.next.Ranges) - 1
		if k >= 0 && m.next.Ranges[k].End() == x.GetOffset() {
			m.next.Ranges[k].Length += x.GetLength()
			continue
		}
		if k+1 == m.max {
			m.flush()
		}
		m.next.Ranges = append(m.next.Ranges, holdfast.Extent{Offset: x.GetOffset(), Length: x.GetLength()})
	}
}

func (m *merger) flush() {
	if m.err == nil && (len(m.next.Ranges) > 0 || m.next.ExclusiveBytes > 0) {
		m.err = m.yield(m.next)
	}
	m.next = RangesStep{}
}
