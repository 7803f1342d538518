package replication

import (
	"strings"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
)

// slowRig has three replicas that answer writes in so many milliseconds.
type slowRig struct {
	*rig
	took [3]time.Duration
	said []string
}

func newSlowRig(t *testing.T, change func(*Config)) *slowRig {
	s := &slowRig{took: [3]time.Duration{time.Millisecond, 2 * time.Millisecond, 3 * time.Millisecond}}
	s.rig = served(t, states{in, in, in}, func(c *Config) {
		c.SlowFor, c.SlowHoldOff, c.SlowPolicy = 5*time.Second, 20*time.Second, holdfast.SlowDrop
		change(c)
	})
	s.p.ports.Events.Changed = func(what string) { s.said = append(s.said, what) }
	return s
}

// busy writes for a while: each write is answered by each replica in its time.
func (s *slowRig) busy(d time.Duration) {
	for end := s.now + d; s.now < end; {
		for i := range s.took {
			s.conn(i).holding(MsgWrite)
		}
		begun := s.now
		s.submitServed(OpWrite, blocks(3, 1))
		for _, after := range []time.Duration{time.Millisecond, 2 * time.Millisecond, 3 * time.Millisecond, 40 * time.Millisecond, 41 * time.Millisecond} {
			s.now = begun + after
			for i := range s.took {
				if s.took[i] == after && s.sent(i, MsgWrite) > 0 {
					s.answer(i, s.take(i, MsgWrite), StatusOK)
				}
			}
		}
		s.now = begun + 50*time.Millisecond
		s.p.Tick()
		if len(s.swaps) > 0 {
			s.commit()
		}
		s.serve()
	}
}

func (s *slowRig) heard(word string) int {
	n := 0
	for _, x := range s.said {
		if strings.Contains(x, word) {
			n++
		}
	}
	return n
}

func TestASlowReplicaIsReportedOnceAndNotForAMoment(t *testing.T) {
	s := newSlowRig(t, func(c *Config) { c.SlowPolicy = holdfast.SlowReport })
	s.took[2] = 40 * time.Millisecond
	s.busy(3 * time.Second)
	s.took[2] = 3 * time.Millisecond
	s.busy(6 * time.Second)
	if s.heard("is slow") != 0 {
		t.Fatal("a short delay counts as slow")
	}
	s.took[2] = 40 * time.Millisecond
	s.busy(20 * time.Second)
	st := s.p.Status().Peers[2]
	if s.heard("is slow") != 1 || !st.Slow || st.Answers < 30*time.Millisecond || s.state(2) != holdfast.InSync {
		t.Fatalf("said %q, status %+v, it is %s", s.said, st, s.state(2))
	}
	s.took[2] = 3 * time.Millisecond
	s.busy(10 * time.Second)
	if s.p.Status().Peers[2].Slow || s.heard("not slow any more") != 1 {
		t.Errorf("it is still slow: %q", s.said)
	}
}

func TestASlowReplicaIsDroppedAndComesBackAfterAWhile(t *testing.T) {
	s := newSlowRig(t, func(*Config) {})
	s.took[1] = 40 * time.Millisecond
	s.busy(10 * time.Second)
	if s.state(1) != holdfast.Stale || s.heard("dropping") != 1 {
		t.Fatalf("it is %s: %q", s.state(1), s.said)
	}
	if w := s.p.Status().Peers[1].WaitingFor; w == "" {
		t.Error("it does not say why it is not repaired")
	}
	s.busy(10 * time.Second)
	if s.state(1) != holdfast.Stale {
		t.Fatalf("it is %s before its time", s.state(1))
	}
	s.took[1] = 2 * time.Millisecond
	s.busy(15 * time.Second)
	if s.state(1) != holdfast.InSync {
		t.Fatalf("it is %s though its time is over: %+v", s.state(1), s.p.Status())
	}
	s.took[1] = 40 * time.Millisecond // the second time it is kept out for longer
	s.busy(10 * time.Second)
	s.took[1] = 2 * time.Millisecond
	s.busy(30 * time.Second)
	if s.state(1) != holdfast.Stale {
		t.Fatalf("it is %s: it flaps", s.state(1))
	}
	s.busy(15 * time.Second)
	if s.state(1) != holdfast.InSync {
		t.Fatalf("it is %s", s.state(1))
	}
}

func TestASlowReplicaIsTakenBackWhenItIsNeeded(t *testing.T) {
	s := newSlowRig(t, func(*Config) {})
	s.took[1] = 40 * time.Millisecond
	s.busy(8 * time.Second)
	if s.state(1) != holdfast.Stale {
		t.Fatalf("it is %s", s.state(1))
	}
	s.lost(2)
	s.pass(time.Second)
	s.commit()
	s.took[1] = 2 * time.Millisecond
	for range 20 {
		s.pass(100 * time.Millisecond)
		if len(s.swaps) > 0 {
			s.commit()
		}
	}
	if s.state(2) != holdfast.Stale || s.state(1) != holdfast.InSync {
		t.Errorf("the lost one is %s, the slow one %s", s.state(2), s.state(1))
	}
}

func TestASlowReplicaThatIsNeededIsNotDropped(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"minInSync":  func(c *Config) { c.Record.Spec.MinInSync = 3 },
		"off":        func(c *Config) { c.SlowPolicy = holdfast.SlowOff },
		"the volume": func(c *Config) { c.Record.Spec.SlowReplicas = holdfast.SlowReport },
	} {
		s := newSlowRig(t, change)
		s.took[1] = 40 * time.Millisecond
		s.busy(15 * time.Second)
		if s.state(1) != holdfast.InSync || s.p.Status().Peers[1].Slow == (name == "off") {
			t.Errorf("%s: it is %s, %+v", name, s.state(1), s.p.Status().Peers[1])
		}
	}
}

func TestAllSlowIsNotSlow(t *testing.T) {
	s := newSlowRig(t, func(*Config) {})
	s.took = [3]time.Duration{40 * time.Millisecond, 40 * time.Millisecond, 41 * time.Millisecond}
	s.busy(15 * time.Second)
	if s.heard("is slow") != 0 {
		t.Errorf("%q", s.said)
	}
}

func TestLatencies(t *testing.T) {
	var l Latencies
	for _, d := range []time.Duration{0, 1, LatencyBound(0), LatencyBound(0) + 1, LatencyBound(3), time.Hour} {
		l.add(d)
	}
	if l.Buckets[0] != 3 || l.Buckets[1] != 1 || l.Buckets[3] != 1 || l.Buckets[LatencyBuckets-1] != 1 || l.Count() != 6 {
		t.Errorf("%v", l)
	}
	for _, d := range []time.Duration{20 * time.Microsecond, time.Millisecond, 37 * time.Millisecond, 3 * time.Second} {
		var s sampler
		s.add(d)
		if m := s.median(); m < d*3/4 || m > d*5/4 {
			t.Errorf("the median of %v alone is %v", d, m)
		}
	}
}
