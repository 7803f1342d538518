package dataplane

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/replication"
)

// virtual runs a device of a given depth against a throttle in virtual time, as
// long as told, and counts what has passed. A request is over when it has passed.
func virtual(t *testing.T, l holdfast.Limits, depth int, long time.Duration, make func() *replication.Request) (ops int, bytes int64) {
	t.Helper()
	th := &throttle{}
	now := time.Minute
	th.set(l, now)
	end := now + long
	passed := func(r *replication.Request) {
		if r.Op != replication.OpFlush {
			ops++
		}
		if r.Op == replication.OpRead || r.Op == replication.OpWrite {
			bytes += r.Length
		}
	}
	for now < end {
		for n := 0; th.waiting() < depth; n++ {
			if r := make(); !th.take(r, now) {
				th.put(r, now)
			} else if passed(r); n > 10_000_000 {
				t.Fatal("nothing is ever held back")
			}
		}
		r, wait := th.next(now)
		for ; r != nil; r, wait = th.next(now) {
			passed(r)
		}
		if th.waiting() > 0 && wait <= 0 {
			t.Fatal("it waits without saying how long")
		}
		now += wait
	}
	return ops, bytes
}

// TestThrottleKeepsItsRates: whatever the sizes, what passes is what the limits
// allow in the time and the burst, neither more nor less.
func TestThrottleKeepsItsRates(t *testing.T) {
	for what, l := range map[string]holdfast.Limits{
		"operations":          {IOPS: 500},
		"bytes":               {Bandwidth: 10 << 20},
		"bytes, short burst":  {Bandwidth: 1 << 20, BurstMillis: 1},
		"both, long burst":    {IOPS: 1000, Bandwidth: 20 << 20, BurstMillis: 30000},
		"the least of either": {IOPS: holdfast.MinIOPS, Bandwidth: holdfast.MinBandwidth},
	} {
		rng := rand.New(rand.NewPCG(1, 2))
		const long = 100 * time.Second
		ops, bytes := virtual(t, l, 32, long, func() *replication.Request {
			r := &replication.Request{Op: replication.OpWrite, Length: 4096 << rng.IntN(9)}
			switch rng.IntN(10) {
			case 0:
				r.Op = replication.OpRead
			case 1:
				r.Op = replication.OpFlush
			case 2:
				r.Op, r.Length = replication.OpTrim, 1<<40
			}
			return r
		})
		allowed := func(rate int64) float64 { return float64(rate) * (long + l.Burst()).Seconds() }
		within := func(have, allowed, one float64) bool { return have <= allowed+one && have >= 0.97*allowed-one }
		opsOK := l.IOPS > 0 && within(float64(ops), allowed(l.IOPS), 1)
		bytesOK := l.Bandwidth > 0 && within(float64(bytes), allowed(l.Bandwidth), 2<<20)
		if l.IOPS > 0 && float64(ops) > allowed(l.IOPS)+1 || l.Bandwidth > 0 && float64(bytes) > allowed(l.Bandwidth)+2<<20 {
			t.Errorf("%s: %d operations and %d bytes in %v are too many", what, ops, bytes, long)
		}
		if !opsOK && !bytesOK {
			t.Errorf("%s: %d operations and %d bytes in %v use neither limit", what, ops, bytes, long)
		}
	}
}

func TestThrottleIsFIFOAndFlushesNeedNothing(t *testing.T) {
	th := &throttle{}
	th.set(holdfast.Limits{IOPS: 10, BurstMillis: 100}, 0)
	op := func(o replication.Op) *replication.Request { return &replication.Request{Op: o, Length: 4096} }
	if !th.take(op(replication.OpWrite), 0) || th.take(op(replication.OpWrite), 0) {
		t.Fatal("one operation fits into the burst, a second does not")
	}
	for range 3 {
		if !th.take(op(replication.OpFlush), 0) {
			t.Fatal("a flush waits though nothing is queued")
		}
	}
	order := []*replication.Request{op(replication.OpRead), op(replication.OpFlush), op(replication.OpFlush), op(replication.OpTrim)}
	for _, r := range order {
		if th.take(r, 0) {
			t.Fatal("it overtakes")
		}
		th.put(r, 0)
	}
	if what, long := th.told(time.Second); what != "the volume's limit of 10 operations a second; requests queued: 4" || long != time.Second {
		t.Errorf("%q, %v", what, long)
	}
	now := time.Duration(0)
	for i, want := range order {
		r, wait := th.next(now)
		if i == 0 || i == 3 {
			if r != nil || wait < 90*time.Millisecond || wait > 110*time.Millisecond {
				t.Fatalf("request %d: %v, waits %v", i, r, wait)
			}
			now += wait
			r, wait = th.next(now)
		}
		if r != want || wait != 0 {
			t.Fatalf("request %d: another came, or it waits %v", i, wait)
		}
	}
	if what, _ := th.told(now); what != "" {
		t.Error(what)
	}
}

// TestThrottleLongQueue: what was taken out is forgotten, the order stays.
func TestThrottleLongQueue(t *testing.T) {
	th := &throttle{}
	th.set(holdfast.Limits{IOPS: 10}, 0)
	for i := range 5000 {
		th.put(&replication.Request{Offset: int64(i)}, 0)
	}
	for i := range 5000 {
		if r := th.pop(); r == nil || r.Offset != int64(i) {
			t.Fatalf("%d: %v", i, r)
		}
	}
	if th.pop() != nil || th.waiting() != 0 {
		t.Error("something is left")
	}
}
