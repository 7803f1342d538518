package dataplane

import (
	"context"
	"errors"
	"net"
	"syscall"
	"time"

	"github.com/holdfast-storage/holdfast"
)

// dialer connects one primary to its replicas. It implements
// replication.Dialer.
type dialer struct{ h *Volume }

// Dial starts a connection; called within a step.
func (d dialer) Dial(to holdfast.Replica, attempt uint64) {
	h := d.h
	v := h.v
	if rep := v.replicas[to.ID]; rep != nil {
		v.later(func() {
			ours, _ := v.pair(h.machine, rep.machine)
			h.machine.OnConnected(attempt, ours)
		})
		return
	}
	if to.Node == v.plane.cfg.Self {
		v.later(func() {
			h.machine.OnDialFailed(attempt, holdfast.E("connect to replica "+string(to.ID), holdfast.Unavailable,
				"it is not open on this node: its pool is missing or has failed"))
		})
		return
	}
	if err := v.plane.unreachable(to.Node); err != nil {
		v.later(func() { h.machine.OnDialFailed(attempt, err) })
		return
	}
	if !v.plane.spawn(func() { d.dial(to, attempt) }) {
		v.later(func() { h.machine.OnDialFailed(attempt, v.plane.stopping("connect to replica "+string(to.ID))) })
	}
}

// dial connects over the network and then reads until the connection ends.
func (d dialer) dial(to holdfast.Replica, attempt uint64) {
	h := d.h
	nc, err := h.v.plane.connect(to.Node)
	if err != nil {
		h.v.step(func() { h.machine.OnDialFailed(attempt, notReached(to.Node, err)) })
		return
	}
	defer h.v.plane.drop(nc)
	c := newTCPConn(h.v, nc, h.machine)
	h.v.step(func() { h.machine.OnConnected(attempt, c) })
	c.run(h.v.plane.buffers.get(nc))
}

// unreachableFor is how long a node that could not be reached is not tried again, by
// whichever volume: with a thousand volumes that miss a replica there it would be
// tried a thousand times a second.
const unreachableFor = 200 * time.Millisecond

// lost is a node that could not be reached.
type lost struct {
	err    error
	until  time.Time // not tried again before
	trying bool      // somebody does
}

// unreachable is why a node is not tried now; nil if it is to be. Who is told nil
// tells the outcome, see reached.
func (p *Plane) unreachable(node holdfast.NodeID) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	x := p.lost[node]
	if x == nil {
		return nil
	}
	if x.trying || time.Now().Before(x.until) {
		return notReached(node, x.err)
	}
	x.trying = true
	return nil
}

func notReached(node holdfast.NodeID, err error) error {
	kind := holdfast.Unavailable
	if errors.Is(err, syscall.ECONNREFUSED) {
		kind = holdfast.NotFound // its kernel says that nobody listens
	}
	return holdfast.WrapKind("connect to node "+string(node), kind, err)
}

// reached notes how an attempt to reach a node went.
func (p *Plane) reached(node holdfast.NodeID, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil {
		delete(p.lost, node)
	} else {
		p.lost[node] = &lost{err: err, until: time.Now().Add(unreachableFor)}
	}
}

// connect makes a connection to a node, within DialTimeout, and keeps it.
func (p *Plane) connect(node holdfast.NodeID) (net.Conn, error) {
	nc, err := p.connectOnce(node)
	p.reached(node, err)
	return nc, err
}

func (p *Plane) connectOnce(node holdfast.NodeID) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(p.life, p.cfg.DialTimeout)
	defer cancel()
	addr, err := p.addr(ctx, node)
	if err != nil {
		return nil, err
	}
	nc, err := p.cfg.Dial(ctx, addr)
	if err != nil {
		return nil, err
	}
	if !p.keep(nc) {
		return nil, p.stopping("connect to " + addr)
	}
	return nc, nil
}

// addrFresh is how long a node's address is used without asking again: with
// many volumes a lost node would cost the metadata store many reads.
const addrFresh = time.Second

// knownAddr is an answer of Config.Addr.
type knownAddr struct {
	addr  string
	asked time.Time
}

// addr finds a node's data address. Half of the time is for asking, so that the
// last known address is still dialled when the metadata store does not answer.
func (p *Plane) addr(ctx context.Context, node holdfast.NodeID) (string, error) {
	p.mu.Lock()
	known, ok := p.addrs[node]
	p.mu.Unlock()
	if ok && time.Since(known.asked) < addrFresh {
		return known.addr, nil
	}
	ask, cancel := context.WithTimeout(ctx, p.cfg.DialTimeout/2)
	defer cancel()
	addr, err := p.cfg.Addr(ask, node)
	if err != nil {
		if ok {
			return known.addr, nil
		}
		return "", err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.addrs[node] = knownAddr{addr, time.Now()}
	return addr, nil
}
