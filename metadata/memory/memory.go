// Package memory is the metadata store in memory: for tests, and the second
// implementation that keeps the contract honest.
//
// It promises what package metadata promises, without durability: everything is
// gone with the process. It keeps the same JSON under the same keys as the etcd
// store. Several clients may share one store, as several nodes share one etcd,
// and each can be made to fail on its own: no answer, late answers, answers lost
// after the change was made (see Fault), a node's lease that runs out now, and a
// store that was put back to an older state.
//
// It owns one goroutine per lease that is held and per leadership; none else.
// Time is package time's, so it can run in a testing/synctest bubble.
package memory

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/metadata"
	"github.com/holdfast-storage/holdfast/metadata/internal/keep"
	"github.com/holdfast-storage/holdfast/metadata/internal/layout"
)

var _ metadata.Store = (*Store)(nil)

// Store is one client of a store in memory.
type Store struct {
	db    *db
	close context.CancelFunc
	life  context.Context // ends with Close

	mu        sync.Mutex
	down      bool
	inject    func(Op) Fault
	onCorrupt func(key string, err error)
}

// db is what all clients share: a small key-value store with revisions.
type db struct {
	made     time.Time // with its monotonic reading
	mu       sync.Mutex
	revision int64
	values   map[string]value
	leases   map[string]lease // by key: alive/<id>, leader
	restored int              // how many times Restore was called
	changed  chan struct{}    // closed and replaced at every change
}

type value struct {
	data     []byte
	revision int64
}

type lease struct {
	holder  string
	token   int64 // tells this lease from an earlier one of the same holder
	ttl     time.Duration
	expires time.Time
}

// New makes an empty store and its first client.
func New() *Store {
	return newClient(&db{made: time.Now(), values: map[string]value{}, leases: map[string]lease{}, changed: make(chan struct{})})
}

// Client is another client of the same store, with faults of its own: as
// another node's connection.
func (s *Store) Client() *Store { return newClient(s.db) }

func newClient(d *db) *Store {
	s := &Store{db: d}
	s.life, s.close = context.WithCancel(context.Background())
	return s
}

// OnCorrupt sets who is told of values that lists and watches leave out.
func (s *Store) OnCorrupt(f func(key string, err error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.onCorrupt = f
}

// Close ends this client: its leases are no longer refreshed, its watches end.
func (s *Store) Close() error {
	s.close()
	return nil
}

// Cluster is the cluster's identity, made by the first caller.
func (s *Store) Cluster(ctx context.Context) (holdfast.ClusterID, error) {
	var id holdfast.ClusterID
	err := s.do(ctx, Op{Name: "Cluster"}, func(d *db) error {
		v, ok := d.values[layout.ClusterKey]
		if !ok {
			data, err := layout.EncodeCluster(holdfast.NewClusterID())
			if err != nil {
				return err
			}
			v = d.put(layout.ClusterKey, data)
		}
		var err error
		id, err = layout.DecodeCluster(v.data)
		return err
	})
	return id, err
}

// put stores a value under the next revision. The caller holds mu.
func (d *db) put(key string, data []byte) value {
	d.revision++
	v := value{data: slices.Clone(data), revision: d.revision}
	d.values[key] = v
	d.notify()
	return v
}

// drop removes keys under one revision. The caller holds mu.
func (d *db) drop(keys ...string) {
	d.revision++
	for _, k := range keys {
		delete(d.values, k)
	}
	d.notify()
}

func (d *db) notify() {
	close(d.changed)
	d.changed = make(chan struct{})
}

// list gives the keys in a folder, in order.
func (d *db) list(folder string) []string {
	var keys []string
	for _, k := range slices.Sorted(maps.Keys(d.values)) {
		if strings.HasPrefix(k, folder) {
			keys = append(keys, k)
		}
	}
	return keys
}

// holder is who holds a lease now, as far as it has not run out.
func (d *db) holder(key string) (lease, bool) {
	l, ok := d.leases[key]
	return l, ok && time.Now().Before(l.expires)
}

// take gives a lease to a holder, who may be its present one.
func (d *db) take(key, holder string, ttl time.Duration) lease {
	d.revision++
	l := lease{holder: holder, token: d.revision, ttl: ttl, expires: time.Now().Add(ttl)}
	d.leases[key] = l
	d.notify()
	return l
}

// keep refreshes a lease in the background, through this client's faults.
// It does so until ctx or this client ends.
func (s *Store) keep(ctx context.Context, key string, l lease, taken time.Duration) *keep.Lease {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(s.life, cancel)
	// valid runs f if the lease is still there and is this one.
	valid := func(ctx context.Context, op string, f func(d *db)) error {
		return s.do(ctx, Op{Name: op, Subject: key}, func(d *db) error {
			if now, ok := d.holder(key); !ok || now.token != l.token {
				return holdfast.E("refresh lease "+key, holdfast.NotFound, "it has run out")
			}
			f(d)
			return nil
		})
	}
	return keep.New(ctx, keep.Config{
		TTL:   l.ttl,
		Clock: s.db.now,
		Taken: taken,
		Refresh: func(ctx context.Context) error {
			return valid(ctx, "Refresh", func(d *db) {
				l.expires = time.Now().Add(l.ttl)
				d.leases[key] = l
			})
		},
		Release: func(ctx context.Context) error {
			stop()
			cancel()
			err := valid(ctx, "Release", func(d *db) {
				delete(d.leases, key)
				d.notify()
			})
			if holdfast.KindOf(err) == holdfast.NotFound {
				return nil
			}
			return err
		},
	})
}

// now is monotonic time since the store was made.
func (d *db) now() time.Duration { return time.Since(d.made) }
