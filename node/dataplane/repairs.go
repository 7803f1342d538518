package dataplane

import (
	"cmp"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/replication"
)

// repairs is the budget of a node.
type repairs struct {
	plane *Plane
	most  int // at once

	mu      sync.Mutex // a leaf
	pace    *pace
	running map[holdfast.ReplicaID]bool
	queue   []holdfast.ReplicaID
	guests  turns // of repairs by primaries elsewhere
}

func newRepairs(p *Plane) *repairs {
	return &repairs{plane: p, most: p.cfg.Repairs, pace: newPace(p.cfg.RepairRate), running: map[holdfast.ReplicaID]bool{},
		guests: turns{most: p.cfg.Repairs, running: map[holdfast.ReplicaID]time.Duration{}}}
}

// gate is the budget as one volume's primary uses it.
type gate struct {
	*repairs
	v *volume
}

// Turn implements replication.RepairGate: whoever asked first is first.
func (r *repairs) Turn(id holdfast.ReplicaID) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.running[id] {
		return ""
	}
	at := slices.Index(r.queue, id)
	if at < 0 {
		at = len(r.queue)
		r.queue = append(r.queue, id)
	}
	if len(r.running)+at < r.most {
		r.queue = slices.Delete(r.queue, at, at+1)
		r.running[id] = true
		return ""
	}
	return fmt.Sprintf("its turn: %d repairs at once on node %s", r.most, r.plane.cfg.Self)
}

// Done implements replication.RepairGate.
func (r *repairs) Done(id holdfast.ReplicaID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.running, id)
	r.queue = slices.DeleteFunc(r.queue, func(x holdfast.ReplicaID) bool { return x == id })
}

// Served implements replication.RepairGate.
func (r *repairs) Served(op replication.Op, bytes int64, took time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pace.served(op, bytes, took, r.plane.clock.Now())
}

// Take implements replication.RepairGate.
func (g gate) Take(n int64, again func()) bool {
	g.mu.Lock()
	wait := g.pace.take(n, g.plane.clock.Now())
	g.mu.Unlock()
	if wait <= 0 {
		return true
	}
	g.plane.spawn(func() {
		pause(g.plane.life, wait)
		g.v.step(again)
	})
	return false
}

// room says after which time it is worth asking again whether a repair by a
// primary elsewhere may copy n bytes to or from a replica here; 0: it may now.
// Small repairs need no turn, nor do sources, where nothing is left.
func (r *repairs) room(id holdfast.ReplicaID, n, left int64) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.plane.clock.Now()
	small := cmp.Or(r.plane.cfg.Primary.SmallRepair, replication.DefaultConfig().SmallRepair)
	if left > small && !r.guests.turn(id, now) {
		return turnAsk
	}
	return r.pace.take(n, now)
}

// room is replication.ReplicaConfig.Room for this replica.
func (r *localReplica) room(n, left int64, again func()) bool {
	p := r.v.plane
	wait := p.repairs.room(r.id, n, left)
	if wait <= 0 {
		return true
	}
	p.spawn(func() {
		pause(p.life, wait)
		r.v.step(again)
	})
	return false
}
