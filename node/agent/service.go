package agent

import (
	"context"
	"errors"
	"net"

	"google.golang.org/grpc"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/rpc"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

// Service is the gRPC NodeService of an agent. Its errors are Holdfast's; the
// server's interceptor turns them into gRPC's.
type Service struct {
	holdfastv1.UnimplementedNodeServiceServer
	agent *Agent
}

// NewService makes the service.
func NewService(a *Agent) *Service { return &Service{agent: a} }

// CreateReplica implements NodeService.
func (s *Service) CreateReplica(ctx context.Context, r *holdfastv1.CreateReplicaRequest) (*holdfastv1.CreateReplicaResponse, error) {
	err := s.agent.CreateReplica(ctx, holdfast.PoolID(r.GetPoolId()), Stored{
		Volume: holdfast.VolumeID(r.GetVolumeId()), Replica: holdfast.ReplicaID(r.GetReplicaId()), SizeBytes: r.GetSizeBytes(),
		Origin: Origin{holdfast.ReplicaID(r.GetOriginReplicaId()), holdfast.SnapshotID(r.GetOriginSnapshotId())},
	})
	if err != nil {
		return nil, err
	}
	return &holdfastv1.CreateReplicaResponse{}, nil
}

// PurgeTombstones implements NodeService.
func (s *Service) PurgeTombstones(ctx context.Context, _ *holdfastv1.PurgeTombstonesRequest) (*holdfastv1.PurgeTombstonesResponse, error) {
	n, err := s.agent.PurgeTombstones(ctx)
	if err != nil {
		return nil, err
	}
	return &holdfastv1.PurgeTombstonesResponse{Purged: int32(n)}, nil
}

// Attach implements NodeService.
func (s *Service) Attach(ctx context.Context, r *holdfastv1.AttachRequest) (*holdfastv1.AttachResponse, error) {
	rec, err := s.agent.Lookup(ctx, r.GetVolumeId())
	if err != nil {
		return nil, err
	}
	attach := s.agent.Attach
	if r.GetForce() {
		attach = s.agent.ForceAttach
	}
	path, err := attach(ctx, rec.ID)
	if err != nil {
		return nil, err
	}
	return &holdfastv1.AttachResponse{VolumeId: string(rec.ID), DevicePath: path}, nil
}

// Detach implements NodeService.
func (s *Service) Detach(ctx context.Context, r *holdfastv1.DetachRequest) (*holdfastv1.DetachResponse, error) {
	detach := s.agent.Detach
	if r.GetForce() {
		detach = s.agent.ForceDetach
	}
	if err := detach(ctx, holdfast.VolumeID(r.GetVolumeId())); err != nil {
		return nil, err
	}
	return &holdfastv1.DetachResponse{}, nil
}

// NodeVolumes implements NodeService.
func (s *Service) NodeVolumes(_ context.Context, r *holdfastv1.NodeVolumesRequest) (*holdfastv1.NodeVolumesResponse, error) {
	vs, err := s.agent.NodeVolumes(holdfast.VolumeID(r.GetVolumeId()))
	if err != nil {
		return nil, err
	}
	return &holdfastv1.NodeVolumesResponse{Volumes: vs, Pools: s.agent.poolUsage()}, nil
}

// CheckPool implements NodeService.
func (s *Service) CheckPool(r *holdfastv1.CheckPoolRequest, out grpc.ServerStreamingServer[holdfastv1.CheckPoolResponse]) error {
	var last holdfastv1.CheckPoolResponse
	problems, err := s.agent.CheckPool(out.Context(), holdfast.PoolID(r.GetPoolId()), func(done, total int64) {
		last.Done, last.Total = done, total
		// A listener that went away ends the check through the context.
		_ = out.Send(&holdfastv1.CheckPoolResponse{Done: done, Total: total})
	})
	if err != nil {
		return err
	}
	return out.Send(&holdfastv1.CheckPoolResponse{Done: last.Done, Total: last.Total, Problems: problems, Finished: true})
}

// Endpoint is where and how the service answers.
type Endpoint struct {
	RPC      rpc.Config
	Listener net.Listener
	More     func(*grpc.Server) // registers services beside it; may be nil
}

// Serve answers NodeService calls until ctx ends, which is no error.
func (s *Service) Serve(ctx context.Context, e Endpoint) error {
	srv, l := e.RPC.NewServer(), e.Listener
	holdfastv1.RegisterNodeServiceServer(srv, s)
	if e.More != nil {
		e.More(srv)
	}
	stop := context.AfterFunc(ctx, srv.Stop)
	defer stop()
	err := srv.Serve(l)
	if ctx.Err() != nil || errors.Is(err, grpc.ErrServerStopped) {
		return nil
	}
	return holdfast.WrapKind("serve nodes on "+l.Addr().String(), holdfast.Unavailable, err)
}
