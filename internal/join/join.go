// Package join lets calls that ask for the same work share one run of it.
//
// It promises that work goes on after its caller has stopped waiting, that a
// call with the same key joins what is under way instead of starting it again
// or being refused, and that everybody who waited gets the same result. The
// result is not kept: a call after the end starts anew. It does not bound the
// work's time; the work does that itself.
//
// It owns one goroutine per run, which ends when the work returns.
package join

import (
	"context"
	"fmt"
	"sync"

	"github.com/holdfast-storage/holdfast"
)

// Group is a set of runs by key. The zero value is ready; do not copy it.
type Group[K comparable, V any] struct {
	mu   sync.Mutex
	runs map[K]*run[V]
}

type run[V any] struct {
	done  chan struct{} // closed when value and err are there
	value V
	err   error
}

// Do waits until the work of this key ends, and starts it if it is not under
// way. Work runs in its own goroutine with ctx's values, but outlives ctx. When
// ctx ends first, Do returns an error of kind Unavailable that wraps ctx's, the
// work goes on, and the same call later joins it.
func (g *Group[K, V]) Do(ctx context.Context, key K, work func(ctx context.Context) (V, error)) (V, error) {
	g.mu.Lock()
	r, ok := g.runs[key]
	if !ok {
		r = g.start(ctx, key, work)
	}
	g.mu.Unlock()
	select {
	case <-r.done:
		return r.value, r.err
	default:
	}
	select {
	case <-r.done:
		return r.value, r.err
	case <-ctx.Done():
		var none V
		return none, holdfast.WrapKind("the work goes on in the background; repeat the call to wait for it", holdfast.Unavailable, ctx.Err())
	}
}

// start begins the work; the caller holds the lock.
func (g *Group[K, V]) start(ctx context.Context, key K, work func(ctx context.Context) (V, error)) *run[V] {
	r := &run[V]{done: make(chan struct{})}
	if g.runs == nil {
		g.runs = map[K]*run[V]{}
	}
	g.runs[key] = r
	go func() {
		// Waiters must not hang if the work ends its goroutine (runtime.Goexit).
		r.err = holdfast.E(fmt.Sprint("run ", key), holdfast.Other, "the work ended without a result")
		defer func() {
			g.mu.Lock()
			delete(g.runs, key)
			g.mu.Unlock()
			close(r.done)
		}()
		r.value, r.err = work(context.WithoutCancel(ctx))
	}()
	return r
}
