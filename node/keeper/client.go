package keeper

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
)

// Env is the variable that tells a daemon the number of the descriptor of its
// keeper's socket.
const Env = "HOLDFAST_KEEPER"

// Held is one thing that is kept: a descriptor, and its owner's note of what it
// is. FD belongs to who got it.
type Held struct {
	Key  string
	Note []byte
	FD   int
}

// Client is a daemon's side. Its methods may be called from any goroutine.
type Client struct {
	mu   sync.Mutex
	conn *net.UnixConn
	lost chan struct{} // closed when the keeper is gone
	once sync.Once
}

// FromEnv is the client of the keeper that started this process; nil when none
// did. To be called once, before the process starts any other.
func FromEnv() (*Client, error) {
	const op = "find the keeper"
	value := os.Getenv(Env)
	if value == "" {
		return nil, nil
	}
	fd, err := strconv.Atoi(value)
	if err != nil || fd < 3 {
		return nil, holdfast.E(op, holdfast.Invalid, fmt.Sprintf("%s is %q; it is set by the keeper only", Env, value))
	}
	if err := os.Unsetenv(Env); err != nil {
		return nil, holdfast.WrapKind(op, holdfast.Other, err)
	}
	unix.CloseOnExec(fd)
	conn, err := connOf(fd)
	if err != nil {
		return nil, holdfast.WrapKind(op, holdfast.Invalid, err)
	}
	return &Client{conn: conn, lost: make(chan struct{})}, nil
}

// Put has the keeper hold a descriptor beside the caller's own, under a key, in
// place of what it had there. On return it is held. Errors: Invalid, Unavailable
// when the keeper is gone.
func (c *Client) Put(key string, note []byte, fd int) error {
	op := "put " + key + " into the keeper"
	if key == "" || len(key) > maxKey || len(note) > maxNote || fd < 0 {
		return holdfast.E(op, holdfast.Invalid, fmt.Sprintf("a key of 1 to %d bytes, a note of up to %d and a descriptor are needed", maxKey, maxNote))
	}
	_, err := c.call(packet{op: opPut, key: key, note: note, fd: fd})
	return holdfast.Wrap(op, err)
}

// Drop has the keeper close what it holds under a key; nothing is fine.
func (c *Client) Drop(key string) error {
	_, err := c.call(packet{op: opDrop, key: key, fd: -1})
	return holdfast.Wrap("drop "+key+" from the keeper", err)
}

// List gives a copy of everything that is held, in no order.
func (c *Client) List() ([]Held, error) {
	all, err := c.call(packet{op: opList, fd: -1})
	return all, holdfast.Wrap("list what the keeper holds", err)
}

// Ready tells the keeper that this daemon works: one that ends before it said so,
// with nothing held, is not started again.
func (c *Client) Ready() error {
	_, err := c.call(packet{op: opReady, fd: -1})
	return holdfast.Wrap("tell the keeper", err)
}

// Lost is closed when a call, or Wait, has found that the keeper is gone.
func (c *Client) Lost() <-chan struct{} { return c.lost }

// Wait waits until the keeper is gone, which is Unavailable, or ctx ends, which is no
// error. Calls go on meanwhile.
func (c *Client) Wait(ctx context.Context) error {
	const op = "watch the keeper"
	// A descriptor of its own: a call that reads its answer must not wait for this.
	var fd int
	raw, err := c.conn.SyscallConn()
	if err == nil {
		dupErr := raw.Control(func(s uintptr) { fd, err = unix.FcntlInt(s, unix.F_DUPFD_CLOEXEC, 3) })
		err = errors.Join(err, dupErr)
	}
	if err != nil {
		return holdfast.WrapKind(op, holdfast.Other, err)
	}
	watch, err := connOf(fd)
	if err != nil {
		return holdfast.WrapKind(op, holdfast.Other, err)
	}
	defer watch.Close()
	stop := context.AfterFunc(ctx, func() { _ = watch.Close() })
	defer stop()
	if raw, err = watch.SyscallConn(); err == nil {
		err = raw.Read(ended)
	}
	if err == nil {
		err = io.EOF
	}
	if ctx.Err() != nil {
		return nil
	}
	return holdfast.Wrap(op, c.gone(err))
}

// ended says whether a socket's other end is closed. What it has sent stays there
// for who waits for it.
func ended(fd uintptr) bool {
	var b [1]byte
	n, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
	return n == 0 && err == nil || err != nil && err != unix.EAGAIN && err != unix.EINTR
}

// call sends a packet and reads its answers.
func (c *Client) call(p packet) ([]Held, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := send(c.conn, p); err != nil {
		return nil, c.gone(err)
	}
	var all []Held
	for {
		a, err := receive(c.conn)
		if err != nil {
			for _, h := range all {
				_ = unix.Close(h.FD)
			}
			return nil, c.gone(err)
		}
		switch {
		case a.op == opHeld && a.fd >= 0:
			all = append(all, Held{Key: a.key, Note: a.note, FD: a.fd})
		case a.op == opEnd:
			return all, nil
		default:
			return all, holdfast.E("", holdfast.Invalid, "the keeper refused: "+string(a.note))
		}
	}
}

func (c *Client) gone(err error) error {
	c.once.Do(func() { close(c.lost) })
	return holdfast.WrapKind("the keeper does not answer", holdfast.Unavailable, err)
}
