package dataplane

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/metadata"
)

// Plane runs the primaries and replicas of one node: New, then everything else
// from any goroutine, then Close.
type Plane struct {
	cfg   Config
	log   *slog.Logger
	clock sinceStart

	life context.Context // ends with Close
	end  context.CancelFunc
	work sync.WaitGroup // every goroutine

	asked   atomic.Uint64 // see Volume.Asked
	buffers readBuffers
	repairs *repairs

	mu        sync.Mutex // a leaf: see the package comment
	closed    bool
	volumes   map[holdfast.VolumeID]*volume
	replicas  map[holdfast.ReplicaID]*localReplica // until they are closed
	primaries map[*Volume]struct{}
	ticks     ticks
	opening   map[holdfast.VolumeID]*opening
	listeners map[net.Listener]struct{}
	conns     map[net.Conn]struct{}
	addrs     map[holdfast.NodeID]knownAddr
	lost      map[holdfast.NodeID]*lost
}

// New makes a plane and starts its ticks and its watch. Close it. The error is
// of kind Invalid.
func New(cfg Config) (*Plane, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	p := &Plane{
		cfg: cfg.withDefaults(), log: cfg.Log, clock: sinceStart{time.Now()},
		volumes: map[holdfast.VolumeID]*volume{}, replicas: map[holdfast.ReplicaID]*localReplica{},
		primaries: map[*Volume]struct{}{}, ticks: newTicks(), opening: map[holdfast.VolumeID]*opening{},
		listeners: map[net.Listener]struct{}{}, conns: map[net.Conn]struct{}{}, addrs: map[holdfast.NodeID]knownAddr{}, lost: map[holdfast.NodeID]*lost{},
	}
	p.repairs = newRepairs(p)
	p.life, p.end = context.WithCancel(context.Background())
	p.spawn(p.tick)
	p.spawn(p.watch)
	return p, nil
}

// Close stops everything: primaries end at once, their requests fail with
// Unavailable and their grants stay in the records (Release gives them back);
// connections break; tasks in the stores finish; the engine replicas are closed.
// On return none of the plane's goroutines is left.
func (p *Plane) Close() error {
	p.mu.Lock()
	p.closed = true
	var primaries []*Volume
	for h := range p.primaries {
		primaries = append(primaries, h)
	}
	var replicas []*localReplica
	for _, r := range p.replicas {
		replicas = append(replicas, r)
	}
	p.mu.Unlock()
	p.end()
	for _, h := range primaries {
		h.Abort()
	}
	p.cut()
	errs := make([]error, 0, len(replicas))
	for _, r := range replicas {
		r.beginClose()
		<-r.closed
		errs = append(errs, r.err)
	}
	p.work.Wait()
	return holdfast.Wrap("close data plane", errors.Join(errs...))
}

// cut closes all listeners and connections.
func (p *Plane) cut() {
	var cs []io.Closer
	p.mu.Lock()
	for l := range p.listeners {
		cs = append(cs, l)
	}
	for nc := range p.conns {
		cs = append(cs, nc)
	}
	p.mu.Unlock()
	for _, c := range cs {
		_ = c.Close()
	}
}

// spawn runs f as one of the plane's goroutines; false when it is closing.
func (p *Plane) spawn(f func()) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	p.work.Add(1)
	go func() {
		defer p.work.Done()
		f()
	}()
	return true
}

// acquire gives the volume's struct, made if needed, until release. It fails
// with Unavailable when the plane is closing.
func (p *Plane) acquire(id holdfast.VolumeID) (*volume, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, p.stopping("use volume " + string(id))
	}
	v := p.volumes[id]
	if v == nil {
		v = &volume{plane: p, id: id, replicas: map[holdfast.ReplicaID]*localReplica{}}
		p.volumes[id] = v
	}
	v.refs++
	return v, nil
}

// find is acquire for a volume that is known here; nil if it is not.
func (p *Plane) find(id holdfast.VolumeID) *volume {
	p.mu.Lock()
	defer p.mu.Unlock()
	v := p.volumes[id]
	if v != nil {
		v.refs++
	}
	return v
}

func (p *Plane) release(v *volume) {
	p.mu.Lock()
	defer p.mu.Unlock()
	v.refs--
	if v.refs == 0 {
		delete(p.volumes, v.id)
	}
}

func (p *Plane) stopping(op string) error {
	return holdfast.E(op, holdfast.Unavailable, "this node's data plane is stopping")
}

// keep registers a connection, so that Close breaks it; false when the plane is
// closing: the connection is closed then.
func (p *Plane) keep(nc net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		_ = nc.Close()
		return false
	}
	p.conns[nc] = struct{}{}
	return true
}

// drop forgets a connection and closes it; again is fine.
func (p *Plane) drop(nc net.Conn) {
	p.mu.Lock()
	delete(p.conns, nc)
	p.mu.Unlock()
	_ = nc.Close()
}

// watch tells the primaries of changes of their records by others.
func (p *Plane) watch() {
	for p.life.Err() == nil {
		err := p.cfg.Volumes.WatchVolumes(p.life, p.seen)
		if p.life.Err() != nil {
			return
		}
		p.log.Warn("the watch of the volumes' records broke; it is started again", "err", err)
		pause(p.life, time.Second)
	}
}

func (p *Plane) seen(e metadata.VolumeEvent) {
	if e.ID == "" {
		return
	}
	v := p.find(e.ID)
	if v == nil {
		return
	}
	defer p.release(v)
	v.step(func() {
		switch {
		case v.primary == nil:
		case e.Deleted:
			v.primary.machine.OnDeleted()
		default:
			v.primary.machine.OnRecord(e.Record)
			if v.primary != nil {
				v.primary.adoptLimits()
			}
		}
	})
}

// pause waits for d, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
