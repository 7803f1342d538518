package dataplane

import (
	"context"
	"errors"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/replication"
)

// OpenOptions say what a primary is for.
type OpenOptions struct {
	Kind holdfast.PrimaryKind // default: client
	// Force takes the volume also from a holder whose lease lives: its writes
	// end by its epoch, its reads by the read window, which is waited for.
	Force bool
}

// opening is an Open under way, which calls for the same volume join.
type opening struct {
	kind      holdfast.PrimaryKind
	force     bool
	waiting   int // guarded by Plane.mu, as the next
	abandoned bool
	cancel    context.CancelFunc
	done      chan struct{} // closed with h and err
	h         *Volume
	err       error
}

// Open grants the volume to this node and starts its primary; it returns when
// that serves. A primary that serves here already is returned as it is; a
// maintenance primary gives way to a client. Calls at the same time join.
// When all their contexts end first, what was begun is released again, in the
// background.
//
// Errors: InUse, naming the holder, while a live node holds the volume (unless
// forced), and for maintenance of one that is served to a client here; NotFound;
// Unavailable when it cannot be served now, saying what is waited for; Fenced
// when another node was faster; Corrupt.
func (p *Plane) Open(ctx context.Context, id holdfast.VolumeID, o OpenOptions) (*Volume, error) {
	if o.Kind == "" {
		o.Kind = holdfast.ClientPrimary
	}
	for {
		op, err := p.joinOpening(id, o)
		if err != nil {
			return nil, err
		}
		h, err := p.await(ctx, op, id)
		same := op.kind == o.Kind && (op.force || !o.Force)
		if same && !(err != nil && p.abandoned(op)) || ctx.Err() != nil {
			return h, err
		}
		// What was joined asked for less, or was given up by all others. Now ask
		// for this, or find it done.
	}
}

// joinOpening finds the Open under way for the volume, or begins one.
func (p *Plane) joinOpening(id holdfast.VolumeID, o OpenOptions) (*opening, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if op := p.opening[id]; op != nil {
		op.waiting++
		return op, nil
	}
	if p.closed {
		return nil, p.stopping("open volume " + string(id))
	}
	ctx, cancel := context.WithCancel(p.life)
	op := &opening{kind: o.Kind, force: o.Force, waiting: 1, cancel: cancel, done: make(chan struct{})}
	p.opening[id] = op
	p.work.Add(1)
	go func() {
		defer p.work.Done()
		defer cancel()
		op.h, op.err = p.open(ctx, id, o)
		p.mu.Lock()
		delete(p.opening, id)
		p.mu.Unlock()
		close(op.done)
	}()
	return op, nil
}

// await waits for an opening; the last who gives up ends it.
func (p *Plane) await(ctx context.Context, op *opening, id holdfast.VolumeID) (*Volume, error) {
	select {
	case <-op.done:
		return op.h, op.err
	case <-ctx.Done():
	}
	p.mu.Lock()
	op.waiting--
	last := op.waiting == 0
	op.abandoned = op.abandoned || last
	p.mu.Unlock()
	if last {
		op.cancel()
		<-op.done // soon; with what it waited for, or with success after all
		return op.h, op.err
	}
	return nil, holdfast.WrapKind("open volume "+string(id), holdfast.Unavailable, ctx.Err())
}

// abandoned says whether everybody who waited for an opening has given up.
func (p *Plane) abandoned(op *opening) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return op.abandoned
}

func (p *Plane) open(ctx context.Context, id holdfast.VolumeID, o OpenOptions) (*Volume, error) {
	op := "open volume " + string(id)
	v, err := p.acquire(id)
	if err != nil {
		return nil, err
	}
	defer p.release(v)
	h, err := v.settled(ctx, o)
	if h != nil || err != nil {
		return h, holdfast.Wrap(op, err)
	}
	g, err := p.grant(ctx, id, o)
	if err != nil {
		return nil, holdfast.Wrap(op, err)
	}
	g.absent = p.absent(ctx, g.rec)
	v.step(func() { h = v.start(g) })
	if err := h.untilServing(ctx); err != nil {
		return nil, holdfast.Wrap(op, err)
	}
	return h, nil
}

// settled returns the primary that serves here already, if it will do. One that
// will not is ended, or is waited for if it is ending.
func (v *volume) settled(ctx context.Context, o OpenOptions) (*Volume, error) {
	for {
		var h *Volume
		var state string
		v.step(func() {
			if h = v.primary; h != nil {
				state = h.machine.Status().State
			}
		})
		switch {
		case h == nil:
			return nil, nil
		case state == "releasing":
			select {
			case <-h.ended:
			case <-ctx.Done():
				return nil, h.stuck("the primary that ran here before is not yet released", ctx)
			}
		case h.kind == o.Kind:
			return h, h.untilServing(ctx)
		case o.Kind == holdfast.MaintenancePrimary:
			return nil, holdfast.E("maintain", holdfast.InUse, "it is attached to this node; its primary repairs it")
		default:
			if err := h.Release(ctx); err != nil {
				return nil, err
			}
		}
	}
}

// untilServing waits until the primary serves. When ctx ends first it is
// released.
func (h *Volume) untilServing(ctx context.Context) error {
	select {
	case <-h.serving:
		return nil
	case <-h.ended:
		if h.err == nil {
			return holdfast.E("take over", holdfast.Unavailable, "it was released meanwhile")
		}
		return h.err
	case <-ctx.Done():
		err := h.stuck("it does not serve yet", ctx)
		if h.v.plane.life.Err() != nil {
			h.Abort() // Close may have come too early to see it
			return err
		}
		h.v.step(h.beginRelease)
		return err
	}
}

// stuck says what a primary waits for.
func (h *Volume) stuck(what string, ctx context.Context) error {
	if w := h.Status().WaitingFor; w != "" {
		what += "; it waits for " + w
	}
	return holdfast.WrapKind(what, holdfast.Unavailable, ctx.Err())
}

// granted is a grant that has just been committed.
type granted struct {
	rec    holdfast.Record
	quiet  bool              // see replication.Config.PriorQuiet
	absent []holdfast.NodeID // nodes that count as dead
}

// grant commits this node as the primary.
func (p *Plane) grant(ctx context.Context, id holdfast.VolumeID, o OpenOptions) (granted, error) {
	rec, err := p.readRecord(ctx, id)
	for {
		for err != nil {
			if !errors.Is(err, holdfast.Unavailable) || ctx.Err() != nil {
				return granted{}, err
			}
			pause(ctx, 100*time.Millisecond)
			rec, err = p.readRecord(ctx, id)
		}
		next, err2 := p.nextRecord(ctx, rec, o)
		if err2 != nil {
			return granted{}, err2
		}
		stored, err2 := p.swapRecord(ctx, next)
		switch {
		case err2 == nil:
			return granted{rec: stored, quiet: p.priorQuiet(rec)}, nil
		case errors.Is(err2, holdfast.Busy):
			rec = stored
		default:
			rec, err = next, err2
		}
	}
}

// priorQuiet says whether nobody under the grant that the record names, or an
// older one, can answer reads. That grant was this node's own, and nothing here
// serves under it: neither this process, which is asked to, nor an earlier one,
// as two never live at once (the lock of the state directory).
func (p *Plane) priorQuiet(rec holdfast.Record) bool {
	h := rec.Primary
	return h != nil && h.Node == p.cfg.Self && p.cfg.Quiet != nil && p.cfg.Quiet.Quiet(rec.ID) == h.Grant
}

// absent lists the nodes of in-sync replicas whose lease is gone: the take-over
// does not wait long for them. One that cannot be asked about counts as there.
func (p *Plane) absent(ctx context.Context, rec holdfast.Record) []holdfast.NodeID {
	var gone []holdfast.NodeID
	for _, r := range rec.InSyncReplicas() {
		if r.Node == p.cfg.Self {
			continue
		}
		if alive, err := p.cfg.Alive(ctx, r.Node); err == nil && !alive {
			gone = append(gone, r.Node)
		}
	}
	return gone
}

// nextRecord decides on the grant, asking whether the holder is alive.
func (p *Plane) nextRecord(ctx context.Context, rec holdfast.Record, o OpenOptions) (holdfast.Record, error) {
	g := replication.GrantRequest{Self: p.cfg.Self, Kind: o.Kind, Force: o.Force}
	if h := rec.Primary; h != nil && h.Node != p.cfg.Self {
		alive, err := p.cfg.Alive(ctx, h.Node)
		if err != nil {
			return rec, holdfast.Wrap("ask whether node "+string(h.Node)+" is alive", err)
		}
		g.HolderAlive = alive
	}
	return replication.Grant(rec, g)
}

func (p *Plane) readRecord(ctx context.Context, id holdfast.VolumeID) (holdfast.Record, error) {
	ctx, cancel := context.WithTimeout(ctx, p.cfg.RecordTimeout)
	defer cancel()
	return p.cfg.Volumes.Volume(ctx, string(id))
}

func (p *Plane) swapRecord(ctx context.Context, next holdfast.Record) (holdfast.Record, error) {
	ctx, cancel := context.WithTimeout(ctx, p.cfg.RecordTimeout)
	defer cancel()
	return p.cfg.Volumes.SwapVolume(ctx, next)
}
