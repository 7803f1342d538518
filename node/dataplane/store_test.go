package dataplane

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/buf"
	"github.com/holdfast-storage/holdfast/replication"
)

// slowBacking counts how many tasks it does at once.
type slowBacking struct {
	memBacking
	now, most int
	count     sync.Mutex
	gate      chan struct{}
}

func (s *slowBacking) Do(*replication.Task) {
	s.count.Lock()
	s.now++
	s.most = max(s.most, s.now)
	s.count.Unlock()
	<-s.gate
	s.count.Lock()
	s.now--
	s.count.Unlock()
}

func (s *slowBacking) DoAll(ts []*replication.Task) {
	for _, t := range ts {
		s.Do(t)
	}
}

// until waits until n tasks are being done.
func (s *slowBacking) until(t *testing.T, n int) {
	deadline := time.Now().Add(10 * time.Second)
	for now := 0; now != n; {
		if time.Now().After(deadline) {
			t.Fatalf("%d tasks at once, want %d", now, n)
		}
		s.count.Lock()
		now = s.now
		s.count.Unlock()
	}
}

func testStore(back backing, done func(*replication.Task)) *store {
	p := &Plane{cfg: Config{Workers: 3, WorkerIdle: 20 * time.Millisecond}}
	s := newStore(&volume{plane: p}, back)
	s.done1 = done
	return s
}

func TestWorkersAreBoundedAndEndWhenIdle(t *testing.T) {
	b := &slowBacking{gate: make(chan struct{})}
	var wg sync.WaitGroup
	s := testStore(b, func(*replication.Task) { wg.Done() })
	for range 5 {
		for range 50 {
			wg.Add(1)
			s.Submit(&replication.Task{})
		}
		b.until(t, 3)
		for range 50 {
			b.gate <- struct{}{}
		}
		wg.Wait()
	}
	if b.most != 3 {
		t.Errorf("%d tasks at once, want 3", b.most)
	}
	deadline := time.Now().Add(10 * time.Second)
	for workers := 1; workers > 0 && time.Now().Before(deadline); {
		s.mu.Lock()
		workers = s.workers
		if s.idle > s.workers {
			t.Fatalf("%d of %d workers idle", s.idle, s.workers)
		}
		s.mu.Unlock()
	}
	s.mu.Lock()
	if s.workers != 0 || s.idle != 0 || s.open != 0 {
		t.Errorf("left: %d workers, %d idle, %d tasks", s.workers, s.idle, s.open)
	}
	s.mu.Unlock()
	wg.Add(1)
	s.Submit(&replication.Task{}) // and start again
	b.gate <- struct{}{}
	wg.Wait()
	s.drain()
	<-s.gone
}

// TestStoreHammer looks for lost wake-ups: tasks come in at odd moments, such as
// are done alone and such as are done together.
func TestStoreHammer(t *testing.T) {
	for _, kind := range []replication.TaskKind{replication.TaskFlush, replication.TaskWrite} {
		hammerStore(t, kind)
	}
}

func hammerStore(t *testing.T, kind replication.TaskKind) {
	gate := make(chan struct{})
	close(gate)
	var wg sync.WaitGroup
	s := testStore(&slowBacking{gate: gate}, func(*replication.Task) { wg.Done() })
	s.idleFor = 50 * time.Microsecond
	for i := range 20000 {
		wg.Add(1)
		s.Submit(&replication.Task{Kind: kind})
		if i%7 == 0 {
			wg.Wait()
		}
	}
	wg.Wait()
	s.drain()
	s.drain()
	<-s.gone
}

// TestBatches: what lies in the queue is done together where all of it is short,
// in order, and no more than the disk is fast enough for.
func TestBatches(t *testing.T) {
	s := testStore(newMemBacking(testSize), nil)
	s.max = 0 // nobody takes the tasks but the test
	submit := func(kind replication.TaskKind) {
		s.Submit(&replication.Task{Kind: kind, Length: 4096})
	}
	take := func() (kinds []replication.TaskKind) {
		for _, task := range s.next(nil, false) {
			kinds = append(kinds, task.Kind)
		}
		return kinds
	}
	const r, w, f = replication.TaskRead, replication.TaskWrite, replication.TaskFlush
	for _, kind := range []replication.TaskKind{w, r, f, f, w, w, w} {
		submit(kind)
	}
	for _, want := range [][]replication.TaskKind{{w, r}, {f}, {f}} {
		if got := take(); !slices.Equal(got, want) {
			t.Errorf("took %v, want %v", got, want)
		}
	}
	for range 10 {
		s.adapt(batchFor + 1)
	}
	if got := take(); !slices.Equal(got, []replication.TaskKind{w}) {
		t.Errorf("a slow disk: took %v", got)
	}
	s.adapt(batchFor)
	if got := take(); !slices.Equal(got, []replication.TaskKind{w, w}) {
		t.Errorf("took %v: batches do not grow again", got)
	}
	for range 2 * batchMost {
		s.adapt(0)
	}
	for range batchMost + 1 {
		submit(w)
	}
	if got := take(); len(got) != batchMost {
		t.Errorf("a batch of %d, want %d", len(got), batchMost)
	}
}

// TestWorkerThatWasCalledDoesNotLeave: its time was up just when a task came.
func TestWorkerThatWasCalledDoesNotLeave(t *testing.T) {
	s := testStore(newMemBacking(0), nil)
	s.workers, s.idle = 1, 1
	s.Submit(&replication.Task{})
	if s.workers != 1 || s.idle != 0 {
		t.Fatalf("%d workers, %d idle: the idle one was not called", s.workers, s.idle)
	}
	if s.leave() {
		t.Error("the worker left with a task waiting for it")
	}
	if s.next(nil, true) == nil {
		t.Error("the task is gone")
	}
}

func TestRemoveReplicaWaitsForItsTasks(t *testing.T) {
	c := newCluster(t, 2).start()
	h := c.open(c.nodes[0], OpenOptions{})
	mem := c.nodes[1].back.(*memBacking)
	hold := make(chan struct{})
	mem.mu.Lock()
	mem.hold = hold
	mem.mu.Unlock()
	done := make(chan error, 1)
	b := buf.Get(4096)
	h.Submit(&replication.Request{Op: replication.OpWrite, Length: 4096, Buf: b, Done: func(_ *replication.Request, err error) { done <- err }})
	p := c.nodes[1].plane
	c.until("the write is in the store", func() bool { return p.Replicas()[0].Tasks > 0 })
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	wantKind(t, p.RemoveReplica(ctx, c.nodes[1].rep), holdfast.Unavailable)
	wantKind(t, p.addReplica(c.vol, c.nodes[1].rep, mem), holdfast.Exists)
	if mem.closed {
		t.Error("closed although a task is under way")
	}
	mem.mu.Lock()
	mem.hold = nil
	mem.mu.Unlock()
	close(hold)
	if err := p.RemoveReplica(t.Context(), c.nodes[1].rep); err != nil {
		t.Fatal(err)
	}
	if !mem.closed {
		t.Error("not closed")
	}
	if err := p.RemoveReplica(t.Context(), c.nodes[1].rep); err != nil {
		t.Errorf("removing it again: %v", err)
	}
	// The primary goes on without it.
	if err := <-done; err != nil {
		t.Error(err)
	}
	b.Release()
	c.until("the replica is dropped", func() bool { return len(c.inSync()) == 1 })
	// And takes it back when it is served again.
	mem.closed = false
	if err := p.addReplica(c.vol, c.nodes[1].rep, mem); err != nil {
		t.Fatal(err)
	}
	c.until("the replica is back", func() bool { return len(c.inSync()) == 2 })
	if err := h.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.equal()
}

// TestNothingIsLeft: volumes that are neither stored nor served take no memory.
func TestNothingIsLeft(t *testing.T) {
	c := newCluster(t, 2).start()
	h := c.open(c.nodes[0], OpenOptions{})
	if err := h.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	p := c.nodes[0].plane
	if err := p.RemoveReplica(t.Context(), c.nodes[0].rep); err != nil {
		t.Fatal(err)
	}
	c.until("nothing is left", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return len(p.volumes)+len(p.replicas)+len(p.primaries)+len(p.opening)+len(p.conns) == 0
	})
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	wantKind(t, p.addReplica(c.vol, "r", newMemBacking(testSize)), holdfast.Unavailable)
	_, err := p.Open(t.Context(), c.vol, OpenOptions{})
	wantKind(t, err, holdfast.Unavailable)
}
