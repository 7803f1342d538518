// Package keep holds a lease as its holder must: it refreshes it in the
// background and says that it is lost as soon as it might be.
//
// It promises to err on the safe side. A lease counts from the moment at which
// the last refresh that succeeded was sent, so Lost is closed no later than the
// store lets the lease run out. Held looks at the clock itself: a process that
// was stopped and goes on learns the truth from its first question, before any
// timer or goroutine of its own has run. A lost lease stays lost.
//
// Each Lease owns one goroutine, which ends when the lease is lost or closed.
package keep

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/holdfast-storage/holdfast"
)

// Config says what to keep. All members are needed.
type Config struct {
	TTL time.Duration
	// Clock is a clock that goes on while the process is stopped.
	Clock func() time.Duration
	// Taken is Clock's time just before the lease was asked for.
	Taken time.Duration
	// Refresh confirms the lease for another TTL. Kind NotFound says that it is
	// gone for good; after any other error it is tried again.
	Refresh func(ctx context.Context) error
	// Release gives the lease back.
	Release func(ctx context.Context) error
}

// Lease is a lease that is being kept; a metadata.Lease.
type Lease struct {
	cfg    Config
	lost   chan struct{}
	cancel context.CancelFunc
	done   chan struct{}

	mu        sync.Mutex
	confirmed time.Duration // when the last refresh that succeeded was sent
	gone      bool          // lost is closed
}

// New starts to keep a lease that was just taken. When ctx ends the lease is no
// longer refreshed and counts as lost.
func New(ctx context.Context, cfg Config) *Lease {
	ctx, cancel := context.WithCancel(ctx)
	l := &Lease{cfg: cfg, lost: make(chan struct{}), cancel: cancel, done: make(chan struct{}), confirmed: cfg.Taken}
	go l.run(ctx)
	return l
}

// Lost is closed when the lease is lost.
func (l *Lease) Lost() <-chan struct{} { return l.lost }

// Held says whether the lease is held now, by the clock.
func (l *Lease) Held() bool { return l.remaining() > 0 }

// Close stops refreshing and gives the lease back. The lease is lost on return,
// also when giving it back failed: then it runs out by itself.
func (l *Lease) Close() error {
	l.cancel()
	<-l.done
	l.lose()
	ctx, cancel := context.WithTimeout(context.Background(), l.cfg.TTL)
	defer cancel()
	return l.cfg.Release(ctx)
}

// remaining is how long the lease is still held; it closes lost at zero.
func (l *Lease) remaining() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.gone {
		return 0
	}
	left := l.cfg.TTL - (l.cfg.Clock() - l.confirmed)
	if left <= 0 {
		l.gone = true
		close(l.lost)
		return 0
	}
	return left
}

func (l *Lease) lose() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.gone {
		l.gone = true
		close(l.lost)
	}
}

func (l *Lease) confirm(sent time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.confirmed = max(l.confirmed, sent)
}

func (l *Lease) run(ctx context.Context) {
	defer close(l.done)
	// The watch-dog: a refresh that does not come back does not delay lost.
	dog := time.AfterFunc(l.cfg.TTL, func() { l.remaining() })
	defer dog.Stop()
	wait := l.cfg.TTL / 3
	for {
		pause := time.NewTimer(min(wait, l.remaining()))
		select {
		case <-ctx.Done():
			pause.Stop()
			l.lose()
			return
		case <-pause.C:
		}
		if wait = l.refresh(ctx, dog); wait == 0 {
			l.lose()
			return
		}
	}
}

// refresh tries once and says how long to wait until the next try: shorter
// after a failure, 0 when the lease is lost.
func (l *Lease) refresh(ctx context.Context, dog *time.Timer) time.Duration {
	left := l.remaining()
	if left <= 0 {
		return 0
	}
	sent := l.cfg.Clock()
	// Short enough for a second try, which may reach another server.
	try, cancel := context.WithTimeout(ctx, min(left, max(l.cfg.TTL/4, 50*time.Millisecond)))
	err := l.cfg.Refresh(try)
	cancel()
	if errors.Is(err, holdfast.NotFound) {
		return 0
	}
	// A process that was stopped during the call may find the lease still
	// there; that it was not confirmed for the whole ttl is decisive all the same.
	if left = l.remaining(); left <= 0 {
		return 0
	}
	if err != nil {
		return l.cfg.TTL / 10
	}
	l.confirm(sent)
	dog.Reset(l.remaining())
	return l.cfg.TTL / 3
}
