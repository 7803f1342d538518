package lifecycle

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-storage/holdfast"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

// freezeLimit is for how long a filesystem is frozen at most: its node thaws it
// then, whatever has become of the controller.
const freezeLimit = 10 * time.Second

// createFrozen is CreateSnapshot with the volume's filesystem frozen meanwhile. The
// snapshot's Frozen says whether it was: not when the volume is not mounted, when
// the freeze did not last until the snapshot was there, or when another call had
// begun to take it. Errors: as CreateSnapshot; Unavailable, Busy or Denied when the
// filesystem could not be frozen: then no snapshot is taken.
func (s *Service) createFrozen(ctx context.Context, q SnapshotRequest) (holdfast.Record, holdfast.Snapshot, error) {
	if rec, x, err := s.FindSnapshot(ctx, q.Name); err == nil && x.State == holdfast.SnapshotReady && (string(rec.ID) == q.Volume || rec.Name == q.Volume) {
		return rec, x, nil
	}
	rec, err := s.Get(ctx, q.Volume)
	if err != nil {
		return rec, holdfast.Snapshot{}, err
	}
	thaw, err := s.freeze(ctx, rec)
	if err != nil {
		return rec, holdfast.Snapshot{}, err
	}
	defer func() { _ = thaw() }() // on every path; once is enough
	rec, ref, added, err := s.wantSnapshot(ctx, q)
	if err != nil {
		return rec, holdfast.Snapshot{}, err
	}
	if rec, err = s.waitReady(ctx, ref); err != nil {
		return rec, holdfast.Snapshot{}, err
	}
	// It was put down and taken after the freeze began; if that lasts still, it was
	// taken under it.
	if err := thaw(); err != nil || !added {
		if err != nil && !errors.Is(err, errNotMounted) {
			s.cfg.Log.Warn("a snapshot is crash-consistent only: its filesystem was not frozen until it was taken", "snapshot", q.Name, "err", err)
		}
		return rec, *rec.Snapshot(ref.Snapshot), nil
	}
	if rec, err = s.noteFrozen(ctx, ref); err != nil {
		return rec, holdfast.Snapshot{}, err
	}
	return rec, *rec.Snapshot(ref.Snapshot), nil
}

// noteFrozen writes down that a snapshot is of a frozen filesystem.
func (s *Service) noteFrozen(ctx context.Context, ref SnapshotRef) (holdfast.Record, error) {
	return s.update(ctx, ref.Volume, func(r *holdfast.Record) (bool, error) {
		x := r.Snapshot(ref.Snapshot)
		if x == nil {
			return false, holdfast.E("", holdfast.Unavailable, "it was deleted while it was being taken; repeat the call to take it anew")
		}
		next := *x
		next.Frozen = true
		r.PutSnapshot(next)
		return true, nil
	})
}

// freezeGroup freezes the filesystems of a group's members, all at once, if that is
// asked for. thaw lets all go on, and says which were frozen until then; it must be
// called.
func (s *Service) freezeGroup(ctx context.Context, g holdfast.Group, asked bool) (thaw func() map[holdfast.VolumeID]bool, err error) {
	if !asked {
		return func() map[holdfast.VolumeID]bool { return nil }, nil
	}
	thaws := make([]func() error, len(g.Members))
	freeze, fctx := errgroup.WithContext(ctx)
	for i, m := range g.Members {
		freeze.Go(func() error {
			rec, err := s.cfg.Store.Volume(fctx, string(m.Volume))
			if err == nil {
				thaws[i], err = s.freeze(fctx, rec)
			}
			return holdfast.Wrap("freeze volume "+string(m.Volume), err)
		})
	}
	err = freeze.Wait()
	thaw = func() map[holdfast.VolumeID]bool {
		errs := make([]error, len(thaws))
		var all errgroup.Group
		for i, thaw := range thaws {
			if thaw != nil {
				all.Go(func() error { errs[i] = thaw(); return nil })
			}
		}
		_ = all.Wait()
		frozen := map[holdfast.VolumeID]bool{}
		for i, m := range g.Members {
			if frozen[m.Volume] = errs[i] == nil; errs[i] != nil && !errors.Is(errs[i], errNotMounted) {
				s.cfg.Log.Warn("a snapshot of a group is crash-consistent only: its filesystem was not frozen until it was taken", "group", g.Name, "volume", m.Volume, "err", errs[i])
			}
		}
		return frozen
	}
	if err != nil {
		_ = thaw()
		return nil, err
	}
	return thaw, nil
}

// freeze freezes the filesystem of a volume where that is attached. thaw fails when
// it was not frozen until then; it must be called.
func (s *Service) freeze(ctx context.Context, rec holdfast.Record) (thaw func() error, err error) {
	node, token := rec.AttachedTo(), string(holdfast.NewSnapshotID())
	notMounted := func() error { return errNotMounted }
	if node == "" {
		return notMounted, nil
	}
	frozen := false
	err = s.call(ctx, node, func(ctx context.Context, c holdfastv1.NodeServiceClient) error {
		r, err := c.Freeze(ctx, &holdfastv1.FreezeRequest{VolumeId: string(rec.ID), Token: token, LimitMillis: freezeLimit.Milliseconds()})
		frozen = r.GetFrozen()
		return err
	})
	end := func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.CallTimeout)
		defer cancel()
		return s.call(ctx, node, func(ctx context.Context, c holdfastv1.NodeServiceClient) error {
			_, err := c.Thaw(ctx, &holdfastv1.ThawRequest{VolumeId: string(rec.ID), Token: token})
			return err
		})
	}
	switch {
	case err != nil:
		_ = end() // the answer may have been lost; what others froze has another token
		return nil, err
	case !frozen:
		return notMounted, nil
	}
	done := false
	return func() error {
		if done {
			return nil
		}
		done = true
		return end()
	}, nil
}

// errNotMounted says why a snapshot is not of a frozen filesystem.
var errNotMounted = holdfast.E("", holdfast.NotFound, "the volume is not mounted on the node that it is attached to")
