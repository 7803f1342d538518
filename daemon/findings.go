package daemon

import (
	"context"

	"google.golang.org/grpc"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/controller/reconcile"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

// controllerService answers other daemons what this one's controller could not
// mend.
type controllerService struct {
	holdfastv1.UnimplementedControllerServiceServer
	problems func() []reconcile.Problem
}

func (s *controllerService) register(g *grpc.Server) {
	holdfastv1.RegisterControllerServiceServer(g, s)
}

// Findings implements the service; see node.proto.
func (s *controllerService) Findings(context.Context, *holdfastv1.FindingsRequest) (*holdfastv1.FindingsResponse, error) {
	out := &holdfastv1.FindingsResponse{}
	for _, p := range s.problems() {
		out.Findings = append(out.Findings, &holdfastv1.Finding{Volume: p.Volume, Node: string(p.Node), What: p.Text, Remedy: p.Remedy})
	}
	return out, nil
}

// leadersFindings asks the controller that leads, which may be this daemon's.
type leadersFindings struct {
	self    string
	own     *controllerService
	clients *nodeClients
}

// Findings implements api.Findings. Errors: NotFound for an unknown leader,
// Unavailable.
func (l leadersFindings) Findings(ctx context.Context, leader string) ([]*holdfastv1.Finding, error) {
	if leader == l.self {
		r, err := l.own.Findings(ctx, &holdfastv1.FindingsRequest{})
		return r.GetFindings(), err
	}
	conn, err := l.clients.conn(ctx, holdfast.NodeID(leader))
	if err != nil {
		return nil, err
	}
	r, err := holdfastv1.NewControllerServiceClient(conn).Findings(ctx, &holdfastv1.FindingsRequest{})
	return r.GetFindings(), holdfast.Wrap("ask the leader "+leader, err)
}
