package nbd

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"math/bits"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast/node/device"
	"github.com/holdfast-storage/holdfast/replication"
)

// serverEnv makes a process of this test a server: of the socket 3 with the page
// 4, named by it, on the file 5.
const serverEnv = "HOLDFAST_NBD_TEST_SERVER"

const streamBytes = 64 << 20

// serveHere does that, and does not return then.
func serveHere() {
	name := os.Getenv(serverEnv)
	if name == "" {
		return
	}
	file := os.NewFile(5, "volume")
	d := &Device{fe: &FrontEnd{log: slog.New(slog.NewTextHandler(os.Stderr, nil))}, opts: device.Options{SizeBytes: streamBytes, LogicalBlk: 4096}}
	if _, err := d.serveKept(kept{socket: 3, page: 4, name: name}, later{file}); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
	fmt.Println("serving")
	_, _ = io.Copy(io.Discard, os.Stdin)
	os.Exit(0)
}

// later answers in another order than it is asked, from other goroutines.
type later struct{ f *os.File }

func (b later) Submit(r *replication.Request) {
	go func() {
		var err error
		switch r.Op {
		case replication.OpRead:
			_, err = b.f.ReadAt(r.Buf.B, r.Offset)
		case replication.OpWrite:
			_, err = b.f.WriteAt(r.Buf.B, r.Offset)
		}
		r.Done(r, err)
	}()
}

// fakeKernel is the kernel's side of a connection, which it never gives up. Each
// tag has one request at a time, and each answer must be to what is asked. Like the
// kernel with a scheduler it uses cookies again, and sends data piece by piece.
type fakeKernel struct {
	t    *testing.T
	conn *net.UnixConn
	tx   sync.Mutex
	mu   sync.Mutex
	old  bool // cookies in the machine's byte order
	open [tags]*asked
	free chan uint64 // tags
	done atomic.Int64
}

type asked struct {
	cookie uint64
	data   []byte // of a read
	answer chan unix.Errno
}

func (k *fakeKernel) ask(op uint16, at int64, p []byte) {
	tag := <-k.free
	cookie := (1+rand.Uint64N(3))<<32 | tag
	if k.old {
		cookie = bits.ReverseBytes64(cookie)
	}
	a := &asked{cookie: cookie, answer: make(chan unix.Errno, 1)}
	pieces := [][]byte{requestOf(op, 0, cookie, uint64(at), uint32(len(p)), nil)}
	switch op {
	case opRead:
		a.data = p
	case opWrite:
		pieces = slices.AppendSeq(pieces, slices.Chunk(p, 4096))
	}
	k.mu.Lock()
	k.open[tag] = a
	k.mu.Unlock()
	k.tx.Lock()
	for _, piece := range pieces {
		if _, err := k.conn.Write(piece); err != nil {
			k.t.Errorf("send a request: %v", err)
		}
	}
	k.tx.Unlock()
	if e := <-a.answer; e != 0 {
		k.t.Errorf("operation %d at %d: %v", op, at, e)
	}
	k.free <- tag
	k.done.Add(1)
}

func (k *fakeKernel) receive() {
	head := make([]byte, replySize)
	for {
		if _, err := io.ReadFull(k.conn, head); err != nil {
			return
		}
		cookie := binary.BigEndian.Uint64(head[8:])
		tag := uint32(cookie)
		if k.old {
			tag = uint32(bits.ReverseBytes64(cookie))
		}
		if binary.BigEndian.Uint32(head) != replyMagic || tag >= tags {
			k.t.Errorf("%x is no answer", head)
			return
		}
		k.mu.Lock()
		a := k.open[tag]
		k.open[tag] = nil
		k.mu.Unlock()
		if a == nil || a.cookie != cookie {
			k.t.Errorf("an answer to %x, which is not asked", cookie)
			return
		}
		if _, err := io.ReadFull(k.conn, a.data); err != nil {
			k.t.Errorf("an answer's data: %v", err)
			return
		}
		a.answer <- unix.Errno(binary.BigEndian.Uint32(head[4:]))
	}
}

// worker writes and reads back in a part of the volume of its own, until quit.
func (k *fakeKernel) worker(tag int, size int64, quit chan struct{}) {
	rnd := rand.New(rand.NewPCG(uint64(tag), 1))
	model, from := make([]byte, size), int64(tag)*size
	for {
		select {
		case <-quit:
			return
		default:
		}
		n := int64(4096 << rnd.IntN(6))
		at := rnd.Int64N((size-n)/4096+1) * 4096
		switch rnd.IntN(5) {
		case 0, 1:
			p := make([]byte, n)
			for i := 0; i < len(p); i += 8 {
				binary.LittleEndian.PutUint64(p[i:], rnd.Uint64())
			}
			copy(model[at:], p)
			k.ask(opWrite, from+at, p)
		case 2:
			k.ask(opFlush, 0, nil)
		default:
			p := make([]byte, n)
			k.ask(opRead, from+at, p)
			if !bytes.Equal(p, model[at:at+n]) {
				k.t.Errorf("tag %d: the %d bytes at %d are not as written", tag, n, at)
				return
			}
		}
	}
}

// heldConnection is the server's side, held as the keeper does.
type heldConnection struct {
	socket, page, volume *os.File
	name                 string
}

func (h heldConnection) serve(t *testing.T) *exec.Cmd {
	t.Helper()
	c := exec.Command("/proc/self/exe")
	c.Env = append(os.Environ(), serverEnv+"="+h.name)
	c.Stderr = os.Stderr
	c.ExtraFiles = []*os.File{h.socket, h.page, h.volume}
	if _, err := c.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Process.Kill(); _ = c.Wait() })
	said := make([]byte, 7)
	if _, err := io.ReadFull(out, said); err != nil || string(said) != "serving" {
		t.Fatalf("the server said %q: %v", said, err)
	}
	return c
}

// TestServersAreKilled: the kernel's end of a connection outlives its servers.
// Whenever one is killed, each request is answered once, and what was answered as
// written is there.
func TestServersAreKilled(t *testing.T) {
	t.Run("6.4", func(t *testing.T) { serversAreKilled(t, false) })
	t.Run("6.1", func(t *testing.T) { serversAreKilled(t, true) })
}

func serversAreKilled(t *testing.T, old bool) {
	conn, fd, err := socketPair()
	if err != nil {
		t.Fatal(err)
	}
	kernelEnd, err := connOf(fd)
	if err != nil {
		t.Fatal(err)
	}
	socket, err := conn.File()
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	p, answers, err := newPage()
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	volume, err := os.Create(filepath.Join(t.TempDir(), "volume"))
	if err == nil {
		err = volume.Truncate(streamBytes)
	}
	if err != nil {
		t.Fatal(err)
	}
	k := &fakeKernel{t: t, conn: kernelEnd, old: old, free: make(chan uint64, tags)}
	for tag := range uint64(tags) {
		k.free <- tag
	}
	var all, receiver sync.WaitGroup
	receiver.Go(k.receive)
	const workers = 24
	quit := make(chan struct{})
	for tag := range workers {
		all.Go(func() { k.worker(tag, streamBytes/workers&^4095, quit) })
	}
	h := heldConnection{socket: socket, page: answers, volume: volume, name: p.name()}
	rnd := rand.New(rand.NewPCG(1, uint64(time.Now().UnixNano())))
	for range 12 {
		c := h.serve(t)
		before := k.done.Load()
		progress(t, k, before+int64(rnd.IntN(4000)))
		<-time.After(time.Duration(rnd.IntN(2000)) * time.Microsecond)
		_ = c.Process.Kill()
		_ = c.Wait()
	}
	h.serve(t)
	progress(t, k, k.done.Load()+4*workers)
	close(quit)
	all.Wait()
	kernelEnd.Close()
	receiver.Wait()
	for _, f := range []*os.File{socket, answers, volume} {
		f.Close()
	}
}

// progress waits until so many requests are answered.
func progress(t *testing.T, k *fakeKernel, want int64) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); k.done.Load() < want; <-time.After(time.Millisecond) {
		if t.Failed() || time.Now().After(deadline) {
			k.mu.Lock()
			defer k.mu.Unlock()
			t.Fatalf("%d requests are answered, %d wanted; open are %v", k.done.Load(), want, k.open)
		}
	}
}
