package blockdev

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast/replication"
)

// keeping is a backend that answers when it is told.
type keeping struct{ open []*replication.Request }

func (k *keeping) Submit(r *replication.Request) { k.open = append(k.open, r) }

func (k *keeping) answer(n int) { k.open[n].Done(k.open[n], nil) }

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// TestSettled: it is those requests that count which are open when it is asked.
func TestSettled(t *testing.T) {
	k := &keeping{}
	answers := 0
	f := NewInflight(k, func(Answer) { answers++ })
	flush := func() { f.Submit(uint64(len(k.open)), replication.Request{Op: replication.OpFlush}) }
	if !isClosed(f.Settled()) {
		t.Error("without requests there is something to wait for")
	}
	flush()
	f.Submit(1, replication.Request{Op: replication.OpTrim, Length: 2 * trimPiece}) // as two
	first := f.Settled()
	flush()
	second := f.Settled()
	for _, step := range []struct {
		n             int
		first, second bool
	}{{0, false, false}, {1, false, false}, {2, true, false}, {3, true, true}} {
		k.answer(step.n)
		if isClosed(first) != step.first || isClosed(second) != step.second {
			t.Fatalf("after answer %d: settled %v and %v, want %v and %v", step.n, isClosed(first), isClosed(second), step.first, step.second)
		}
	}
	flush()
	failed := f.Settled()
	f.Fail(unix.EIO)
	if !isClosed(failed) || !isClosed(f.Settled()) {
		t.Error("not settled although all was answered with an error")
	}
	k.answer(4)
	if answers != 4 {
		t.Errorf("%d answers, want 4", answers)
	}
}
