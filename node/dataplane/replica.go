package dataplane

import (
	"context"
	"sync"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/replication"
)

// localReplica is a replica that is served here.
type localReplica struct {
	v       *volume
	id      holdfast.ReplicaID
	machine *replication.Replica
	store   *store
	conns   map[*tcpConn]struct{} // guarded by the volume's mutex

	closing sync.Once
	closed  chan struct{} // closed when the engine replica is, with err
	err     error
}

// addReplica serves a replica from now on. Exists if it is served already.
func (p *Plane) addReplica(vol holdfast.VolumeID, id holdfast.ReplicaID, back backing) error {
	v, err := p.acquire(vol)
	if err != nil {
		return err
	}
	r := &localReplica{v: v, id: id, store: newStore(v, back), conns: map[*tcpConn]struct{}{}, closed: make(chan struct{})}
	r.machine = replication.NewReplica(replication.ReplicaConfig{Cluster: p.cfg.Cluster, Volume: vol, Replica: id, Clock: p.clock, Room: r.room}, r.store)
	r.store.done1 = r.machine.OnDone
	v.step(func() {
		if err = p.enroll(r); err == nil {
			v.replicas[id] = r
		}
	})
	if err != nil {
		p.release(v)
	}
	return err
}

// enroll makes a replica known, so that it can be removed and Close finds it.
func (p *Plane) enroll(r *localReplica) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	op := "serve replica " + string(r.id)
	if p.closed {
		return p.stopping(op)
	}
	if p.replicas[r.id] != nil {
		return holdfast.E(op, holdfast.Exists, "it is served already, or not yet closed; wait for its removal to end")
	}
	p.replicas[r.id] = r
	return nil
}

// RemoveReplica stops a replica's sessions, waits for its tasks and closes the
// engine replica; one that is not served is fine. When ctx ends first the error
// is of kind Unavailable and the removal goes on; the same call waits for it.
func (p *Plane) RemoveReplica(ctx context.Context, id holdfast.ReplicaID) error {
	p.mu.Lock()
	r := p.replicas[id]
	p.mu.Unlock()
	if r == nil {
		return nil
	}
	r.beginClose()
	select {
	case <-r.closed:
		return holdfast.Wrap("remove replica "+string(id), r.err)
	case <-ctx.Done():
		return holdfast.WrapKind("remove replica "+string(id)+": its last tasks are not done yet; repeat the call to wait", holdfast.Unavailable, ctx.Err())
	}
}

// beginClose stops the sessions at once and closes the engine replica when the
// last task is done.
func (r *localReplica) beginClose() {
	r.closing.Do(func() {
		r.v.step(func() {
			delete(r.v.replicas, r.id)
			r.machine.Close()
			for c := range r.conns {
				c.Close()
			}
		})
		r.store.drain()
		p := r.v.plane
		go func() {
			<-r.store.gone
			r.err = r.store.back.Close()
			p.mu.Lock()
			delete(p.replicas, r.id)
			p.mu.Unlock()
			p.release(r.v)
			close(r.closed)
		}()
	})
}

// ReplicaStatus is how a replica served here is.
type ReplicaStatus struct {
	Volume  holdfast.VolumeID
	Replica holdfast.ReplicaID
	Promise replication.Promise
	Failure string // why it serves nothing any more; empty while it does
	Conns   int    // connections of primaries on other nodes
	Tasks   int    // in the store or waiting for it
	// Waiting is since when there are tasks and none was done; zero without tasks.
	Waiting time.Time
}

// Replicas lists the replicas served here, in no order.
func (p *Plane) Replicas() []ReplicaStatus {
	p.mu.Lock()
	var rs []*localReplica
	for _, r := range p.replicas {
		rs = append(rs, r)
	}
	p.mu.Unlock()
	out := make([]ReplicaStatus, 0, len(rs))
	for _, r := range rs {
		out = append(out, r.status())
	}
	return out
}

// Replica is one of the replicas served here.
func (p *Plane) Replica(id holdfast.ReplicaID) (ReplicaStatus, bool) {
	p.mu.Lock()
	r := p.replicas[id]
	p.mu.Unlock()
	if r == nil {
		return ReplicaStatus{}, false
	}
	return r.status(), true
}

func (r *localReplica) status() ReplicaStatus {
	tasks, since := r.store.waiting()
	r.v.lock()
	defer r.v.unlock()
	s := ReplicaStatus{Volume: r.v.id, Replica: r.id, Promise: r.machine.Promise(), Conns: len(r.conns), Tasks: tasks, Waiting: since}
	if err := r.machine.Failure(); err != nil {
		s.Failure = err.Error()
	}
	return s
}
