package dataplane

import (
	"bufio"
	"errors"
	"io"
	"net"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Reading and writing TCP connections by system calls of which Go's scheduler is not
// told: they never wait and copy at most rawMost, while telling wakes the runtime's
// monitor thread, which costs several switches of threads where little else goes on.

// socketReader reads a connection, for one goroutine.
type socketReader struct {
	raw syscall.RawConn
	try func(fd uintptr) bool // attempt, bound once: reads into p, to n and err
	p   []byte
	n   int
	err error // the connection's end stays

	// While readBuffers.await waits: which buffer it has, if any, and from where.
	look    func(fd uintptr) bool
	lender  *readBuffers
	lent    *bufio.Reader
	looking bool // within look, with fd
	fd      uintptr
}

const (
	// rawMost bounds what one system call copies, in bytes.
	rawMost = 256 << 10
	// iovMost is how many slices writev takes: UIO_MAXIOV of linux/uio.h.
	iovMost = 1024
)

// errWouldBlock says that a read would have to wait.
var errWouldBlock = errors.New("nothing to read yet")

// newSocketReader gives nil where there is no socket, as with TLS.
func newSocketReader(nc net.Conn) *socketReader {
	raw := socketOf(nc)
	if raw == nil {
		return nil
	}
	s := &socketReader{raw: raw}
	s.try, s.look = s.attempt, s.lookAttempt
	return s
}

func socketOf(nc net.Conn) syscall.RawConn {
	tcp, ok := nc.(*net.TCPConn)
	if !ok {
		return nil
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nil // closed already: whoever uses the connection notices
	}
	return raw
}

// Read implements io.Reader. Within a look it does not wait: errWouldBlock.
func (s *socketReader) Read(p []byte) (int, error) {
	if len(p) == 0 || s.err != nil {
		return 0, s.err
	}
	s.p = p[:min(len(p), rawMost)]
	if s.looking {
		if !s.attempt(s.fd) {
			return 0, errWouldBlock
		}
	} else if err := s.raw.Read(s.try); err != nil {
		return 0, err
	}
	s.p = nil
	return s.n, s.err
}

// attempt says whether it need not be called again when there is something.
func (s *socketReader) attempt(fd uintptr) bool {
	n, _, errno := unix.RawSyscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(&s.p[0])), uintptr(len(s.p)))
	for errno == unix.EINTR {
		n, _, errno = unix.RawSyscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(&s.p[0])), uintptr(len(s.p)))
	}
	switch {
	case errno == unix.EAGAIN:
		return false
	case errno != 0:
		s.n, s.err = 0, errno
	case n == 0:
		s.n, s.err = 0, io.EOF
	default:
		s.n = int(n)
	}
	return true
}

// lookAttempt reads what is there into a buffer. With nothing there it gives the
// buffer back, and is called again when there is something.
func (s *socketReader) lookAttempt(fd uintptr) bool {
	if s.lent == nil {
		s.lent = s.lender.get(s)
	}
	s.looking, s.fd = true, fd
	_, err := s.lent.Peek(1) // the end, or an error: the read to come finds it again
	s.looking = false
	if errors.Is(err, errWouldBlock) {
		s.lender.put(s.lent)
		s.lent = nil
		return false
	}
	return true
}

// socketWriter writes a connection, for one goroutine at a time.
type socketWriter struct {
	raw  syscall.RawConn
	try  func(fd uintptr) bool // attempt, bound once: one writev of vec, to n and errno
	wait bool
	vec  []unix.Iovec
	n    int
	err  error
}

func newSocketWriter(nc net.Conn) *socketWriter {
	raw := socketOf(nc)
	if raw == nil {
		return nil
	}
	s := &socketWriter{raw: raw}
	s.try = s.attempt
	return s
}

func (s *socketWriter) attempt(fd uintptr) bool {
	n, _, errno := unix.RawSyscall(unix.SYS_WRITEV, fd, uintptr(unsafe.Pointer(&s.vec[0])), uintptr(len(s.vec)))
	for errno == unix.EINTR {
		n, _, errno = unix.RawSyscall(unix.SYS_WRITEV, fd, uintptr(unsafe.Pointer(&s.vec[0])), uintptr(len(s.vec)))
	}
	switch errno {
	case 0:
		s.n, s.err = int(n), nil
	case unix.EAGAIN:
		s.n, s.err = 0, nil
		return !s.wait
	default:
		s.n, s.err = 0, errno
	}
	return true
}

// write sends iov, which it uses up, and says how many bytes. Unless it may wait, it
// sends what the socket takes now.
func (s *socketWriter) write(iov [][]byte, wait bool) (sent int, err error) {
	s.wait = wait
	for {
		s.gather(iov)
		if len(s.vec) == 0 {
			return sent, nil
		}
		err := s.raw.Write(s.try)
		clear(s.vec)
		if err == nil {
			err = s.err
		}
		if err != nil {
			return sent, err
		}
		sent += s.n
		if !wait {
			return sent, nil
		}
		iov = skip(iov, s.n)
	}
}

// gather points vec at the first slices, up to rawMost bytes.
func (s *socketWriter) gather(iov [][]byte) {
	s.vec = s.vec[:0]
	size := 0
	for _, p := range iov {
		if len(s.vec) == iovMost || size == rawMost {
			return
		}
		if p = p[:min(len(p), rawMost-size)]; len(p) > 0 {
			v := unix.Iovec{Base: &p[0]}
			v.SetLen(len(p))
			s.vec = append(s.vec, v)
			size += len(p)
		}
	}
}

// skip drops the first n bytes.
func skip(iov [][]byte, n int) [][]byte {
	for n > 0 {
		k := min(n, len(iov[0]))
		iov[0] = iov[0][k:]
		if n -= k; len(iov[0]) == 0 {
			iov = iov[1:]
		}
	}
	return iov
}
