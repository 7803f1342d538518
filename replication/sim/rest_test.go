package sim

import (
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/replication"
)

// asleep is a cluster whose only volume, with replicas on n0 to n2, is attached to
// n0, has been written to, and is at rest.
func asleep(t *testing.T, ping time.Duration, probes bool) (*Script, *IO) {
	t.Helper()
	s := NewScript(Config{Seed: *seed, Hosts: 3, Replicas: 3, Blocks: 64, HotBlocks: 64, MinInSync: 1, Depth: 8, Heal: time.Minute,
		Probes: probes, Protocol: replication.Config{RestAfter: time.Second, RestPing: ping}})
	s.Attach("n0", false, nil)
	if !s.Until(10*time.Second, func() bool { return s.Serving("n0") }) {
		t.Fatal("not served")
	}
	w := do(t, s, "n0", Access{Op: replication.OpWrite, First: 5, Blocks: 1})
	if !s.Until(10*time.Second, func() bool { return s.c.host("n0").resting }) {
		t.Fatal("a volume that is well does not come to rest: " + s.c.stuck())
	}
	for _, h := range s.c.meta.hosts {
		if len(h.disk.tail) > 0 {
			t.Errorf("%s was not told what is committed before the rest", h.id)
		}
	}
	return s, w
}

// do does an I/O, which must be over within a second.
func do(t *testing.T, s *Script, id holdfast.NodeID, a Access) *IO {
	t.Helper()
	io, err := s.Submit(id, a)
	if err != nil || !s.Until(time.Second, func() bool { return io.Done }) || io.Err != nil {
		t.Fatalf("%v: %v, %v", a, err, io.Err)
	}
	return io
}

func (s *Script) cutOff(id holdfast.NodeID, cut bool) {
	for _, o := range s.Nodes() {
		if o != id {
			s.Link(id, o, !cut)
			s.Link(o, id, !cut)
		}
	}
}

func finish(t *testing.T, s *Script) {
	t.Helper()
	if err := s.Finish(); err != nil {
		t.Error(err)
	}
}

func TestARestIsQuiet(t *testing.T) {
	s, _ := asleep(t, 30*time.Second, false)
	h := s.c.host("n0")
	asked := s.c.answers[replication.MsgPing][replication.StatusOK]
	s.Run(5 * time.Minute)
	if n := s.c.answers[replication.MsgPing][replication.StatusOK] - asked; n < 3*9 || n > 3*13 {
		t.Errorf("three replicas were pinged %d times in 5 minutes, not every 30 s", n)
	}
	if !h.resting {
		t.Error("it is not at rest any more")
	}
	finish(t, s)
}

func TestAReadAfterARestTakesOneRoundTripMore(t *testing.T) {
	s, w := asleep(t, 30*time.Second, false)
	s.Run(10 * time.Second)
	began := s.Now()
	r := do(t, s, "n0", Access{Op: replication.OpRead, First: 5, Blocks: 1})
	if !r.Same(5, w) {
		t.Error("it read something else")
	}
	if took := s.Now() - began; took > 20*time.Millisecond {
		t.Errorf("it took %v", took)
	}
	finish(t, s)
}

// Invariant 3: whoever was cut off while at rest, and does not know it, reads nothing.
func TestAPrimaryCutOffAtRestReadsNothing(t *testing.T) {
	for _, wait := range []time.Duration{0, 20 * time.Second} {
		s, w := asleep(t, 30*time.Second, false)
		s.Run(3 * time.Second) // the read window is over
		s.cutOff("n0", true)
		s.Metadata("n0", false)
		s.Until(15*time.Second, func() bool {
			if h := s.c.host("n1"); h.primary == nil && !h.opening {
				s.Attach("n1", false, nil)
			}
			return s.Serving("n1")
		})
		if !s.Serving("n1") {
			t.Fatal("nobody else can serve: " + s.c.stuck())
		}
		newer := do(t, s, "n1", Access{Op: replication.OpWrite, First: 5, Blocks: 1})
		s.Run(wait)
		r, err := s.Submit("n0", Access{Op: replication.OpRead, First: 5, Blocks: 1})
		if err != nil {
			t.Fatal(err)
		}
		s.Run(10 * time.Second)
		if r.Done && r.Err == nil {
			t.Errorf("the primary that was cut off answered a read; the new data: %v, the old: %v", r.Same(5, newer), r.Same(5, w))
		}
		s.cutOff("n0", false)
		s.Metadata("n0", true)
		finish(t, s)
	}
}

// A node that falls silent is found with the next ping, or, where nodes are probed, as
// soon as with a volume that is busy; its replica is dropped without any I/O.
func TestASilentNodeIsFoundAtRest(t *testing.T) {
	for _, x := range []struct {
		probes bool
		within time.Duration
	}{{false, 15 * time.Second}, {true, 10 * time.Second}} {
		s, _ := asleep(t, 12*time.Second, x.probes)
		s.cutOff("n2", true)
		began := s.Now()
		if !s.Until(x.within, func() bool { return !s.c.inSync(s.c.host("n2")) }) {
			t.Errorf("probes %v: still in sync after %v: %s", x.probes, x.within, s.c.stuck())
		}
		t.Logf("probes %v: dropped after %v", x.probes, s.Now()-began)
		s.cutOff("n2", false)
		finish(t, s)
	}
}

// A replica whose process dies at rest is dropped as soon as its connection breaks.
func TestADeathAtRestIsFound(t *testing.T) {
	s, _ := asleep(t, 30*time.Second, false)
	s.c.snap(s.c.host("n0"), s.c.host("n2"))
	s.Run(300 * time.Microsecond)
	s.Kill("n2", LoseNothing)
	if !s.Until(3*time.Second, func() bool { return !s.c.inSync(s.c.host("n2")) }) {
		t.Error("still in sync: " + s.c.stuck())
	}
	finish(t, s)
}

// A process that was paused while its volume was at rest takes no replica for silent.
func TestAPauseAtRestIsNobodysSilence(t *testing.T) {
	s, _ := asleep(t, 5*time.Second, true)
	for _, d := range []time.Duration{1500 * time.Millisecond, 4 * time.Second, 20 * time.Second} {
		s.Afflict("n0", Paused, d)
		s.Run(d + 5*time.Second)
		do(t, s, "n0", Access{Op: replication.OpWrite, First: 7, Blocks: 1})
	}
	if rec := s.Record(); !rec.Healthy() {
		t.Error("replicas were dropped: " + s.c.stuck())
	}
	finish(t, s)
}
