package api

import (
	"context"
	"net"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/holdfast-storage/holdfast"
)

// pipeListener connects the REST gateway with the gRPC server inside one
// process: streams work as over a network, nothing leaves the process. The
// gateway wants gRPC's own errors, so no interceptor translates them.
type pipeListener struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newPipeListener() *pipeListener {
	return &pipeListener{conns: make(chan net.Conn), done: make(chan struct{})}
}

// Accept gives the server's end of the next connection.
func (p *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

// Close ends Accept.
func (p *pipeListener) Close() error {
	p.once.Do(func() { close(p.done) })
	return nil
}

// Addr names it for gRPC's log.
func (p *pipeListener) Addr() net.Addr { return pipeAddr{} }

type pipeAddr struct{}

func (pipeAddr) Network() string { return "pipe" }
func (pipeAddr) String() string  { return "in process" }

func (p *pipeListener) dial(ctx context.Context, _ string) (net.Conn, error) {
	mine, theirs := net.Pipe()
	select {
	case p.conns <- theirs:
		return mine, nil
	case <-p.done:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (p *pipeListener) client() (*grpc.ClientConn, error) {
	cc, err := grpc.NewClient("passthrough:///in-process",
		grpc.WithContextDialer(p.dial), grpc.WithTransportCredentials(insecure.NewCredentials()))
	return cc, holdfast.Wrap("connect gateway", err)
}
