package fuseloop

import (
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast/replication"
)

// counted is a device.Counter of one device alone.
type counted struct {
	backendFunc
	asked *atomic.Uint64
}

func (c counted) Submit(r *replication.Request) { c.asked.Add(1); c.backendFunc(r) }
func (c counted) Asked() uint64                 { return c.asked.Load() }

// TestLook: who looks for the next request takes one that is there, and sees that the
// connection has ended.
func TestLook(t *testing.T) {
	cfg := fileConfig(nil)
	var asked atomic.Uint64
	cfg.Backend = counted{succeed, &asked}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[1])
	defer unix.Close(fds[0])
	s := newServer(cfg)
	s.fd = fds[0]
	k := &kernel{T: t, fd: fds[1]}
	r := newReader(s)
	defer func() { r.b.Release() }()
	for i := range uint64(3) {
		if r.look() {
			t.Fatal("it found something where nothing is")
		}
		k.send(request(opWrite, i, nodeFile, append(words(writeInSize, map[int]uint64{16: 4096}), make([]byte, 4096)...)))
		if !r.look() {
			t.Fatal("it did not find a request")
		}
		if unique, errno, _ := k.answer(); unique != i || errno != 0 || asked.Load() != i+1 {
			t.Fatalf("request %d: %v; the backend was asked for %d", unique, errno, asked.Load())
		}
	}
	s.closed = true
	if k.send(request(opFsync, 9, nodeFile, make([]byte, 16))); !r.look() || asked.Load() != 3 {
		t.Error("it looks for more after the end")
	}
}

// TestStopEndsWhoLooks, whether it looks at the time or not.
func TestStopEndsWhoLooks(t *testing.T) {
	cfg := fileConfig(nil)
	var asked atomic.Uint64
	cfg.Backend = counted{succeed, &asked}
	k := newKernel(t, cfg)
	if errno, _ := k.ask(opFsync, nodeFile, make([]byte, 16)); errno != 0 || asked.Load() != 1 {
		t.Fatalf("%v, asked %d times", errno, asked.Load())
	}
	k.s.stop() // it waits for both readers
	k.s.stop()
}
