package csi

import (
	"context"
	"strconv"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/holdfast-storage/holdfast"
)

// Keys of the publish context. The node service attaches by itself; that there is
// a publish context tells it that a controller will unpublish the volume.
const (
	publishNode     = "node"
	publishReadonly = "readonly"
)

// ControllerPublishVolume attaches a volume to a node.
func (s *Server) ControllerPublishVolume(ctx context.Context, q *csipb.ControllerPublishVolumeRequest) (*csipb.ControllerPublishVolumeResponse, error) {
	answer, err := s.publish(ctx, q)
	return done(answer, err)
}

func (s *Server) publish(ctx context.Context, q *csipb.ControllerPublishVolumeRequest) (*csipb.ControllerPublishVolumeResponse, error) {
	op := "publish volume " + q.GetVolumeId()
	if err := needID(op, "volume_id", q.GetVolumeId()); err != nil {
		return nil, err
	}
	if err := needID(op, "node_id", q.GetNodeId()); err != nil {
		return nil, err
	}
	if _, _, err := checkCapability(op, q.GetVolumeCapability()); err != nil {
		return nil, err
	}
	rec, err := s.volume(ctx, op, q.GetVolumeId())
	if err != nil {
		return nil, err
	}
	if _, _, err := s.cfg.Lifecycle.Attach(ctx, string(rec.ID), holdfast.NodeID(q.GetNodeId()), false); err != nil {
		return nil, err
	}
	return &csipb.ControllerPublishVolumeResponse{PublishContext: map[string]string{
		publishNode: q.GetNodeId(), publishReadonly: strconv.FormatBool(q.GetReadonly()),
	}}, nil
}

// ControllerUnpublishVolume detaches a volume from a node, or without a node_id
// from wherever it is. Unknown volumes and nodes are fine.
func (s *Server) ControllerUnpublishVolume(ctx context.Context, q *csipb.ControllerUnpublishVolumeRequest) (*csipb.ControllerUnpublishVolumeResponse, error) {
	err := needID("unpublish volume", "volume_id", q.GetVolumeId())
	if err == nil {
		_, err = s.cfg.Lifecycle.DetachFrom(ctx, q.GetVolumeId(), holdfast.NodeID(q.GetNodeId()), false)
	}
	return done(&csipb.ControllerUnpublishVolumeResponse{}, err)
}
