package dataplane

import (
	"bufio"
	"errors"
	"net"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast/replication/wire"
)

// readBuffers keeps the buffers of idle connections for busy ones: a thousand
// idle volumes would hold half a gigabyte otherwise.
type readBuffers struct{ pool sync.Pool }

func (b *readBuffers) get(nc net.Conn) *bufio.Reader {
	if r, _ := b.pool.Get().(*bufio.Reader); r != nil {
		r.Reset(nc)
		return r
	}
	return bufio.NewReaderSize(nc, wire.ReaderSize)
}

func (b *readBuffers) put(r *bufio.Reader) {
	r.Reset(nil)
	b.pool.Put(r)
}

// await waits until r has something to decode, or the connection has ended. A
// buffer is not held while waiting, so the reader may be another one on return.
// Connections that do not show their socket, as TLS, keep theirs.
func (b *readBuffers) await(nc net.Conn, r *bufio.Reader) *bufio.Reader {
	tcp, ok := nc.(*net.TCPConn)
	if !ok || r.Buffered() > 0 {
		return r
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return r // the read to come says why
	}
	waited := false
	_ = raw.Read(func(fd uintptr) bool {
		if waited {
			return true // there is something: spare the look
		}
		var one [1]byte
		_, _, err := unix.Recvfrom(int(fd), one[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		for errors.Is(err, unix.EINTR) {
			_, _, err = unix.Recvfrom(int(fd), one[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		}
		if !errors.Is(err, unix.EAGAIN) {
			return true // data, the end, or an error: the read to come finds it
		}
		waited = true
		b.put(r)
		return false
	})
	if waited {
		r = b.get(nc)
	}
	return r
}
