package ask

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestAsk: an answer is given when there is one in time; otherwise the last one, by
// everybody at once, until what was asked first has ended.
func TestAsk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var q Question[int]
		q.Know(1)
		want := func(when string, f func() int, answer int, silent time.Time) {
			t.Helper()
			if got, since := q.Ask(f); got != answer || !since.Equal(silent) {
				t.Fatalf("%s: %d, silent since %v; must be %d, %v", when, got, since, answer, silent)
			}
		}
		want("at once", func() int { return 2 }, 2, time.Time{})
		begin := time.Now()
		hung := make(chan struct{})
		want("hung", func() int { <-hung; return 3 }, 2, begin)
		if d := time.Since(begin); d != Patience {
			t.Fatalf("it took %v", d)
		}
		want("while it hangs", func() int { t.Error("asked"); return 0 }, 2, begin)
		if d := time.Since(begin); d != Patience {
			t.Fatalf("who comes later waited: %v", d)
		}
		close(hung)
		synctest.Wait()
		want("afterwards", func() int { return 4 }, 4, time.Time{})
		want("slow, but in time", func() int { <-time.After(Patience / 2); return 5 }, 5, time.Time{})
	})
}
