package nodecsi

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/rpc"
)

// Register adds services to a server.
type Register = func(*grpc.Server)

// Endpoint is the Unix socket on which the CSI services answer.
type Endpoint struct {
	RPC    rpc.Config
	Target string   // unix:///path; its directory is made if missing
	More   Register // the identity and controller services, which share the socket
}

// Serve makes the socket at once, and returns what answers on it until ctx ends,
// which is no error.
func (s *Service) Serve(ctx context.Context, e Endpoint) (run func() error, err error) {
	op := "serve CSI on " + e.Target
	network, path, err := rpc.SplitTarget(e.Target)
	if err != nil || network != "unix" {
		return nil, errors.Join(err, holdfast.E(op, holdfast.Invalid, "a Unix socket is needed: unix:///path"))
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return nil, holdfast.WrapKind(op, holdfast.Invalid, err)
	}
	l, err := e.RPC.Listen(ctx, e.Target)
	if err != nil {
		return nil, holdfast.Wrap(op, err)
	}
	srv := e.RPC.NewLocalServer()
	csi.RegisterNodeServer(srv, s)
	e.More(srv)
	return func() error {
		stop := context.AfterFunc(ctx, srv.Stop)
		defer stop()
		err := srv.Serve(l)
		if ctx.Err() != nil || errors.Is(err, grpc.ErrServerStopped) {
			return nil
		}
		return holdfast.WrapKind(op, holdfast.Unavailable, err)
	}, nil
}
