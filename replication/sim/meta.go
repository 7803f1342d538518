package sim

import (
	"time"

	"github.com/holdfast-storage/holdfast"
)

// leaseTTL is how long a node counts as alive after it was last heard.
const leaseTTL = 5 * time.Second

// meta is the metadata store: one record, linearizable, sometimes away. A swap
// that times out may take effect, before or after its caller is told.
type meta struct {
	w     *world
	c     *cluster
	rec   holdfast.Record
	out   bool // an outage for everybody
	calm  bool // no faults any more
	hosts []*host
}

// reach says whether a host can talk to the store.
func (m *meta) reach(h *host) bool { return !m.out && !h.noMeta && h.up }

// alive says whether a host's lease is there.
func (m *meta) alive(id holdfast.NodeID) bool {
	h := m.host(id)
	return h != nil && m.w.now-h.leaseAt < leaseTTL
}

func (m *meta) host(id holdfast.NodeID) *host {
	for _, h := range m.hosts {
		if h.id == id {
			return h
		}
	}
	return nil
}

// swap is compare-and-swap; done gets the outcome while the caller's life lasts.
func (m *meta) swap(h *host, want holdfast.Record, done func(holdfast.Record, error)) {
	life := h.life
	answer := func(r holdfast.Record, err error) {
		m.w.after(m.w.between(200*time.Microsecond, 3*time.Millisecond), func() { h.run(life, func() { done(r, err) }) })
	}
	lost := holdfast.E("swap", holdfast.Unavailable, "no answer")
	m.w.after(m.w.between(200*time.Microsecond, 3*time.Millisecond), func() {
		switch {
		case !m.reach(h):
			m.w.after(time.Second, func() { answer(holdfast.Record{}, lost) })
			if m.w.chance(0.2) { // it was on its way, and arrives late
				m.w.after(m.w.between(0, 4*time.Second), func() { m.apply(want) })
			}
		case promotes(m.rec, want) && m.w.chance(0.1) && !m.calm:
			// The worst moment: the outcome stays open while the candidate dies.
			m.w.after(m.w.between(0, 2*time.Second), func() { m.apply(want) })
			m.w.after(time.Second, func() { answer(holdfast.Record{}, lost) })
			for _, r := range want.Replicas {
				if r.Since == want.Epoch && m.w.chance(0.7) {
					x := m.host(r.Node)
					m.w.after(m.w.between(0, 500*time.Millisecond), func() {
						x.kill(false)
						m.w.after(m.w.between(10*time.Millisecond, 3*time.Second), func() { x.c.restart(x) })
					})
				}
			}
		case m.w.chance(0.02): // the answer is lost
			m.apply(want)
			m.w.after(time.Second, func() { answer(holdfast.Record{}, lost) })
		default:
			if m.apply(want) {
				answer(m.rec.Clone(), nil)
				return
			}
			answer(m.rec.Clone(), holdfast.E("swap", holdfast.Busy, "changed meanwhile"))
		}
	})
}

// promotes says whether want brings a replica into the in-sync set.
func promotes(have, want holdfast.Record) bool {
	return len(want.InSyncReplicas()) > len(have.InSyncReplicas())
}

func (m *meta) apply(want holdfast.Record) bool {
	if want.Revision != m.rec.Revision {
		return false
	}
	if err := want.Validate(); err != nil {
		panic(err)
	}
	before := len(m.rec.InSyncReplicas())
	want = want.Clone()
	want.Revision = m.rec.Revision + 1
	m.rec = want
	m.w.logf("meta: revision %d epoch %d primary %v %s", want.Revision, want.Epoch, primaryName(want), states(want))
	if m.w.chance(0.15) && !m.calm {
		// The moments after a change of membership are where protocols break.
		h := m.hosts[m.w.rng.IntN(len(m.hosts))]
		if m.w.chance(0.5) && want.Primary != nil {
			h = m.host(want.Primary.Node)
		}
		power := m.w.chance(0.3)
		m.w.after(m.w.between(0, 4*time.Millisecond), func() {
			h.kill(power)
			m.w.after(m.w.between(10*time.Millisecond, 3*time.Second), func() { h.c.restart(h) })
		})
	}
	m.c.retire(want)
	if !m.calm && len(want.InSyncReplicas()) < before {
		m.c.dropped(want)
	}
	if !m.calm {
		m.c.repaired(want)
	}
	rec := want.Clone()
	for _, h := range m.hosts {
		life := h.life
		m.w.after(m.w.between(time.Millisecond, 40*time.Millisecond), func() {
			if m.reach(h) {
				h.run(life, func() { h.onRecord(rec) })
			}
		})
	}
	return true
}

func (m *meta) read(h *host, done func(holdfast.Record, error)) {
	life := h.life
	m.w.after(m.w.between(200*time.Microsecond, 3*time.Millisecond), func() {
		if !m.reach(h) {
			m.w.after(time.Second, func() {
				h.run(life, func() { done(holdfast.Record{}, holdfast.E("read", holdfast.Unavailable, "no answer")) })
			})
			return
		}
		rec := m.rec.Clone()
		m.w.after(m.w.between(200*time.Microsecond, 3*time.Millisecond), func() { h.run(life, func() { done(rec, nil) }) })
	})
}

func primaryName(r holdfast.Record) string {
	if r.Primary == nil {
		return "-"
	}
	return string(r.Primary.Node)
}

func states(r holdfast.Record) string {
	s := ""
	for _, x := range r.Replicas {
		s += string(x.Node) + "=" + string(x.State) + " "
	}
	return s
}
