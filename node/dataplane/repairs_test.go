package dataplane

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/replication"
)

// app is an application that does so many reads and writes at once, every
// millisecond or as every says. One takes base, give or take noise, reads a quarter
// of that, and all the longer the more is copied.
type app struct {
	reads, writes int
	every         time.Duration
	noise         float64 // 0.3: 30 %
	base          time.Duration
	slope         float64 // µs for each MiB/s
}

// drive lets a repair take chunks for as long as span, beside an application; it
// returns what was taken in the last half, in bytes a second.
func drive(p *pace, span time.Duration, a app) int64 {
	r := rand.New(rand.NewPCG(1, 2))
	var taken, second int64
	var next, last time.Duration
	copied := 0.0 // bytes a second, lately
	for now := time.Duration(0); now < span; now += time.Millisecond {
		copied *= 0.97
		for now >= next {
			wait := p.take(256<<10, now)
			if wait > 0 {
				next = now + wait
				break
			}
			copied += 0.03 * 1000 * (256 << 10)
			if taken += 256 << 10; now >= span/2 {
				second += 256 << 10
			}
			next = now
		}
		if now >= last {
			more := time.Duration(a.slope * copied / float64(1<<20) * float64(time.Microsecond))
			took := func(base time.Duration) time.Duration {
				return base + time.Duration(a.noise*(2*r.Float64()-1)*float64(base)) + more
			}
			for range a.writes {
				p.served(replication.OpWrite, 4096, took(a.base), now)
			}
			for range a.reads {
				p.served(replication.OpRead, 4096, took(a.base/4), now)
			}
			last = now + max(a.every, time.Millisecond)
		}
	}
	return int64(float64(second) / (span / 2).Seconds())
}

func TestPaceUsesAllWhenNobodyWrites(t *testing.T) {
	if got := drive(newPace(200<<20), 4*time.Second, app{}); got < 180<<20 {
		t.Errorf("%d MiB/s of 200", got>>20)
	}
}

func TestPaceUsesAllWhenNobodySuffers(t *testing.T) {
	for _, a := range []app{{writes: 4}, {reads: 4}, {reads: 4, writes: 4}, {reads: 8, writes: 1}} {
		a.base = 300 * time.Microsecond
		if got := drive(newPace(200<<20), 10*time.Second, a); got < 150<<20 {
			t.Errorf("%d MiB/s of 200, though nobody suffers: %+v", got>>20, a)
		}
	}
}

// TestPaceIsNotHeldUpByLittle: an application that does little, as an idle
// database does, neither keeps a repair at its floor nor, with ten requests a second
// or more, is it forgotten.
func TestPaceIsNotHeldUpByLittle(t *testing.T) {
	for _, every := range []time.Duration{20 * time.Millisecond, 77 * time.Millisecond, 237 * time.Millisecond} {
		a := app{writes: 1, every: every, noise: 0.3, base: time.Millisecond}
		if got := drive(newPace(200<<20), 2*time.Minute, a); got < 100<<20 {
			t.Errorf("%d MiB/s of 200 beside a write each %v that does not suffer", got>>20, every)
		}
		a.slope = 50
		if every > paceSlice {
			continue // in most slices there is nobody then
		}
		if got := drive(newPace(200<<20), 2*time.Minute, a); got > 60<<20 {
			t.Errorf("%d MiB/s beside a write each %v that suffers", got>>20, every)
		}
	}
}

func TestPaceYieldsAndNeverStops(t *testing.T) {
	for _, a := range []app{{writes: 4}, {reads: 4}, {reads: 3, writes: 1}} {
		a.base, a.slope = 300*time.Microsecond, 50
		p := newPace(200 << 20)
		got := drive(p, 10*time.Second, a)
		if got > 20<<20 || got < 6<<20 {
			t.Errorf("%d MiB/s beside I/O that suffers; the floor is %d: %+v", got>>20, int64(p.floor)>>20, a)
		}
	}
}

func TestPaceFindsTheRateThatDoesNoHarm(t *testing.T) {
	// 1.5 µs for each MiB/s: 60 µs are allowed.
	if got := drive(newPace(200<<20), 20*time.Second, app{writes: 4, base: 300 * time.Microsecond, slope: 1.5}); got < 20<<20 || got > 75<<20 {
		t.Errorf("%d MiB/s; about 40 do no harm", got>>20)
	}
	// Of reads of 75 µs, 37: a write's time says nothing about a read's.
	if got := drive(newPace(200<<20), 20*time.Second, app{reads: 4, writes: 1, base: 300 * time.Microsecond, slope: 1.5}); got < 12<<20 || got > 60<<20 {
		t.Errorf("%d MiB/s beside reads; about 28 do no harm", got>>20)
	}
}

func TestRepairsTakeTurns(t *testing.T) {
	c := newCluster(t, 1).start()
	r := c.nodes[0].plane.repairs
	for i, id := range []string{"a", "b", "c", "d"} {
		if w := r.Turn(holdfast.ReplicaID(id)); w != "" {
			t.Fatalf("repair %d waits for %s", i, w)
		}
	}
	if w := r.Turn("e"); !strings.Contains(w, "4 repairs at once on node n0") {
		t.Fatalf("the fifth waits for %q", w)
	}
	if r.Turn("f") == "" {
		t.Fatal("six at once")
	}
	r.Done("b")
	if r.Turn("f") == "" {
		t.Error("the sixth goes before the fifth")
	}
	if w := r.Turn("e"); w != "" {
		t.Errorf("the fifth waits for %s", w)
	}
	r.Done("e") // ends
	if w := r.Turn("f"); w != "" {
		t.Errorf("the sixth waits for %s", w)
	}
}
