package csi

import (
	"context"
	"fmt"
	"strings"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/holdfast-storage/holdfast"
)

// snapshot is the volumes that are shown, ordered by id, and the nodes.
func (s *Server) snapshot(ctx context.Context, op string) (recs []holdfast.Record, nodes []holdfast.Node, err error) {
	err = s.patient(ctx, func(ctx context.Context) error {
		all, err := s.cfg.Lifecycle.List(ctx)
		if err != nil {
			return err
		}
		recs = recs[:0]
		for _, r := range all {
			if r.Phase == holdfast.PhaseReady && s.shows(r) {
				recs = append(recs, r)
			}
		}
		nodes, err = s.cfg.Lifecycle.Nodes(ctx)
		return err
	})
	return recs, nodes, holdfast.Wrap(op, err)
}

// shows says whether a volume belongs to this view, always the same whatever is
// attached where, but for volumes that belong to no view.
func (s *Server) shows(r holdfast.Record) bool {
	if s.cfg.Agent == "" {
		return true
	}
	if agent, ok := r.Spec.Labels[agentLabel]; ok {
		return agent == string(s.cfg.Agent)
	}
	return r.AttachedTo() == s.cfg.Agent
}

// tokenPrefix begins a token: it is followed by the last id of the page before,
// so that volumes made or deleted between two pages do no harm.
const tokenPrefix = "after-"

// pageRequest is what the requests for lists have in common.
type pageRequest interface {
	GetMaxEntries() int32
	GetStartingToken() string
}

// page is the part of the entries, given by their ids in order, that a request
// asks for, and the token for the next. The error is of kind Invalid, or Busy for
// a token that is none: CSI wants ABORTED for it.
func page(op string, q pageRequest, ids []string) (from, to int, next string, err error) {
	if q.GetMaxEntries() < 0 {
		return 0, 0, "", invalid(op, "max_entries %d is negative", q.GetMaxEntries())
	}
	if token := q.GetStartingToken(); token != "" {
		after, ok := strings.CutPrefix(token, tokenPrefix)
		if !ok || after == "" {
			return 0, 0, "", holdfast.E(op, holdfast.Busy, fmt.Sprintf("the starting_token %q is none of ours; begin without one", token))
		}
		for from < len(ids) && ids[from] <= after {
			from++
		}
	}
	to = len(ids)
	if most := int(q.GetMaxEntries()); most > 0 && to-from > most {
		to = from + most
		next = tokenPrefix + ids[to-1]
	}
	return from, to, next, nil
}

// ListVolumes lists the volumes: all on one page unless a maximum is given.
func (s *Server) ListVolumes(ctx context.Context, q *csipb.ListVolumesRequest) (*csipb.ListVolumesResponse, error) {
	const op = "list volumes"
	recs, nodes, err := s.snapshot(ctx, op)
	if err != nil {
		return done[csipb.ListVolumesResponse](nil, err)
	}
	ids := make([]string, 0, len(recs))
	for _, r := range recs {
		ids = append(ids, string(r.ID))
	}
	from, to, next, err := page(op, q, ids)
	if err != nil {
		return done[csipb.ListVolumesResponse](nil, err)
	}
	out := &csipb.ListVolumesResponse{NextToken: next}
	for _, r := range recs[from:to] {
		out.Entries = append(out.Entries, &csipb.ListVolumesResponse_Entry{
			Volume: s.describe(r, nodes), Status: &csipb.ListVolumesResponse_VolumeStatus{PublishedNodeIds: s.published(r)}})
	}
	return out, nil
}

// published are the nodes to which the volume is attached.
func (s *Server) published(r holdfast.Record) []string {
	if n := r.AttachedTo(); n != "" && !s.cfg.WithoutPublish {
		return []string{string(n)}
	}
	return nil
}

// ControllerGetVolume shows one volume.
func (s *Server) ControllerGetVolume(ctx context.Context, q *csipb.ControllerGetVolumeRequest) (*csipb.ControllerGetVolumeResponse, error) {
	op := "get volume " + q.GetVolumeId()
	rec, err := s.volume(ctx, op, q.GetVolumeId())
	if err != nil {
		return done[csipb.ControllerGetVolumeResponse](nil, err)
	}
	nodes, err := s.cfg.Lifecycle.Nodes(ctx)
	return done(&csipb.ControllerGetVolumeResponse{Volume: s.describe(rec, nodes),
		Status: &csipb.ControllerGetVolumeResponse_VolumeStatus{PublishedNodeIds: s.published(rec)}}, holdfast.Wrap(op, err))
}
