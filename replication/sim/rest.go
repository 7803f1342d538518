package sim

import (
	"math/rand/v2"
	"slices"
	"time"

	"github.com/holdfast-storage/holdfast"
)

// rests draws after how long a volume is at rest and how often it is asked then, and
// whether nodes are probed meanwhile: rests that are short against the read window,
// and long ones.
func (c *Config) rests() {
	rng := rand.New(rand.NewPCG(c.Seed, 14))
	if rng.IntN(4) == 0 {
		return // the defaults: it hardly ever rests
	}
	c.Drowsy = rng.IntN(2) == 0
	c.Protocol.RestAfter = 50*time.Millisecond + time.Duration(rng.Int64N(int64(time.Second)))
	c.Protocol.RestPing = time.Second + time.Duration(rng.Int64N(int64(12*time.Second)))
	c.Probes = rng.IntN(2) == 0
}

// tickDue says whether a primary is to be told that time has passed.
func (h *host) tickDue() bool {
	until, rests := h.primary.Rests()
	if rests != h.resting {
		h.c.hit("rest", map[bool]string{true: "begun", false: "ended"}[rests])
		h.resting = rests
	}
	return !rests || h.c.w.now >= until
}

// prober asks a node now and then, for one of the volumes that are at rest.
func (m *machine) prober(life int) {
	if m.life != life || !m.up {
		return
	}
	h := m.hosts[m.w.rng.IntN(len(m.hosts))]
	to := m.machines[m.w.rng.IntN(len(m.machines))].id
	if h.c.cfg.Probes {
		h.probe(to)
	}
	m.w.after(400*time.Millisecond, func() { m.prober(life) })
}

// probe has a primary at rest ask a node.
func (h *host) probe(node holdfast.NodeID) {
	h.run(h.life, func() {
		if h.primary != nil && h.resting {
			h.primary.Probe(node)
		}
	})
}

// silent tells all primaries of a machine that a node does not answer one of them.
func (m *machine) silent(node holdfast.NodeID) {
	for _, h := range m.hosts {
		if h.c.cfg.Probes {
			m.w.after(0, func() { h.probe(node) })
		}
	}
}

// lull has the users ask for nothing for a while. Then all of them read at once, also
// those whose primary was cut off or superseded meanwhile and does not know it, and
// then much is written.
func (c *cluster) lull(span time.Duration) {
	span += time.Second
	c.lullUntil = max(c.lullUntil, c.w.now+span)
	c.w.after(span, func() {
		if c.lullUntil > c.w.now || c.quiet || c.staged() {
			return
		}
		for _, d := range slices.Clone(c.devs) {
			for range 3 {
				if !d.gone && d.h.up && d.h.pausedUntil <= c.w.now && len(d.ops) <= c.cfg.Depth {
					d.start(d.place())
				}
			}
		}
		c.soon(c.w.between(0, 20*time.Millisecond), func() { c.storm(100 * time.Millisecond) })
	})
}
