package nbd

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast/internal/buf"
	"github.com/holdfast-storage/holdfast/node/device"
	"github.com/holdfast-storage/holdfast/node/device/blockdev"
	"github.com/holdfast-storage/holdfast/replication"
)

// socketBuffer is how much waits in the socket for the server, in bytes of payload
// about: requests that are not answered stay there. A request that does not fit as
// a whole would never be answered.
const socketBuffer = 32 << 20

// answersBuffer is the same for answers.
const answersBuffer = 4 << 20

// server answers the requests that come over one socket.
type server struct {
	conn     *net.UnixConn
	stream   *stream
	inflight *blockdev.Inflight
	readOnly bool
	size     atomic.Int64
	log      *slog.Logger
	done     sync.WaitGroup // reader and writer
	closing  sync.Once

	mu    sync.Mutex
	soon  sync.Cond // out or ended changed
	out   []reply
	ended bool // nothing will be sent any more
}

// reply is one answer, with the data of a read behind its head.
type reply struct {
	head [replySize]byte
	data *buf.Buf
	n    int64 // bytes of data
}

// cookie is that of the request.
func (r *reply) cookie() uint64 { return binary.BigEndian.Uint64(r.head[8:]) }

// socketPair gives a server's end and the descriptor for the kernel, which is
// the caller's to close.
func socketPair() (*net.UnixConn, int, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, -1, os.NewSyscallError("socketpair", err)
	}
	err = errors.Join(unix.SetsockoptInt(fds[1], unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, socketBuffer),
		unix.SetsockoptInt(fds[0], unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, answersBuffer))
	if err != nil {
		unix.Close(fds[0])
		unix.Close(fds[1])
		return nil, -1, fmt.Errorf("make room in a socket (needs CAP_NET_ADMIN): %w", err)
	}
	c, err := connOf(fds[0])
	if err != nil {
		unix.Close(fds[1])
	}
	return c, fds[1], err
}

// connOf makes a connection of a socket's descriptor, which it takes over.
func connOf(fd int) (*net.UnixConn, error) {
	f := os.NewFile(uintptr(fd), "nbd")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		return nil, errors.Join(errors.ErrUnsupported, c.Close())
	}
	return u, nil
}

// serve begins to answer what comes over conn, and to keep the page, which both
// are its own from here on, also when it fails.
func serve(conn *net.UnixConn, p *page, o device.Options, b device.Backend, log *slog.Logger) (*server, error) {
	st, err := newStream(conn, p)
	if err != nil {
		p.close()
		return nil, errors.Join(err, conn.Close())
	}
	s := &server{conn: conn, stream: st, readOnly: o.ReadOnly, log: log}
	s.soon.L = &s.mu
	s.inflight = blockdev.NewInflight(b, s.answer)
	s.size.Store(o.SizeBytes)
	s.done.Add(2)
	go s.read()
	go s.write()
	return s, nil
}

// stop ends reader and writer. Requests that the backend still has are dropped
// when it answers.
func (s *server) stop() {
	s.end()
	s.done.Wait()
	s.closing.Do(s.stream.close)
}

func (s *server) end() {
	s.mu.Lock()
	s.ended = true
	s.mu.Unlock()
	s.soon.Broadcast()
	s.stream.end()
	s.conn.Close()
}

// read takes requests until the socket ends.
func (s *server) read() {
	defer s.done.Done()
	defer s.end()
	in := bufio.NewReaderSize(s.stream, 128<<10)
	head := make([]byte, requestSize)
	for {
		if _, err := io.ReadFull(in, head); err != nil {
			return
		}
		h, ok := parseHeader(head)
		if !ok {
			s.log.Error("the kernel sent what is no NBD request; the device waits for a new connection")
			return
		}
		if h.op == opDisconnect {
			return
		}
		if err := s.take(h, in); err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
				s.log.Warn("a request did not arrive whole", "error", err)
			}
			return
		}
	}
}

// operations are those that a server must know. Both of the last leave zeros.
var operations = map[uint16]replication.Op{
	opRead: replication.OpRead, opWrite: replication.OpWrite, opFlush: replication.OpFlush,
	opTrim: replication.OpTrim, opWriteZeroes: replication.OpTrim,
}

// take checks and submits one request. Its data is read in any case. What a
// predecessor has answered only passes.
func (s *server) take(h header, in *bufio.Reader) error {
	op, known := operations[h.op]
	refused := unix.EOPNOTSUPP
	if known {
		refused = blockdev.Limits{SizeBytes: s.size.Load(), ReadOnly: s.readOnly}.Check(op, h.offset, h.length)
	}
	bytes := requestSize
	r := replication.Request{Op: op, Offset: h.offset, Length: h.length, FUA: h.flags&flagFUA != 0 && op != replication.OpRead}
	if known && op == replication.OpWrite {
		bytes += int(h.length)
		var err error
		if refused != 0 {
			_, err = io.CopyN(io.Discard, in, h.length)
		} else {
			r.Buf = buf.Get(int(h.length))
			_, err = io.ReadFull(in, r.Buf.B)
		}
		if err != nil {
			r.Buf.Release()
			return err
		}
	}
	switch answered := s.stream.arrived(h.cookie, bytes); {
	case answered:
		r.Buf.Release()
		return nil
	case refused != 0:
		s.inflight.Refuse(h.cookie, refused)
		return nil
	case op == replication.OpRead:
		r.Buf = buf.Get(int(h.length))
	case op == replication.OpFlush:
		r.Offset, r.Length, r.FUA = 0, 0, false
	}
	s.inflight.Submit(h.cookie, r)
	return nil
}

// answer queues an answer for the writer.
func (s *server) answer(a blockdev.Answer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		a.Data.Release()
		return
	}
	r := reply{data: a.Data, n: a.Length}
	putReply(r.head[:], a.Cookie, a.Errno)
	s.out = append(s.out, r)
	s.soon.Signal()
}

// write sends what is queued, everything at once, until the server ends.
func (s *server) write() {
	defer s.done.Done()
	var batch []reply
	var vec [][]byte
	for {
		s.mu.Lock()
		for len(s.out) == 0 && !s.ended {
			s.soon.Wait()
		}
		batch, s.out = s.out, batch[:0]
		ended := s.ended
		s.mu.Unlock()
		vec = vec[:0]
		for i := range batch {
			vec = append(vec, batch[i].bytes())
		}
		for from := 0; from < len(batch) && !ended; from += tags {
			to := min(from+tags, len(batch))
			if err := s.stream.send(batch[from:to], vec[from:to]); err != nil {
				s.end()
				break
			}
		}
		for i := range batch {
			batch[i].data.Release()
			batch[i].data = nil
		}
		if ended {
			return
		}
	}
}

// bytes are what is sent.
func (r *reply) bytes() []byte {
	if r.data == nil {
		return r.head[:]
	}
	p := r.data.WithHead(replySize, int(r.n))
	copy(p, r.head[:])
	return p
}

// hungUp says whether nobody has the other end any more.
func (s *server) hungUp() bool {
	raw, err := s.conn.SyscallConn()
	if err != nil {
		return true
	}
	var gone bool
	err = raw.Control(func(fd uintptr) { gone = dead(int(fd)) })
	return gone || err != nil // the reader has seen the end and closed it
}
