// Package etcd is the metadata store in etcd: a client of external members, and
// a server that runs inside the daemon for trying things out and for small
// clusters (Server; one member or three).
//
// The keys and their JSON values, below the prefix /holdfast/v1/:
//
//	volumes/<id>        a volume's record
//	names/<escaped>     the id of the volume with this name
//	nodes/<id>          a node's registration
//	alive/<id>          the instance that runs as this node; on a lease
//	tombstones/<id>     a replica whose data may be removed
//	leader              the leading controller; on a lease
//	cluster             the cluster's identity
//
// Package layout, below metadata, has the details and the versions.
//
// It promises what package metadata promises. Every call ends within its
// context and within Config.CallTimeout; then, and whenever etcd does not
// answer, the kind is Unavailable and a change may or may not have happened: no
// change is ever tried twice. Every change is one transaction. An etcd that was
// put back to an older backup is noticed within seconds, and watches read
// everything again. It does not survive losing etcd's data: the replicas' disks
// do, they keep the records they were shown.
//
// A Store owns one goroutine that looks for an etcd that was put back, a few per
// lease and per leadership, and those of the etcd client. A Server owns those of
// the etcd server.
package etcd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/metadata"
	"github.com/holdfast-storage/holdfast/metadata/internal/layout"
)

var _ metadata.Store = (*Store)(nil)

// Config says how to reach etcd. Only Endpoints is needed.
type Config struct {
	// Endpoints are URLs of members: "http://10.0.0.1:2379". All are used.
	Endpoints []string
	// TLS is for https endpoints: the CA and, where etcd asks for one, the
	// client's certificate.
	TLS      *tls.Config
	Username string
	Password string
	// Prefix of all keys; default /holdfast/v1/.
	Prefix string
	// CallTimeout bounds one call; default metadata.DefaultCallTimeout.
	CallTimeout time.Duration
	// LeaderTTL is how long a dead leader holds its place; default
	// metadata.DefaultLeaseTTL.
	LeaderTTL time.Duration
	// Probe is how often it is checked that etcd was not put back to an older
	// state; default 5 s.
	Probe time.Duration
	// Logger takes what the etcd client and this store have to say; default none.
	Logger *slog.Logger
	// OnCorrupt is told of values that lists and watches leave out, besides
	// Logger. It must not block.
	OnCorrupt func(key string, err error)
}

func (c Config) withDefaults() Config {
	if c.Prefix == "" {
		c.Prefix = layout.DefaultPrefix
	}
	if !strings.HasSuffix(c.Prefix, "/") {
		c.Prefix += "/"
	}
	if c.CallTimeout <= 0 {
		c.CallTimeout = metadata.DefaultCallTimeout
	}
	if c.LeaderTTL <= 0 {
		c.LeaderTTL = metadata.DefaultLeaseTTL
	}
	if c.Probe <= 0 {
		c.Probe = 5 * time.Second
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// Store is a client of etcd.
type Store struct {
	cfg    Config
	client *clientv3.Client
	life   context.Context // ends with Close
	close  context.CancelFunc
	probed chan struct{} // closed when the probing goroutine has ended

	mu      sync.Mutex
	cluster uint64 // etcd's cluster id; 0 before the first answer
	newest  int64  // the newest revision seen
	closed  bool
	rewound chan struct{} // closed and replaced when etcd was put back
}

// Open connects and makes sure that etcd answers and lets us in: Unavailable or
// Denied otherwise; Invalid for a configuration that cannot work. Close it.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	const op = "open the metadata store"
	cfg = cfg.withDefaults()
	if len(cfg.Endpoints) == 0 {
		return nil, holdfast.E(op, holdfast.Invalid, "no etcd endpoint is given; give at least one, such as http://10.0.0.1:2379")
	}
	if (cfg.Username == "") != (cfg.Password == "") {
		return nil, holdfast.E(op, holdfast.Invalid, "a user name and a password are given together or not at all")
	}
	s := &Store{cfg: cfg, rewound: make(chan struct{}), probed: make(chan struct{})}
	s.life, s.close = context.WithCancel(context.Background())
	client, err := dial(s.life, cfg)
	if err != nil {
		s.close()
		return nil, holdfast.WrapKind(op+" at "+strings.Join(cfg.Endpoints, ", "), kindOf(err), err)
	}
	s.client = client
	if _, err := s.get(ctx, op, layout.ClusterKey, clientv3.WithCountOnly()); err != nil {
		s.close()
		_ = client.Close()
		return nil, err
	}
	go s.probe()
	return s, nil
}

func dial(life context.Context, cfg Config) (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{
		Context:     life,
		Endpoints:   cfg.Endpoints,
		TLS:         cfg.TLS,
		Username:    cfg.Username,
		Password:    cfg.Password,
		DialTimeout: cfg.CallTimeout, // bounds the login
		Logger:      zapTo(cfg.Logger, new(atomic.Bool)),
		// A member that vanished without a word is given up 2 s after something
		// was sent to it, and 12 s after the last answer at the latest.
		DialKeepAliveTime:    10 * time.Second,
		DialKeepAliveTimeout: 2 * time.Second,
		PermitWithoutStream:  true,
		DialOptions: []grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{
			// gRPC would wait up to two minutes after a long outage.
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
			MinConnectTimeout: 2 * time.Second,
		})},
	})
}

// Close ends watches and leadership, stops refreshing leases, and disconnects.
func (s *Store) Close() error {
	s.close()
	<-s.probed
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	if err := s.client.Close(); err != nil && !errors.Is(err, context.Canceled) {
		return holdfast.WrapKind("close the metadata store", holdfast.Unavailable, err)
	}
	return nil
}

// probe reads something now and then, only to look at the revision.
func (s *Store) probe() {
	defer close(s.probed)
	tick := time.NewTicker(s.cfg.Probe)
	defer tick.Stop()
	for {
		select {
		case <-s.life.Done():
			return
		case <-tick.C:
			if _, err := s.get(s.life, "probe", layout.ClusterKey, clientv3.WithCountOnly()); err != nil {
				s.login()
			}
		}
	}
}

// login gets a new token. An etcd that was put back waits, without an answer,
// for a token's moment to come that lies in its future: the client would never
// learn that it needs a new one. It asks for one when it opens a stream.
func (s *Store) login() {
	if s.cfg.Username == "" {
		return
	}
	ctx, cancel := s.bound(s.life)
	defer cancel()
	_, _ = s.client.KeepAliveOnce(ctx, clientv3.LeaseID(-1)) // which there never is
}

// key puts the prefix before a key.
func (s *Store) key(k string) string { return s.cfg.Prefix + k }

// bound gives a context that ends with ctx, with the store, and after the time
// that one call may take.
func (s *Store) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.CallTimeout)
	stop := context.AfterFunc(s.life, cancel)
	return ctx, func() { stop(); cancel() }
}

// get reads one key, or more with options; linearizable.
func (s *Store) get(ctx context.Context, op, k string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	before := s.newestSeen()
	resp, err := s.client.Get(ctx, s.key(k), opts...)
	if err != nil {
		return nil, s.fail(op, err)
	}
	s.observe(resp.Header, before)
	return resp, nil
}

// txn is one transaction. It is sent once.
func (s *Store) txn(ctx context.Context, op string, t txn) (*clientv3.TxnResponse, error) {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	before := s.newestSeen()
	resp, err := s.client.Txn(ctx).If(t.cond...).Then(t.then...).Else(t.otherwise...).Commit()
	if err != nil {
		return nil, s.fail(op, err)
	}
	s.observe(resp.Header, before)
	return resp, nil
}

type txn struct {
	cond            []clientv3.Cmp
	then, otherwise []clientv3.Op
}

func (s *Store) newestSeen() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.newest
}

// observe looks at an answer's revision. A linearizable read that was sent when
// revision before was already known cannot be older, unless etcd was put back to
// an older state; the same is true when it says that it is another cluster.
func (s *Store) observe(h *etcdserverpb.ResponseHeader, before int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if h.Revision < before || s.cluster != 0 && h.ClusterId != s.cluster {
		s.cfg.Logger.Warn("etcd was put back to an older state; everything is read again",
			"revision", h.Revision, "seen", before, "cluster", h.ClusterId, "seenCluster", s.cluster)
		s.newest, s.cluster = h.Revision, h.ClusterId
		close(s.rewound)
		s.rewound = make(chan struct{})
		return
	}
	s.cluster, s.newest = h.ClusterId, max(s.newest, h.Revision)
}

func (s *Store) rewoundChan() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rewound
}

// fail gives an error of the etcd client its kind.
func (s *Store) fail(op string, err error) error {
	if s.life.Err() != nil {
		return holdfast.E(op, holdfast.Unavailable, "the metadata store is closed")
	}
	kind := kindOf(err)
	if kind == holdfast.Unavailable && (errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)) {
		return &holdfast.Error{Op: op, Kind: kind, Msg: fmt.Sprintf("etcd at %s does not answer; a change may or may not have happened",
			strings.Join(s.cfg.Endpoints, ", ")), Err: err}
	}
	return holdfast.WrapKind(op, kind, err)
}

// kindOf is the kind of an error of the etcd client. What is not known not to
// have happened is Unavailable.
func kindOf(err error) holdfast.Kind {
	for _, denied := range []error{rpctypes.ErrAuthFailed, rpctypes.ErrPermissionDenied, rpctypes.ErrUserEmpty,
		rpctypes.ErrUserNotFound, rpctypes.ErrInvalidAuthToken, rpctypes.ErrInvalidAuthMgmt} {
		if errors.Is(err, denied) {
			return holdfast.Denied
		}
	}
	switch {
	case errors.Is(err, rpctypes.ErrNoSpace):
		return holdfast.NoSpace
	case errors.Is(err, rpctypes.ErrRequestTooLarge), errors.Is(err, rpctypes.ErrTooManyOps):
		return holdfast.OutOfRange
	case errors.Is(err, rpctypes.ErrCorrupt):
		return holdfast.Corrupt
	}
	return holdfast.Unavailable
}

// skip reports a value that a list or a watch leaves out.
func (s *Store) skip(key string, err error) {
	s.cfg.Logger.Error("a value in the metadata store cannot be understood and is left out", "key", key, "error", err)
	if s.cfg.OnCorrupt != nil {
		s.cfg.OnCorrupt(key, err)
	}
}

// Cluster is the cluster's identity, made by the first caller.
func (s *Store) Cluster(ctx context.Context) (holdfast.ClusterID, error) {
	const op = "read the cluster's identity"
	data, err := layout.EncodeCluster(holdfast.NewClusterID())
	if err != nil {
		return "", err
	}
	k := s.key(layout.ClusterKey)
	resp, err := s.txn(ctx, op, txn{
		cond:      []clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(k), "=", 0)},
		then:      []clientv3.Op{clientv3.OpPut(k, string(data))},
		otherwise: []clientv3.Op{clientv3.OpGet(k)},
	})
	if err != nil {
		return "", err
	}
	if !resp.Succeeded {
		data = resp.Responses[0].GetResponseRange().Kvs[0].Value
	}
	id, err := layout.DecodeCluster(data)
	return id, holdfast.Wrap(op, err)
}
