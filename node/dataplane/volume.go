package dataplane

import (
	"sync"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/replication"
)

// volume is what runs of one volume on this node.
type volume struct {
	plane *Plane
	id    holdfast.VolumeID
	refs  int // guarded by plane.mu: replicas, primaries and calls that use it

	mu       sync.Mutex
	fifo     []entry // the run queue, from head on
	head     int
	unsent   []*tcpConn // to which something was sent in this step
	lend     bool       // this step's goroutine would do one short task itself
	borrowed borrowed   // that task
	replicas map[holdfast.ReplicaID]*localReplica
	primary  *Volume // nil when not served here
}

// entry is one thing to do in the run queue: a message for a local connection's
// end, or a function.
type entry struct {
	to *localConn
	m  *replication.Message
	f  func()
}

// machine is a Primary or a Replica as the receiver of a connection's events.
type machine interface {
	OnMessage(c replication.Conn, m *replication.Message)
	OnClosed(c replication.Conn)
}

// lock begins a step: one event of one of the volume's machines.
func (v *volume) lock() { v.mu.Lock() }

// unlock ends a step: what the event caused locally is done first, in order,
// then what was sent is written, by the connections' writers or, where there is
// little, here.
func (v *volume) unlock() {
	for v.head < len(v.fifo) {
		e := v.fifo[v.head]
		v.fifo[v.head] = entry{}
		v.head++
		if e.f != nil {
			e.f()
		} else {
			e.to.deliver(e.m)
		}
	}
	v.fifo, v.head = v.fifo[:0], 0
	if h := v.primary; h != nil && (h.resting || h.ticked) {
		h.look()
	}
	if cap(v.fifo) > 1024 {
		v.fifo = nil
	}
	var few [4]*tcpConn // with nothing to gather: sent to without the writer
	n := 0
	for i, c := range v.unsent {
		c.unsent = false
		if n < len(few) && c.direct != nil && c.balance >= -1 && c.balance <= 1 {
			few[n] = c
			n++
		} else {
			c.wake()
		}
		v.unsent[i] = nil
	}
	v.unsent = v.unsent[:0]
	v.mu.Unlock()
	for _, c := range few[:n] {
		c.sendNow()
	}
	if f := v.plane.cfg.Stepped; f != nil {
		f()
	}
}

// step runs f as one event.
func (v *volume) step(f func()) {
	v.lock()
	f()
	v.unlock()
}

// later puts f into the run queue; called within a step.
func (v *volume) later(f func()) { v.fifo = append(v.fifo, entry{f: f}) }

// localConn is one end of a connection between a primary and a replica on the
// same node. All its methods are called within a step.
type localConn struct {
	v      *volume
	peer   *localConn
	owner  machine
	closed bool
}

// pair connects two machines; the ends' owners are a and b.
func (v *volume) pair(a, b machine) (*localConn, *localConn) {
	x, y := &localConn{v: v, owner: a}, &localConn{v: v, owner: b}
	x.peer, y.peer = y, x
	return x, y
}

// Send implements replication.Conn.
func (c *localConn) Send(m *replication.Message) {
	if c.closed {
		m.Buf.Release()
		return
	}
	c.v.fifo = append(c.v.fifo, entry{to: c.peer, m: m})
}

// Close implements replication.Conn. Both ends are told, each once.
func (c *localConn) Close() {
	if c.closed {
		return
	}
	for _, e := range []*localConn{c, c.peer} {
		e.closed = true
		c.v.later(func() { e.owner.OnClosed(e) })
	}
}

func (c *localConn) deliver(m *replication.Message) {
	if c.closed {
		m.Buf.Release()
		return
	}
	c.owner.OnMessage(c, m)
}
