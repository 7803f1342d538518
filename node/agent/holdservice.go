package agent

import (
	"context"
	"time"

	"github.com/holdfast-storage/holdfast"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

// PrepareHold implements NodeService.
func (s *Service) PrepareHold(ctx context.Context, r *holdfastv1.PrepareHoldRequest) (*holdfastv1.PrepareHoldResponse, error) {
	if err := s.agent.PrepareHold(ctx, holdfast.VolumeID(r.GetVolumeId()), millis(r.GetKeepMillis())); err != nil {
		return nil, err
	}
	return &holdfastv1.PrepareHoldResponse{}, nil
}

// Hold implements NodeService.
func (s *Service) Hold(ctx context.Context, r *holdfastv1.HoldRequest) (*holdfastv1.HoldResponse, error) {
	if err := s.agent.Hold(ctx, holdfast.VolumeID(r.GetVolumeId()), r.GetToken(), millis(r.GetTtlMillis())); err != nil {
		return nil, err
	}
	return &holdfastv1.HoldResponse{}, nil
}

// Cut implements NodeService.
func (s *Service) Cut(ctx context.Context, r *holdfastv1.CutRequest) (*holdfastv1.CutResponse, error) {
	if err := s.agent.Cut(ctx, holdfast.VolumeID(r.GetVolumeId()), r.GetToken(), holdfast.SnapshotID(r.GetSnapshotId())); err != nil {
		return nil, err
	}
	return &holdfastv1.CutResponse{}, nil
}

// Unhold implements NodeService.
func (s *Service) Unhold(_ context.Context, r *holdfastv1.UnholdRequest) (*holdfastv1.UnholdResponse, error) {
	if err := s.agent.Unhold(holdfast.VolumeID(r.GetVolumeId()), r.GetToken()); err != nil {
		return nil, err
	}
	return &holdfastv1.UnholdResponse{}, nil
}

// millis bounds what a caller gives, so that it cannot overflow.
func millis(n int64) time.Duration {
	return time.Duration(max(0, min(n, time.Hour.Milliseconds()))) * time.Millisecond
}
