package agent

import (
	"context"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/node/freeze"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

// Freezer freezes the filesystems of volumes that are mounted on this node; see
// freeze.Freezer.
type Freezer interface {
	Freeze(ctx context.Context, q freeze.Request) (frozen bool, err error)
	Thaw(ctx context.Context, id holdfast.VolumeID, token string) error
}

// Freeze implements NodeService.
func (s *Service) Freeze(ctx context.Context, r *holdfastv1.FreezeRequest) (*holdfastv1.FreezeResponse, error) {
	id := holdfast.VolumeID(r.GetVolumeId())
	device, ok := s.agent.Attached(id)
	if !ok || s.agent.deps.Freezer == nil {
		return nil, s.agent.notServed("freeze the filesystem of", id) // not yet, after a restart
	}
	frozen, err := s.agent.deps.Freezer.Freeze(ctx, freeze.Request{Volume: id, Device: device, Token: r.GetToken(), Limit: millis(r.GetLimitMillis())})
	if err != nil {
		return nil, err
	}
	if frozen {
		s.agent.note(id, "froze its filesystem for a snapshot")
	}
	return &holdfastv1.FreezeResponse{Frozen: frozen}, nil
}

// Thaw implements NodeService.
func (s *Service) Thaw(ctx context.Context, r *holdfastv1.ThawRequest) (*holdfastv1.ThawResponse, error) {
	id := holdfast.VolumeID(r.GetVolumeId())
	if s.agent.deps.Freezer == nil {
		return nil, holdfast.E("thaw the filesystem of volume "+string(id), holdfast.Unavailable, "it is not frozen")
	}
	if err := s.agent.deps.Freezer.Thaw(ctx, id, r.GetToken()); err != nil {
		return nil, err
	}
	return &holdfastv1.ThawResponse{}, nil
}
