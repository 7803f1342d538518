package etcd

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/metadata"
	"github.com/holdfast-storage/holdfast/metadata/internal/keep"
	"github.com/holdfast-storage/holdfast/metadata/internal/layout"
)

// bootTime goes on while the process, or the whole machine, is stopped.
func bootTime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		// It exists since Linux 2.6.39, and a lease without a clock is no lease.
		panic(fmt.Sprintf("the clock CLOCK_BOOTTIME cannot be read: %v", err))
	}
	return time.Duration(t.Nano())
}

// taken is a key on a fresh lease.
type taken struct {
	key   string
	value string
	ttl   time.Duration
	id    clientv3.LeaseID
	at    time.Duration // when the lease was asked for
}

// Join takes a node's lease.
func (s *Store) Join(ctx context.Context, id holdfast.NodeID, instance string, ttl time.Duration) (metadata.Lease, error) {
	if err := holdfast.ValidateNodeID(id); err != nil {
		return nil, err
	}
	op := "join as node " + string(id)
	if instance == "" || ttl <= 0 {
		return nil, holdfast.E(op, holdfast.Invalid, "an instance and a time to live are needed")
	}
	t := taken{key: s.key(layout.AliveKey(id)), value: instance, ttl: ttl}
	holder, err := s.take(ctx, op, &t)
	if err != nil {
		return nil, err
	}
	if holder != instance {
		return nil, holdfast.E(op, holdfast.InUse, fmt.Sprintf("instance %q of the node holds its lease; stop it, or wait until the lease runs out", holder))
	}
	return s.keep(s.life, t), nil
}

// take puts a key on a new lease, if nobody or the same holder has it, and says
// who holds it then.
func (s *Store) take(ctx context.Context, op string, t *taken) (holder string, err error) {
	t.at = bootTime()
	grant, cancel := s.bound(ctx)
	resp, err := s.client.Grant(grant, int64((t.ttl+time.Second-1)/time.Second))
	cancel()
	if err != nil {
		return "", s.fail(op, err)
	}
	t.id = resp.ID
	holder, err = s.putLeased(ctx, op, t)
	if err != nil || holder != t.value {
		// Also when the outcome is unknown: the key goes with its lease.
		go s.revoke(t.id)
	}
	return holder, err
}

func (s *Store) putLeased(ctx context.Context, op string, t *taken) (holder string, err error) {
	put := clientv3.OpPut(t.key, t.value, clientv3.WithLease(t.id))
	revision := int64(0)
	for {
		resp, err := s.txn(ctx, op, txn{
			cond:      []clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(t.key), "=", revision)},
			then:      []clientv3.Op{put},
			otherwise: []clientv3.Op{clientv3.OpGet(t.key)},
		})
		if err != nil {
			return "", err
		}
		if resp.Succeeded {
			return t.value, nil
		}
		revision = 0
		if kvs := resp.Responses[0].GetResponseRange().Kvs; len(kvs) > 0 {
			if holder = string(kvs[0].Value); holder != t.value {
				return holder, nil
			}
			revision = kvs[0].ModRevision // ours from before: take it over
		}
	}
}

// revoke gives a lease back, and with it the keys that are on it.
func (s *Store) revoke(id clientv3.LeaseID) error {
	ctx, cancel := s.bound(context.Background())
	defer cancel()
	_, err := s.client.Revoke(ctx, id)
	if err != nil && !errors.Is(err, rpctypes.ErrLeaseNotFound) {
		return s.fail("give a lease back", err)
	}
	return nil
}

// keep refreshes a lease until ctx ends.
func (s *Store) keep(ctx context.Context, t taken) *keep.Lease {
	ctx, cancel := context.WithCancel(ctx)
	r := &refresher{s: s, taken: t, life: ctx}
	opened, done := context.WithTimeout(ctx, t.ttl/3)
	_ = r.open(opened) // the login is done before it is urgent; if it fails it is tried again
	done()
	kept := keep.New(ctx, keep.Config{
		TTL:     t.ttl,
		Clock:   bootTime,
		Taken:   t.at,
		Refresh: r.refresh,
		Release: func(context.Context) error {
			cancel()
			return s.revoke(t.id)
		},
	})
	go func() {
		<-kept.Lost()
		cancel()
	}()
	return kept
}

// refresher confirms one lease over and over, on one stream: the etcd client
// logs in each time that a stream is opened, which is slow work for the server.
type refresher struct {
	s       *Store
	taken   taken
	life    context.Context
	stream  *stream      // nil when there is none
	opening chan *stream // nil when none is being opened
}

type stream struct {
	etcdserverpb.Lease_LeaseKeepAliveClient
	cancel context.CancelFunc
	err    error // why it could not be opened
}

// refresh confirms the lease, and that the key is still on it: another lease of
// the same holder, or an etcd that was put back, takes the key away without
// ending the lease. The read is linearizable, so that a member that was cut off
// or stopped cannot confirm anything.
func (r *refresher) refresh(ctx context.Context) error {
	const op = "refresh a lease"
	ttl, err := r.extend(ctx)
	if err != nil {
		return r.s.fail(op, err)
	}
	if ttl <= 0 {
		return holdfast.E(op, holdfast.NotFound, "it has run out")
	}
	resp, err := r.s.client.Get(ctx, r.taken.key)
	if err != nil {
		return r.s.fail(op, err)
	}
	if len(resp.Kvs) == 0 || clientv3.LeaseID(resp.Kvs[0].Lease) != r.taken.id {
		return holdfast.E(op, holdfast.NotFound, "its key is gone or on another lease")
	}
	return nil
}

// extend asks for the lease's whole time anew, and gives what the server
// answers: 0 when the lease is gone. Whatever goes wrong ends the stream, so
// that an answer always belongs to the question just asked.
func (r *refresher) extend(ctx context.Context) (ttl int64, err error) {
	if err := r.open(ctx); err != nil {
		return 0, clientv3.ContextError(ctx, err)
	}
	var resp *etcdserverpb.LeaseKeepAliveResponse
	stop := context.AfterFunc(ctx, r.stream.cancel)
	if err = r.stream.Send(&etcdserverpb.LeaseKeepAliveRequest{ID: int64(r.taken.id)}); err == nil {
		resp, err = r.stream.Recv()
	}
	if !stop() && err == nil {
		err = ctx.Err() // the stream has just been ended
	}
	if err != nil {
		r.stream.cancel()
		r.stream = nil
		return 0, clientv3.ContextError(ctx, err)
	}
	return resp.TTL, nil
}

// open makes sure that there is a stream. Opening one may take longer than ctx
// allows: it goes on, and the next call finds it.
func (r *refresher) open(ctx context.Context) error {
	if r.stream != nil {
		return nil
	}
	if r.opening == nil {
		opening := make(chan *stream, 1)
		r.opening = opening
		go func() {
			life, cancel := context.WithCancel(r.life)
			timer := time.AfterFunc(r.s.cfg.CallTimeout, cancel)
			c, err := etcdserverpb.NewLeaseClient(r.s.client.ActiveConnection()).LeaseKeepAlive(life)
			if !timer.Stop() && err == nil {
				err = context.DeadlineExceeded
			}
			if err != nil {
				cancel()
			}
			opening <- &stream{c, cancel, err}
		}()
	}
	select {
	case opened := <-r.opening:
		r.opening = nil
		if opened.err == nil {
			r.stream = opened
		}
		return opened.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Campaign waits until this candidate leads.
func (s *Store) Campaign(ctx context.Context, candidate string) (context.Context, func(), error) {
	const op = "campaign"
	if candidate == "" {
		return nil, nil, holdfast.E(op, holdfast.Invalid, "a candidate needs a name")
	}
	// Unlike a node's instance, two campaigns under one name are two candidates.
	t := taken{key: s.key(layout.LeaderKey), value: candidate, ttl: s.cfg.LeaderTTL}
	for {
		won, held, err := s.runFor(ctx, op, &t)
		if err == nil && won {
			return s.lead(ctx, t)
		}
		if kind := holdfast.KindOf(err); kind == holdfast.Denied || kind == holdfast.NoSpace {
			return nil, nil, err
		}
		if held > 0 {
			s.waitGone(ctx, t.key, held)
		}
		select {
		case <-ctx.Done():
			return nil, nil, holdfast.WrapKind(op, holdfast.Unavailable, context.Cause(ctx))
		case <-s.life.Done():
			return nil, nil, holdfast.E(op, holdfast.Unavailable, "the metadata store is closed")
		case <-time.After(watchRetry / 2):
		}
	}
}

// runFor tries once to become the leader; held is the revision at which another
// one became it.
func (s *Store) runFor(ctx context.Context, op string, t *taken) (won bool, held int64, err error) {
	resp, err := s.get(ctx, op, layout.LeaderKey)
	if err != nil {
		return false, 0, err
	}
	if len(resp.Kvs) > 0 {
		return false, resp.Kvs[0].ModRevision, nil
	}
	t.at = bootTime()
	bounded, cancel := s.bound(ctx)
	defer cancel()
	grant, err := s.client.Grant(bounded, int64((t.ttl+time.Second-1)/time.Second))
	if err != nil {
		return false, 0, s.fail(op, err)
	}
	t.id = grant.ID
	put, err := s.txn(ctx, op, txn{
		cond: []clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(t.key), "=", 0)},
		then: []clientv3.Op{clientv3.OpPut(t.key, t.value, clientv3.WithLease(t.id))},
	})
	if err != nil || !put.Succeeded {
		_ = s.revoke(t.id)
		return false, 0, err
	}
	return true, 0, nil
}

// waitGone returns when the key was deleted, and at the latest after a while:
// the caller looks again.
func (s *Store) waitGone(ctx context.Context, key string, revision int64) {
	ctx, cancel := s.bound(clientv3.WithRequireLeader(ctx))
	defer cancel()
	for w := range s.client.Watch(ctx, key, clientv3.WithRev(revision+1), clientv3.WithFilterPut()) {
		if w.Err() != nil || len(w.Events) > 0 {
			return
		}
	}
}

func (s *Store) lead(ctx context.Context, t taken) (context.Context, func(), error) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(s.life, func() { cancel(holdfast.E("lead", holdfast.Unavailable, "the metadata store is closed")) })
	kept := s.keep(ctx, t)
	go func() {
		<-kept.Lost()
		cancel(holdfast.E("lead", holdfast.Fenced, "the leadership has ended"))
		stop()
	}()
	return ctx, func() { _ = kept.Close() }, nil
}

// Leader names the present leader.
func (s *Store) Leader(ctx context.Context) (string, error) {
	resp, err := s.get(ctx, "ask who leads", layout.LeaderKey)
	if err != nil || len(resp.Kvs) == 0 {
		return "", err
	}
	return string(resp.Kvs[0].Value), nil
}
