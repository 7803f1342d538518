package nbd

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/buf"
)

// stream is a server's end of a connection, of which nothing is lost when the
// process is killed while the keeper holds the socket and the page beside it.
//
// The socket's own queue is the journal: requests are read with MSG_PEEK and an
// offset that the kernel moves (SO_PEEK_OFF), and stay in the queue, data and all.
// They are taken out of it, oldest first and as a whole, once they are answered.
// So a successor, who begins at offset 0, finds all requests that are not answered
// and some that are, which the page tells. The kernel's device notices nothing.
//
// Only while the oldest request is not answered are those behind it kept: up to
// ring of them, and as many bytes as the socket takes. Then reading waits.
type stream struct {
	raw  syscall.RawConn
	page *page

	// The sender's: what it hands to the kernel, where the requests of its batch
	// are, and what is taken out is dropped into.
	iov     []unix.Iovec
	places  []uint64
	into    []unix.Iovec
	scratch *buf.Buf

	mu    sync.Mutex
	room  sync.Cond // for another request in queue, or ended
	ended bool
	queue []arrival    // what the socket still has, oldest first
	first uint64       // place of queue's first
	at    [tags]uint64 // place of the newest with each tag
}

// arrival is a request that has been read whole.
type arrival struct {
	bytes    int // in the stream
	answered bool
}

// Requests are taken out when the oldest ones that are answered are so many, or so
// many bytes. Each look into the queue passes those that are still there.
const (
	takeCount = 16
	takeBytes = 64 << 10
)

// takeMost is how many bytes are taken out at once. One system call takes whole
// requests: it is never cut by the end of the process, as its memory is present.
const takeMost = 4 << 20

func newStream(conn *net.UnixConn, p *page) (*stream, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	var optErr error
	if err := raw.Control(func(fd uintptr) {
		optErr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PEEK_OFF, 0)
	}); err != nil || optErr != nil {
		return nil, errors.Join(err, os.NewSyscallError("setsockopt SO_PEEK_OFF", optErr))
	}
	s := &stream{raw: raw, page: p, first: p.taken.Load(), iov: make([]unix.Iovec, tags), scratch: buf.Get(takeBytes)}
	s.room.L = &s.mu
	s.scratch.Present()
	return s, nil
}

// end wakes who waits for room.
func (s *stream) end() {
	s.mu.Lock()
	s.ended = true
	s.mu.Unlock()
	s.room.Broadcast()
}

// close ends this end's use. The page is gone afterwards.
func (s *stream) close() {
	s.page.close()
	s.scratch.Release()
}

// Read gives what has arrived, and leaves it in the socket.
func (s *stream) Read(p []byte) (n int, err error) {
	rawErr := s.raw.Read(func(fd uintptr) bool {
		n, _, err = unix.Recvfrom(int(fd), p, unix.MSG_PEEK|unix.MSG_DONTWAIT)
		return !errors.Is(err, unix.EAGAIN)
	})
	switch {
	case rawErr != nil:
		return 0, rawErr
	case err != nil:
		return 0, os.NewSyscallError("recv", err)
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}

// arrived notes a request that has been read with all its data, and says whether a
// predecessor has answered it. To be called in the order of the stream, before it
// can be answered here.
func (s *stream) arrived(cookie uint64, bytes int) (answered bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.queue) == ring && !s.ended {
		s.room.Wait()
	}
	place := s.first + uint64(len(s.queue))
	answered = s.page.answered[place%ring] != 0
	tag, ok := s.page.tagOf(cookie)
	if ok && !answered {
		s.at[tag] = place
	}
	// What cannot be told from others does not stay: no successor can use it.
	s.queue = append(s.queue, arrival{bytes: bytes, answered: answered || !ok})
	return answered
}

// find notes where the requests are that are about to be answered: afterwards the
// kernel may use their tags again.
func (s *stream) find(replies []reply) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.places = s.places[:0]
	for i := range replies {
		place := s.first // of no meaning: the connection is lost
		if tag, ok := s.page.tagOf(replies[i].cookie()); ok {
			place = s.at[tag]
		}
		s.places = append(s.places, place)
	}
}

// send sends answers, at most tags of them, of which vec are the bytes.
func (s *stream) send(replies []reply, vec [][]byte) error {
	s.find(replies)
	s.page.begin(s.places, vec)
	iov := s.iov[:len(vec)]
	for i, b := range vec {
		iov[i].Base = &b[0]
		iov[i].SetLen(len(b))
	}
	for len(iov) > 0 {
		n, err := s.sendSome(iov)
		if err != nil {
			return err
		}
		for len(iov) > 0 && n >= int(iov[0].Len) {
			n -= int(iov[0].Len)
			iov = iov[1:]
		}
		if len(iov) > 0 {
			s.page.partly.Store(1)
			rest := vec[len(vec)-len(iov)]
			rest = rest[len(rest)-int(iov[0].Len)+n:]
			iov[0].Base = &rest[0]
			iov[0].SetLen(len(rest))
		}
	}
	s.page.end()
	clear(s.iov[:len(vec)])
	return s.takeOut()
}

func (s *stream) sendSome(iov []unix.Iovec) (n int, err error) {
	var errno unix.Errno
	err = s.raw.Write(func(fd uintptr) bool {
		n, errno = s.page.send(fd, iov)
		return errno != unix.EAGAIN
	})
	if err == nil && errno != 0 {
		err = os.NewSyscallError("sendmmsg", errno)
	}
	return n, err
}

// takeOut notes the batch as answered, and takes what is answered out of the socket
// when there is enough of it.
func (s *stream) takeOut() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, at := range s.places {
		if at >= s.first && at-s.first < uint64(len(s.queue)) { // else it was answered twice
			s.queue[at-s.first].answered = true
		}
	}
	for {
		count, bytes, more := 0, 0, false
		for count < len(s.queue) && s.queue[count].answered {
			if more = bytes+s.queue[count].bytes > takeMost; more {
				break
			}
			bytes += s.queue[count].bytes
			count++
		}
		if count == 0 || !more && count < takeCount && bytes < takeBytes {
			return nil
		}
		if err := s.drop(count, bytes); err != nil {
			return err
		}
	}
}

// drop takes the oldest requests out of the socket.
func (s *stream) drop(count, bytes int) error {
	s.into = s.into[:0]
	for left := bytes; left > 0; left -= takeBytes {
		v := unix.Iovec{Base: &s.scratch.B[0]}
		v.SetLen(min(left, takeBytes))
		s.into = append(s.into, v)
	}
	var n int
	var errno unix.Errno
	err := s.raw.Control(func(fd uintptr) {
		n, errno = s.page.drop(fd, s.first+uint64(count), uint64(bytes), s.into)
	})
	switch {
	case err != nil:
		return err
	case errno != 0:
		return os.NewSyscallError("recvmmsg", errno)
	case n != bytes:
		return holdfast.E("take answered requests out of the socket", holdfast.Other, fmt.Sprintf("%d of %d bytes were there", n, bytes))
	}
	s.page.dropped()
	s.queue = s.queue[:copy(s.queue, s.queue[count:])]
	s.first += uint64(count)
	s.room.Signal()
	return nil
}
