package dataplane

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/buf"
	"github.com/holdfast-storage/holdfast/replication"
	"github.com/holdfast-storage/holdfast/replication/wire"
)

// peer is the bare other end of a data connection.
type peer struct {
	t  *testing.T
	nc net.Conn
	r  *bufio.Reader
}

func (c *cluster) peer(t *testing.T, nd *node) *peer {
	addr, _ := c.addr(t.Context(), nd.id)
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = nc.Close() })
	_ = nc.SetDeadline(time.Now().Add(10 * time.Second))
	return &peer{t: t, nc: nc, r: bufio.NewReader(nc)}
}

func (p *peer) send(m *replication.Message) {
	p.t.Helper()
	b, err := wire.AppendHeader(nil, m)
	if err != nil {
		p.t.Fatal(err)
	}
	if _, err := p.nc.Write(append(b, wire.Data(m)...)); err != nil {
		p.t.Fatal(err)
	}
}

func (p *peer) receive() *replication.Message {
	p.t.Helper()
	m, err := wire.Decode(p.r)
	if err != nil {
		p.t.Fatal(err)
	}
	return m
}

// gone waits until the other side closes the connection.
func (p *peer) gone() {
	p.t.Helper()
	_, err := wire.Decode(p.r)
	var ne net.Error
	if err == nil || errors.As(err, &ne) && ne.Timeout() {
		p.t.Fatalf("the connection stays open (%v)", err)
	}
}

func (c *cluster) hello(nd *node, epoch holdfast.Epoch) *replication.Message {
	rec := c.record()
	rec.Epoch = epoch
	rec.Primary = &holdfast.Primary{Node: "nx", Kind: holdfast.ClientPrimary, Grant: epoch}
	return &replication.Message{Type: replication.MsgHello, ID: 1, Epoch: epoch,
		Hello: &replication.Hello{Cluster: testCluster, Volume: c.vol, Replica: nd.rep, Node: "nx", Grant: epoch, Record: rec}}
}

func TestHelloIsRouted(t *testing.T) {
	c := newCluster(t, 1).start()
	for name, x := range map[string]struct {
		edit func(h *replication.Hello)
		want replication.Status
	}{
		"other cluster":   {func(h *replication.Hello) { h.Cluster = "other" }, replication.StatusInvalid},
		"unknown volume":  {func(h *replication.Hello) { h.Volume = "v" }, replication.StatusUnknown},
		"unknown replica": {func(h *replication.Hello) { h.Replica = "r" }, replication.StatusUnknown},
	} {
		p := c.peer(t, c.nodes[0])
		m := c.hello(c.nodes[0], 5)
		x.edit(m.Hello)
		p.send(m)
		if a := p.receive(); a.Status != x.want || !a.Answer || a.ID != 1 {
			t.Errorf("%s: answer %+v, want status %d", name, a, x.want)
		}
		p.gone()
	}
	p := c.peer(t, c.nodes[0])
	p.send(c.hello(c.nodes[0], 5))
	if a := p.receive(); a.Status != replication.StatusOK || a.Welcome == nil {
		t.Fatalf("a good hello: %+v", a)
	}
	// A newer primary cuts the older session.
	q := c.peer(t, c.nodes[0])
	q.send(c.hello(c.nodes[0], 6))
	if a := q.receive(); a.Status != replication.StatusOK {
		t.Fatalf("a newer hello: %+v", a)
	}
	p.gone()
	// Invariant 1: the older one is refused for good.
	p = c.peer(t, c.nodes[0])
	p.send(c.hello(c.nodes[0], 5))
	if a := p.receive(); a.Status != replication.StatusFenced || a.Epoch != 6 {
		t.Fatalf("an old hello: %+v", a)
	}
}

func TestStrangersAreDisconnected(t *testing.T) {
	c := newCluster(t, 1)
	c.tune = func(cfg *Config) { cfg.HelloTimeout = 100 * time.Millisecond }
	c.start()
	for name, b := range map[string]string{
		"nothing":  "",
		"HTTP":     "GET / HTTP/1.1\r\nHost: x\r\n\r\n" + strings.Repeat("x", 100),
		"half":     "HFD\x01\x01",
		"no hello": string(pingFrame(t)),
	} {
		p := c.peer(t, c.nodes[0])
		if _, err := io.WriteString(p.nc, b); err != nil {
			t.Fatal(err)
		}
		t.Log(name)
		p.gone()
	}
}

func pingFrame(t *testing.T) []byte {
	b, err := wire.AppendHeader(nil, &replication.Message{Type: replication.MsgPing})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestCorruptFrameBreaksTheConnection: what came before it counts, nothing after.
func TestCorruptFrameBreaksTheConnection(t *testing.T) {
	c := newCluster(t, 1).start()
	p := c.peer(t, c.nodes[0])
	p.send(c.hello(c.nodes[0], 5))
	p.receive()
	bad := pingFrame(t)
	bad[20] ^= 1
	if _, err := p.nc.Write(append(bad, pingFrame(t)...)); err != nil {
		t.Fatal(err)
	}
	p.gone()
}

// recorder is the machine behind a connection, in tests of connections alone.
type recorder struct {
	got    chan *replication.Message
	closed chan replication.Conn
	on     func(c replication.Conn, m *replication.Message)
}

func newRecorder() *recorder {
	return &recorder{got: make(chan *replication.Message, 1<<16), closed: make(chan replication.Conn, 16)}
}

func (r *recorder) OnMessage(c replication.Conn, m *replication.Message) {
	if r.on != nil {
		r.on(c, m)
	}
	r.got <- m
}

func (r *recorder) OnClosed(c replication.Conn) { r.closed <- c }

// tcpPair is a tcpConn of a plane's volume and the bare other end.
func tcpPair(t *testing.T, rec *recorder, maxQueue int) (*tcpConn, *net.TCPConn) {
	p, err := New(Config{Cluster: testCluster, Self: "n", Volumes: newCluster(t, 1).nodes[0].store,
		Alive: func(context.Context, holdfast.NodeID) (bool, error) { return true, nil },
		Addr:  func(context.Context, holdfast.NodeID) (string, error) { return "", nil },
		Dial:  func(context.Context, string) (net.Conn, error) { return nil, io.EOF }, Log: logger(), MaxQueueBytes: maxQueue})
	if err != nil {
		t.Fatal(err)
	}
	near, far := loopback(t)
	v, err := p.acquire("v")
	if err != nil {
		t.Fatal(err)
	}
	c := newTCPConn(v, near, rec)
	p.keep(near)
	p.spawn(func() {
		defer p.drop(near)
		c.run(p.buffers.get(near))
	})
	t.Cleanup(func() {
		_ = far.Close()
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return c, far
}

func TestManyMessagesArriveInOrder(t *testing.T) {
	c, far := tcpPair(t, newRecorder(), 0)
	const n = 3000
	go func() {
		for i := 0; i < n; i += 3 {
			c.v.step(func() {
				c.Send(&replication.Message{Type: replication.MsgWrite, ID: uint64(i), Buf: buf.Get(4096)})
				c.Send(&replication.Message{Type: replication.MsgPing, ID: uint64(i + 1)})
				c.Send(&replication.Message{Type: replication.MsgWrite, ID: uint64(i + 2), Buf: buf.Get(100 << 10)})
			})
		}
	}()
	r := bufio.NewReaderSize(far, wire.ReaderSize)
	for i := range n {
		m, err := wire.Decode(r)
		if err != nil {
			t.Fatalf("message %d: %v", i, err)
		}
		if m.ID != uint64(i) {
			t.Fatalf("message %d has id %d", i, m.ID)
		}
		m.Buf.Release()
	}
	// What is queued when the owner closes is still sent.
	c.v.step(func() {
		c.Send(&replication.Message{Type: replication.MsgPing, ID: n})
		c.Close()
	})
	if m, err := wire.Decode(r); err != nil || m.ID != n {
		t.Errorf("the last words: %v, %v", m, err)
	}
	if _, err := wire.Decode(r); err != io.EOF {
		t.Errorf("after the last: %v", err)
	}
}

// TestNothingIsDeliveredAfterClose: the machine closes the connection while more
// messages have been read already.
func TestNothingIsDeliveredAfterClose(t *testing.T) {
	rec := newRecorder()
	rec.on = func(c replication.Conn, m *replication.Message) { c.Close() }
	c, far := tcpPair(t, rec, 0)
	var b []byte
	for range 20 {
		b = append(b, pingFrame(t)...)
	}
	if _, err := far.Write(b); err != nil {
		t.Fatal(err)
	}
	if x := <-rec.closed; x != c {
		t.Error("another connection was reported")
	}
	if n := len(rec.got); n != 1 {
		t.Errorf("%d messages were delivered", n)
	}
	shared := buf.Get(4096)
	c.v.step(func() { c.Send(&replication.Message{Type: replication.MsgWrite, Buf: shared.Retain()}) })
	shared.Release()
	mustPanic(t, "the reference of a dropped message was not released", func() { shared.Release() })
}

func mustPanic(t *testing.T, what string, f func()) {
	t.Helper()
	defer func() {
		if recover() == nil {
			t.Error(what)
		}
	}()
	f()
}

// TestPeerThatDoesNotRead is disconnected when too much is queued, and every
// buffer comes back.
func TestPeerThatDoesNotRead(t *testing.T) {
	rec := newRecorder()
	c, _ := tcpPair(t, rec, 8<<20)
	b := buf.Get(buf.Max)
	const n = 40
	for range n {
		c.v.step(func() { c.Send(&replication.Message{Type: replication.MsgWrite, Buf: b.Retain()}) })
	}
	<-rec.closed
	b.Release()
	mustPanic(t, "a reference was kept", func() { b.Release() })
	select {
	case <-rec.closed:
		t.Error("the end was reported twice")
	default:
	}
}

// TestCloseOfAStuckConnection does not wait for the peer, and ends soon.
func TestCloseOfAStuckConnection(t *testing.T) {
	rec := newRecorder()
	c, _ := tcpPair(t, rec, 0)
	b := buf.Get(buf.Max)
	for range 40 {
		c.v.step(func() { c.Send(&replication.Message{Type: replication.MsgWrite, Buf: b.Retain()}) })
	}
	start := time.Now()
	c.v.step(c.Close)
	if took := time.Since(start); took > 200*time.Millisecond {
		t.Errorf("Close took %v", took)
	}
	<-rec.closed
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("the end came after %v", took)
	}
	b.Release()
	mustPanic(t, "a reference was kept", func() { b.Release() })
}

func TestBrokenConnectionIsReportedOnce(t *testing.T) {
	rec := newRecorder()
	c, far := tcpPair(t, rec, 0)
	_ = far.SetLinger(0)
	_ = far.Close()
	<-rec.closed
	c.v.step(c.Close)
	c.v.step(func() { c.Send(&replication.Message{Type: replication.MsgPing}) })
	runtime.Gosched()
	if len(rec.closed) != 0 {
		t.Error("the end was reported twice")
	}
}

// TestLocalConn: order, no recursion, and both ends told once.
func TestLocalConn(t *testing.T) {
	v := &volume{plane: &Plane{}}
	x, y := newRecorder(), newRecorder()
	a, b := v.pair(x, y)
	depth := 0
	y.on = func(c replication.Conn, m *replication.Message) {
		if depth++; depth > 1 {
			t.Error("a message was delivered from inside a call")
		}
		if m.ID < 100 {
			c.Send(&replication.Message{Type: replication.MsgPing, Answer: true, ID: m.ID})
		}
		depth--
	}
	x.on = func(c replication.Conn, m *replication.Message) { c.Send(&replication.Message{ID: m.ID + 1}) }
	v.step(func() { a.Send(&replication.Message{ID: 1}) })
	if len(y.got) != 100 || len(x.got) != 99 {
		t.Fatalf("%d and %d messages", len(y.got), len(x.got))
	}
	shared := buf.Get(1)
	v.step(func() {
		a.Send(&replication.Message{ID: 200, Buf: shared.Retain()})
		b.Close()
		a.Close()
		a.Send(&replication.Message{ID: 201, Buf: shared.Retain()})
	})
	if len(y.got) != 100 {
		t.Error("a message was delivered after Close")
	}
	shared.Release()
	mustPanic(t, "a reference was kept", func() { shared.Release() })
	if len(x.closed) != 1 || len(y.closed) != 1 {
		t.Errorf("told %d and %d times", len(x.closed), len(y.closed))
	}
}
