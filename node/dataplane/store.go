package dataplane

import (
	"runtime"
	"sync"
	"time"

	"github.com/holdfast-storage/holdfast/replication"
)

// backing does a store's tasks; an engine replica behind engineBacking. Its
// methods are called from several goroutines at once.
type backing interface {
	// State is in memory and does not block.
	State() replication.StoreState
	// Do carries out one task and fills in its answer.
	Do(t *replication.Task)
	// DoAll does the same with several, for which batched says true.
	DoAll(ts []*replication.Task)
	Close() error
}

// store runs tasks on workers, which start when there is work and end when there
// has been none for a while. It implements replication.Store.
type store struct {
	v       *volume
	back    backing
	done1   func(t *replication.Task) // the machine's OnDone
	max     int
	idleFor time.Duration

	mu      sync.Mutex // a leaf
	queue   []*replication.Task
	head    int
	workers int
	idle    int
	called  int // workers that were started or woken and have not looked yet
	open    int // submitted and not yet reported
	done    []*replication.Task
	// delivering: one worker is reporting done tasks; the others leave theirs to it.
	delivering bool
	stopping   bool
	slow       int       // so many more tasks are not done here, as one took long
	most       int       // tasks that a worker takes at once: see batchMost
	moved      time.Time // when the first of the open tasks came, or the last one was done

	wake chan struct{} // of capacity max: one token per idle worker that is to go on
	stop chan struct{} // closed by drain
	gone chan struct{} // closed when stopping and nothing is left
}

func newStore(v *volume, back backing) *store {
	cfg := v.plane.cfg
	return &store{v: v, back: back, max: cfg.Workers, most: batchMost, idleFor: cfg.WorkerIdle,
		wake: make(chan struct{}, cfg.Workers), stop: make(chan struct{}), gone: make(chan struct{})}
}

// State implements replication.Store.
func (s *store) State() replication.StoreState { return s.back.State() }

// Submit implements replication.Store.
func (s *store) Submit(t *replication.Task) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open++; s.open == 1 {
		s.moved = time.Now()
	}
	if s.open == 1 && s.v.lend && s.short(t) {
		s.v.lend, s.v.borrowed = false, borrowed{s, t}
		return
	}
	s.queue = append(s.queue, t)
	s.call()
}

// call gets a worker to look at the queue, unless one is about to: that one calls
// the next if it leaves something. Called under the mutex.
func (s *store) call() {
	switch {
	case s.called > 0:
	case s.idle > 0:
		s.idle--
		s.called++
		s.wake <- struct{}{} // never blocks: at most one token per worker
	case s.workers < s.max:
		s.workers++
		s.called++
		go s.worker()
	}
}

const (
	// hereBytes bounds the reads and writes that are done in the goroutine that
	// brought them, hereFor is how long one may take before the next hereNot are
	// left to workers: handing a task over costs some 20 µs, which is much beside
	// a fast disk's time and nothing beside a slow one's.
	hereBytes = 64 << 10
	hereFor   = 200 * time.Microsecond
	hereNot   = 1000
)

// borrowed is a task that the goroutine of a step does itself after the step.
type borrowed struct {
	s *store
	t *replication.Task
}

// short says whether a task may be done where it was submitted; called under the
// mutex.
func (s *store) short(t *replication.Task) bool {
	if t.FUA || t.Length > hereBytes || t.Kind != replication.TaskWrite && t.Kind != replication.TaskRead {
		return false
	}
	if s.slow > 0 {
		s.slow--
		return false
	}
	return true
}

// do does the task, if there is one; called without any mutex.
func (b borrowed) do() {
	if b.t == nil {
		return
	}
	began := time.Now()
	b.s.back.Do(b.t)
	if time.Since(began) > hereFor {
		b.s.mu.Lock()
		b.s.slow = hereNot
		b.s.mu.Unlock()
	}
	b.s.finished([]*replication.Task{b.t})
}

// waiting says how many tasks are open, and since when none of them was done.
func (s *store) waiting() (open int, since time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open > 0 {
		since = s.moved
	}
	return s.open, since
}

// drain makes the workers end when all tasks are done; wait for gone.
func (s *store) drain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.stopping {
		s.stopping = true
		close(s.stop)
		s.leaveIfEmpty()
	}
}

// leaveIfEmpty is called under the mutex.
func (s *store) leaveIfEmpty() {
	if s.stopping && s.workers == 0 && s.open == 0 {
		close(s.gone)
	}
}

func (s *store) worker() {
	timer := time.NewTimer(s.idleFor)
	defer timer.Stop()
	var batch []*replication.Task
	for called := true; ; {
		if called {
			// First what the step that called sends to other nodes, so that their
			// disks are at work meanwhile: with one processor this one is waited for.
			runtime.Gosched()
		}
		batch = s.next(batch[:0], called)
		called = false
		if len(batch) > 0 {
			s.doAll(batch)
			s.finished(batch)
			clear(batch)
			continue
		}
		timer.Reset(s.idleFor)
		select {
		case <-s.wake:
			called = true
			continue
		case <-timer.C:
		case <-s.stop:
		}
		if s.leave() {
			return
		}
		called = true
	}
}

const (
	// batchMost is how many short reads and writes, of batchBytes at most, one
	// worker does with one system call. All wait for the last of them, so it takes
	// only as many as the disk does in batchFor: one more after each time that it
	// was faster, half after each that it was not.
	batchMost  = 32
	batchBytes = 64 << 10
	batchFor   = 2 * time.Millisecond
)

// batched says whether a task may be done together with others.
func batched(t *replication.Task) bool {
	return !t.FUA && t.Length <= batchBytes && t.Snapshot.ID == "" && (t.Kind == replication.TaskWrite || t.Kind == replication.TaskRead)
}

// doAll does what a worker took.
func (s *store) doAll(batch []*replication.Task) {
	began := time.Now()
	if len(batch) == 1 {
		s.back.Do(batch[0])
	} else {
		s.back.DoAll(batch)
	}
	if batched(batch[0]) {
		s.adapt(time.Since(began))
	}
}

// adapt learns from how long a batch, or a task that could be in one, took.
func (s *store) adapt(took time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if took > batchFor {
		s.most = max(s.most/2, 1)
	} else {
		s.most = min(s.most+1, batchMost)
	}
}

// next takes a task, or several that are done together; none makes the caller
// idle. called says that the caller was counted as such.
func (s *store) next(batch []*replication.Task, called bool) []*replication.Task {
	s.mu.Lock()
	defer s.mu.Unlock()
	if called {
		s.called--
	}
	for s.head < len(s.queue) && len(batch) < s.most {
		t := s.queue[s.head]
		if len(batch) > 0 && (!batched(t) || !batched(batch[0])) {
			break
		}
		batch = append(batch, t)
		s.queue[s.head] = nil
		s.head++
	}
	switch {
	case s.head < len(s.queue):
		s.call()
	case len(batch) == 0:
		s.idle++
		fallthrough
	default:
		s.queue, s.head = s.queue[:0], 0
		if cap(s.queue) > 1024 {
			s.queue = nil
		}
	}
	return batch
}

// leave ends a worker that was idle, unless a token says that it is to go on.
func (s *store) leave() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.wake:
		return false
	default:
	}
	s.idle--
	s.workers--
	s.leaveIfEmpty()
	return true
}

// finished reports tasks, or leaves that to the worker that is at it already:
// one step then reports several.
func (s *store) finished(ts []*replication.Task) {
	s.mu.Lock()
	s.moved = time.Now()
	s.done = append(s.done, ts...)
	if s.delivering {
		s.mu.Unlock()
		return
	}
	s.delivering = true
	s.mu.Unlock()
	var spare []*replication.Task
	for {
		s.v.lock()
		s.mu.Lock()
		batch := s.done
		s.done = spare
		s.mu.Unlock()
		for i, t := range batch {
			s.done1(t)
			batch[i] = nil
		}
		s.v.unlock()
		s.mu.Lock()
		s.open -= len(batch)
		spare = batch[:0]
		if len(s.done) == 0 {
			s.delivering = false
			s.leaveIfEmpty() // the task may have been done by no worker
			s.mu.Unlock()
			return
		}
		s.mu.Unlock()
	}
}
