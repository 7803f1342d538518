package dataplane

import (
	"net"

	"github.com/holdfast-storage/holdfast/replication"
	"github.com/holdfast-storage/holdfast/replication/wire"
)

// sendNowBytes bounds what is written by the goroutine of a step itself: a copy
// to the socket's buffer that is over before another goroutine would be awake.
const sendNowBytes = 64 << 10

// sender writes what is queued on a connection at once, without waiting, in the
// goroutine whose step queued it. With few requests under way that spares the
// hand-over to the connection's writer, which costs more than the system call;
// with many the writer is better, as it gathers. It is nil where there is no
// socket, as with TLS.
type sender struct {
	to    *socketWriter
	batch []*replication.Message
	heads []byte
	iov   [][]byte
}

func newSender(nc net.Conn) *sender {
	to := newSocketWriter(nc)
	if to == nil {
		return nil
	}
	return &sender{to: to}
}

// write sends what fits into the socket's buffer of the batch, and gives the
// rest as a copy.
func (s *sender) write() (rest []byte, err error) {
	if s.heads, s.iov, err = frames(s.heads, s.iov, s.batch); err != nil {
		return nil, err
	}
	n, err := s.to.write(s.iov, false)
	if err != nil {
		return nil, err
	}
	for _, b := range s.iov {
		k := min(n, len(b))
		n -= k
		rest = append(rest, b[k:]...)
	}
	return rest, nil
}

// sendNow sends what is queued, or leaves it to the writer where that is at
// work, or there is much. Called after a step, without the volume's mutex.
func (c *tcpConn) sendNow() {
	if !c.claim() {
		c.wake()
		return
	}
	s := c.direct
	rest, err := s.write()
	for i, m := range s.batch {
		m.Buf.Release()
		s.batch[i] = nil
	}
	s.batch = s.batch[:0]
	clear(s.iov)
	c.mu.Lock()
	c.claimed = false
	c.rest = rest
	c.failed = c.failed || err != nil
	more := len(c.queue) > 0 || len(rest) > 0 || c.closing || c.failed
	c.mu.Unlock()
	if more {
		c.wake()
	}
}

// claim takes the whole queue for sendNow, if nobody else is sending.
func (c *tcpConn) claim() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.direct == nil || c.claimed || c.writing || c.closing || c.failed || len(c.rest) > 0 || len(c.queue) == 0 || c.bytes > sendNowBytes {
		return false
	}
	c.claimed = true
	c.direct.batch = append(c.direct.batch, c.queue...)
	clear(c.queue)
	c.queue, c.bytes = c.queue[:0], 0
	return true
}

// frames puts a batch of messages into slices for one writev; heads and iov are
// used again. Data is not copied.
func frames(heads []byte, iov [][]byte, batch []*replication.Message) ([]byte, [][]byte, error) {
	if cap(heads) > 64<<10 {
		heads = nil
	}
	heads, iov = heads[:0], iov[:0]
	start := 0
	for _, m := range batch {
		var err error
		if heads, err = wire.AppendHeader(heads, m); err != nil {
			return heads, iov, err
		}
		if data := wire.Data(m); data != nil {
			iov = append(iov, heads[start:], data)
			start = len(heads)
		}
	}
	if start < len(heads) {
		iov = append(iov, heads[start:])
	}
	return heads, iov, nil
}
