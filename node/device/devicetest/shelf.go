package devicetest

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/node/keeper"
)

// shelfEnv names the shelf's socket to the servers that a test starts.
const shelfEnv = "HOLDFAST_DEVICETEST_SHELF"

// Shelf is a keeper for tests: it stands in the test's process, and the servers
// that the test starts and kills use it, too.
type Shelf struct{ address string }

// What is asked of a shelf: the first byte of a packet, before KEY 0 NOTE.
const (
	shelfPut  = 'p'
	shelfDrop = 'd'
	shelfList = 'l'
	shelfEnd  = 'e' // of a list, or done
)

const shelfPacket = 8 << 10

// OpenShelf is the shelf of this test, made by the test's own process when it is
// called there first, from TestMain. It lasts as long as that.
func OpenShelf() (*Shelf, error) {
	if at := os.Getenv(shelfEnv); at != "" {
		return &Shelf{at}, nil
	}
	at := fmt.Sprintf("@hf-test-shelf-%d", os.Getpid())
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: at, Net: "unixpacket"})
	if err != nil {
		return nil, err
	}
	if err := os.Setenv(shelfEnv, at); err != nil {
		return nil, err
	}
	b := &board{held: map[string]keeper.Held{}}
	go func() {
		for {
			c, err := l.AcceptUnix()
			if err != nil {
				return
			}
			b.serve(c)
		}
	}()
	return &Shelf{at}, nil
}

// board is what lies on a shelf.
type board struct {
	mu   sync.Mutex
	held map[string]keeper.Held
}

func (b *board) serve(c *net.UnixConn) {
	defer c.Close()
	op, h, err := shelfReceive(c)
	if err != nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	switch op {
	case shelfPut, shelfDrop:
		if old, ok := b.held[h.Key]; ok {
			_ = unix.Close(old.FD)
			delete(b.held, h.Key)
		}
		if op == shelfPut {
			b.held[h.Key] = h
		}
	case shelfList:
		for _, h := range b.held {
			_ = shelfSend(c, shelfPut, h) // it reads or has ended
		}
	}
	_ = shelfSend(c, shelfEnd, keeper.Held{FD: -1})
}

func shelfSend(c *net.UnixConn, op byte, h keeper.Held) error {
	var oob []byte
	if h.FD >= 0 {
		oob = unix.UnixRights(h.FD)
	}
	p := append(append([]byte{op}, h.Key...), 0)
	_, _, err := c.WriteMsgUnix(append(p, h.Note...), oob, nil)
	return err
}

func shelfReceive(c *net.UnixConn) (byte, keeper.Held, error) {
	p, oob := make([]byte, shelfPacket), make([]byte, unix.CmsgSpace(4))
	n, on, _, _, err := c.ReadMsgUnix(p, oob)
	if err != nil || n < 2 {
		return 0, keeper.Held{}, fmt.Errorf("a packet of %d bytes: %w", n, err)
	}
	h := keeper.Held{FD: -1}
	key, note, _ := bytes.Cut(p[1:n], []byte{0})
	h.Key, h.Note = string(key), note
	if msgs, err := unix.ParseSocketControlMessage(oob[:on]); err == nil && len(msgs) > 0 {
		if fds, err := unix.ParseUnixRights(&msgs[0]); err == nil && len(fds) == 1 {
			h.FD = fds[0]
			unix.CloseOnExec(h.FD)
		}
	}
	return p[0], h, nil
}

func (s *Shelf) call(op byte, h keeper.Held) ([]keeper.Held, error) {
	c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: s.address, Net: "unixpacket"})
	if err != nil {
		return nil, holdfast.WrapKind("use the test's keeper", holdfast.Unavailable, err)
	}
	defer c.Close()
	if err := shelfSend(c, op, h); err != nil {
		return nil, holdfast.WrapKind("use the test's keeper", holdfast.Unavailable, err)
	}
	var all []keeper.Held
	for {
		op, h, err := shelfReceive(c)
		if err != nil {
			return all, holdfast.WrapKind("use the test's keeper", holdfast.Unavailable, err)
		}
		if op == shelfEnd {
			return all, nil
		}
		all = append(all, h)
	}
}

// Put is keeper.Client's.
func (s *Shelf) Put(key string, note []byte, fd int) error {
	_, err := s.call(shelfPut, keeper.Held{Key: key, Note: note, FD: fd})
	return err
}

// Drop is keeper.Client's.
func (s *Shelf) Drop(key string) error {
	_, err := s.call(shelfDrop, keeper.Held{Key: key, FD: -1})
	return err
}

// List is keeper.Client's.
func (s *Shelf) List() ([]keeper.Held, error) { return s.call(shelfList, keeper.Held{FD: -1}) }
