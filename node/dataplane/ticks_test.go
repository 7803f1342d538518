package dataplane

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
)

// asleep is a cluster of n nodes whose volume is served by the first one, has been
// written to, and is at rest.
func asleep(t *testing.T, n int, ping time.Duration) (*cluster, *Volume) {
	t.Helper()
	c := newCluster(t, n)
	c.freezable = true
	c.tune = func(cfg *Config) {
		cfg.Primary.RestAfter, cfg.Primary.RestPing, cfg.ProbeEvery = 100*time.Millisecond, ping, 200*time.Millisecond
	}
	c.start()
	h := c.open(c.nodes[0], OpenOptions{})
	if err := write(h, 8192, bytes.Repeat([]byte{7}, 4096)); err != nil {
		t.Fatal(err)
	}
	c.until("the volume rests", h.rests)
	return c, h
}

// rests says whether the plane leaves the volume alone.
func (h *Volume) rests() bool {
	p := h.v.plane
	p.mu.Lock()
	defer p.mu.Unlock()
	_, resting := p.ticks.resting[h]
	_, awake := p.ticks.awake[h]
	return resting && !awake
}

func TestAVolumeAtRestWakesForIO(t *testing.T) {
	c, h := asleep(t, 3, time.Hour)
	for range 3 {
		got, err := read(h, 8192, 4096)
		if err != nil || !bytes.Equal(got, bytes.Repeat([]byte{7}, 4096)) {
			t.Fatalf("read after a rest: %v", err)
		}
		c.until("it rests again", h.rests)
		if err := write(h, 8192, bytes.Repeat([]byte{7}, 4096)); err != nil {
			t.Fatal(err)
		}
		c.until("it rests again", h.rests)
	}
}

// Nobody asks for anything; the node is found all the same, by a probe.
func TestASilentNodeIsDroppedThoughAllIsAtRest(t *testing.T) {
	c, _ := asleep(t, 2, time.Hour)
	c.nodes[0].freeze()
	c.until("the silent replica is dropped", func() bool { return slices.Equal(c.inSync(), []holdfast.NodeID{"n0"}) })
	c.nodes[0].thaw()
	c.until("it is in sync again", func() bool { return len(c.inSync()) == 2 })
}

// The probe of one volume finds the node, then the other volumes ask it as well.
func TestASilentNodeIsDroppedByAllVolumesAtRest(t *testing.T) {
	c, _ := asleep(t, 2, time.Hour)
	b := c.addBystander()
	c.until("the other one serves", func() bool { return b.done.Load() > 0 })
	b.stop()
	<-b.gone
	c.until("the other one rests", b.h.rests)
	c.nodes[0].freeze()
	c.until("both drop it", func() bool {
		rec, err := c.store.Volume(t.Context(), string(b.h.ID()))
		if err != nil {
			t.Fatal(err)
		}
		return len(c.inSync()) == 1 && len(rec.InSyncReplicas()) == 1
	})
	c.nodes[0].thaw()
}

func TestAKilledNodeIsDroppedThoughAllIsAtRest(t *testing.T) {
	c, _ := asleep(t, 2, time.Hour)
	c.nodes[1].stop()
	c.until("the dead replica is dropped", func() bool { return slices.Equal(c.inSync(), []holdfast.NodeID{"n0"}) })
}

// Many volumes at rest are ticked together, none of them too late.
func TestTicksOfVolumesAtRestAreGathered(t *testing.T) {
	c := newCluster(t, 1)
	c.tune = func(cfg *Config) { cfg.TickEvery, cfg.RestSlack = time.Hour, 2*time.Second }
	c.start()
	p := c.nodes[0].plane
	now := p.clock.Now()
	var hs []*Volume
	for i := range 5 {
		h := &Volume{}
		hs = append(hs, h)
		p.primaries[h] = struct{}{}
		p.rest(h, now+time.Duration(i)*time.Second-time.Millisecond, []holdfast.NodeID{"n1", "n0"})
	}
	got, probes := p.due(nil, nil)
	if len(got) != 3 || slices.Contains(got, hs[3]) || slices.Contains(got, hs[4]) {
		t.Errorf("%d are due within 2 s, not the first three", len(got))
	}
	if len(probes) != 1 || probes[0].node != "n1" {
		t.Errorf("probes: %v", probes)
	}
	if got, probes = p.due(nil, nil); len(got)+len(probes) > 0 {
		t.Errorf("due again at once: %v, %v", got, probes)
	}
	p.nodeSilent("n1")
	if _, probes = p.due(nil, nil); len(probes) != 5 {
		t.Errorf("%d volumes probe the silent node, not all five", len(probes))
	}
	p.wake(hs[0])
	if got, _ = p.due(nil, nil); len(got) != 1 || got[0] != hs[0] {
		t.Errorf("who is awake is not ticked: %v", got)
	}
	p.mu.Lock()
	for _, h := range hs {
		p.forgetRest(h)
		delete(p.primaries, h)
		delete(p.ticks.awake, h)
	}
	left := len(p.ticks.nodes) + len(p.ticks.resting)
	p.mu.Unlock()
	if left > 0 {
		t.Errorf("%d entries are left", left)
	}
}
