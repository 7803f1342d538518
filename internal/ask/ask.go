// Package ask puts questions to what may not answer, a disk for instance, on
// behalf of those who must not wait for it: the registration of a node, and who
// looks at its status.
//
// It promises an answer within Patience: a new one, or the last there was, and
// since when there has been none. It does not end what hangs: a question that is
// not answered keeps its goroutine until it is, and no other is asked meanwhile.
package ask

import (
	"sync"
	"time"
)

// Patience is how long a question may take before the last answer is given.
const Patience = 2 * time.Second

// Question is one that is asked again and again, by several goroutines at once.
type Question[T any] struct {
	mu     sync.Mutex
	last   T
	silent *asked // the one that is waited for no more; nil while there are answers
}

// asked is a question under way.
type asked struct {
	since time.Time
	over  bool
}

// Know sets the last answer, for a start.
func (q *Question[T]) Know(answer T) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.last = answer
}

// Last is the last answer.
func (q *Question[T]) Last() T {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.last
}

// Ask gives f's answer; when that takes longer than Patience, the last answer and
// since when there is no newer one.
func (q *Question[T]) Ask(f func() T) (answer T, silent time.Time) {
	x := &asked{since: time.Now()}
	q.mu.Lock()
	if q.silent != nil {
		defer q.mu.Unlock()
		return q.last, q.silent.since
	}
	q.mu.Unlock()
	done := make(chan T, 1)
	go func() {
		v := f()
		q.answered(x, v)
		done <- v
	}()
	late := time.NewTimer(Patience)
	defer late.Stop()
	select {
	case v := <-done:
		return v, time.Time{}
	case <-late.C:
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if x.over {
		return q.last, time.Time{}
	}
	if q.silent == nil {
		q.silent = x
	}
	return q.last, x.since
}

func (q *Question[T]) answered(x *asked, v T) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.last, x.over = v, true
	if q.silent == x {
		q.silent = nil
	}
}
