// Package rpc is where connections between nodes are made, and nowhere else:
// gRPC for the control plane, raw TCP for the data plane. Encryption and mutual
// authentication go in here.
//
// It promises bounded timeouts everywhere: a peer that vanished without a word
// is noticed, and no call waits for ever. With Config.TLS set, every TCP
// connection, dialled or accepted, is TLS; Unix sockets stay plain, as file
// permissions guard them. Errors are of Holdfast's kinds on both sides. It does
// not decide who may do what. gRPC's own goroutines end with the connections and
// servers made here; the package owns no others.
package rpc

import (
	"context"
	"crypto/tls"
	"fmt"
	"math"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/grpcstatus"
)

// maxMessage bounds one gRPC message in bytes: a listing of some ten thousand
// volumes.
const maxMessage = 32 << 20

// Config says how connections are made. The zero value is usable: plain, with
// the default timeouts.
type Config struct {
	// TLS is used for every TCP connection if it is set: as a client with
	// Certificates and RootCAs, as a server with Certificates, ClientCAs and
	// ClientAuth. ServerName defaults to the host dialled.
	TLS *tls.Config
	// ConnectTimeout bounds making one connection. Default 3 s.
	ConnectTimeout time.Duration
	// CallTimeout bounds a unary call whose context has no deadline. Default 60 s.
	CallTimeout time.Duration
	// SilentAfter is how long sent data may stay unacknowledged before the
	// connection is given up (TCP_USER_TIMEOUT). Default 5 s.
	SilentAfter time.Duration
	// Congestion is TCP's congestion control of data plane connections: the name of
	// one that the kernel has. Default: the machine's, and CUBIC where that is BBR.
	Congestion string
}

func (c Config) withDefaults() Config {
	if c.ConnectTimeout <= 0 {
		c.ConnectTimeout = 3 * time.Second
	}
	if c.CallTimeout <= 0 {
		c.CallTimeout = time.Minute
	}
	if c.SilentAfter <= 0 {
		c.SilentAfter = 5 * time.Second
	}
	return c
}

// Dial prepares a gRPC connection to "host:port" or "unix:///path"; it connects
// with the first call and again whenever it broke. Only a malformed address is
// an error here, of kind Invalid. Calls fail with kind Unavailable while the
// peer does not answer. The caller closes the connection.
func (c Config) Dial(target string) (*grpc.ClientConn, error) {
	c = c.withDefaults()
	network, addr, err := SplitTarget(target)
	if err != nil {
		return nil, err
	}
	creds := insecure.NewCredentials()
	if c.TLS != nil && network == "tcp" {
		creds = credentials.NewTLS(c.TLS)
	}
	var opts []grpc.DialOption
	if network == "unix" {
		opts = append(opts, grpc.WithAuthority("localhost")) // a path is no valid host
	}
	cc, err := grpc.NewClient("passthrough:///"+addr, append(opts,
		grpc.WithTransportCredentials(creds),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return c.dial(ctx, network, addr, c.control) }),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
			MinConnectTimeout: c.ConnectTimeout,
		}),
		// 10 s is the shortest that gRPC allows; unacknowledged calls are
		// noticed earlier by TCP_USER_TIMEOUT.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: c.SilentAfter}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
		// The outermost one translates, so that it also sees the deadline's end.
		grpc.WithChainUnaryInterceptor(grpcstatus.UnaryClient(), c.bounded()),
		grpc.WithChainStreamInterceptor(grpcstatus.StreamClient()),
	)...)
	return cc, holdfast.WrapKind("dial "+target, holdfast.Invalid, err)
}

// bounded gives unary calls without a deadline one.
func (c Config) bounded() grpc.UnaryClientInterceptor {
	return func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, call grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		if _, has := ctx.Deadline(); !has {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, c.CallTimeout)
			defer cancel()
		}
		return call(ctx, method, req, reply, cc, opts...)
	}
}

// NewServer makes a gRPC server; its TCP connections are TLS if TLS is set (use
// NewLocalServer for Unix sockets). More options may be added, interceptors
// with the Chain forms.
func (c Config) NewServer(opts ...grpc.ServerOption) *grpc.Server {
	if c.TLS != nil {
		opts = append(opts, grpc.Creds(credentials.NewTLS(c.TLS)))
	}
	return c.NewLocalServer(opts...)
}

// NewLocalServer is NewServer without TLS, for Unix sockets.
func (c Config) NewLocalServer(opts ...grpc.ServerOption) *grpc.Server {
	c = c.withDefaults()
	return grpc.NewServer(append([]grpc.ServerOption{
		grpc.ConnectionTimeout(c.ConnectTimeout),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 10 * time.Second, Timeout: c.SilentAfter}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxSendMsgSize(maxMessage),
		grpc.ChainUnaryInterceptor(grpcstatus.UnaryServer()),
		grpc.ChainStreamInterceptor(grpcstatus.StreamServer()),
	}, opts...)...)
}

// DialData makes a data plane connection to "host:port": no delay, keep-alive,
// given up when silent. Errors: Unavailable; Invalid for a malformed address.
func (c Config) DialData(ctx context.Context, addr string) (net.Conn, error) {
	c = c.withDefaults()
	op := "connect to " + addr
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, holdfast.WrapKind(op, holdfast.Invalid, err)
	}
	ctx, cancel := context.WithTimeout(ctx, c.ConnectTimeout)
	defer cancel()
	conn, err := c.dial(ctx, "tcp", addr, c.dataControl)
	if err != nil {
		return nil, holdfast.WrapKind(op, holdfast.Unavailable, err)
	}
	if c.TLS == nil {
		return conn, nil
	}
	cfg := c.TLS.Clone()
	if cfg.ServerName == "" {
		cfg.ServerName = host
	}
	tc := tls.Client(conn, cfg)
	if err := tc.HandshakeContext(ctx); err != nil {
		_ = conn.Close()
		return nil, holdfast.WrapKind(op+": TLS handshake", holdfast.Unavailable, err)
	}
	return tc, nil
}

// ListenData listens for data plane connections on "host:port". Accepted
// connections are TLS if TLS is set; the handshake happens with the first read
// or write, which the caller bounds by a deadline.
func (c Config) ListenData(ctx context.Context, addr string) (net.Listener, error) {
	c = c.withDefaults()
	l, err := c.listen(ctx, addr, c.dataControl)
	if err != nil || c.TLS == nil {
		return l, err
	}
	return tls.NewListener(l, c.TLS), nil
}

// Listen listens on "host:port" or "unix:///path" for a gRPC server, which adds
// TLS itself. A Unix socket left behind by a dead process is replaced; one that
// is served is an InUse error. Its mode is 0660.
func (c Config) Listen(ctx context.Context, target string) (net.Listener, error) {
	c = c.withDefaults()
	return c.listen(ctx, target, c.control)
}

// prepare is done to a socket before it listens or connects.
type prepare func(network, address string, rc syscall.RawConn) error

func (c Config) listen(ctx context.Context, target string, prepare prepare) (net.Listener, error) {
	op := "listen on " + target
	network, addr, err := SplitTarget(target)
	if err != nil {
		return nil, err
	}
	if network == "unix" {
		return listenUnix(ctx, op, addr)
	}
	lc := net.ListenConfig{Control: prepare, KeepAliveConfig: c.keepAlive()}
	l, err := lc.Listen(ctx, network, addr)
	return l, holdfast.WrapKind(op, listenKind(err), err)
}

func listenUnix(ctx context.Context, op, path string) (net.Listener, error) {
	if len(path) > 107 {
		return nil, holdfast.E(op, holdfast.Invalid, fmt.Sprintf("the path has %d bytes; Linux allows 107 for a socket: choose a shorter one", len(path)))
	}
	if fi, err := os.Lstat(path); err == nil {
		if fi.Mode().Type() != os.ModeSocket {
			return nil, holdfast.E(op, holdfast.Exists, "a file that is no socket is there; remove it or choose another path")
		}
		d := net.Dialer{Timeout: time.Second}
		if conn, err := d.DialContext(ctx, "unix", path); err == nil {
			_ = conn.Close()
			return nil, holdfast.E(op, holdfast.InUse, "another process serves this socket; stop it or choose another path")
		}
		if err := os.Remove(path); err != nil {
			return nil, holdfast.Wrap(op, err)
		}
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		return nil, holdfast.WrapKind(op, listenKind(err), err)
	}
	if err := os.Chmod(path, 0o660); err != nil {
		_ = l.Close()
		return nil, holdfast.Wrap(op, err)
	}
	return l, nil
}

// SplitTarget takes "host:port", "tcp://host:port", "unix:///path" or
// "unix:/path" apart. Errors are of kind Invalid and show the right form.
func SplitTarget(target string) (network, addr string, err error) {
	if rest, ok := strings.CutPrefix(target, "unix:"); ok {
		path := strings.TrimPrefix(rest, "//")
		if !strings.HasPrefix(path, "/") {
			return "", "", holdfast.E("parse address "+target, holdfast.Invalid, "a socket's path is absolute: write unix:///path/to.sock")
		}
		return "unix", path, nil
	}
	addr = strings.TrimPrefix(target, "tcp://")
	if _, port, err := net.SplitHostPort(addr); err != nil || port == "" {
		return "", "", holdfast.E("parse address "+target, holdfast.Invalid, "write host:port or unix:///path/to.sock")
	}
	return "tcp", addr, nil
}

func (c Config) dial(ctx context.Context, network, addr string, prepare prepare) (net.Conn, error) {
	d := net.Dialer{Timeout: c.ConnectTimeout, KeepAliveConfig: c.keepAlive()}
	if network == "tcp" {
		d.Control = prepare
	}
	return d.DialContext(ctx, network, addr) // TCP_NODELAY is Go's default
}

// keepAlive notices a peer that is gone on an idle connection within about
// twice SilentAfter.
func (c Config) keepAlive() net.KeepAliveConfig {
	return net.KeepAliveConfig{Enable: true, Idle: c.SilentAfter, Interval: max(c.SilentAfter/4, time.Second), Count: 4}
}

// control sets TCP_USER_TIMEOUT, which accepted connections inherit.
func (c Config) control(_, _ string, rc syscall.RawConn) error {
	ms := min(c.SilentAfter.Milliseconds(), math.MaxInt32)
	var serr error
	err := rc.Control(func(fd uintptr) {
		serr = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(ms))
	})
	if err != nil {
		return err
	}
	return serr
}

// listenKind classifies a failure to listen.
func listenKind(err error) holdfast.Kind {
	var errno syscall.Errno
	if err == nil || !asErrno(err, &errno) {
		return holdfast.Invalid
	}
	switch errno {
	case unix.EADDRINUSE:
		return holdfast.InUse
	case unix.EACCES, unix.EPERM:
		return holdfast.Denied
	case unix.ENOENT:
		return holdfast.NotFound
	}
	return holdfast.Invalid
}
