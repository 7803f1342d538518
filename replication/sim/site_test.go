package sim

import (
	"slices"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast/replication"
)

// What happens to a machine happens to all volumes that are on it, and to no other.
func TestVolumesShareMachines(t *testing.T) {
	cfg := Default(*seed)
	cfg.Hosts, cfg.Volumes, cfg.Replicas = 5, 3, 3
	s := newSite(newWorld(&cfg, 1), cfg.Hosts)
	for _, x := range cfg.beside() {
		newCluster(x, s).build()
	}
	s.calm = true // no faults but those below
	s.power()
	for v, c := range s.volumes {
		c.moveTo(c.meta.hosts[v], false)
	}
	serving := func(v int) bool {
		c := s.volumes[v]
		return len(c.devs) == 1 && c.devs[0].h == c.meta.hosts[v] && c.devs[0].p.Phase() == "serving"
	}
	s.w.runUntil(3*time.Second, nil)
	for v := range s.volumes {
		if !serving(v) {
			t.Fatalf("volume %d is not served by its own machine: %s", v, s.volumes[v].stuck())
		}
	}
	m := s.machines[2]
	if on := len(m.disks()); on != 3 && on != 2 {
		t.Errorf("%d volumes have a replica on the third machine", on)
	}
	m.fill(true)
	for _, d := range m.disks() {
		if !d.full {
			t.Error("a full pool is not full for all its volumes")
		}
	}
	m.kill(true)
	for v, c := range s.volumes {
		h := c.meta.hosts[2]
		if h.up || h.replica != nil || h.disk != nil && h.disk.boot != 2 {
			t.Errorf("volume %d outlives its machine", v)
		}
		if serving(v) != (v != 2) {
			t.Errorf("volume %d: serving %v after another machine was lost", v, serving(v))
		}
	}
	if err := s.judgeAfter(t, serving); err != nil {
		t.Error(err)
	}
}

// judgeAfter has the third volume attached elsewhere, and all become well.
func (s *site) judgeAfter(t *testing.T, serving func(int) bool) error {
	t.Helper()
	s.w.runUntil(s.w.now+leaseTTL+time.Second, nil)
	c := s.volumes[2]
	c.moveTo(c.meta.hosts[0], false)
	s.w.runUntil(s.w.now+5*time.Second, nil)
	if !serving(0) || !serving(1) || len(c.devs) != 1 {
		t.Errorf("not served: %s", c.stuck())
	}
	return s.judge()
}

// A process may be paused while its disk fails, and hear of it when the fault is long
// over: it is started again all the same (seed 3130028).
func TestAProcessThatHearsLateOfAFailedDiskIsStartedAgain(t *testing.T) {
	cfg := Default(*seed)
	cfg.Hosts, cfg.Volumes, cfg.Replicas, cfg.Snapshots = 3, 1, 2, false
	s := newSite(newWorld(&cfg, 1), cfg.Hosts)
	c := newCluster(cfg, s)
	c.build()
	s.calm = true
	s.power()
	h := c.meta.hosts[slices.IndexFunc(c.meta.hosts, func(h *host) bool { return h.disk != nil })]
	c.moveTo(h, false)
	s.w.runUntil(3*time.Second, nil)
	h.disk.failsUntil = s.w.now + time.Minute
	for range 100 {
		if h.replica.Failure() != nil {
			break
		}
		h.primary.Submit(&replication.Request{Op: replication.OpFlush, Done: func(*replication.Request, error) {}})
		s.w.runUntil(s.w.now+50*time.Millisecond, nil)
	}
	if h.replica.Failure() == nil {
		t.Fatal("its disk does not fail")
	}
	h.disk.failsUntil = 0
	s.w.runUntil(s.w.now+5*time.Second, nil)
	if !h.broken() {
		t.Fatal("it serves again without a new process")
	}
	start := s.endFaults()
	c.moveTo(c.meta.hosts[(slices.Index(c.meta.hosts, h)+1)%3], true)
	if err := c.judge(c.settled(start), c.equal); err != nil {
		t.Error(err)
	}
}

// Seeds have from three to seven nodes, and odd ones from one to three volumes.
func TestShapes(t *testing.T) {
	hosts, volumes := map[int]int{}, map[int]int{}
	for seed := range uint64(400) {
		cfg := Default(seed)
		hosts[cfg.Hosts]++
		volumes[len(cfg.beside())]++
	}
	for n := 3; n <= 7; n++ {
		if hosts[n] == 0 {
			t.Errorf("no run has %d nodes", n)
		}
	}
	for n := 1; n <= 3; n++ {
		if volumes[n] < 20 {
			t.Errorf("%d runs of 400 have %d volumes", volumes[n], n)
		}
	}
	if len(hosts) != 5 || len(volumes) != 3 {
		t.Errorf("nodes %v, volumes %v", hosts, volumes)
	}
}
