package api

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/holdfast-storage/holdfast"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

// ScrubVolume implements the service; see api.proto.
func (s *Server) ScrubVolume(ctx context.Context, q *holdfastv1.ScrubVolumeRequest) (*holdfastv1.Volume, error) {
	op := "scrub volume " + q.GetVolume()
	for {
		r, err := s.cfg.Store.Volume(ctx, q.GetVolume())
		if err != nil {
			return nil, unknownVolume(op, err)
		}
		next, changed, err := scrubRecord(r, q, time.Now().UTC().Round(0))
		if err != nil {
			return nil, holdfast.Wrap(op, err)
		}
		if !changed {
			return s.show(ctx, r)
		}
		swapped, err := s.cfg.Store.SwapVolume(ctx, next)
		if err == nil {
			return s.show(ctx, swapped)
		}
		if !errors.Is(err, holdfast.Busy) || ctx.Err() != nil {
			return nil, holdfast.Wrap(op, err)
		}
	}
}

// scrubRecord is the record with a scrub asked for, or cancelled.
func scrubRecord(r holdfast.Record, q *holdfastv1.ScrubVolumeRequest, now time.Time) (next holdfast.Record, changed bool, err error) {
	next = r.Clone()
	cancel := q.GetCancel()
	source, err := scrubSource(&r, q.GetSource())
	switch {
	case cancel && q.GetSource() != "":
		return r, false, holdfast.E("", holdfast.Invalid, "a scrub that is cancelled has no source; give one or the other")
	case !cancel && err != nil:
		return r, false, err
	case !cancel && r.Scrub.Pending() && r.Scrub.Source != source:
		return r, false, holdfast.E("", holdfast.Busy, "another scrub is to be done, with another source; cancel it first, or wait for its end")
	case cancel && !r.Scrub.Pending() || !cancel && r.Scrub.Pending():
		return r, false, nil
	case cancel:
		x := *r.Scrub
		x.Ended, x.Cancelled = now, true
		next.SetScrub(x)
	case r.Phase != holdfast.PhaseReady:
		return r, false, holdfast.E("", holdfast.Unavailable, "it is "+string(r.Phase)+"; only a volume that is ready can be scrubbed")
	case len(r.Replicas) < 2:
		return r, false, holdfast.E("", holdfast.Invalid, "it has one replica: there is nothing to compare it with")
	default:
		next.SetScrub(holdfast.Scrub{ID: string(holdfast.NewReplicaID()), Asked: now, Source: source})
	}
	return next, true, nil
}

// scrubSource is the in-sync replica that a caller has named, itself or by its node;
// "" for none.
func scrubSource(r *holdfast.Record, name string) (holdfast.ReplicaID, error) {
	if name == "" {
		return "", nil
	}
	var there []string
	for _, x := range r.InSyncReplicas() {
		if string(x.ID) == name || string(x.Node) == name {
			return x.ID, nil
		}
		there = append(there, string(x.Node))
	}
	return "", holdfast.E("", holdfast.Invalid, fmt.Sprintf("source %q: no replica that is in sync has this id or node; there are those of %s", name, strings.Join(there, ", ")))
}

// What a scrub's state can be beyond those of replication.ScrubState.
const scrubPending = "pending"

// scrubProto is the record's scrub, with what the primary says about it.
func scrubProto(r *holdfast.Record, live *holdfastv1.PrimaryStatus) *holdfastv1.Scrub {
	x := r.Scrub
	if x == nil {
		return nil
	}
	out := &holdfastv1.Scrub{Id: x.ID, Asked: timestamppb.New(x.Asked), State: "done", Scheduled: x.Scheduled,
		Blocks: x.Blocks, Mismatches: x.Mismatches, Healed: x.Healed, Unhealed: x.Unhealed}
	if !x.Pending() {
		if out.Ended = timestamppb.New(x.Ended); x.Cancelled {
			out.State = "cancelled"
		}
		return out
	}
	out.State = scrubPending
	if l := live.GetScrub(); l.GetId() == x.ID {
		out.State, out.WaitingFor, out.DoneBytes, out.TotalBytes = l.GetState(), l.GetWaitingFor(), l.GetDoneBytes(), l.GetTotalBytes()
		out.Blocks, out.Mismatches, out.Healed, out.Unhealed = l.GetBlocks(), l.GetMismatches(), l.GetHealed(), l.GetUnhealed()
	} else if len(r.InSyncReplicas()) < 2 {
		out.State, out.WaitingFor = "waiting", "a second replica to be in sync"
	}
	return out
}
