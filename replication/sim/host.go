package sim

import (
	"errors"
	"strconv"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/replication"
)

// host is what one volume has on one machine: a replica or none, whose disk stays,
// and a primary or none.
type host struct {
	*machine
	c      *cluster
	hinder func(*replication.Task) time.Duration // how much longer its disk waits before it begins a task

	disk      *disk // nil: no replica here
	replicaID holdfast.ReplicaID
	store     *store
	replica   *replication.Replica
	primary   *replication.Primary
	device    *device
	opening   bool
	// quiet is the grant that this node remembers over the end of a process, though
	// not over a loss of power: see replication.Config.PriorQuiet.
	quiet holdfast.Epoch

	sessionGrant holdfast.Epoch // for the coverage
	resting      bool           // its primary needs no ticks at the moment
	maintaining  bool           // its primary is one for maintenance
}

// cut says whether messages from h to o are lost on the way.
func (h *host) cut(o *host) bool {
	return h != o && (h.cutTo[o.machine] || !o.up || !h.up)
}

// run does f in the process's present life, when it is not paused.
func (h *host) run(life int, f func()) {
	switch {
	case h.life != life || !h.up:
	case h.pausedUntil > h.c.w.now:
		h.c.w.after(h.pausedUntil-h.c.w.now, func() { h.run(life, f) })
	default:
		f()
	}
}

// open begins to serve the host's replica.
func (h *host) open() {
	life := h.life
	h.disk.onPromise = h.c.promised
	h.store = &store{w: h.c.w, d: h.disk, host: h, boot: strconv.Itoa(h.disk.boot)}
	cfg := replication.ReplicaConfig{Cluster: clusterID, Volume: h.c.id, Replica: h.replicaID, Clock: h.c.w}
	if h.c.cfg.Crowded {
		cfg.Room = func(_, _ int64, again func()) bool { return h.room(life, again) }
	}
	r := replication.NewReplica(cfg, h.store)
	h.store.done = func(t *replication.Task) { h.run(life, func() { r.OnDone(t) }) }
	h.replica = r
}

// room is the limit of a node that has others to repair too: every other question
// is answered later.
func (h *host) room(life int, again func()) bool {
	if h.c.w.rng.IntN(2) == 0 {
		return true
	}
	h.c.w.after(time.Duration(h.c.w.rng.Int64N(int64(100*time.Millisecond))), func() { h.run(life, again) })
	return false
}

func (h *host) ticker(life int) {
	h.run(life, func() {
		if h.primary != nil && h.tickDue() {
			h.primary.Tick()
			if h.device != nil {
				h.device.look()
				h.device.waited()
			}
		}
	})
	if h.life == life && h.up {
		h.c.w.after(50*time.Millisecond, func() { h.ticker(life) })
	}
}

// die is the end of the machine's process for this volume.
func (h *host) die(power bool) {
	h.hinder = nil
	if h.disk != nil {
		h.store.kill()
		if power {
			h.disk.powerLoss(h.c.w)
			h.quiet = 0
			h.c.losses++
		}
	}
	if h.device != nil {
		h.device.lost()
		h.device = nil
	}
	h.primary, h.replica, h.opening, h.resting = nil, nil, false, false
}

// onRecord is the watch.
func (h *host) onRecord(rec holdfast.Record) {
	if h.primary != nil {
		h.primary.OnRecord(rec)
	}
}

// Dial makes host a replication.Dialer.
func (h *host) Dial(to holdfast.Replica, attempt uint64) {
	life, primary := h.life, h.primary
	o := h.c.host(to.Node)
	fail := func(after time.Duration, kind holdfast.Kind, why string) {
		h.c.w.after(after, func() {
			h.run(life, func() {
				if h.primary == primary {
					primary.OnDialFailed(attempt, holdfast.E("dial", kind, why))
				}
			})
		})
	}
	h.c.w.after(h.c.w.between(50*time.Microsecond, time.Millisecond), func() {
		switch {
		case !o.up && h.c.w.chance(0.5):
			fail(time.Millisecond, holdfast.NotFound, "refused")
		case h.cut(o) || o.cut(h):
			fail(time.Second, holdfast.Unavailable, "no answer")
		case o.replica == nil || o.replicaID != to.ID:
			fail(time.Millisecond, holdfast.Unavailable, "refused")
		default:
			h.connected(life, primary, o, attempt)
		}
	})
}

func (h *host) connected(life int, primary *replication.Primary, o *host, attempt uint64) {
	mine, theirs := connect(h.c.w, h, o)
	h.c.ends = append(h.c.ends, mine)
	olife, replica, store := o.life, o.replica, o.store
	mine.onClosed = func() { h.run(life, func() { primary.OnClosed(mine) }) }
	theirs.onClosed = func() {
		h.c.hit("session", "its connection ended")
		o.run(olife, func() { replica.OnClosed(theirs) })
	}
	mine.in.deliver = func(m *replication.Message) {
		if h.life == life && h.primary == primary {
			if m.Welcome != nil && (store.d.promise.Epoch < m.Epoch || !store.dead && len(store.tasks) > 0) {
				panic("sim: a replica welcomes before its promise is durable, or with writes under way")
			}
			h.c.answer(m)
			if m.Welcome != nil {
				h.c.welcomed(o, primary.Grant())
			}
			primary.OnMessage(mine, m)
			if h.device != nil {
				h.device.look()
			}
		}
	}
	mine.out.deliver = func(m *replication.Message) {
		if o.life == olife {
			if m.Type == replication.MsgRead && h != o {
				m.Buf.Release() // the wire does not carry it
				m.Buf = nil
			}
			replica.OnMessage(theirs, m)
		}
	}
	h.run(life, func() {
		if h.primary == primary {
			primary.OnConnected(attempt, mine)
		}
	})
}

// swapper is a replication.Records for one primary.
type swapper struct {
	h *host
	p *replication.Primary
}

func (s *swapper) Swap(want holdfast.Record) {
	s.h.c.meta.swap(s.h, want, func(r holdfast.Record, err error) { s.p.OnSwap(r, err) })
}

func (s *swapper) Read() {
	s.h.c.meta.read(s.h, func(r holdfast.Record, err error) { s.p.OnRead(r, err) })
}

// attach tries to become the primary once; done says whether it serves.
func (h *host) attach(force bool, done func(*device)) {
	h.yield()
	h.grant(holdfast.ClientPrimary, force, done)
}

// grant is attach for either kind of primary.
func (h *host) grant(kind holdfast.PrimaryKind, force bool, done func(*device)) {
	if h.opening || h.primary != nil || !h.up {
		done(nil)
		return
	}
	h.opening = true
	life := h.life
	fail := func() { h.opening = false; done(nil) }
	h.c.meta.read(h, func(rec holdfast.Record, err error) {
		if err != nil {
			fail()
			return
		}
		alive := rec.Primary != nil && h.c.meta.alive(rec.Primary.Node)
		next, err := replication.Grant(rec, replication.GrantRequest{Self: h.id, Kind: kind, HolderAlive: alive, Force: force})
		if err != nil {
			if !errors.Is(err, holdfast.InUse) && !errors.Is(err, holdfast.Busy) {
				panic(err)
			}
			fail()
			return
		}
		h.c.meta.swap(h, next, func(got holdfast.Record, err error) {
			if err != nil || h.life != life {
				fail()
				return
			}
			h.serve(got, rec.Primary != nil && rec.Primary.Node == h.id && rec.Primary.Grant == h.quiet, done)
		})
	})
}

func (h *host) serve(rec holdfast.Record, quiet bool, done func(*device)) {
	h.opening = false
	if quiet {
		h.quiet = rec.Primary.Grant
	}
	rs, ask := &swapper{h: h}, &askAll{h: h}
	cfg := h.c.cfg.Protocol
	for _, o := range h.c.meta.hosts {
		if !h.c.meta.alive(o.id) {
			cfg.Absent = append(cfg.Absent, o.id)
		}
	}
	cfg.Cluster, cfg.Self, cfg.Record, cfg.PriorQuiet = clusterID, h.id, rec, quiet
	var p *replication.Primary
	dev := &device{c: h.c, h: h, stages: map[holdfast.ReplicaID]string{}}
	p = replication.NewPrimary(cfg, replication.Ports{Clock: h.c.w, Dialer: h, Records: rs, Outsiders: ask, Events: replication.Events{
		Serving: func() {
			dev.look()
			h.c.logf("%s: serving", h.id)
			h.quiet = rec.Primary.Grant
			h.c.lossAt(dev)
			done(dev)
		},
		Ended: func(err error) {
			h.c.logf("%s: ended: %v", h.id, err)
			h.c.ended(err)
			dev.look()
			h.c.w.after(0, func() {
				if h.primary == p {
					h.primary, h.device = nil, nil
				}
				dev.lost()
			})
		},
		Changed: func(what string) { h.c.logf("%s: %s", h.id, what) },
		Silent:  h.silent,
	}})
	rs.p, ask.p, dev.p, h.primary, h.device, h.resting = p, p, p, p, dev, false
	h.maintaining = rec.AttachedTo() == ""
	h.c.logf("%s: granted epoch %d", h.id, rec.Epoch)
	p.Start()
	dev.look()
}
