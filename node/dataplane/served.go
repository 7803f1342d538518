package dataplane

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/replication"
)

// Volume is a primary that runs here, under one grant. It is a device.Backend.
// All methods may be called from any goroutine, also when it has ended.
type Volume struct {
	v       *volume
	kind    holdfast.PrimaryKind
	machine *replication.Primary

	serving chan struct{} // closed when it answers I/O
	ended   chan struct{} // closed when it serves no more, with err
	err     error
	pacing  pacing
	// What the plane's ticks know of it; used within steps only.
	resting bool
	until   time.Duration
	ticked  bool // just now

	resizing sync.Mutex // guards the rest; a leaf
	onResize func(sizeBytes int64)
	newSize  int64 // not yet told; 0 if none
	telling  bool
}

// start makes and starts the primary of a grant; called within a step, with the
// volume's primary unset.
func (v *volume) start(g granted) *Volume {
	p := v.plane
	h := &Volume{v: v, kind: g.rec.Primary.Kind, serving: make(chan struct{}), ended: make(chan struct{})}
	cfg := p.cfg.Primary
	cfg.Cluster, cfg.Self, cfg.Record = p.cfg.Cluster, p.cfg.Self, g.rec
	cfg.Absent, cfg.PriorQuiet = g.absent, g.quiet
	// Whoever serves has waited until all others were quiet; who need not wait
	// passes on what it knows.
	quiet := func() {
		if p.cfg.Quiet != nil {
			p.cfg.Quiet.SetQuiet(v.id, g.rec.Primary.Grant)
		}
	}
	if g.quiet {
		quiet()
	}
	var others replication.Outsiders
	if p.cfg.Others != nil {
		others = outsiders{h}
	}
	h.machine = replication.NewPrimary(cfg, replication.Ports{
		Clock: p.clock, Dialer: dialer{h}, Records: records{h}, Repairs: gate{p.repairs, v}, Outsiders: others,
		Events: replication.Events{
			Serving: func() { quiet(); close(h.serving) },
			Ended:   h.onEnded,
			Resized: h.resized,
			Silent:  p.nodeSilent,
			Changed: func(what string) {
				if p.cfg.Changed != nil {
					p.cfg.Changed(v.id, what)
				}
			},
		}})
	v.primary = h
	p.mu.Lock()
	p.primaries[h] = struct{}{}
	p.ticks.awake[h] = struct{}{}
	v.refs++
	p.mu.Unlock()
	p.hurry()
	h.machine.Start()
	h.adoptLimits()
	return h
}

// onEnded is called by the machine, within a step.
func (h *Volume) onEnded(err error) {
	h.err = err
	if h.v.primary == h {
		h.v.primary = nil
	}
	h.v.later(h.endLimits) // what waited for them fails, as the machine has ended
	p := h.v.plane
	if p.cfg.Quiet != nil && !errors.Is(err, holdfast.Unavailable) {
		p.cfg.Quiet.SetQuiet(h.v.id, 0) // the grant is given back, or somebody else's
	}
	p.mu.Lock()
	delete(p.primaries, h)
	delete(p.ticks.awake, h)
	p.forgetRest(h)
	p.mu.Unlock()
	p.release(h.v)
	close(h.ended)
}

// Submit takes a request of the device; it does not block. Requests beyond the
// volume's limits wait here first, in order.
func (h *Volume) Submit(r *replication.Request) {
	h.v.plane.asked.Add(1)
	h.v.lock()
	h.submit(r)
	h.v.unlock()
}

// SubmitAll implements device.Batcher: all in one step.
func (h *Volume) SubmitAll(rs []*replication.Request) {
	h.v.plane.asked.Add(uint64(len(rs)))
	h.v.lock()
	for _, r := range rs {
		h.submit(r)
	}
	h.v.unlock()
}

// Asked implements device.Counter: requests of all volumes' devices, and what other
// nodes asked of the replicas here.
func (h *Volume) Asked() uint64 { return h.v.plane.asked.Load() }

// ID is the volume's.
func (h *Volume) ID() holdfast.VolumeID { return h.v.id }

// Kind says what the primary is for.
func (h *Volume) Kind() holdfast.PrimaryKind { return h.kind }

// Status reports on the primary, its replicas and its counters.
func (h *Volume) Status() replication.PrimaryStatus {
	h.v.lock()
	defer h.v.unlock()
	return h.machine.Status()
}

// Record is the newest record that the primary knows.
func (h *Volume) Record() holdfast.Record { return h.Status().Record }

// SizeBytes is the device's size.
func (h *Volume) SizeBytes() int64 {
	h.v.lock()
	defer h.v.unlock()
	return h.machine.SizeBytes()
}

// Ended is closed when the primary serves no more; Err says why then.
func (h *Volume) Ended() <-chan struct{} { return h.ended }

// Err is nil while it serves and after Release; of kind Fenced when another
// primary was granted the volume or it was deleted, Unavailable after Abort,
// Corrupt when it would have had to go on over lost writes.
func (h *Volume) Err() error {
	select {
	case <-h.ended:
		return h.err
	default:
		return nil
	}
}

// Release lets requests in flight finish, refuses new ones and gives the grant
// back in the record. It returns nil when it has ended, for whatever reason.
// When ctx ends first, the error is of kind Unavailable and the release goes on;
// the same call waits for it.
func (h *Volume) Release(ctx context.Context) error {
	h.v.step(h.beginRelease)
	select {
	case <-h.ended:
		return nil
	default:
	}
	select {
	case <-h.ended:
		return nil
	case <-ctx.Done():
		op := "release volume " + string(h.v.id)
		if w := h.Status().WaitingFor; w != "" {
			op += ": I/O waits for " + w
		}
		return holdfast.WrapKind(op, holdfast.Unavailable, ctx.Err())
	}
}

// beginRelease is called within a step. What waits for the volume's limits need
// not wait any more.
func (h *Volume) beginRelease() {
	h.endLimits()
	h.machine.Release()
}

// Abort ends the primary at once: all requests fail with Unavailable, and the
// record keeps the grant, which this node may take again.
func (h *Volume) Abort() { h.v.step(h.machine.Abort) }

// OnResize sets what is called when the device may grow, in a goroutine of its
// own, one call at a time; several growths may become one call. A growth that
// happened before is told now.
func (h *Volume) OnResize(f func(sizeBytes int64)) {
	h.resizing.Lock()
	h.onResize = f
	h.resizing.Unlock()
	h.tellSize()
}

// resized is called by the machine, within a step.
func (h *Volume) resized(size int64) {
	h.resizing.Lock()
	h.newSize = size
	h.resizing.Unlock()
	h.tellSize()
}

func (h *Volume) tellSize() {
	h.resizing.Lock()
	defer h.resizing.Unlock()
	if h.telling || h.onResize == nil || h.newSize == 0 {
		return
	}
	h.telling = h.v.plane.spawn(func() {
		for {
			h.resizing.Lock()
			f, size := h.onResize, h.newSize
			h.newSize = 0
			if f == nil || size == 0 {
				h.telling = false
				h.resizing.Unlock()
				return
			}
			h.resizing.Unlock()
			f(size)
		}
	})
}
