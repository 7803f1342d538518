package replication

import (
	"slices"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
)

// sleeper is a rig whose volume rests a second after the last request, and whose
// replicas are then pinged every 20 s.
func sleeper(t *testing.T, s states) *rig {
	return served(t, s, func(c *Config) { c.RestAfter, c.RestPing = time.Second, 20*time.Second })
}

// lazily lets time pass with no more ticks than the primary asks for, and counts them.
func (g *rig) lazily(d time.Duration) (ticks int) {
	for end := g.now + d; g.now < end; {
		g.serve()
		g.now += 50 * time.Millisecond
		if until, rests := g.p.Rests(); !rests || g.now >= until {
			g.p.Tick()
			ticks++
		}
	}
	g.serve()
	return ticks
}

// rests makes the volume come to rest.
func (g *rig) rests() {
	g.t.Helper()
	g.lazily(3 * time.Second)
	if _, ok := g.p.Rests(); !ok {
		g.t.Fatalf("not at rest: %+v", g.p.Status())
	}
}

func TestAVolumeThatIsWellComesToRest(t *testing.T) {
	g := sleeper(t, states{in, in})
	g.rests()
	if n := g.lazily(200 * time.Second); n < 10 || n > 40 {
		t.Errorf("%d ticks in 200 s, with a ping every 20 s", n)
	}
	w := g.submit(OpWrite, blocks(3, 1))
	g.serve()
	g.must(w, "all are there")
	if _, ok := g.p.Rests(); ok {
		t.Error("at rest just after a write, which the replicas do not know to be committed")
	}
	g.now += 2 * time.Second
	if _, ok := g.p.Rests(); ok {
		t.Error("at rest before the replicas know what is committed")
	}
	g.p.Tick()
	for i := range 2 {
		if m := g.take(i, MsgPing); m.Committed != g.p.seq {
			t.Errorf("replica %d is told that %d is committed, not %d", i, m.Committed, g.p.seq)
		}
	}
}

// What keeps a volume from resting: each of these waits for ticks.
func TestAVolumeWithSomethingToDoDoesNotRest(t *testing.T) {
	for name, wake := range map[string]func(g *rig){
		"a replica that is not in sync":     func(g *rig) { g.p.peers[1].rep.State = stale },
		"a replica that is away":            func(g *rig) { g.lost(1) },
		"a replica that is leaving":         func(g *rig) { g.p.peers[1].rep.Leaving = true },
		"a repair":                          func(g *rig) { g.p.peers[1].repair = &repair{} },
		"a slow replica":                    func(g *rig) { g.p.peers[1].slow.behind = time.Second },
		"a smaller replica":                 func(g *rig) { g.p.peers[1].size -= holdfast.BlockSize },
		"a growth":                          func(g *rig) { g.control(func(r *holdfast.Record) { r.Spec.SizeBytes *= 2 }) },
		"a wanted snapshot":                 func(g *rig) { g.p.rec.PutSnapshot(holdfast.Snapshot{ID: "s", State: holdfast.SnapshotWanted}) },
		"a snapshot too many":               func(g *rig) { g.p.peers[1].snaps = []SnapshotRef{{ID: "s"}} },
		"a hold":                            func(g *rig) { g.p.Hold("token", time.Minute, func(error) {}) },
		"a scrub":                           func(g *rig) { g.p.Scrub("s", "") },
		"a swap":                            func(g *rig) { g.p.member.swapping = true },
		"a read that waits":                 func(g *rig) { g.submit(OpRead, blocks(1, 1)) },
		"a flush":                           func(g *rig) { g.submit(OpFlush, blocks(0, 0)) },
		"an unanswered message":             func(g *rig) { g.p.ask(g.p.peers[1], &Message{Type: MsgChanged}, func(*Message) {}) },
		"a lock":                            func(g *rig) { g.p.locks.held = []*hold{{}} },
		"I/O that fails as it was too long": func(g *rig) { g.p.limit.failing = true },
		"too few replicas":                  func(g *rig) { g.p.rec.Spec.MinInSync = 3 },
		"a higher epoch somewhere":          func(g *rig) { g.p.member.doubt = 99 },
		"a release":                         func(g *rig) { g.conn(0).holding(MsgSettle); g.p.Release() },
	} {
		g := sleeper(t, states{in, in})
		g.rests()
		wake(g)
		g.p.rest.asked = 0
		if _, ok := g.p.Rests(); ok {
			t.Errorf("%s does not keep it awake", name)
		}
	}
	if _, ok := sleeperWithout(t).p.Rests(); ok {
		t.Error("it rests although that is switched off")
	}
}

func sleeperWithout(t *testing.T) *rig {
	g := served(t, states{in, in}, func(c *Config) { c.RestPing = c.PingEvery + 1 })
	g.lazily(10 * time.Second)
	return g
}

// Invariant 3: what was heard before the rest does not allow a read after it.
func TestAReadAfterARestWaitsForAllReplicas(t *testing.T) {
	g := sleeper(t, states{in, in, in})
	g.rests()
	g.lazily(5 * time.Second)
	r := g.submit(OpRead, blocks(3, 1))
	if g.sent(0, MsgRead) > 0 {
		t.Fatal("read without a sign of life from within the window")
	}
	for i := range 3 {
		g.mustWait(r, "not all have answered")
		g.answer(i, g.take(i, MsgPing), StatusOK)
	}
	g.serve()
	g.must(r, "all have answered")
}

// A replica that says nothing at the end of a long rest has as long to answer as
// one that was busy, and no longer.
func TestSilenceIsCountedFromTheFirstQuestion(t *testing.T) {
	g := sleeper(t, states{in, in})
	g.rests()
	g.now += 15 * time.Second
	g.conn(1).holding(MsgWrite, MsgPing)
	w := g.submit(OpWrite, blocks(3, 1))
	g.lazily(g.p.cfg.SilentAfter - 100*time.Millisecond)
	if len(g.swaps) > 0 {
		t.Fatal("dropped too early")
	}
	g.lazily(200 * time.Millisecond)
	if len(g.swaps) == 0 {
		t.Fatal("not dropped")
	}
	g.commit()
	g.serve()
	g.must(w, "the other one has it")
}

func TestAReplicaThatDiesAtRestIsDropped(t *testing.T) {
	g := sleeper(t, states{in, in})
	silent := holdfast.NodeID("")
	g.p.ports.Events.Silent = func(id holdfast.NodeID) { silent = id }
	g.rests()
	g.conn(1).holding(MsgPing)
	g.p.Probe("n1")
	g.p.Probe("n1")
	if n := g.sent(1, MsgPing); n != 1 || g.sent(0, MsgPing) > 0 {
		t.Fatalf("probing one node twice at once sent it %d pings", n)
	}
	g.lazily(g.p.cfg.SilentAfter + 100*time.Millisecond)
	if silent != "n1" || len(g.swaps) != 1 || g.swaps[0].Replica(rigID(1)).State != stale {
		t.Fatalf("silent: %q, swaps: %+v", silent, g.swaps)
	}
}

// A process that stood still takes nobody's silence for a death, whether it was to
// be ticked meanwhile, was waiting for an answer, or was just asked for something.
func TestAPauseAtRest(t *testing.T) {
	for name, during := range map[string]func(g *rig){
		"nothing":        func(*rig) {},
		"a probe":        func(g *rig) { g.p.Probe("n1") },
		"a read":         func(g *rig) { g.submit(OpRead, blocks(3, 1)) },
		"a write":        func(g *rig) { g.submit(OpWrite, blocks(3, 1)) },
		"a ping, mostly": func(g *rig) { g.now += 19 * time.Second; g.p.Tick() },
	} {
		for _, long := range []time.Duration{1500 * time.Millisecond, 1900 * time.Millisecond, 2100 * time.Millisecond, 5 * time.Second, time.Minute} {
			g := sleeper(t, states{in, in})
			g.rests()
			during(g)
			g.p.Rests()
			g.now += long
			if until, rests := g.p.Rests(); !rests || g.now >= until {
				g.p.Tick() // before anything that came in meanwhile
			}
			g.lazily(5 * time.Second)
			if len(g.swaps) > 0 || slices.ContainsFunc(g.p.peers, func(t *peer) bool { return !t.up }) {
				t.Errorf("paused for %v after %s: %+v", long, name, g.p.Status())
			}
		}
	}
}

// The time at rest does not count as time in which a replica was slow.
func TestARestDoesNotCountForSlowness(t *testing.T) {
	g := sleeper(t, states{in, in})
	g.rests()
	open := g.now - g.p.slowBegan
	rested := g.p.rest.began
	g.lazily(15 * time.Second)
	g.submit(OpWrite, blocks(3, 1))
	if now := g.now - g.p.slowBegan; g.now-rested < 15*time.Second || now > open {
		t.Errorf("before the rest the window was open for %v, after it for %v", open, now)
	}
}
