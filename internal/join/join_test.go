package join_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/join"
)

func TestCallersOfOneKeyShareOneRun(t *testing.T) {
	var g join.Group[string, int]
	var runs atomic.Int32
	release := make(chan struct{})
	started := make(chan struct{})
	work := func(context.Context) (int, error) {
		if runs.Add(1) == 1 {
			close(started)
		}
		<-release
		return 7, nil
	}
	var wg sync.WaitGroup
	call := func() {
		defer wg.Done()
		if v, err := g.Do(t.Context(), "k", work); v != 7 || err != nil {
			t.Errorf("got %d, %v", v, err)
		}
	}
	wg.Add(1)
	go call()
	<-started
	// A caller that has ended already still learns that the work is under way.
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := g.Do(gone, "k", work); !errors.Is(err, holdfast.Unavailable) || !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	close(release)
	wg.Wait()
	if n := runs.Load(); n != 1 {
		t.Errorf("the work ran %d times", n)
	}
}

func TestWorkOutlivesItsCallerAndTheNextCallJoins(t *testing.T) {
	type tag struct{}
	var g join.Group[int, string]
	release := make(chan struct{})
	entered := make(chan struct{})
	ctx, cancel := context.WithCancel(context.WithValue(t.Context(), tag{}, "v"))
	first := make(chan error, 1)
	go func() {
		_, err := g.Do(ctx, 1, func(ctx context.Context) (string, error) {
			close(entered)
			<-release
			if err := ctx.Err(); err != nil {
				return "", err
			}
			s, _ := ctx.Value(tag{}).(string)
			return s, nil
		})
		first <- err
	}()
	<-entered
	cancel()
	if err := <-first; !errors.Is(err, holdfast.Unavailable) {
		t.Fatalf("the caller that gave up got %v", err)
	}
	joined := make(chan string, 1)
	go func() {
		v, _ := g.Do(t.Context(), 1, func(context.Context) (string, error) { return "started again", nil })
		joined <- v
	}()
	close(release)
	// It joined, or came after the end and ran its own: never anything else.
	if v := <-joined; v != "v" && v != "started again" {
		t.Errorf("got %q", v)
	}
	if v, err := g.Do(t.Context(), 1, func(context.Context) (string, error) { return "new", nil }); v != "new" || err != nil {
		t.Errorf("a finished run was kept: %q, %v", v, err)
	}
}

func TestErrorsReachEveryWaiterAndOtherKeysRunApart(t *testing.T) {
	var g join.Group[string, int]
	boom := holdfast.E("work", holdfast.NoSpace, "full")
	if _, err := g.Do(t.Context(), "a", func(context.Context) (int, error) {
		v, err := g.Do(t.Context(), "b", func(context.Context) (int, error) { return 1, nil })
		if v != 1 || err != nil {
			t.Errorf("b: %d, %v", v, err)
		}
		return 0, boom
	}); !errors.Is(err, holdfast.NoSpace) {
		t.Errorf("got %v", err)
	}
}
