package etcd

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/holdfast-storage/holdfast"
)

// ServerConfig describes a member that runs inside this process. Name, Dir and
// the two lists of URLs are needed.
type ServerConfig struct {
	Name string // of this member, unique among them
	Dir  string // its data; made if absent, readable by the owner only
	// ClientURLs and PeerURLs are where it listens, and nowhere else:
	// "http://10.0.0.1:2379", or "https://…" with the fitting TLS member.
	ClientURLs []string
	PeerURLs   []string
	// Members are the peer URLs by name of all first members, this one included,
	// the same in each of them; empty for a cluster of one.
	Members map[string]string
	// Token keeps clusters that were made with the same addresses apart.
	Token string
	// ClientTLS and PeerTLS are needed for https URLs.
	ClientTLS *ServerTLS
	PeerTLS   *ServerTLS
	// QuotaBytes bounds the database; default 2 GiB.
	QuotaBytes int64
	// StartTimeout is how long a majority may take to be there; default 60 s.
	StartTimeout time.Duration
	Logger       *slog.Logger // warnings and worse; default none

	bcryptCost uint // of users' passwords; 0 is etcd's default. Lower in tests, see export_test.go
}

// ServerTLS are files in PEM. With a CA, clients or peers must show a
// certificate that it signed.
type ServerTLS struct {
	CertFile, KeyFile, CAFile string
}

// Server is an etcd member that runs inside this process.
type Server struct {
	etcd   *embed.Etcd
	urls   []string
	failed chan error
	over   chan struct{} // closed by Close
	close  sync.Once
	// stopping is set by Close, for the log.
	stopping *atomic.Bool
}

// StartServer starts a member and waits until it is part of a majority and
// serves: start the members of a new cluster at the same time. The errors are
// Invalid and Unavailable. Close it.
func StartServer(ctx context.Context, cfg ServerConfig) (*Server, error) {
	op := "start etcd member " + cfg.Name
	failed, stopping := make(chan error, 1), new(atomic.Bool)
	ec, err := cfg.embed(fatal{failed}, stopping)
	if err != nil {
		return nil, holdfast.WrapKind(op, holdfast.Invalid, err)
	}
	timeout := cfg.StartTimeout
	if timeout <= 0 {
		timeout = time.Minute
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	type started struct {
		etcd *embed.Etcd
		err  error
	}
	// In a goroutine: it would wait for good for a data folder that another
	// process has open.
	result := make(chan started, 1)
	go func() {
		e, err := embed.StartEtcd(ec)
		result <- started{e, err}
	}()
	select {
	case r := <-result:
		if r.err != nil {
			return nil, holdfast.WrapKind(op, holdfast.Unavailable, r.err)
		}
		return ready(ctx, op, cfg, &Server{etcd: r.etcd, urls: slices.Clone(cfg.ClientURLs), failed: failed, over: make(chan struct{}), stopping: stopping})
	case <-ctx.Done():
		go func() {
			if r := <-result; r.err == nil {
				r.etcd.Close()
			}
		}()
		return nil, holdfast.E(op, holdfast.Unavailable, "it did not start in time; does another process use "+cfg.Dir+"?")
	}
}

func ready(ctx context.Context, op string, cfg ServerConfig, s *Server) (*Server, error) {
	var err error
	select {
	case <-s.etcd.Server.ReadyNotify():
		go s.listen()
		return s, nil
	case err = <-s.etcd.Err():
	case err = <-s.failed:
	case <-ctx.Done():
		err = holdfast.E("", holdfast.Unavailable, fmt.Sprintf("no majority of the members %v was there in time", slices.Sorted(maps.Keys(cfg.Members))))
	}
	closeWithin(s.etcd, time.Second) // the rest goes on in the background
	return nil, holdfast.WrapKind(op, holdfast.Unavailable, err)
}

// closeTimeout is how long a member may take to stop in order: it gives calls
// under way about seven seconds. One that has failed may never stop; everything
// acknowledged is on its disk.
const closeTimeout = 20 * time.Second

func closeWithin(e *embed.Etcd, d time.Duration) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		e.Close()
	}()
	select {
	case <-done:
	case <-time.After(d):
	}
}

// listen passes on the errors of the member's listeners.
func (s *Server) listen() {
	for {
		select {
		case <-s.over:
			return
		case err, ok := <-s.etcd.Err():
			if !ok {
				return
			}
			select {
			case s.failed <- holdfast.WrapKind("run the etcd member", holdfast.Unavailable, err):
			default:
			}
		}
	}
}

// Endpoints are for Config.Endpoints.
func (s *Server) Endpoints() []string { return slices.Clone(s.urls) }

// Failed delivers the error with which the member stopped by itself, such as a
// full disk. It acknowledges nothing any more; close it.
func (s *Server) Failed() <-chan error { return s.failed }

// Close stops the member; its data stays.
func (s *Server) Close() error { return s.CloseWithin(closeTimeout) }

// CloseWithin is Close for a process that ends now: it returns after d at the
// latest, and calls under way end with the process. What was acknowledged is on
// disk.
func (s *Server) CloseWithin(d time.Duration) error {
	s.close.Do(func() {
		close(s.over)
		s.stopping.Store(true)
		closeWithin(s.etcd, d)
	})
	return nil
}

// embed is the configuration as the etcd server takes it. Everything is synced
// to disk before it is acknowledged: UnsafeNoFsync stays off.
func (c ServerConfig) embed(onFatal zapcore.CheckWriteHook, stopping *atomic.Bool) (*embed.Config, error) {
	ec := embed.NewConfig()
	if c.Name == "" || c.Dir == "" || len(c.ClientURLs) == 0 || len(c.PeerURLs) == 0 {
		return nil, holdfast.E("", holdfast.Invalid, "a name, a folder, client URLs and peer URLs are needed")
	}
	clients, err := parseURLs(c.ClientURLs, c.ClientTLS)
	if err != nil {
		return nil, err
	}
	peers, err := parseURLs(c.PeerURLs, c.PeerTLS)
	if err != nil {
		return nil, err
	}
	ec.Name, ec.Dir = c.Name, c.Dir
	ec.ListenClientUrls, ec.AdvertiseClientUrls = clients, clients
	ec.ListenPeerUrls, ec.AdvertisePeerUrls = peers, peers
	members := c.Members
	if len(members) == 0 {
		members = map[string]string{c.Name: c.PeerURLs[0]}
	}
	var initial []string
	for _, name := range slices.Sorted(maps.Keys(members)) {
		initial = append(initial, name+"="+members[name])
	}
	ec.InitialCluster = strings.Join(initial, ",")
	if c.Token != "" {
		ec.InitialClusterToken = c.Token
	}
	ec.ClientTLSInfo, ec.PeerTLSInfo = c.ClientTLS.info(), c.PeerTLS.info()
	// Half of etcd's default: a new leader counts every lease from its beginning
	// and adds this time, and a dead node is noticed only after that.
	ec.ElectionMs = 500
	ec.QuotaBackendBytes = c.QuotaBytes
	if c.QuotaBytes <= 0 {
		ec.QuotaBackendBytes = 2 << 30
	}
	// An hour of history is more than any watch needs to catch up.
	ec.AutoCompactionMode, ec.AutoCompactionRetention = embed.CompactorModePeriodic, "1h"
	if c.bcryptCost != 0 {
		ec.BcryptCost = c.bcryptCost
	}
	ec.EnableGRPCGateway, ec.EnablePprof = false, false
	log := c.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	ec.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zapTo(log, stopping, zap.WithFatalHook(onFatal)))
	return ec, nil
}

func (t *ServerTLS) info() transport.TLSInfo {
	if t == nil {
		return transport.TLSInfo{}
	}
	return transport.TLSInfo{CertFile: t.CertFile, KeyFile: t.KeyFile, TrustedCAFile: t.CAFile, ClientCertAuth: t.CAFile != ""}
}

func parseURLs(list []string, t *ServerTLS) ([]url.URL, error) {
	var out []url.URL
	for _, text := range list {
		u, err := url.Parse(text)
		switch {
		case err != nil || u.Host == "":
			return nil, holdfast.E("", holdfast.Invalid, fmt.Sprintf("%q is no URL with a host and a port", text))
		case u.Scheme != "http" && u.Scheme != "https":
			return nil, holdfast.E("", holdfast.Invalid, fmt.Sprintf("the URL %q must begin with http:// or https://", text))
		case u.Scheme == "https" && t == nil:
			return nil, holdfast.E("", holdfast.Invalid, fmt.Sprintf("the URL %q needs a certificate and a key", text))
		case u.Scheme == "http" && t != nil:
			return nil, holdfast.E("", holdfast.Invalid, fmt.Sprintf("a certificate is given, but the URL %q is not https://", text))
		}
		out = append(out, *u)
	}
	return out, nil
}
