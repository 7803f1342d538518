package dataplane

import (
	"bufio"
	"net"
	"runtime"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast/internal/buf"
	"github.com/holdfast-storage/holdfast/replication"
	"github.com/holdfast-storage/holdfast/replication/wire"
)

// sendAlone sends a message as the only request that is under way.
func sendAlone(c *tcpConn, m *replication.Message) {
	c.v.step(func() {
		c.balance = 0
		c.Send(m)
	})
}

// TestSentAtOnceToASlowPeer: what does not fit into the socket's buffer follows
// in order, whoever sends it.
func TestSentAtOnceToASlowPeer(t *testing.T) {
	c, far := tcpPair(t, newRecorder(), 0)
	if err := c.nc.(*net.TCPConn).SetWriteBuffer(64 << 10); err != nil {
		t.Fatal(err)
	}
	if err := far.SetReadBuffer(64 << 10); err != nil {
		t.Fatal(err)
	}
	const n = 600
	next := uint64(0)
	more := func(k int) {
		for range k {
			b := buf.Get(12 << 10)
			for i := range b.B {
				b.B[i] = byte(next)
			}
			sendAlone(c, &replication.Message{Type: replication.MsgWrite, ID: next, Buf: b})
			next++
		}
	}
	more(200) // far more than the buffers hold, while nobody reads
	r := bufio.NewReaderSize(far, wire.ReaderSize)
	for i := range n {
		if i%100 == 50 && next < n {
			more(100)
		}
		m, err := wire.Decode(r)
		if err != nil {
			t.Fatalf("message %d: %v", i, err)
		}
		if m.ID != uint64(i) || m.Buf.B[0] != byte(i) {
			t.Fatalf("message %d has id %d and begins with %d", i, m.ID, m.Buf.B[0])
		}
		m.Buf.Release()
	}
}

// TestSentAtOnceByTheStep: a single message is in the socket when the step is
// over, without the writer.
func TestSentAtOnceByTheStep(t *testing.T) {
	c, far := tcpPair(t, newRecorder(), 0)
	r := bufio.NewReaderSize(far, wire.ReaderSize)
	shared := buf.Get(4096)
	for i := range uint64(100) {
		sendAlone(c, &replication.Message{Type: replication.MsgWrite, ID: i, Buf: shared.Retain()})
		c.mu.Lock()
		queued := len(c.queue)
		c.mu.Unlock()
		if queued != 0 {
			t.Fatalf("message %d was left to the writer", i)
		}
		if m, err := wire.Decode(r); err != nil || m.ID != i {
			t.Fatalf("message %d: %v, %v", i, m, err)
		} else {
			m.Buf.Release()
		}
	}
	shared.Release()
	mustPanic(t, "a reference was kept", func() { shared.Release() })
}

// TestSentAtOnceToABrokenConnection: the end is reported once, and no buffer is
// kept.
func TestSentAtOnceToABrokenConnection(t *testing.T) {
	rec := newRecorder()
	c, far := tcpPair(t, rec, 0)
	_ = far.SetLinger(0)
	_ = far.Close()
	shared := buf.Get(4096)
	for range 100 {
		sendAlone(c, &replication.Message{Type: replication.MsgWrite, Buf: shared.Retain()})
	}
	<-rec.closed
	sendAlone(c, &replication.Message{Type: replication.MsgWrite, Buf: shared.Retain()})
	shared.Release()
	mustPanic(t, "a reference was kept", func() { shared.Release() })
	if len(rec.closed) != 0 {
		t.Error("the end was reported twice")
	}
}

// TestTaskDoneByItsStep: which tasks the goroutine of a step does itself, and
// that a store that is drained waits for them.
func TestTaskDoneByItsStep(t *testing.T) {
	b := &slowBacking{gate: make(chan struct{}, 100)}
	done := 0
	s := testStore(b, func(*replication.Task) { done++ })
	lend := func(task *replication.Task) borrowed {
		s.v.lock()
		s.v.lend = true
		s.Submit(task)
		got := s.v.borrowed
		s.v.lend, s.v.borrowed = false, borrowed{}
		s.v.unlock()
		return got
	}
	for _, task := range []*replication.Task{
		{Kind: replication.TaskFlush}, {Kind: replication.TaskWrite, Length: 4096, FUA: true},
		{Kind: replication.TaskWrite, Length: 1 << 20}, {Kind: replication.TaskTrim, Length: 4096},
	} {
		b.gate <- struct{}{}
		if got := lend(task); got.t != nil {
			t.Errorf("task %+v was lent", task)
		}
		idle(t, s)
	}
	write := &replication.Task{Kind: replication.TaskWrite, Length: 4096}
	got := lend(write)
	if got.t != write {
		t.Fatal("a short write to an idle store was not lent")
	}
	if again := lend(&replication.Task{Kind: replication.TaskRead, Length: 4096}); again.t != nil {
		t.Error("a second task was lent while the first is under way")
	}
	s.drain()
	b.gate <- struct{}{} // for the second one, by a worker
	waitWorkers(t, s)
	select {
	case <-s.gone:
		t.Fatal("the store is drained although a lent task is not done")
	default:
	}
	b.gate <- struct{}{}
	got.do()
	<-s.gone
	if done != 6 {
		t.Errorf("%d tasks were reported, want 6", done)
	}
}

// TestSlowDiskIsLeftToWorkers: after a task that took long none is lent for a
// while.
func TestSlowDiskIsLeftToWorkers(t *testing.T) {
	s := testStore(newMemBacking(testSize), func(*replication.Task) {})
	read := &replication.Task{Kind: replication.TaskRead, Length: 4096}
	if !s.short(read) {
		t.Fatal("a short read is not short")
	}
	s.slow = hereNot
	for i := range hereNot {
		if s.short(read) {
			t.Fatalf("task %d after a slow one was lent", i)
		}
	}
	if !s.short(read) {
		t.Error("no task is lent any more")
	}
}

// idle waits until a store has no task.
func idle(t *testing.T, s *store) {
	t.Helper()
	eventually(t, "the store is idle", s, func() bool { return s.open == 0 })
}

// waitWorkers waits until a store's workers have ended.
func waitWorkers(t *testing.T, s *store) {
	t.Helper()
	eventually(t, "the workers have ended", s, func() bool { return s.workers == 0 })
}

func eventually(t *testing.T, what string, s *store, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		s.mu.Lock()
		good := ok()
		s.mu.Unlock()
		if good {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
		runtime.Gosched()
	}
}
