package rpc

import (
	"errors"
	"sync"
	"syscall"

	"google.golang.org/grpc"

	"github.com/holdfast-storage/holdfast"
)

// Conns keeps one gRPC connection per address, so that callers share them.
type Conns struct {
	cfg    Config
	mu     sync.Mutex
	byAddr map[string]*grpc.ClientConn
	closed bool
}

// NewConns makes an empty set. Close it.
func NewConns(cfg Config) *Conns {
	return &Conns{cfg: cfg, byAddr: map[string]*grpc.ClientConn{}}
}

// Conn is the connection to an address, made if needed. It belongs to the set:
// do not close it. Errors: Invalid for a malformed address, Unavailable after
// Close.
func (c *Conns) Conn(target string) (*grpc.ClientConn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, holdfast.E("connect to "+target, holdfast.Unavailable, "this process is stopping")
	}
	if cc := c.byAddr[target]; cc != nil {
		return cc, nil
	}
	cc, err := c.cfg.Dial(target)
	if err != nil {
		return nil, err
	}
	c.byAddr[target] = cc
	return cc, nil
}

// Close closes all connections; calls in flight fail.
func (c *Conns) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	var errs []error
	for _, cc := range c.byAddr {
		errs = append(errs, cc.Close())
	}
	clear(c.byAddr)
	return holdfast.Wrap("close connections", errors.Join(errs...))
}

func asErrno(err error, e *syscall.Errno) bool { return errors.As(err, e) }
