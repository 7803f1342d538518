package sim

import (
	"time"

	"github.com/holdfast-storage/holdfast/replication"
)

// pipe is one direction of a connection: messages in order, after a delay; while
// the link is cut they wait, as TCP's retransmissions do.
type pipe struct {
	w        *world
	from, to *host
	queue    []*replication.Message
	busy     bool
	closed   bool
	deliver  func(*replication.Message)
}

func (p *pipe) send(m *replication.Message) {
	if p.closed {
		m.Buf.Release()
		return
	}
	p.queue = append(p.queue, m)
	if !p.busy {
		p.busy = true
		p.next()
	}
}

func (p *pipe) next() {
	delay := p.w.between(10*time.Microsecond, 300*time.Microsecond)
	if p.from == p.to {
		delay = p.w.between(0, 10*time.Microsecond)
	}
	p.w.after(delay, p.arrive)
}

func (p *pipe) arrive() {
	switch {
	case p.closed:
		p.drop()
	case p.from.cut(p.to):
		p.w.after(p.w.between(20*time.Millisecond, 200*time.Millisecond), p.arrive)
	case p.to.pausedUntil > p.w.now:
		p.w.after(p.to.pausedUntil-p.w.now, p.arrive)
	default:
		m := p.queue[0]
		p.queue = p.queue[1:]
		p.deliver(m)
		if len(p.queue) == 0 {
			p.busy = false
			return
		}
		p.next()
	}
}

func (p *pipe) drop() {
	for _, m := range p.queue {
		m.Buf.Release()
	}
	p.queue, p.busy, p.closed = nil, false, true
}

// end is one side's view of a connection: a replication.Conn.
type end struct {
	out, in  *pipe
	peer     *end
	owner    *host
	life     int // of the owner's process
	shut     bool
	onClosed func()
}

func (e *end) Send(m *replication.Message) { e.out.send(m) }

// Close ends this side at once; the other side hears of it if the link lets it.
func (e *end) Close() {
	if e.shut {
		return
	}
	e.shut = true
	e.out.closed, e.in.closed = true, true
	e.tell(e.peer)
}

// tell lets the other side know that this side is gone, now or when the link
// works again.
func (e *end) tell(o *end) {
	w := e.out.w
	w.after(w.between(10*time.Microsecond, 300*time.Microsecond), func() {
		switch {
		case o.shut || o.owner.life != o.life:
		case e.owner.cut(o.owner) || o.owner.pausedUntil > w.now:
			w.after(50*time.Millisecond, func() { e.tell(o) })
		default:
			o.shut = true
			o.onClosed()
		}
	})
}

// connect makes a connection between two hosts.
func connect(w *world, a, b *host) (*end, *end) {
	ab, ba := &pipe{w: w, from: a, to: b}, &pipe{w: w, from: b, to: a}
	ea := &end{out: ab, in: ba, owner: a, life: a.life}
	eb := &end{out: ba, in: ab, owner: b, life: b.life}
	ea.peer, eb.peer = eb, ea
	return ea, eb
}
