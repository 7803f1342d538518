package dataplane

import (
	"strings"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
)

// drive lets a repair take chunks for as long as span, beside an application
// whose writes take base, and more the more is copied; it returns what was taken
// in the last half.
func drive(p *pace, span time.Duration, writes int, base time.Duration, slope float64) int64 {
	var taken, second int64
	var next, write time.Duration
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
		if writes > 0 && now >= write {
			for range writes {
				p.wrote(4096, base+time.Duration(slope*copied/float64(1<<20)*float64(time.Microsecond)), now)
			}
			write = now + time.Millisecond
		}
	}
	return second * int64(time.Second) / int64(span/2)
}

func TestPaceUsesAllWhenNobodyWrites(t *testing.T) {
	if got := drive(newPace(200<<20), 4*time.Second, 0, 0, 0); got < 180<<20 {
		t.Errorf("%d MiB/s of 200", got>>20)
	}
}

func TestPaceUsesAllWhenWritesDoNotSuffer(t *testing.T) {
	if got := drive(newPace(200<<20), 10*time.Second, 4, 300*time.Microsecond, 0); got < 150<<20 {
		t.Errorf("%d MiB/s of 200, though nobody suffers", got>>20)
	}
}

func TestPaceYieldsAndNeverStops(t *testing.T) {
	p := newPace(200 << 20)
	got := drive(p, 10*time.Second, 4, 300*time.Microsecond, 50) // 50 µs for each MiB/s
	if got > 20<<20 || got < 6<<20 {
		t.Errorf("%d MiB/s beside writes that suffer; the floor is %d", got>>20, int64(p.floor)>>20)
	}
}

func TestPaceFindsTheRateThatDoesNoHarm(t *testing.T) {
	got := drive(newPace(200<<20), 20*time.Second, 4, 300*time.Microsecond, 1.5) // 1.5 µs for each: 75 µs are allowed
	if got < 25<<20 || got > 90<<20 {
		t.Errorf("%d MiB/s; about 50 do no harm", got>>20)
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
