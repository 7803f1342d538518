package dataplane

import (
	"fmt"
	"strings"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/replication"
)

// bucket holds what may be used of one limit. It fills at rate and holds at most
// size; what is larger than size passes when it is full, and leaves a debt, so
// that the rate is kept in the long run whatever the requests' lengths.
type bucket struct {
	rate, size, level float64 // rate a second; 0: no limit
	at                time.Duration
}

// set changes the limit; what is there is kept, as far as it fits.
func (b *bucket) set(rate int64, burst, now time.Duration) {
	size := float64(rate) * burst.Seconds()
	if b.rate == 0 {
		b.level, b.at = size, now
	}
	b.fill(now)
	b.rate, b.size, b.level = float64(rate), size, min(b.level, size)
}

func (b *bucket) fill(now time.Duration) {
	if now > b.at {
		b.level = min(b.size, b.level+b.rate*(now-b.at).Seconds())
		b.at = now
	}
}

// wait is how long it takes, from the last fill on, until n may be used; 0: now.
func (b *bucket) wait(n float64) time.Duration {
	lacks := min(n, b.size) - b.level
	if b.rate == 0 || n == 0 || lacks <= 0 {
		return 0
	}
	// Rounded up, so that it suffices to wait once.
	return time.Duration(lacks/b.rate*float64(time.Second)) + time.Microsecond
}

// throttle holds requests of a device back that exceed the volume's limits. They
// pass in the order in which they came; a flush needs nothing for itself and
// passes as soon as those before it have. It knows no clock and no lock.
type throttle struct {
	limits     holdfast.Limits
	ops, bytes bucket
	queue      []held // from head on
	head       int
}

// held is a request that waits, and since when.
type held struct {
	r  *replication.Request
	at time.Duration
}

// set changes the limits.
func (t *throttle) set(l holdfast.Limits, now time.Duration) {
	t.limits = l
	t.ops.set(l.IOPS, l.Burst(), now)
	t.bytes.set(l.Bandwidth, l.Burst(), now)
}

// cost is what a request uses of the limits.
func cost(r *replication.Request) (ops, bytes float64) {
	switch r.Op {
	case replication.OpFlush:
		return 0, 0
	case replication.OpRead, replication.OpWrite:
		return 1, float64(r.Length)
	}
	return 1, 0 // a trim moves no data
}

// take lets a request pass if nothing waits and the limits allow it.
func (t *throttle) take(r *replication.Request, now time.Duration) bool {
	return t.waiting() == 0 && t.use(r, now) == 0
}

// use is how long the request has to wait; 0: it passes, and is accounted for.
func (t *throttle) use(r *replication.Request, now time.Duration) time.Duration {
	ops, bytes := cost(r)
	t.ops.fill(now)
	t.bytes.fill(now)
	if w := max(t.ops.wait(ops), t.bytes.wait(bytes)); w > 0 {
		return w
	}
	t.ops.level -= ops
	t.bytes.level -= bytes
	return 0
}

func (t *throttle) waiting() int { return len(t.queue) - t.head }

// put makes a request wait.
func (t *throttle) put(r *replication.Request, now time.Duration) {
	t.queue = append(t.queue, held{r, now})
}

// next takes out the first request that waits, if the limits allow it, or says
// how long that has to wait; nil and 0 if none waits.
func (t *throttle) next(now time.Duration) (*replication.Request, time.Duration) {
	if t.waiting() == 0 {
		return nil, 0
	}
	if w := t.use(t.queue[t.head].r, now); w > 0 {
		return nil, w
	}
	return t.pop(), 0
}

// pop takes out the first request, whatever the limits say; nil if none waits.
func (t *throttle) pop() *replication.Request {
	if t.waiting() == 0 {
		return nil
	}
	r := t.queue[t.head].r
	t.queue[t.head] = held{}
	if t.head++; t.head == len(t.queue) {
		t.queue, t.head = t.queue[:0], 0
	} else if t.head >= 1024 {
		t.queue, t.head = append([]held(nil), t.queue[t.head:]...), 0
	}
	return r
}

// told says for what requests wait, and how long the first has; "" if none.
func (t *throttle) told(now time.Duration) (string, time.Duration) {
	n := t.waiting()
	if n == 0 {
		return "", 0
	}
	var of []string
	if t.limits.IOPS > 0 {
		of = append(of, fmt.Sprintf("%d operations", t.limits.IOPS))
	}
	if t.limits.Bandwidth > 0 {
		of = append(of, fmt.Sprintf("%.3g MiB", float64(t.limits.Bandwidth)/(1<<20)))
	}
	return fmt.Sprintf("the volume's limit of %s a second; requests queued: %d", strings.Join(of, " and "), n), now - t.queue[t.head].at
}
