package dataplane

import (
	"bufio"
	"errors"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/replication"
	"github.com/holdfast-storage/holdfast/replication/wire"
)

const (
	// readBatch bounds how many buffered messages are handed over in one step.
	readBatch = 32
	// writeBatch and writeBatchBytes bound what is gathered into one writev, so
	// that buffers go back early.
	writeBatch      = 256
	writeBatchBytes = 4 << 20
	// lastWords is how long what was queued before Close may take to be sent.
	lastWords = 500 * time.Millisecond
)

// tcpConn is a connection to a machine on another node. Its writer gathers
// whatever is queued into one writev: 2.2 times the rate of a write per message
// when measured. While no more than one request is under way there is nothing to
// gather, and sendNow does without it. Its reader alone reports the end.
type tcpConn struct {
	v     *volume
	nc    net.Conn
	owner machine

	// Guarded by the volume's mutex.
	closed bool // by the owner: nothing is delivered any more
	unsent bool // in v.unsent
	// balance is requests sent less answers received, or the other way round on
	// a replica's side, where it is negative.
	balance int

	direct *sender // used by who has claimed it

	mu      sync.Mutex // guards the rest; a leaf
	writing bool       // the writer has a batch
	claimed bool       // sendNow has one
	failed  bool       // sendNow could not write
	rest    []byte     // of what sendNow began to write; goes before the queue
	queue   []*replication.Message
	bytes   int
	closing bool // nothing more is queued; the writer ends when the queue is empty
	behind  bool // the peer let too much pile up

	kick chan struct{} // of capacity 1: there is work for the writer
}

func newTCPConn(v *volume, nc net.Conn, owner machine) *tcpConn {
	return &tcpConn{v: v, nc: nc, owner: owner, kick: make(chan struct{}, 1), direct: newSender(nc)}
}

// run reads until the connection ends; r, of the plane's buffers, holds what was
// read ahead. It returns when both goroutines are done and the owner knows.
func (c *tcpConn) run(r *bufio.Reader) {
	written := make(chan struct{})
	go func() {
		defer close(written)
		c.write()
	}()
	err := c.read(r)
	c.shut()
	<-written
	c.mu.Lock()
	behind := c.behind
	c.mu.Unlock()
	if behind {
		c.log().Warn("data connection closed: the peer does not keep up", "queuedBytes", c.v.plane.cfg.MaxQueueBytes)
	}
	quiet := false
	c.v.step(func() {
		quiet = c.closed
		c.closed = true
		c.owner.OnClosed(c)
	})
	if !quiet {
		c.log().Debug("data connection ended", "err", err)
	}
}

func (c *tcpConn) log() *slog.Logger {
	return c.v.plane.log.With("volume", string(c.v.id), "peer", c.nc.RemoteAddr().String())
}

// Send implements replication.Conn; called within a step.
func (c *tcpConn) Send(m *replication.Message) {
	if c.closed {
		m.Buf.Release()
		return
	}
	if !c.push(m) {
		m.Buf.Release()
		return
	}
	c.balance++
	if !c.unsent {
		c.unsent = true
		c.v.unsent = append(c.v.unsent, c)
	}
}

func (c *tcpConn) push(m *replication.Message) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing {
		return false
	}
	n := wire.HeaderSize + len(wire.Data(m)) + 16*len(m.Extents)
	if c.bytes+n > c.v.plane.cfg.MaxQueueBytes {
		c.closing, c.behind = true, true // the reader reports the end
		_ = c.nc.SetDeadline(past)
		return false
	}
	c.queue = append(c.queue, m)
	c.bytes += n
	return true
}

// past is a deadline that ends reads and writes at once.
var past = time.Unix(1, 0)

// Close implements replication.Conn; called within a step. It does not wait:
// what is queued is sent if the peer takes it soon.
func (c *tcpConn) Close() {
	if c.closed {
		return
	}
	c.closed = true
	c.mu.Lock()
	if !c.closing {
		c.closing = true
		_ = c.nc.SetWriteDeadline(time.Now().Add(lastWords))
	}
	c.mu.Unlock()
	// Last: the reader that this ends must not take the connection for broken.
	_ = c.nc.SetReadDeadline(past)
	c.wake()
}

// shut ends the writer when the reader has ended. Where the owner has not closed
// the connection, it broke, and nothing more can be sent.
func (c *tcpConn) shut() {
	c.mu.Lock()
	if !c.closing {
		c.closing = true
		_ = c.nc.SetWriteDeadline(past)
	}
	c.mu.Unlock()
	c.wake()
}

func (c *tcpConn) wake() {
	select {
	case c.kick <- struct{}{}:
	default:
	}
}

// read decodes messages and hands over what is there in one step.
func (c *tcpConn) read(r *bufio.Reader) error {
	batch := make([]*replication.Message, 0, readBatch)
	buffers := &c.v.plane.buffers
	defer func() { buffers.put(r) }()
	s := newSocketReader(c.nc)
	for {
		r = buffers.await(s, r)
		m, err := wire.Decode(r)
		if err != nil {
			return err
		}
		batch = append(batch[:0], m)
		for len(batch) < readBatch && wire.Ready(r) {
			if m, err = wire.Decode(r); err != nil {
				break
			}
			batch = append(batch, m)
		}
		c.v.lock()
		task := c.deliver(batch)
		c.v.unlock()
		task.do()
		if err != nil {
			return err
		}
	}
}

// deliver hands over what was read, within a step. A single request to an idle
// replica may be done here: its answer is what its sender waits for, and there is
// nothing else to read meanwhile.
func (c *tcpConn) deliver(batch []*replication.Message) borrowed {
	c.balance -= len(batch)
	c.v.lend = len(batch) == 1 && c.balance == -1
	for i, m := range batch {
		if !m.Answer {
			c.v.plane.asked.Add(1)
		}
		if c.closed {
			m.Buf.Release()
		} else {
			c.owner.OnMessage(c, m)
		}
		batch[i] = nil
	}
	task := c.v.borrowed
	c.v.lend, c.v.borrowed = false, borrowed{}
	return task
}

// take moves what is queued to batch, up to the bounds, after the rest of what
// sendNow began. ended says that nothing is queued and nothing will be, or that
// nothing more can be sent. The writer holds no batch when it calls this.
func (c *tcpConn) take(batch []*replication.Message) (_ []*replication.Message, rest []byte, ended bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.writing = false
	if c.claimed {
		return batch, nil, false // sendNow wakes the writer if anything is left
	}
	if c.failed {
		return batch, nil, true
	}
	rest, c.rest = c.rest, nil
	n, size := 0, 0
	for n < len(c.queue) && n < writeBatch && size < writeBatchBytes {
		size += wire.HeaderSize + len(wire.Data(c.queue[n])) + 16*len(c.queue[n].Extents)
		n++
	}
	batch = append(batch, c.queue[:n]...)
	left := copy(c.queue, c.queue[n:])
	clear(c.queue[left:])
	c.queue = c.queue[:left]
	c.bytes -= size
	c.writing = n > 0 || len(rest) > 0
	return batch, rest, !c.writing && c.closing
}

// write sends what is queued until the connection is closing and the queue is
// empty, or a write fails; then it closes the connection.
func (c *tcpConn) write() {
	w := newGather(c.nc)
	var batch []*replication.Message
	for {
		var rest []byte
		var ended bool
		batch, rest, ended = c.take(batch[:0])
		if ended {
			break
		}
		if len(batch) == 0 && len(rest) == 0 {
			<-c.kick
			continue
		}
		err := w.write(rest, batch)
		for i, m := range batch {
			m.Buf.Release()
			batch[i] = nil
		}
		if err != nil {
			if errors.Is(err, holdfast.Invalid) {
				c.log().Error("data connection closed: a message cannot be sent", "err", err)
			}
			break // the reader notices, and reports the end
		}
	}
	_ = c.nc.Close()
	c.discard()
}

// discard drops what cannot be sent any more.
func (c *tcpConn) discard() {
	c.mu.Lock()
	c.closing = true
	queue := c.queue
	c.queue, c.bytes = nil, 0
	c.mu.Unlock()
	for _, m := range queue {
		m.Buf.Release()
	}
}

// gather writes many messages with one system call.
type gather struct {
	nc    net.Conn
	to    *socketWriter // nil where there is no socket
	heads []byte
	iov   [][]byte
	// joined takes the place of writev where there is none: TLS would make a
	// record of every slice.
	joined *bufio.Writer
}

func newGather(nc net.Conn) *gather {
	g := &gather{nc: nc, to: newSocketWriter(nc)}
	if g.to == nil {
		g.joined = bufio.NewWriterSize(nc, 32<<10)
	}
	return g
}

// write writes rest, as it is, and then the batch.
func (g *gather) write(rest []byte, batch []*replication.Message) error {
	var err error
	if g.heads, g.iov, err = frames(g.heads, g.iov, batch); err != nil {
		return err
	}
	if len(rest) > 0 {
		g.iov = slices.Insert(g.iov, 0, rest)
	}
	err = g.send()
	clear(g.iov)
	return holdfast.WrapKind("write to data connection", holdfast.Unavailable, err)
}

func (g *gather) send() error {
	if g.joined == nil {
		_, err := g.to.write(g.iov, true)
		return err
	}
	for _, b := range g.iov {
		if _, err := g.joined.Write(b); err != nil {
			return err
		}
	}
	return g.joined.Flush()
}
