package nbd

import (
	"bufio"
	"errors"
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

// socketBuffer is asked for on both ends, in bytes: the kernel sends a request's
// data page by page and waits where there is no room.
const socketBuffer = 4 << 20

// server answers the requests that come over one socket.
type server struct {
	conn     *net.UnixConn
	inflight *blockdev.Inflight
	readOnly bool
	size     atomic.Int64
	log      *slog.Logger
	done     sync.WaitGroup // reader and writer

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

// socketPair gives a server's end and the descriptor for the kernel, which is
// the caller's to close.
func socketPair() (*net.UnixConn, int, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, -1, os.NewSyscallError("socketpair", err)
	}
	for _, fd := range fds {
		for _, opt := range []int{unix.SO_SNDBUFFORCE, unix.SO_RCVBUFFORCE} {
			// Without the right to do so it is only slower.
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, opt, socketBuffer)
		}
	}
	f := os.NewFile(uintptr(fds[0]), "nbd")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		unix.Close(fds[1])
		return nil, -1, err
	}
	return c.(*net.UnixConn), fds[1], nil
}

// serve begins to answer what comes over conn.
func serve(conn *net.UnixConn, o device.Options, b device.Backend, log *slog.Logger) *server {
	s := &server{conn: conn, readOnly: o.ReadOnly, log: log}
	s.soon.L = &s.mu
	s.inflight = blockdev.NewInflight(b, s.answer)
	s.size.Store(o.SizeBytes)
	s.done.Add(2)
	go s.read()
	go s.write()
	return s
}

// stop ends reader and writer. Requests that the backend still has are dropped
// when it answers.
func (s *server) stop() {
	s.end()
	s.done.Wait()
}

func (s *server) end() {
	s.mu.Lock()
	s.ended = true
	s.mu.Unlock()
	s.soon.Broadcast()
	s.conn.Close()
}

// read takes requests until the socket ends.
func (s *server) read() {
	defer s.done.Done()
	defer s.end()
	in := bufio.NewReaderSize(s.conn, 128<<10)
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

// take checks and submits one request. Its data is read in any case.
func (s *server) take(h header, in *bufio.Reader) error {
	op, known := operations[h.op]
	if !known {
		s.inflight.Refuse(h.cookie, unix.EOPNOTSUPP)
		return nil
	}
	if e := (blockdev.Limits{SizeBytes: s.size.Load(), ReadOnly: s.readOnly}).Check(op, h.offset, h.length); e != 0 {
		s.inflight.Refuse(h.cookie, e)
		if op != replication.OpWrite {
			return nil
		}
		_, err := io.CopyN(io.Discard, in, h.length)
		return err
	}
	r := replication.Request{Op: op, Offset: h.offset, Length: h.length, FUA: h.flags&flagFUA != 0 && op != replication.OpRead}
	switch op {
	case replication.OpRead:
		r.Buf = buf.Get(int(h.length))
	case replication.OpWrite:
		r.Buf = buf.Get(int(h.length))
		if _, err := io.ReadFull(in, r.Buf.B); err != nil {
			r.Buf.Release()
			return err
		}
	case replication.OpFlush:
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
	var vec net.Buffers
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
			r := &batch[i]
			if r.data == nil {
				vec = append(vec, r.head[:])
				continue
			}
			p := r.data.WithHead(replySize, int(r.n))
			copy(p, r.head[:])
			vec = append(vec, p)
		}
		if !ended {
			send := vec // WriteTo eats it
			if _, err := send.WriteTo(s.conn); err != nil {
				s.end()
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

// hungUp says whether nobody has the other end any more.
func (s *server) hungUp() bool {
	raw, err := s.conn.SyscallConn()
	if err != nil {
		return true
	}
	var gone bool
	err = raw.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd)}}
		n, _ := unix.Poll(p, 0)
		gone = n > 0 && p[0].Revents&unix.POLLHUP != 0
	})
	return gone || err != nil // the reader has seen the end and closed it
}
