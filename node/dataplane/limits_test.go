package dataplane

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/buf"
	"github.com/holdfast-storage/holdfast/replication"
)

// limit changes the limits in the record, as the controller does.
func (c *cluster) limit(l holdfast.Limits) {
	c.t.Helper()
	for {
		rec := c.record()
		rec.Spec.Limits = l
		rec.SetSpec(rec.Spec)
		_, err := c.store.SwapVolume(c.t.Context(), rec)
		if err == nil {
			return
		}
		if !errors.Is(err, holdfast.Busy) {
			c.t.Fatal(err)
		}
	}
}

// queued submits n writes at once, and gives what becomes of them, in the order in
// which they end.
func queued(t *testing.T, h *Volume, n int) <-chan outcome {
	t.Helper()
	out := make(chan outcome, n)
	for i := range n {
		b := buf.Get(4096)
		t.Cleanup(b.Release)
		h.Submit(&replication.Request{Op: replication.OpWrite, Offset: int64(i) * 4096, Length: 4096, Buf: b,
			Done: func(r *replication.Request, err error) { out <- outcome{int(r.Offset / 4096), err} }})
	}
	return out
}

type outcome struct {
	i   int
	err error
}

// TestLimitsAreKeptAndChangedOnline: never more than the limit allows in the time
// that has passed, and what waits says so; without a limit all goes on at once.
func TestLimitsAreKeptAndChangedOnline(t *testing.T) {
	c := newCluster(t, 2).start()
	h := c.open(c.nodes[0], OpenOptions{})
	if what, _ := h.Limited(); what != "" || h.Limits().Any() {
		t.Fatalf("there is no limit: %q", what)
	}
	before := time.Now()
	c.limit(holdfast.Limits{IOPS: 50, BurstMillis: 100})
	c.until("the limit is adopted", func() bool { return h.Limits().IOPS == 50 })
	const n = 60
	out := queued(t, h, n)
	c.until("it says what it waits for", func() bool {
		what, long := h.Limited()
		return strings.HasPrefix(what, "the volume's limit of 50 operations a second") && long > 0
	})
	if w := h.Status().WaitingFor; w != "" {
		t.Errorf("it does not wait for replicas: %q", w)
	}
	for range 30 {
		if x := <-out; x.err != nil {
			t.Fatal(x.err)
		}
	}
	// 30 operations, of which 5 are the burst, take half a second at least.
	if took := time.Since(before); took < 500*time.Millisecond {
		t.Errorf("30 operations took %v", took)
	}
	c.limit(holdfast.Limits{IOPS: 10})
	c.until("the new limit is adopted", func() bool { return h.Limits().IOPS == 10 })
	c.limit(holdfast.Limits{})
	for range n - 30 {
		if x := <-out; x.err != nil {
			t.Fatal(x.err)
		}
	}
	c.until("there is none", func() bool { return !h.Limits().Any() })
	if err := h.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestReleaseAndAbortDoNotWaitForLimits: what is queued is done before a release
// ends, and fails at once when the primary is aborted or the plane closes.
func TestReleaseAndAbortDoNotWaitForLimits(t *testing.T) {
	c := newCluster(t, 2).start()
	c.limit(holdfast.Limits{IOPS: holdfast.MinIOPS})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	const n = 2000 // more than three minutes' worth
	for _, end := range []string{"release", "abort", "close"} {
		h := c.open(c.nodes[0], OpenOptions{})
		out := queued(t, h, n)
		c.until("requests are queued", func() bool { what, _ := h.Limited(); return what != "" })
		switch end {
		case "release":
			if err := h.Release(ctx); err != nil {
				t.Fatal(err)
			}
		case "abort":
			h.Abort()
		case "close":
			c.nodes[0].stop()
		}
		failed := 0
		for range n {
			select {
			case x := <-out:
				if x.err != nil && !errors.Is(x.err, holdfast.Unavailable) {
					t.Fatal(end, x.err)
				}
				if x.err != nil {
					failed++
				}
			case <-ctx.Done():
				t.Fatalf("%s: requests hang", end)
			}
		}
		if end == "release" && failed > 0 {
			t.Errorf("a release lets queued requests finish: %d failed", failed)
		}
		if end != "release" && failed < n/2 {
			t.Errorf("%s: only %d of %d requests failed", end, failed, n)
		}
		if err := write(h, 0, make([]byte, 4096)); err == nil {
			t.Errorf("%s: a write afterwards was accepted", end)
		}
	}
}
