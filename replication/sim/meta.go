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
	*site
	c     *cluster
	rec   holdfast.Record
	hosts []*host
	swaps int
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
	m.swaps++
	n := m.swaps
	m.w.after(m.w.between(200*time.Microsecond, 3*time.Millisecond), func() {
		if !m.reach(h) {
			m.w.after(time.Second, func() { answer(holdfast.Record{}, lost) })
			if !m.trouble(n, 0, 0.2, func() { // it was on its way, and arrives late
				m.c.hit("swap", "outcome unknown, late")
				m.w.after(m.w.between(0, 4*time.Second), func() { m.apply(want) })
			}) {
				m.c.hit("swap", "outcome unknown, not done")
			}
			return
		}
		if f := m.c.onPromote; f != nil && promotes(m.rec, want) {
			m.c.onPromote = nil
			f()
			late := m.c.cfg.Protocol.SilentAfter + time.Second // its candidate is given up before
			m.w.after(late, func() { m.apply(want) })
			m.w.after(late+time.Second, func() { answer(holdfast.Record{}, lost) })
			return
		}
		if promotes(m.rec, want) && m.trouble(n, 1, 0.2, func() { m.worst(want) }) ||
			m.trouble(n, 2, 0.02, func() { m.apply(want) }) { // the answer is lost
			m.c.hit("swap", "outcome unknown, done")
			m.w.after(time.Second, func() { answer(holdfast.Record{}, lost) })
			return
		}
		if m.apply(want) {
			answer(m.rec.Clone(), nil)
			return
		}
		m.c.hit("swap", "changed meanwhile")
		answer(m.rec.Clone(), holdfast.E("swap", holdfast.Busy, "changed meanwhile"))
	})
}

// trouble does what may happen to a swap with probability p.
func (m *meta) trouble(n, i int, p float64, f func()) bool {
	if m.calm || !m.c.may("swap") || !m.w.perhaps(Choice{ChoiceSwap, n, i}, p, f) {
		return false
	}
	m.c.faults["swap"]++
	return true
}

// worst leaves the outcome of a promotion open while the candidate dies.
func (m *meta) worst(want holdfast.Record) {
	m.w.after(m.w.between(0, 2*time.Second), func() { m.apply(want) })
	for _, r := range want.Replicas {
		if r.Since == want.Epoch && m.c.may("record") && m.w.chance(0.7) {
			x := m.host(r.Node)
			m.w.after(m.w.between(0, 500*time.Millisecond), func() {
				m.c.down(x, false, m.w.between(10*time.Millisecond, 3*time.Second))
				m.c.cold(100 * time.Millisecond)
			})
		}
	}
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
	before, old := len(m.rec.InSyncReplicas()), m.rec
	want = want.Clone()
	want.Revision = m.rec.Revision + 1
	m.c.recorded(m.rec, want)
	m.c.noteDrops(m.rec, want)
	m.rec = want
	m.c.logf("meta: revision %d epoch %d primary %v %s", want.Revision, want.Epoch, primaryName(want), states(want))
	m.c.applied(&old, &m.rec)
	m.c.retire(want)
	if !m.calm {
		m.moment(want, before)
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

// moment lets something fail right after a change of the record: that is where
// protocols break.
func (m *meta) moment(rec holdfast.Record, inSync int) {
	n, w := m.c.first()+int(rec.Revision), m.w
	if m.c.may("record") {
		w.perhaps(Choice{ChoiceRecord, n, 0}, 0.15, func() {
			m.c.faults["record"]++
			h := m.hosts[w.rng.IntN(len(m.hosts))]
			if w.chance(0.5) && rec.Primary != nil {
				h = m.host(rec.Primary.Node)
			}
			power := w.chance(0.3) && m.c.may("power")
			w.after(w.between(0, 4*time.Millisecond), func() { m.c.down(h, power, w.between(10*time.Millisecond, 3*time.Second)) })
		})
	}
	if len(rec.InSyncReplicas()) < inSync {
		w.choose(Choice{ChoiceRecord, n, 1}, func() { m.c.dropped(rec) })
	}
	w.choose(Choice{ChoiceRecord, n, 2}, func() { m.c.repaired(rec) })
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
