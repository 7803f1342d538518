package csi

import (
	"context"
	"fmt"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/holdfast-storage/holdfast"
)

// ControllerGetVolumeHealth says how one volume is.
func (s *Server) ControllerGetVolumeHealth(ctx context.Context, q *csipb.ControllerGetVolumeHealthRequest) (*csipb.ControllerGetVolumeHealthResponse, error) {
	op := "get health of volume " + q.GetVolumeId()
	rec, err := s.volume(ctx, op, q.GetVolumeId())
	if err != nil {
		return done[csipb.ControllerGetVolumeHealthResponse](nil, err)
	}
	nodes, err := s.cfg.Lifecycle.Nodes(ctx)
	if err != nil {
		return done[csipb.ControllerGetVolumeHealthResponse](nil, holdfast.Wrap(op, err))
	}
	return &csipb.ControllerGetVolumeHealthResponse{VolumeHealth: health(rec, nodes)}, nil
}

// ControllerListVolumeHealth lists the volumes that are not well.
func (s *Server) ControllerListVolumeHealth(ctx context.Context, q *csipb.ControllerListVolumeHealthRequest) (*csipb.ControllerListVolumeHealthResponse, error) {
	const op = "list health of volumes"
	recs, nodes, err := s.snapshot(ctx, op)
	if err != nil {
		return done[csipb.ControllerListVolumeHealthResponse](nil, err)
	}
	var ill []*csipb.VolumeHealth
	var ids []string
	for _, r := range recs {
		if h := health(r, nodes); len(h.GetHealthStatuses()) > 0 {
			ill, ids = append(ill, h), append(ids, h.GetVolumeId())
		}
	}
	from, to, next, err := page(op, q, ids)
	if err != nil {
		return done[csipb.ControllerListVolumeHealthResponse](nil, err)
	}
	return &csipb.ControllerListVolumeHealthResponse{Entries: ill[from:to], NextToken: next}, nil
}

// health is what a volume's record and its nodes' leases tell.
func health(rec holdfast.Record, nodes []holdfast.Node) *csipb.VolumeHealth {
	h := &csipb.VolumeHealth{VolumeId: string(rec.ID)}
	add := func(t csipb.VolumeHealthErrorType, reason, format string, a ...any) {
		h.HealthStatuses = append(h.HealthStatuses, &csipb.VolumeHealth_VolumeHealthEntry{Status: t, Reason: reason, Message: fmt.Sprintf(format, a...)})
	}
	alive := map[holdfast.NodeID]bool{}
	for _, n := range nodes {
		alive[n.ID] = n.Alive
	}
	if rec.Phase != holdfast.PhaseReady {
		add(csipb.VolumeHealthErrorType_INACCESSIBLE, "NotReady", "the volume is %s", rec.Phase)
		return h
	}
	good := 0
	for _, x := range rec.InSyncReplicas() {
		if alive[x.Node] {
			good++
		}
	}
	switch {
	case good == 0:
		add(csipb.VolumeHealthErrorType_INACCESSIBLE, "NoReplicaInSync", "no node with a replica in sync is up; bring one back")
	case good < rec.Spec.MinInSync:
		add(csipb.VolumeHealthErrorType_INACCESSIBLE, "BelowMinInSync", "%d replicas are in sync, writes wait for %d", good, rec.Spec.MinInSync)
	case good < rec.Spec.Replicas:
		add(csipb.VolumeHealthErrorType_DEGRADED, "TooFewReplicas", "%d of %d replicas are in sync on nodes that are up", good, rec.Spec.Replicas)
	}
	if n := rec.AttachedTo(); n != "" && !alive[n] {
		add(csipb.VolumeHealthErrorType_INACCESSIBLE, "NodeDown", "node %s, to which it is attached, is down; it can be attached elsewhere", n)
	}
	return h
}
