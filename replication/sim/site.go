package sim

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/holdfast-storage/holdfast"
)

// site is what several volumes have in common: the machines, which fail with all
// that is on them, and the metadata store, whose outages and losses are
// everybody's. A Primary and a Replica know one volume only, so each volume is a
// cluster of its own beside the others, with its own record, replicas and users.
type site struct {
	w         *world
	machines  []*machine
	volumes   []*cluster
	out       bool // an outage of the metadata store for everybody
	calm      bool // no faults any more
	restoring bool // the metadata store was rolled back: no other faults
}

// machine is what the volumes of one node have in common: a process that lives or
// not, one pool, links.
type machine struct {
	*site
	id          holdfast.NodeID
	hosts       []*host // one for each volume
	up          bool
	life        int
	leaseAt     time.Duration
	pausedUntil time.Duration
	slowUntil   time.Duration
	noMeta      bool
	cutTo       map[*machine]bool // messages from here to there do not arrive
	cordoned    time.Duration     // no new replicas come here before

	stuckUntil time.Duration // its disks do no work, its process lives

	lateUntil   time.Duration // its disks do no writes
	jitterUntil time.Duration // its disks take their time, and do things in another order
}

func newSite(w *world, machines int) *site {
	s := &site{w: w}
	for i := range machines {
		s.machines = append(s.machines, &machine{site: s, id: holdfast.NodeID(fmt.Sprintf("n%d", i)), cutTo: map[*machine]bool{}})
	}
	return s
}

// beside are the configurations of the volumes of a run. All but the first have
// their own number of replicas.
func (c Config) beside() []Config {
	all := []Config{c}
	for v := 1; v < c.Volumes; v++ {
		rng := rand.New(rand.NewPCG(c.Seed, 100+uint64(v)))
		c.Replicas, c.MinInSync = 2+rng.IntN(2), 1
		if rng.IntN(4) == 0 {
			c.MinInSync = 2
		}
		all = append(all, c)
	}
	return all
}

// perVolume is how far the numbers of the volumes' choices are apart.
const perVolume = 1_000_000

// first is the number of a volume's first choices.
func (c *cluster) first() int { return c.number * perVolume }

// every does f again and again, as world.every does, with numbers of the volume's
// own.
func (c *cluster) every(kind ChoiceKind, after time.Duration, f func(n int) time.Duration) {
	c.w.every(Choice{kind, c.first(), 0}, after, f)
}

// logf notes a line of the trace, with its volume where there are several.
func (c *cluster) logf(format string, args ...any) {
	if c.number > 0 {
		format = string(c.id) + ": " + format
	}
	c.w.logf(format, args...)
}

// disks are those of all volumes on a machine.
func (m *machine) disks() []*disk {
	var all []*disk
	for _, h := range m.hosts {
		if h.disk != nil {
			all = append(all, h.disk)
		}
	}
	return all
}

// start begins a new life of the process.
func (m *machine) start() {
	m.up = true
	m.life++
	for _, h := range m.hosts {
		if h.disk != nil {
			h.open()
		}
	}
	m.heartbeat(m.life)
	for _, h := range m.hosts {
		h.ticker(m.life)
	}
	m.prober(m.life)
}

// heartbeat keeps the lease.
func (m *machine) heartbeat(life int) {
	if m.life != life || !m.up {
		return
	}
	if !m.out && !m.noMeta && m.pausedUntil <= m.w.now {
		m.leaseAt = m.w.now
		for _, h := range m.hosts {
			h.onRecord(h.c.meta.rec.Clone()) // the watch catches up after an outage
		}
	}
	m.w.after(time.Second, func() { m.heartbeat(life) })
}

// kill ends the process; with power, what was not flushed goes too.
func (m *machine) kill(power bool) {
	if !m.up {
		return
	}
	m.w.logf("%s: killed, power loss %v", m.id, power)
	m.up = false
	m.life++
	m.pausedUntil, m.slowUntil, m.stuckUntil, m.lateUntil = 0, 0, 0, 0
	for _, h := range m.hosts {
		h.die(power)
	}
}

// fill fills the machine's pool, or frees space in it.
func (m *machine) fill(full bool) {
	for _, d := range m.disks() {
		d.full = full
	}
}

// mend ends what keeps a living machine from working.
func (m *machine) mend() {
	m.noMeta, m.cutTo = false, map[*machine]bool{}
	for _, d := range m.disks() {
		d.full, d.failsUntil = false, 0
	}
}

// endFaults ends all faults, of all volumes, and says when that was.
func (s *site) endFaults() time.Duration {
	s.w.logf("--- faults end")
	s.out, s.calm = false, true
	for _, c := range s.volumes {
		c.cfg.Kinds, c.stageUntil = []string{"none"}, 0
		for _, h := range c.meta.hosts {
			h.hinder = nil
		}
	}
	for _, m := range s.machines {
		m.mend()
		m.slowUntil, m.stuckUntil = 0, 0
		if !m.up {
			m.start()
		}
	}
	for _, m := range s.machines {
		s.w.runUntil(max(s.w.now, m.pausedUntil), nil) // a pause ends by itself
	}
	s.w.runUntil(s.w.now+10*time.Millisecond, nil) // and with it errors are heard
	for _, m := range s.machines {
		if m.up && m.broken() {
			m.kill(false)
			m.start()
		}
	}
	for _, c := range s.volumes {
		c.refill()
	}
	return s.w.now
}

// broken says whether a replica on a machine has failed with its disk: it serves no
// more until somebody starts the process again.
func (m *machine) broken() bool {
	return slices.ContainsFunc(m.hosts, func(h *host) bool { return h.replica != nil && h.replica.Failure() != nil })
}

// judge has all volumes become well, one after the other, all within the same
// time, and goes through what must be true of each in the end.
func (s *site) judge() error {
	start := s.endFaults()
	for _, c := range s.volumes {
		if err := c.judge(c.settled(start), c.check, c.equal, c.snapshotsWell); err != nil {
			return c.named(err)
		}
	}
	return nil
}

// named says which volume a violation is about, where there are several.
func (c *cluster) named(err error) error {
	var v violation
	if errors.As(err, &v) && c.number > 0 {
		return violation{v.what, string(c.id) + ": " + v.text}
	}
	return err
}

// result sums up what happened to all volumes.
func (s *site) result(err error) Result {
	var all Result
	for i, c := range s.volumes {
		res := c.result(err)
		if i == 0 {
			all = res
			continue
		}
		all.Operations, all.Attached = all.Operations+res.Operations, all.Attached+res.Attached
		all.Coverage.add(res.Coverage)
		for k, n := range res.Faults {
			all.Faults[k] += n
		}
		for k, n := range res.Snapshots {
			all.Snapshots[k] += n
		}
	}
	return all
}
