package lifecycle

import (
	"context"
	"errors"
	"fmt"

	"github.com/holdfast-storage/holdfast"
)

// Delete removes a volume and its data, for good. One that does not exist is
// fine. When it returns, the record is gone and tombstones name the replicas;
// nodes remove these as soon as they can. Errors: InUse while it is attached to a
// live node, which is named, and while it has snapshots.
func (s *Service) Delete(ctx context.Context, volume string) error {
	op := "delete volume " + volume
	rec, err := s.Get(ctx, volume)
	if errors.Is(err, holdfast.NotFound) {
		return nil
	}
	if err != nil {
		return holdfast.Wrap(op, err)
	}
	_, err = s.deletes.Do(ctx, rec.ID, func(ctx context.Context) (struct{}, error) {
		ctx, end := s.background(ctx)
		defer end()
		return struct{}{}, s.delete(ctx, rec.ID)
	})
	return holdfast.Wrap(op, err)
}

func (s *Service) delete(ctx context.Context, id holdfast.VolumeID) error {
	for range maxRaces {
		rec, err := s.cfg.Store.Volume(ctx, string(id))
		if errors.Is(err, holdfast.NotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		if rec.Phase != holdfast.PhaseDeleting {
			if rec, err = s.markDeleting(ctx, rec); errors.Is(err, holdfast.Busy) {
				continue
			} else if err != nil {
				return err
			}
		}
		stones := s.tombstones(rec, rec.Replicas)
		err = s.cfg.Store.DropVolume(ctx, rec, stones)
		switch {
		case err == nil:
			s.purgeSoon(ctx, stones)
			return nil
		case errors.Is(err, holdfast.NotFound):
			return nil
		case !errors.Is(err, holdfast.Busy):
			return err
		}
	}
	return errRaced()
}

// markDeleting ends the volume's life, unless a live node has it attached: from
// here on nobody is granted it.
func (s *Service) markDeleting(ctx context.Context, rec holdfast.Record) (holdfast.Record, error) {
	if holder := rec.AttachedTo(); holder != "" {
		alive, err := s.cfg.Store.Alive(ctx, holder)
		if err != nil {
			return rec, err
		}
		if alive {
			return rec, holdfast.E("", holdfast.InUse, fmt.Sprintf("it is attached to node %s; unmount and detach it there first", holder))
		}
	}
	if n := visibleSnapshots(rec); n > 0 {
		return rec, holdfast.E("", holdfast.InUse, fmt.Sprintf("it has %d snapshots, which would go with it; delete them first", n))
	}
	next := rec.Clone()
	next.Phase, next.Primary = holdfast.PhaseDeleting, nil
	return s.cfg.Store.SwapVolume(ctx, next)
}

// Finish takes a volume that is half created or half deleted on to its end, or
// does nothing. It is for reconcile; the operations' own callers may be gone.
func (s *Service) Finish(ctx context.Context, id holdfast.VolumeID) error {
	op := "finish volume " + string(id)
	rec, err := s.cfg.Store.Volume(ctx, string(id))
	if errors.Is(err, holdfast.NotFound) {
		return nil
	}
	if err != nil {
		return holdfast.Wrap(op, err)
	}
	switch rec.Phase {
	case holdfast.PhaseCreating:
		_, err = s.finishCreate(ctx, rec, "")
	case holdfast.PhaseDeleting:
		err = s.delete(ctx, id)
	}
	if errors.Is(err, holdfast.NotFound) {
		err = nil // somebody else undid it
	}
	return holdfast.Wrap(op, err)
}
