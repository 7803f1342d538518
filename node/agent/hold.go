package agent

import (
	"context"
	"fmt"
	"time"

	"github.com/holdfast-storage/holdfast"
)

const (
	// maxKeep bounds for how long a maintenance primary is kept for a hold.
	maxKeep = 2 * time.Minute
	// keepAfterHold leaves it time to write down what was cut.
	keepAfterHold = 5 * time.Second
	// prepareLook is how often it is looked whether a primary serves by now.
	prepareLook = 10 * time.Millisecond
)

// holder is a Volume whose writes can be held for a group's snapshot.
type holder interface {
	Hold(ctx context.Context, token string, ttl time.Duration) error
	Cut(ctx context.Context, token string, id holdfast.SnapshotID) error
	Unhold(token string) error
}

// PrepareHold has a primary serve the volume on this node: that of its device, or
// one for maintenance, which is kept for so long beyond what it has to do. Errors:
// NotFound; Unavailable when another node serves it, or ctx ended first.
func (a *Agent) PrepareHold(ctx context.Context, id holdfast.VolumeID, keep time.Duration) error {
	op := fmt.Sprintf("prepare to hold volume %s on node %s", id, a.cfg.ID)
	for {
		if h, temporary := a.holder(id); h != nil {
			if temporary {
				a.keep(id, min(keep, maxKeep))
			}
			return nil
		}
		rec, err := a.deps.Store.Volume(ctx, string(id))
		if err != nil {
			return holdfast.Wrap(op, err)
		}
		if rec.Phase != holdfast.PhaseReady {
			return holdfast.E(op, holdfast.Unavailable, fmt.Sprintf("the volume is %s", rec.Phase))
		}
		if at, err := a.otherServer(ctx, rec); at != "" || err != nil {
			if err == nil {
				err = holdfast.E("", holdfast.Unavailable, "node "+string(at)+" serves it")
			}
			return holdfast.Wrap(op, err)
		}
		if rec.AttachedTo() == "" {
			a.keep(id, keepAfterHold) // until it serves
			a.startUpkeep(id, true)
		}
		if !pause(ctx, prepareLook) {
			return holdfast.WrapKind(op, holdfast.Unavailable, ctx.Err())
		}
	}
}

// otherServer names the other living node that serves the volume; "" if none.
func (a *Agent) otherServer(ctx context.Context, rec holdfast.Record) (holdfast.NodeID, error) {
	if rec.Primary == nil || rec.Primary.Node == a.cfg.ID {
		return "", nil
	}
	alive, err := a.deps.Store.Alive(ctx, rec.Primary.Node)
	if err != nil || !alive {
		return "", err
	}
	return rec.Primary.Node, nil
}

// servedElsewhere says whether another living node serves the volume.
func servedElsewhere(rec holdfast.Record, alive map[holdfast.NodeID]bool, self holdfast.NodeID) bool {
	return rec.Primary != nil && rec.Primary.Node != self && alive[rec.Primary.Node]
}

// Hold stops the writes of a volume that is served here, for at most ttl, and
// returns when none is under way. If it fails, nothing stays held.
func (a *Agent) Hold(ctx context.Context, id holdfast.VolumeID, token string, ttl time.Duration) error {
	h, temporary := a.holder(id)
	if h == nil {
		return a.notServed("hold", id)
	}
	if temporary {
		a.keep(id, min(ttl, maxKeep)+keepAfterHold)
	}
	err := h.Hold(ctx, token, ttl)
	if err != nil {
		_ = h.Unhold(token) // the caller has gone; else there is none
	}
	return err
}

// Cut takes a group's snapshot under a hold.
func (a *Agent) Cut(ctx context.Context, id holdfast.VolumeID, token string, snap holdfast.SnapshotID) error {
	h, _ := a.holder(id)
	if h == nil {
		return a.notServed("take a snapshot of", id)
	}
	return h.Cut(ctx, token, snap)
}

// Unhold lets writes go. Unavailable when the hold was over already.
func (a *Agent) Unhold(id holdfast.VolumeID, token string) error {
	h, temporary := a.holder(id)
	if h == nil {
		return a.notServed("release", id)
	}
	err := h.Unhold(token)
	if err == nil && temporary {
		a.mu.Lock()
		a.kept[id] = time.Now().Add(keepAfterHold)
		a.mu.Unlock()
	}
	return err
}

func (a *Agent) notServed(what string, id holdfast.VolumeID) error {
	return holdfast.E(fmt.Sprintf("%s volume %s", what, id), holdfast.Unavailable, "node "+string(a.cfg.ID)+" does not serve it")
}

// holder is the primary that serves the volume here, nil if none does, and whether
// it is one for maintenance, which ends unless it is kept.
func (a *Agent) holder(id holdfast.VolumeID) (h holder, temporary bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var v Volume
	if s := a.volumes[id]; s != nil && s.vol != nil {
		v = s.vol
	} else if u := a.upkeep[id]; u != nil && u.vol != nil {
		v, temporary = u.vol, true
	}
	if v == nil || isEnded(v) {
		return nil, false
	}
	h, _ = v.(holder)
	return h, temporary
}

// keep keeps the volume's maintenance primary, if one serves it here, for d at
// least.
func (a *Agent) keep(id holdfast.VolumeID, d time.Duration) {
	until := time.Now().Add(d)
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.kept[id].Before(until) {
		a.kept[id] = until
	}
}

// keptNow are the volumes whose maintenance primaries are kept; it forgets others.
func (a *Agent) keptNow() map[holdfast.VolumeID]bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	now, kept := time.Now(), map[holdfast.VolumeID]bool{}
	for id, until := range a.kept {
		if now.Before(until) {
			kept[id] = true
		} else {
			delete(a.kept, id)
		}
	}
	return kept
}
