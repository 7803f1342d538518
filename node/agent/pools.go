package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/ask"
)

// poolSlot is one configured or found pool: open, or failed with the reason.
type poolSlot struct {
	cfg     PoolConfig
	pool    Pool // nil while it could not be opened
	id      holdfast.PoolID
	err     error
	message string // what is wrong although it is open
	// What the pool holds, all and of single volumes while they are asked for.
	listing *ask.Question[listing]
	single  map[holdfast.VolumeID]*ask.Question[listing]
	opening bool // somebody is at it
}

// openPools opens what is configured and what is found.
func (a *Agent) openPools(ctx context.Context) {
	for _, c := range a.cfg.Pools {
		a.openSoon(ctx, c)
	}
	a.findPools(ctx)
	wake(a.refreshSoon)
}

// findPools opens the devices that carry our identity and are not open yet.
func (a *Agent) findPools(ctx context.Context) {
	if !a.cfg.AutoPools {
		return
	}
	devices, err := a.deps.Pools.Find(ctx)
	if err != nil {
		a.log.Warn("this node's block devices could not be searched for pools", "err", err)
		return
	}
	for _, d := range devices {
		if !a.hasPoolAt(d) {
			a.openSoon(ctx, PoolConfig{Path: d})
		}
	}
}

func (a *Agent) hasPoolAt(path string) bool {
	a.mu.Lock()
	configured := slices.ContainsFunc(a.pools, func(s *poolSlot) bool { return s.cfg.Path == path })
	a.mu.Unlock()
	return configured || slices.ContainsFunc(a.openedPools(), func(o opened) bool { return o.pool.Info().Device == path })
}

// openSoon is openPool, but waits a bounded time for it: a disk that does not
// answer must not keep the node from serving its other ones. One that answers
// later is taken then.
func (a *Agent) openSoon(ctx context.Context, c PoolConfig) {
	s := a.slotFor(c)
	a.mu.Lock()
	busy := s.opening
	s.opening = true
	a.mu.Unlock()
	if busy {
		return
	}
	done := make(chan struct{})
	began := a.spawn(func() {
		a.openPool(ctx, c)
		a.mu.Lock()
		s.opening = false
		a.mu.Unlock()
		close(done)
		wake(a.refreshSoon)
	})
	if !began {
		return
	}
	late := time.NewTimer(a.cfg.OpenPatience)
	defer late.Stop()
	select {
	case <-done:
	case <-late.C:
		a.log.Error("a pool's disk does not let it be opened; the node goes on without it until it does", "pool", c.Path, "after", a.cfg.OpenPatience)
	}
}

// openPool opens one pool and adopts its replicas; a failure is kept in its slot
// for the registration.
func (a *Agent) openPool(ctx context.Context, c PoolConfig) {
	p, err := a.deps.Pools.Open(ctx, c)
	s := a.slotFor(c)
	if err != nil {
		a.log.Error("a pool cannot be opened; the node goes on without it", "pool", c.Path, "err", err)
		a.setSlot(s, nil, err, "")
		return
	}
	message := a.adopt(ctx, p)
	a.setSlot(s, p, nil, message)
	a.log.Info("pool open", "pool", string(p.Info().ID), "device", p.Info().Device)
	wake(a.purgeSoon)
}

func (a *Agent) slotFor(c PoolConfig) *poolSlot {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, s := range a.pools {
		if s.cfg.Path == c.Path {
			return s
		}
	}
	s := &poolSlot{cfg: c, err: holdfast.E("", holdfast.Unavailable, "it is being opened")}
	a.pools = append(a.pools, s)
	return s
}

func (a *Agent) setSlot(s *poolSlot, p Pool, err error, message string) {
	var id holdfast.PoolID
	if p != nil {
		id = p.Info().ID
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	s.id = id
	s.pool, s.err, s.message, s.listing, s.single = p, err, message, nil, nil
}

// adopt hands every replica of a pool to the data plane. What cannot be served
// stays where it is (invariant 8) and is reported.
func (a *Agent) adopt(ctx context.Context, p Pool) (message string) {
	stored, err := p.Replicas(Named{})
	if err != nil {
		a.log.Error("a pool's replicas cannot be listed", "pool", string(p.Info().ID), "err", err)
		return "its replicas cannot be listed: " + err.Error()
	}
	var failed []error
	for _, r := range stored {
		if err := p.Serve(ctx, r.Replica); err != nil {
			failed = append(failed, err)
			a.note(r.Volume, fmt.Sprintf("replica %s cannot be served: %v", r.Replica, err))
		}
	}
	if len(failed) > 0 {
		return fmt.Sprintf("%d of %d replicas cannot be served: %v", len(failed), len(stored), failed[0])
	}
	return ""
}

// reopenPool closes a pool that serves nothing any more, and opens it anew: what
// may have been lost is known only then, and repaired.
func (a *Agent) reopenPool(ctx context.Context, s *poolSlot, p Pool) {
	info := p.Info()
	a.log.Error("a pool failed; opening it anew", "pool", string(info.ID), "device", info.Device, "err", info.Message)
	a.setSlot(s, nil, holdfast.E("", holdfast.Unavailable, "it failed and is being opened anew: "+info.Message), "")
	if err := p.Close(); errors.Is(err, holdfast.Unavailable) {
		a.log.Error("a failed pool cannot be closed yet", "pool", string(info.ID), "err", err)
		a.setSlot(s, p, nil, "")
		return
	} else if err != nil {
		a.log.Warn("a failed pool was closed with errors", "pool", string(info.ID), "err", err)
	}
	a.openSoon(ctx, s.cfg)
}

// keepPools tries again what could not be opened, and looks for disks that have
// turned up.
func (a *Agent) keepPools(ctx context.Context) {
	for pause(ctx, a.cfg.RetryPools) {
		a.mu.Lock()
		slots := slices.Clone(a.pools)
		a.mu.Unlock()
		for _, s := range slots {
			switch p := a.pool(s); {
			case p == nil:
				a.openSoon(ctx, s.cfg)
			case p.Info().State == holdfast.PoolFailed:
				a.reopenPool(ctx, s, p)
			}
		}
		a.findPools(ctx)
		wake(a.refreshSoon)
	}
}

func (a *Agent) pool(s *poolSlot) Pool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return s.pool
}

// openedPools lists the pools that are open.
func (a *Agent) openedPools() []opened {
	a.mu.Lock()
	defer a.mu.Unlock()
	var ps []opened
	for _, s := range a.pools {
		if s.pool != nil {
			ps = append(ps, opened{s.id, s.pool})
		}
	}
	return ps
}

// opened is an open pool with its id: all that its Info says takes time.
type opened struct {
	id   holdfast.PoolID
	pool Pool
}

// findPool is the open pool with this id. Errors: NotFound, Unavailable while it
// could not be opened.
func (a *Agent) findPool(id holdfast.PoolID) (Pool, error) {
	for _, o := range a.openedPools() {
		if o.id == id {
			return o.pool, nil
		}
	}
	op := fmt.Sprintf("find pool %s on node %s", id, a.cfg.ID)
	for _, info := range a.Node().Pools {
		if info.ID == id {
			return nil, holdfast.E(op, holdfast.Unavailable, "it is not open: "+info.Message)
		}
	}
	return nil, holdfast.E(op, holdfast.NotFound, "this node has no such pool")
}

// poolInfos is how the pools are, for the registration. A pool that cannot be
// opened keeps the identity that it was last registered with, so that the
// cluster knows which one is missing.
func (a *Agent) poolInfos(before []holdfast.Pool) []holdfast.Pool {
	a.mu.Lock()
	slots := make([]poolSlot, len(a.pools))
	for i, s := range a.pools {
		slots[i] = *s
	}
	a.mu.Unlock()
	infos := make([]holdfast.Pool, 0, len(slots))
	for _, s := range slots {
		if s.pool != nil {
			info := s.pool.Info()
			if info.Message == "" {
				info.Message = s.message
			}
			infos = append(infos, since(info, before))
			continue
		}
		failed := holdfast.Pool{Device: s.cfg.Path, State: holdfast.PoolFailed, Message: s.err.Error()}
		if i := slices.IndexFunc(before, func(p holdfast.Pool) bool { return p.Device == s.cfg.Path }); i >= 0 {
			failed.ID, failed.TotalBytes = before[i].ID, before[i].TotalBytes
		}
		infos = append(infos, since(failed, before))
	}
	return infos
}

// since adds since when the pool, or replicas of it, failed: as it was registered
// before, or now. It outlives the daemon, so that a restart does not make the
// cluster wait anew.
func since(p holdfast.Pool, before []holdfast.Pool) holdfast.Pool {
	now := time.Now().UTC().Round(0)
	was := holdfast.Pool{}
	if i := slices.IndexFunc(before, func(b holdfast.Pool) bool { return b.Device == p.Device && b.ID == p.ID }); i >= 0 {
		was = before[i]
	}
	if p.State == holdfast.PoolFailed {
		p.TotalBytes = max(p.TotalBytes, was.TotalBytes)
		p.FailedSince = now
		if !was.FailedSince.IsZero() {
			p.FailedSince = was.FailedSince
		}
	}
	p.Failed = slices.Clone(p.Failed)
	for i, x := range p.Failed {
		p.Failed[i].Since = now
		if j := slices.IndexFunc(was.Failed, func(f holdfast.FailedReplica) bool { return f.ID == x.ID }); j >= 0 {
			p.Failed[i].Since = was.Failed[j].Since
		}
	}
	return p
}

func (a *Agent) closePools() error {
	var errs []error
	for _, p := range a.openedPools() {
		errs = append(errs, p.pool.Close())
	}
	return errors.Join(errs...)
}
