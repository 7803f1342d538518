package agent

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/holdfast-storage/holdfast"
)

// swapAttempts bounds how often a record that keeps changing is read again.
const swapAttempts = 8

// hardAfter is how long a forced detach lets I/O under way end by itself.
const hardAfter = 2 * time.Second

// Detach removes the volume's device from this node, then gives the grant back;
// again is fine, and so is a volume that is not attached here or does not exist.
// InUse while it is mounted or open.
func (a *Agent) Detach(ctx context.Context, id holdfast.VolumeID) error {
	return a.detachJoined(ctx, id, false)
}

// ForceDetach removes the device whatever holds it: its I/O fails from then on.
func (a *Agent) ForceDetach(ctx context.Context, id holdfast.VolumeID) error {
	return a.detachJoined(ctx, id, true)
}

func (a *Agent) detachJoined(ctx context.Context, id holdfast.VolumeID, force bool) error {
	op := fmt.Sprintf("detach volume %s from node %s", id, a.cfg.ID)
	_, err := a.detach.Do(ctx, detachKey{id, force}, func(ctx context.Context) (struct{}, error) {
		ctx, end, err := a.begin(ctx)
		if err != nil {
			return struct{}{}, err
		}
		defer end()
		return struct{}{}, a.detachNow(ctx, id, force)
	})
	return holdfast.Wrap(op, err)
}

func (a *Agent) detachNow(ctx context.Context, id holdfast.VolumeID, force bool) error {
	op := a.begun(id, "detach")
	defer a.over(id, op)
	a.cancelOther(id, force)
	s, unlock, err := a.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	if !force {
		var done func()
		ctx, done = a.cancellable(ctx, s, true)
		defer done()
	}
	a.now(op, "its device to be closed")
	if s.vol != nil && isEnded(s.vol) {
		a.clearEnded(s, s.vol)
	}
	if err := a.discardDevice(id, force, "the volume is detached"); err != nil {
		return err
	}
	if err := a.closeDevice(ctx, s, force); err != nil {
		return err
	}
	if s.vol != nil {
		// The device first, then the grant: nobody else may serve the volume
		// while something here could still write to it.
		a.now(op, "I/O under way to end")
		release := a.release
		if force {
			release = a.releaseHard
		}
		if err := release(ctx, s); err != nil {
			return err
		}
		a.note(id, "detached")
	}
	a.now(op, "the metadata store")
	return a.dropGrant(ctx, id, holdfast.ClientPrimary)
}

// closeDevice removes the slot's device; the turn is held. What still holds it
// keeps it, with InUse, unless forced.
func (a *Agent) closeDevice(ctx context.Context, s *slot, force bool) error {
	if s.dev == nil {
		return nil
	}
	remove := s.dev.Close
	if force {
		remove = func(context.Context) error { return s.dev.Abort() }
	}
	if err := remove(ctx); err != nil {
		return err
	}
	a.set(s, func() { s.dev, s.size = nil, 0 })
	return nil
}

// release ends the slot's primary and gives its grant back; the turn is held. If
// that fails, the slot keeps it for the next attempt.
func (a *Agent) release(ctx context.Context, s *slot) error {
	if err := s.vol.Release(ctx); err != nil && !isEnded(s.vol) {
		return err
	}
	a.set(s, func() { s.vol = nil })
	return nil
}

// releaseHard is release that does not wait for I/O that cannot go on, which the
// device's removal has failed already: a full pool could keep it for ever. The
// grant that the primary leaves behind is given back by dropGrant, and the next
// primary makes equal what was under way.
func (a *Agent) releaseHard(ctx context.Context, s *slot) error {
	soft, cancel := context.WithTimeout(ctx, hardAfter)
	defer cancel()
	if err := a.release(soft, s); err == nil {
		return nil
	}
	s.vol.Abort()
	select {
	case <-s.vol.Ended():
	case <-ctx.Done():
		return holdfast.WrapKind("end the primary", holdfast.Unavailable, ctx.Err())
	}
	a.set(s, func() { s.vol = nil })
	a.note(s.id, "its I/O could not go on and was ended by force")
	return nil
}

// dropGrant gives back a grant of this kind that the record says this node has
// while nothing serves under it: a predecessor of this daemon left it. The turn
// is held, so nothing here is about to.
func (a *Agent) dropGrant(ctx context.Context, id holdfast.VolumeID, kind holdfast.PrimaryKind) error {
	for range swapAttempts {
		rec, err := a.deps.Store.Volume(ctx, string(id))
		if errors.Is(err, holdfast.NotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		if p := rec.Primary; p == nil || p.Node != a.cfg.ID || p.Kind != kind {
			return nil
		}
		next := rec.Clone()
		next.Primary = nil
		_, err = a.deps.Store.SwapVolume(ctx, next)
		if err == nil {
			a.note(id, "gave back the grant that a predecessor of this daemon left")
		}
		if !errors.Is(err, holdfast.Busy) {
			return err
		}
	}
	return holdfast.E("", holdfast.Busy, "its record keeps changing; try again")
}

// closeVolumes detaches what can be, at the end. What is mounted is unmounted first
// if nobody uses it. What was mounted or is open stays granted and is only cut off
// from its device, which dies with this process. Those in left are left alone.
func (a *Agent) closeVolumes(ctx context.Context, left map[holdfast.VolumeID]bool) error {
	a.mu.Lock()
	ids := make([]holdfast.VolumeID, 0, len(a.volumes))
	for id := range a.volumes {
		if !left[id] {
			ids = append(ids, id)
		}
	}
	a.mu.Unlock()
	errs := make([]error, len(ids))
	var wg sync.WaitGroup
	for i, id := range ids { // all at once: each may wait for as long as ctx allows
		wg.Go(func() {
			if err := a.closeVolume(ctx, id); err != nil {
				errs[i] = fmt.Errorf("volume %s: %w", id, err)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (a *Agent) closeVolume(ctx context.Context, id holdfast.VolumeID) error {
	s, unlock, err := a.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	if s.vol == nil {
		return nil
	}
	err = a.closeDevice(ctx, s, false)
	if errors.Is(err, holdfast.InUse) && unmountIdle(ctx, s.dev.Path()) {
		// At the node's shutdown nobody uses it any more: its filesystem is clean.
		if err = a.closeDevice(ctx, s, false); err == nil {
			a.note(id, "unmounted, as the daemon stops and nobody used it: the next one attaches it again")
			return nil
		}
	}
	if errors.Is(err, holdfast.InUse) {
		a.note(id, "the daemon stops while it is mounted or open: the next one attaches it again")
		return a.closeDevice(ctx, s, true)
	}
	if err != nil {
		return err
	}
	return a.release(ctx, s)
}
