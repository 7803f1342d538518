package dataplane

import (
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/replication"
	"github.com/holdfast-storage/holdfast/replication/wire"
)

// Serve accepts connections of primaries on l until Close, which also closes l;
// the error is nil then. Without Close it returns when l is closed by others.
func (p *Plane) Serve(l net.Listener) error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		_ = l.Close()
		return p.stopping("serve " + l.Addr().String())
	}
	p.listeners[l] = struct{}{}
	p.work.Add(1)
	p.mu.Unlock()
	defer p.work.Done()
	defer func() {
		p.mu.Lock()
		delete(p.listeners, l)
		p.mu.Unlock()
	}()
	wait := 5 * time.Millisecond
	for {
		nc, err := l.Accept()
		var ne net.Error
		switch {
		case p.life.Err() != nil:
			if err == nil {
				_ = nc.Close()
			}
			return nil
		case err == nil:
			wait = 5 * time.Millisecond
			if !p.keep(nc) {
				return nil
			}
			if !p.spawn(func() { p.greet(nc) }) {
				p.drop(nc)
			}
		case errors.As(err, &ne) && temporary(ne):
			p.log.Warn("accept of a data connection failed; trying again", "err", err)
			pause(p.life, wait)
			wait = min(2*wait, time.Second)
		default:
			return holdfast.WrapKind("accept data connections", holdfast.Unavailable, err)
		}
	}
}

// greet waits for a connection's Hello and hands the connection to the replica
// that it names.
func (p *Plane) greet(nc net.Conn) {
	defer p.drop(nc)
	_ = nc.SetDeadline(time.Now().Add(p.cfg.HelloTimeout))
	r := p.buffers.get(nc)
	m, err := wire.Decode(r)
	if err == nil && (m.Type != replication.MsgHello || m.Answer) {
		m.Buf.Release()
		err = holdfast.E("greet", holdfast.Invalid, fmt.Sprintf("the first message has type %d instead of Hello", m.Type))
	}
	if err != nil {
		p.log.Debug("data connection refused", "peer", nc.RemoteAddr().String(), "err", err)
		return
	}
	if m.Hello.Replica == "" {
		p.tell(nc, m)
		return
	}
	c, status := p.route(nc, m)
	if c == nil {
		p.log.Debug("data connection refused", "peer", nc.RemoteAddr().String(), "status", int(status),
			"volume", string(m.Hello.Volume), "replica", string(m.Hello.Replica), "cluster", string(m.Hello.Cluster))
		refuse(nc, m, status)
		return
	}
	c.run(r)
	c.v.step(func() {
		for _, rep := range c.v.replicas {
			delete(rep.conns, c)
		}
	})
}

// route gives the connection to the machine of the replica that its Hello
// names, and the Hello with it. Without one it says why.
func (p *Plane) route(nc net.Conn, m *replication.Message) (*tcpConn, replication.Status) {
	h := m.Hello
	if h.Cluster != p.cfg.Cluster {
		return nil, replication.StatusInvalid
	}
	v := p.find(h.Volume)
	if v == nil {
		return nil, replication.StatusUnknown
	}
	defer p.release(v)
	v.lock()
	defer v.unlock()
	rep := v.replicas[h.Replica]
	if rep == nil {
		return nil, replication.StatusUnknown
	}
	_ = nc.SetDeadline(time.Time{})
	c := newTCPConn(v, nc, rep.machine)
	rep.conns[c] = struct{}{}
	c.owner.OnMessage(c, m)
	return c, replication.StatusOK
}

// refuse answers a Hello that reaches no machine.
func refuse(nc net.Conn, m *replication.Message, status replication.Status) {
	b, err := wire.AppendHeader(nil, &replication.Message{Type: m.Type, Answer: true, Status: status, ID: m.ID})
	if err == nil {
		_, _ = nc.Write(b)
	}
}

// temporary says whether accepting can succeed again: too many open files, or a
// connection that was gone before it was accepted.
func temporary(err net.Error) bool {
	t, ok := err.(interface{ Temporary() bool })
	return ok && t.Temporary()
}
