package dataplane

import (
	"context"
	"net"
	"sync"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/replication"
	"github.com/holdfast-storage/holdfast/replication/wire"
)

// outsiders asks the nodes that live what replicas of a volume they have, whether
// the record names them or not. It implements replication.Outsiders.
type outsiders struct{ h *Volume }

// Ask starts to ask; called within a step. Who does not answer within DialTimeout
// is not heard.
func (o outsiders) Ask() {
	v := o.h.v
	var here []replication.Outsider
	if x := v.known(); x.Promise > 0 {
		here = append(here, x)
	}
	if !v.plane.spawn(func() { o.ask(here) }) {
		v.later(func() { o.h.machine.OnOutsiders(here) })
	}
}

func (o outsiders) ask(heard []replication.Outsider) {
	v := o.h.v
	p := v.plane
	ctx, cancel := context.WithTimeout(p.life, p.cfg.DialTimeout)
	defer cancel()
	nodes, err := p.cfg.Others(ctx)
	if err != nil {
		p.log.Warn("the nodes are not known: none is asked whether it has a newer replica than the record says", "volume", string(v.id), "err", err)
	}
	var mu sync.Mutex
	var all sync.WaitGroup
	for _, n := range nodes {
		all.Go(func() {
			x, err := p.askNode(n, v.id)
			if err != nil {
				p.log.Debug("a node does not say what replicas it has", "node", string(n), "volume", string(v.id), "err", err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			heard = append(heard, x)
		})
	}
	all.Wait()
	v.step(func() { o.h.machine.OnOutsiders(heard) })
}

// askNode sends a Hello without a replica.
func (p *Plane) askNode(node holdfast.NodeID, id holdfast.VolumeID) (replication.Outsider, error) {
	op := "ask node " + string(node) + " for its replicas of volume " + string(id)
	x := replication.Outsider{Node: node}
	end := time.Now().Add(p.cfg.DialTimeout)
	nc, err := p.connect(node)
	if err != nil {
		return x, holdfast.WrapKind(op, holdfast.Unavailable, err)
	}
	defer p.drop(nc)
	_ = nc.SetDeadline(end)
	b, err := wire.AppendHeader(nil, &replication.Message{Type: replication.MsgHello, ID: 1, Hello: &replication.Hello{Cluster: p.cfg.Cluster, Volume: id, Node: p.cfg.Self}})
	if err == nil {
		_, err = nc.Write(b)
	}
	if err != nil {
		return x, holdfast.WrapKind(op, holdfast.Unavailable, err)
	}
	m, err := wire.Decode(p.buffers.get(nc))
	if err != nil {
		return x, holdfast.WrapKind(op, holdfast.Unavailable, err)
	}
	defer m.Buf.Release()
	switch {
	case m.Status == replication.StatusUnknown: // it has none, or its release does not know the question
	case m.Type != replication.MsgHello || !m.Answer || m.Status != replication.StatusOK || m.Welcome == nil:
		return x, holdfast.E(op, holdfast.Unavailable, "its answer makes no sense")
	default:
		x.Promise = m.Epoch
		if m.Welcome.Shown != nil {
			x.Record = *m.Welcome.Shown
		}
	}
	return x, nil
}

// known is what the replicas here were shown and have promised; called within a
// step.
func (v *volume) known() replication.Outsider {
	x := replication.Outsider{Node: v.plane.cfg.Self}
	for _, r := range v.replicas {
		x.Promise = max(x.Promise, r.machine.Promise().Epoch)
		if rec := r.store.State().Record; rec.Version != 0 && (x.Record.Version == 0 || rec.Epoch > x.Record.Epoch) {
			x.Record = rec
		}
	}
	return x
}

// tell answers a Hello without a replica.
func (p *Plane) tell(nc net.Conn, m *replication.Message) {
	v := p.find(m.Hello.Volume)
	if v == nil || m.Hello.Cluster != p.cfg.Cluster {
		refuse(nc, m, replication.StatusUnknown)
		return
	}
	defer p.release(v)
	v.lock()
	x := v.known()
	v.unlock()
	if x.Promise == 0 {
		refuse(nc, m, replication.StatusUnknown)
		return
	}
	answer := &replication.Message{Type: m.Type, Answer: true, ID: m.ID, Epoch: x.Promise, Welcome: &replication.Welcome{}}
	if x.Record.Version != 0 {
		answer.Welcome.Shown = &x.Record
	}
	if b, err := wire.AppendHeader(nil, answer); err == nil {
		_, _ = nc.Write(b)
	}
}
