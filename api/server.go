package api

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/controller/lifecycle"
	"github.com/holdfast-storage/holdfast/internal/rpc"
	"github.com/holdfast-storage/holdfast/metadata"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

// DefaultTCP and DefaultUnix are where the API listens unless told otherwise.
const (
	DefaultTCP  = "127.0.0.1:9811"
	DefaultUnix = "unix:///run/holdfast/api.sock"
)

// Lifecycle carries out what users ask of volumes. Every method is idempotent
// and takes a volume by id or name; errors are of Holdfast's kinds.
type Lifecycle interface {
	Create(ctx context.Context, name string, spec holdfast.Spec) (holdfast.Record, error)
	Expand(ctx context.Context, volume string, sizeBytes int64) (holdfast.Record, error)
	Attach(ctx context.Context, volume string, node holdfast.NodeID, force bool) (holdfast.Record, string, error)
	Detach(ctx context.Context, volume string, force bool) (holdfast.Record, error)
	Delete(ctx context.Context, volume string) error
	Modify(ctx context.Context, volume string, c lifecycle.Changes) (holdfast.Record, error)
}

// NodeAdmin carries out what users ask of nodes.
type NodeAdmin interface {
	Drain(ctx context.Context, node holdfast.NodeID) (holdfast.Node, error)
	Undrain(ctx context.Context, node holdfast.NodeID) (holdfast.Node, error)
	Forget(ctx context.Context, node holdfast.NodeID) (lifecycle.Forgotten, error)
}

// Findings are what the leading controller could not mend, wherever that is.
type Findings interface {
	Findings(ctx context.Context, leader string) ([]*holdfastv1.Finding, error)
}

// NodeClients finds a node's services. Errors: NotFound for an unknown node.
type NodeClients interface {
	Client(ctx context.Context, node holdfast.NodeID) (holdfastv1.NodeServiceClient, error)
}

// Config is what a server needs. Log and Handlers may be left out.
type Config struct {
	Self      holdfast.NodeID // who answers; the default node to attach to
	Release   string
	Store     metadata.Store
	Lifecycle Lifecycle
	Snapshots Snapshots
	Groups    Groups    // may be left out: then there are no group snapshots
	Schedules Schedules // nil: nobody carries them out, and the service is not there
	Admin     NodeAdmin
	Nodes     NodeClients
	Findings  Findings // may be left out
	RPC       rpc.Config
	Log       *slog.Logger
	// NodeTimeout bounds how long a node is waited for when its live status is
	// asked. Default 1.5 s.
	NodeTimeout time.Duration
	// Handlers are more HTTP paths to serve, such as "/metrics".
	Handlers map[string]http.Handler
}

// Server serves the API. Make it with New, then call Serve.
type Server struct {
	cfg  Config
	live liveReader
	holdfastv1.UnimplementedVolumeServiceServer
	holdfastv1.UnimplementedSnapshotServiceServer
	holdfastv1.UnimplementedGroupSnapshotServiceServer
	holdfastv1.UnimplementedScheduleServiceServer
	holdfastv1.UnimplementedClusterServiceServer
}

// New checks the configuration and makes a server that does not listen yet.
func New(cfg Config) (*Server, error) {
	if cfg.Store == nil || cfg.Lifecycle == nil || cfg.Snapshots == nil || cfg.Admin == nil || cfg.Nodes == nil {
		return nil, holdfast.E("make API server", holdfast.Invalid, "a metadata store, a lifecycle of volumes and of snapshots, an admin of nodes and node clients are needed")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.NodeTimeout <= 0 {
		cfg.NodeTimeout = 1500 * time.Millisecond
	}
	return &Server{cfg: cfg, live: liveReader{nodes: cfg.Nodes, timeout: cfg.NodeTimeout}}, nil
}

// register adds the services to a gRPC server.
func (s *Server) register(g *grpc.Server) {
	holdfastv1.RegisterVolumeServiceServer(g, s)
	holdfastv1.RegisterSnapshotServiceServer(g, s)
	if s.cfg.Groups != nil {
		holdfastv1.RegisterGroupSnapshotServiceServer(g, s)
	}
	if s.cfg.Schedules != nil {
		holdfastv1.RegisterScheduleServiceServer(g, s)
	}
	holdfastv1.RegisterClusterServiceServer(g, s)
	grpc_health_v1.RegisterHealthServer(g, health.NewServer())
}

// Serve answers on all listeners until ctx ends, then closes them and gives
// calls in flight two seconds. It returns nil after a stop by ctx.
func (s *Server) Serve(ctx context.Context, listeners ...net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	outer := s.cfg.RPC.NewLocalServer() // net/http does the transport, and TLS when it comes
	s.register(outer)
	inner := s.cfg.RPC.NewLocalServer()
	s.register(inner)
	pipe := newPipeListener()
	conn, err := pipe.client()
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	rest, err := gateway(ctx, conn)
	if err != nil {
		return err
	}
	srv := s.httpServer(outer, rest)
	var g errgroup.Group
	g.Go(func() error { return inner.Serve(pipe) })
	for _, l := range listeners {
		g.Go(func() error {
			defer cancel()
			if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				return holdfast.WrapKind("serve API on "+l.Addr().String(), holdfast.Unavailable, err)
			}
			return nil
		})
	}
	<-ctx.Done()
	s.stop(srv, outer, inner)
	return g.Wait()
}

func (s *Server) stop(srv *http.Server, servers ...*grpc.Server) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if err := srv.Shutdown(ctx); err != nil {
		_ = srv.Close()
	}
	for _, g := range servers {
		g.Stop()
	}
}

// httpServer sends gRPC to g and everything else to the REST side. HTTP/2
// without TLS is allowed, as gRPC needs it.
func (s *Server) httpServer(g *grpc.Server, rest http.Handler) *http.Server {
	mux := http.NewServeMux()
	mux.Handle("/v1/", rest)
	mux.HandleFunc("GET /healthz", s.healthz)
	mux.HandleFunc("GET /openapi.json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(holdfastv1.OpenAPI())
	})
	for path, h := range s.cfg.Handlers {
		mux.Handle(path, h)
	}
	guarded := localOnly(mux)
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{
		Protocols:         protocols,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		ErrorLog:          slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelDebug),
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
				g.ServeHTTP(w, r)
				return
			}
			guarded.ServeHTTP(w, r)
		}),
	}
}

// gateway is the REST side: JSON with every field present, as scripts like it.
func gateway(ctx context.Context, conn *grpc.ClientConn) (http.Handler, error) {
	mux := runtime.NewServeMux()
	if err := holdfastv1.RegisterVolumeServiceHandler(ctx, mux, conn); err != nil {
		return nil, holdfast.Wrap("register volume service", err)
	}
	if err := holdfastv1.RegisterSnapshotServiceHandler(ctx, mux, conn); err != nil {
		return nil, holdfast.Wrap("register snapshot service", err)
	}
	if err := holdfastv1.RegisterGroupSnapshotServiceHandler(ctx, mux, conn); err != nil {
		return nil, holdfast.Wrap("register group snapshot service", err)
	}
	if err := holdfastv1.RegisterScheduleServiceHandler(ctx, mux, conn); err != nil {
		return nil, holdfast.Wrap("register schedule service", err)
	}
	if err := holdfastv1.RegisterClusterServiceHandler(ctx, mux, conn); err != nil {
		return nil, holdfast.Wrap("register cluster service", err)
	}
	return mux, nil
}

// healthz says 200 while the metadata store answers: then this daemon can do
// everything it is there for; else 503 with the reason. I/O does not need it.
func (s *Server) healthz(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), 2*time.Second)
	defer cancel()
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if _, err := s.cfg.Store.Cluster(ctx); err != nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = w.Write([]byte("the metadata store does not answer: " + err.Error() + "\n"))
		return
	}
	_, _ = w.Write([]byte("ok\n"))
}

// localOnly refuses what a web page from elsewhere makes a browser send: a
// foreign Origin, or a Host that is a name other than localhost (DNS rebinding).
func localOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		_, onUnix := r.Context().Value(http.LocalAddrContextKey).(*net.UnixAddr)
		named := host != "localhost" && net.ParseIP(strings.Trim(host, "[]")) == nil
		origin := r.Header.Get("Origin")
		foreign := origin != "" && origin != "http://"+r.Host && origin != "https://"+r.Host
		if foreign || named && !onUnix {
			http.Error(w, "requests from web pages of other sites are refused; use the address of this machine as host", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}
