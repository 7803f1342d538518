package keep_test

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/metadata/internal/keep"
)

const ttl = 5 * time.Second

// lease is kept in virtual time; the clock can be ahead, as after a pause.
type lease struct {
	*keep.Lease
	refreshes atomic.Int64
	released  atomic.Int64
	answer    atomic.Pointer[func(ctx context.Context) error]
	pause     atomic.Int64
	began     time.Time
}

func take(t *testing.T) *lease {
	l := &lease{began: time.Now()}
	l.Lease = keep.New(t.Context(), keep.Config{
		TTL:   ttl,
		Clock: func() time.Duration { return time.Since(l.began) + time.Duration(l.pause.Load()) },
		Refresh: func(ctx context.Context) error {
			l.refreshes.Add(1)
			if f := l.answer.Load(); f != nil {
				return (*f)(ctx)
			}
			return nil
		},
		Release: func(context.Context) error { l.released.Add(1); return nil },
	})
	return l
}

func (l *lease) set(f func(ctx context.Context) error) { l.answer.Store(&f) }

func (l *lease) lostAfter(t *testing.T, atMost time.Duration) {
	t.Helper()
	select {
	case <-l.Lost():
	case <-time.After(atMost + time.Millisecond): // after what is due by then
		t.Fatalf("not lost after %v", atMost)
	}
	if l.Held() {
		t.Fatal("a lost lease is held")
	}
}

func TestRefreshed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := take(t)
		<-time.After(100 * ttl)
		if !l.Held() || l.refreshes.Load() < 200 {
			t.Fatalf("held %v after %d refreshes", l.Held(), l.refreshes.Load())
		}
		if err := l.Close(); err != nil || l.released.Load() != 1 {
			t.Fatalf("%v, released %d times", err, l.released.Load())
		}
		l.lostAfter(t, 0)
	})
}

// Refreshes fail, or do not come back at all, even when told to.
func TestLostWhenNotConfirmed(t *testing.T) {
	answers := map[string]func(ctx context.Context) error{
		"refused": func(context.Context) error { return holdfast.E("", holdfast.Unavailable, "no") },
		"late":    func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
		"deaf":    func(context.Context) error { <-time.After(3 * ttl); return nil },
	}
	for name, answer := range answers {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := take(t)
				l.set(answer)
				l.lostAfter(t, ttl)
				if time.Since(l.began) != ttl {
					t.Fatalf("lost after %v, want %v", time.Since(l.began), ttl)
				}
				l.set(func(context.Context) error { return nil })
				<-time.After(10 * ttl)
				if l.Held() {
					t.Fatal("a lost lease came back")
				}
			})
		})
	}
}

// What counts is when a refresh was sent, not when its answer came.
func TestCountsFromSending(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := take(t)
		slow := func(context.Context) error { <-time.After(ttl / 5); return nil }
		fail := func(context.Context) error { return holdfast.E("", holdfast.Unavailable, "no") }
		l.set(func(ctx context.Context) error { l.set(fail); return slow(ctx) })
		<-l.Lost()
		if want := ttl/3 + ttl; time.Since(l.began) != want { // sent at ttl/3
			t.Fatalf("lost after %v, want %v", time.Since(l.began), want)
		}
	})
}

func TestRecovers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := take(t)
		l.set(func(context.Context) error { return holdfast.E("", holdfast.Unavailable, "no") })
		<-time.After(ttl * 8 / 10)
		l.set(func(context.Context) error { return nil })
		<-time.After(10 * ttl)
		if !l.Held() {
			t.Fatal("lost although a refresh succeeded in time")
		}
		_ = l.Close()
	})
}

func TestGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := take(t)
		l.set(func(context.Context) error { return holdfast.E("", holdfast.NotFound, "gone") })
		l.lostAfter(t, ttl/2) // at the first refresh
	})
}

// The process stood still for longer than the lease lasts.
func TestPaused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := take(t)
		l.pause.Store(int64(2 * ttl))
		if l.Held() {
			t.Fatal("held, by the first to ask after the pause")
		}
		l.lostAfter(t, 0)
	})
	synctest.Test(t, func(t *testing.T) { // it stood still during a refresh, which then succeeds
		l := take(t)
		l.set(func(context.Context) error { l.pause.Store(int64(2 * ttl)); return nil })
		l.lostAfter(t, ttl/2)
	})
}
