package fuseloop

import (
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast/internal/buf"
	"github.com/holdfast-storage/holdfast/node/device"
	"github.com/holdfast-storage/holdfast/node/device/poll"
	"github.com/holdfast-storage/holdfast/replication"
)

// serverConfig describes the one file.
type serverConfig struct {
	Name      string // the file's name
	SizeBytes int64
	ReadOnly  bool
	Backend   device.Backend
	Log       *slog.Logger
}

// server answers one FUSE connection. It knows the open /dev/fuse only, neither
// the mount nor the loop device, and nothing in it depends on having seen INIT:
// so it can as well be given the descriptor of a connection that another process
// set up.
type server struct {
	cfg  serverConfig
	size atomic.Int64 // bytes, as answered to the kernel
	reqs sync.Pool    // of *ioRequest
	// ending is set when the end of the connection is wanted.
	ending atomic.Bool
	next   *poll.Poller

	file    *os.File
	conn    syscall.RawConn
	readers sync.WaitGroup
	stopped chan struct{}

	mu     sync.RWMutex // held shared while fd is written to
	fd     int
	closed bool
}

// serve starts to answer the connection on f, an open /dev/fuse in non-blocking
// mode, which the server owns from then on.
func serve(f *os.File, fd int, cfg serverConfig) (*server, error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	s := newServer(cfg)
	s.file, s.fd, s.conn = f, fd, conn
	s.readers.Go(newReader(s).run)
	if s.next.Looks() {
		s.readers.Go(newReader(s).poll)
	}
	return s, nil
}

// newServer makes a server without a connection.
func newServer(cfg serverConfig) *server {
	s := &server{cfg: cfg, next: poll.New(cfg.Backend), stopped: make(chan struct{})}
	s.size.Store(cfg.SizeBytes)
	s.reqs.New = func() any { return newIORequest(s) }
	return s
}

// stop closes the connection: every request that the kernel still waits for
// fails, and so does every later one. Answers of the backend that come later are
// dropped. It waits for the readers, which do not wait for the backend.
func (s *server) stop() {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		s.readers.Wait()
		return
	}
	s.closed = true
	s.mu.Unlock()
	_ = s.file.Close()
	close(s.stopped)
	s.readers.Wait()
}

// send gives an answer to the kernel. It does not block: the kernel copies p.
func (s *server) send(p []byte) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return
	}
	errno := writeFD(s.fd, p)
	switch errno {
	case 0, unix.ENOENT, unix.ENODEV, unix.ECONNABORTED, unix.EPERM:
		return // answered, or nobody waits for it any more
	}
	// The kernel would wait for ever for an answer that it refused.
	unique := order.Uint64(p[8:])
	s.cfg.Log.Error("the kernel refused an answer; failing the request", "file", s.cfg.Name, "bytes", len(p), "error", errno)
	var out [outHeaderSize]byte
	putOutHeader(out[:], len(out), unique, unix.EIO)
	_ = writeFD(s.fd, out[:])
}

// sendError answers without data; errno 0 is success.
func (s *server) sendError(unique uint64, errno unix.Errno) {
	var out [outHeaderSize]byte
	putOutHeader(out[:], len(out), unique, errno)
	s.send(out[:])
}

// rawBelow is the size of an answer from which the scheduler is told about the
// system call: copying less is over before telling would pay.
const rawBelow = 64 << 10

func writeFD(fd int, p []byte) unix.Errno {
	for {
		var errno unix.Errno
		if len(p) < rawBelow {
			_, _, errno = unix.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)))
		} else {
			_, _, errno = unix.Syscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)))
		}
		if errno != unix.EINTR {
			return errno
		}
	}
}

// reader reads requests, answers what needs no backend, and submits the rest.
type reader struct {
	s   *server
	b   *buf.Buf // receives the next request, its data aligned
	out [outHeaderSize + entryOutSize]byte
	// held are requests not yet given to the backend, which all says takes
	// several at once.
	held []*replication.Request
	all  device.Batcher
}

// heldMost bounds the requests that are read before any is given to the backend.
const heldMost = 16

func newReader(s *server) *reader {
	r := &reader{s: s}
	r.all, _ = s.cfg.Backend.(device.Batcher)
	return r
}

// submit gives a request to the backend: at once if no other is open, or else at the
// latest before the reader waits for the next one.
func (r *reader) submit(q *ioRequest) {
	if r.all == nil {
		r.s.cfg.Backend.Submit(&q.Request)
		return
	}
	r.held = append(r.held, &q.Request)
	if len(r.held) == heldMost || r.s.next.Alone() {
		r.flush()
	}
}

func (r *reader) flush() {
	if len(r.held) > 0 {
		r.all.SubmitAll(r.held)
		clear(r.held)
		r.held = r.held[:0]
	}
}

func (r *reader) run() {
	defer func() {
		r.flush()
		r.b.Release()
	}()
	var in []byte
	var errno unix.Errno
	attempt := func(fd uintptr) bool {
		in, errno = r.receive(fd)
		return errno != unix.EAGAIN // else wait
	}
	for {
		if err := r.s.conn.Read(attempt); err != nil {
			return // closed by stop
		}
		switch {
		case errno == 0:
			r.handle(in)
		case errno == unix.EINTR || errno == unix.ENOENT:
			// Interrupted, or the request was withdrawn while it was read.
		default:
			if !r.s.ending.Load() {
				r.s.cfg.Log.Error("the connection to the kernel ended; the device is dead", "file", r.s.cfg.Name, "error", errno)
			}
			return
		}
	}
}

// poll looks for the next request while run has nothing to read and sleeps.
func (r *reader) poll() {
	r.s.next.Run(r.s.stopped, r.look, func() {
		r.flush()
		r.b.Release()
		r.b = nil
	})
}

// look takes a request if there is one. What ended the connection, run reports.
func (r *reader) look() (over bool) {
	r.s.mu.RLock()
	if r.s.closed {
		r.s.mu.RUnlock()
		return true
	}
	in := r.receiver()
	n, errno := readFD(uintptr(r.s.fd), in)
	r.s.mu.RUnlock()
	if errno == 0 {
		r.handle(in[:n])
	}
	return errno != unix.EAGAIN
}

func readFD(fd uintptr, p []byte) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)))
	if errno != 0 {
		n = 0
	}
	return int(n), errno
}

// receive reads a request. EAGAIN when there is none: then the backend has what was
// read before, and the buffer is of use elsewhere.
func (r *reader) receive(fd uintptr) ([]byte, unix.Errno) {
	in := r.receiver()
	n, errno := readFD(fd, in)
	if errno == unix.EAGAIN {
		r.flush()
		r.b.Release()
		r.b = nil
	}
	return in[:n], errno
}

// receiver is where the next request goes, its pages present: the kernel copies it
// there without a page fault. In a process that is being killed (SIGKILL, or for
// want of memory) a fault fails, and then the request ends with EIO instead of
// waiting for the successor: fuse_dev_do_read in fs/fuse/dev.c.
func (r *reader) receiver() []byte {
	if r.b == nil {
		r.b = buf.Get(buf.Max)
		r.b.Present()
	}
	return r.b.WithHead(writeHead, maxWrite)
}

// handle takes one request. Data of a WRITE stands in r.b.B.
func (r *reader) handle(in []byte) {
	if len(in) < inHeaderSize {
		return // never sent by a kernel; there is nothing to answer to
	}
	h := parseInHeader(in)
	body := in[inHeaderSize:]
	if need := bodySize(h.op); len(body) < need {
		r.s.sendError(h.unique, unix.EINVAL)
		return
	}
	switch h.op {
	case opRead:
		r.read(h, body)
	case opWrite:
		r.write(h, body)
	case opFsync:
		r.fsync(h)
	case opFallocate:
		r.fallocate(h, body)
	case opForget, opBatchForget, opInterrupt:
		// No answer is expected. Requests are not interrupted: the backend
		// answers them, or Abort ends them.
	default:
		r.handleMeta(h, body)
	}
}

// bodySize is how many bytes of arguments an operation needs at least.
func bodySize(op uint32) int {
	switch op {
	case opRead, opWrite:
		return writeInSize
	case opFallocate:
		return 32
	case opInit:
		return 16
	case opSetattr:
		return 24
	}
	return 0
}
