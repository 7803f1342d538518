package dataplane

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast/replication/wire"
)

// loopback is a connection.
func loopback(t *testing.T) (near, far *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	b, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	a, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return a.(*net.TCPConn), b.(*net.TCPConn)
}

// socketPair is one with small buffers.
func socketPair(t *testing.T) (near, far *net.TCPConn) {
	t.Helper()
	near, far = loopback(t)
	t.Cleanup(func() { _, _ = near.Close(), far.Close() })
	for _, err := range []error{near.SetWriteBuffer(64 << 10), far.SetReadBuffer(64 << 10)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return near, far
}

// TestSocketInPieces: slices of all sizes, more than a system call and the buffers
// take, arrive as they are; who may not wait is told how far it came.
func TestSocketInPieces(t *testing.T) {
	near, far := socketPair(t)
	rnd := rand.New(rand.NewPCG(5, 6))
	var iov [][]byte
	var want []byte
	for len(want) < 3*rawMost || len(iov) < 2*iovMost {
		p := make([]byte, []int{0, 1, rnd.IntN(100), rnd.IntN(2000), rawMost + rnd.IntN(1000)}[min(rnd.IntN(400), 4)%5])
		if len(iov)%200 != 7 && len(p) > rawMost {
			p = p[:100]
		}
		for i := range p {
			p[i] = byte(rnd.Uint32())
		}
		iov, want = append(iov, p), append(want, p...)
	}
	got := make(chan []byte)
	start := make(chan struct{})
	go func() {
		<-start
		r := newSocketReader(far)
		all, err := io.ReadAll(r)
		if again, errAgain := r.Read(make([]byte, 1)); again != 0 || !errors.Is(errAgain, io.EOF) || err != nil {
			t.Errorf("read: %v; after the end: %d, %v", err, again, errAgain)
		}
		got <- all
	}()
	w := newSocketWriter(near)
	sent := 0
	for {
		n, err := w.write(iov, false)
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			break // nobody reads: the socket is full
		}
		sent += n
		iov = skip(iov, n)
	}
	if sent == 0 || sent >= len(want) {
		t.Fatalf("%d of %d bytes were sent to one who does not read", sent, len(want))
	}
	close(start)
	n, err := w.write(iov, true)
	if err != nil || sent+n != len(want) {
		t.Errorf("%d and %d of %d bytes were sent: %v", sent, n, len(want), err)
	}
	_ = near.CloseWrite()
	if !bytes.Equal(<-got, want) {
		t.Error("something else arrived")
	}
}

// TestAwait: a reader that waits holds no buffer, and gets what comes, or the reason
// why nothing does, in the read that follows.
func TestAwait(t *testing.T) {
	var buffers readBuffers
	for name, end := range map[string]func(near, far *net.TCPConn) error{
		"end":      func(_, far *net.TCPConn) error { return far.Close() },
		"broken":   func(_, far *net.TCPConn) error { _ = far.SetLinger(0); return far.Close() },
		"closed":   func(near, _ *net.TCPConn) error { return near.Close() },
		"deadline": func(near, _ *net.TCPConn) error { return near.SetReadDeadline(past) },
	} {
		t.Run(name, func(t *testing.T) {
			near, far := socketPair(t)
			s := newSocketReader(near)
			r := bufio.NewReaderSize(near, wire.ReaderSize)
			for _, words := range []string{"one", "two"} {
				time.AfterFunc(20*time.Millisecond, func() { _, _ = io.WriteString(far, words) })
				r = buffers.await(s, r)
				if p, err := r.Peek(len(words)); err != nil || string(p) != words {
					t.Fatalf("%q, %v", p, err)
				}
				if again := buffers.await(s, r); again != r || r.Buffered() != len(words) {
					t.Fatal("what was read already was waited for")
				}
				_, _ = r.Discard(len(words))
			}
			time.AfterFunc(20*time.Millisecond, func() {
				if err := end(near, far); err != nil {
					t.Error(err)
				}
			})
			r = buffers.await(s, r)
			if s.lent != nil {
				t.Error("a buffer is still lent")
			}
			for range 2 {
				if _, err := r.ReadByte(); err == nil {
					t.Error("the connection has not ended")
				}
			}
		})
	}
}
