package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/holdfast-storage/holdfast"
)

// SnapshotRequest asks for a snapshot.
type SnapshotRequest struct {
	Volume string // id or name
	// Name is unique in the cluster; a repeated request of the same name and
	// volume gets the same snapshot.
	Name   string
	Labels map[string]string
	// group is set for a member of a group: it is put down, and taken by command.
	group string
	// Freeze asks for the filesystem to be frozen meanwhile, where the volume is
	// mounted on the node that it is attached to.
	Freeze bool
	// Max bounds the snapshots of the volume; 0: holdfast.DefaultSnapshots.
	Max int
}

// SnapshotRef names one snapshot of one volume.
type SnapshotRef struct {
	Volume   holdfast.VolumeID
	Snapshot holdfast.SnapshotID
}

// String is the handle by which snapshots are known outside: VOLUME.SNAPSHOT.
func (r SnapshotRef) String() string { return string(r.Volume) + "." + string(r.Snapshot) }

// ParseSnapshotRef undoes String.
func ParseSnapshotRef(handle string) (SnapshotRef, bool) {
	v, x, ok := strings.Cut(handle, ".")
	return SnapshotRef{holdfast.VolumeID(v), holdfast.SnapshotID(x)}, ok && v != "" && x != ""
}

// CreateSnapshot takes a snapshot of a volume, attached or not, and answers when
// every in-sync replica has it. The same again answers with what exists. Errors:
// Invalid; NotFound; Exists when the name is another volume's; NoSpace when the
// volume has too many, or snapshots take too much of a pool; Unavailable when ctx
// ended first (it is still taken), with what the volume waits for where that is
// known.
func (s *Service) CreateSnapshot(ctx context.Context, q SnapshotRequest) (holdfast.Record, holdfast.Snapshot, error) {
	op := "create snapshot " + q.Name
	if err := s.admit(ctx, q); err != nil {
		return holdfast.Record{}, holdfast.Snapshot{}, holdfast.Wrap(op, err)
	}
	if q.Freeze {
		rec, x, err := s.createFrozen(ctx, q)
		return rec, x, holdfast.Wrap(op, err)
	}
	rec, ref, _, err := s.wantSnapshot(ctx, q)
	if err != nil {
		return rec, holdfast.Snapshot{}, holdfast.Wrap(op, err)
	}
	rec, err = s.waitReady(ctx, ref)
	if err != nil {
		return rec, holdfast.Snapshot{}, holdfast.Wrap(op, err)
	}
	return rec, *rec.Snapshot(ref.Snapshot), nil
}

// WantSnapshot is CreateSnapshot that does not wait for it; it freezes nothing.
func (s *Service) WantSnapshot(ctx context.Context, q SnapshotRequest) (holdfast.Record, SnapshotRef, error) {
	err := s.admit(ctx, q)
	if err != nil {
		return holdfast.Record{}, SnapshotRef{}, holdfast.Wrap("create snapshot "+q.Name, err)
	}
	rec, ref, _, err := s.wantSnapshot(ctx, q)
	return rec, ref, holdfast.Wrap("create snapshot "+q.Name, err)
}

// waitReady waits until every in-sync replica has a snapshot that is put down.
func (s *Service) waitReady(ctx context.Context, ref SnapshotRef) (holdfast.Record, error) {
	return s.waitRecord(ctx, ref.Volume, func(r *holdfast.Record) (bool, error) {
		x := r.Snapshot(ref.Snapshot)
		if x == nil || x.State == holdfast.SnapshotDeleting {
			return false, holdfast.E("", holdfast.Unavailable, "it was deleted while it was being taken; repeat the call to take it anew")
		}
		return x.State == holdfast.SnapshotReady, nil
	})
}

// wantSnapshot claims the name and puts the snapshot down in the record, unless it
// is there: added says so.
func (s *Service) wantSnapshot(ctx context.Context, q SnapshotRequest) (rec holdfast.Record, ref SnapshotRef, added bool, err error) {
	if err := holdfast.ValidateName(q.Name); err != nil {
		return rec, ref, false, err
	}
	rec, err = s.Get(ctx, q.Volume)
	if err == nil && rec.Phase != holdfast.PhaseReady {
		err = notReady(rec)
	}
	if err != nil {
		return rec, ref, false, err
	}
	ref, err = s.claimSnapshot(ctx, q.Name, rec.ID)
	if err != nil {
		return rec, ref, false, err
	}
	rec, err = s.update(ctx, rec.ID, func(r *holdfast.Record) (bool, error) {
		added, err = s.addSnapshot(r, ref.Snapshot, q)
		return added, err
	})
	if err != nil && !errors.Is(err, holdfast.Unavailable) {
		s.unclaim(ctx, q.Name, ref)
	}
	return rec, ref, added, err
}

// addSnapshot puts a wanted snapshot into the record unless it is there.
func (s *Service) addSnapshot(r *holdfast.Record, id holdfast.SnapshotID, q SnapshotRequest) (bool, error) {
	limit := q.Max
	if limit <= 0 {
		limit = holdfast.DefaultSnapshots
	}
	switch have := r.Snapshot(id); {
	case r.Phase != holdfast.PhaseReady:
		return false, notReady(*r)
	case have != nil && have.State == holdfast.SnapshotDeleting:
		return false, holdfast.E("", holdfast.Busy, "a snapshot of this name is being deleted; try again when it is gone, or choose another name")
	case have != nil && have.Group != q.group:
		return false, holdfast.E("", holdfast.Exists, fmt.Sprintf("a snapshot of this name exists in group %q, not %q; choose another name", have.Group, q.group))
	case have != nil:
		return false, nil
	case len(r.Snapshots) >= min(limit, holdfast.MaxSnapshots):
		return false, holdfast.E("", holdfast.NoSpace, fmt.Sprintf("the volume has %d snapshots, as many as it may; delete some first", len(r.Snapshots)))
	}
	r.PutSnapshot(holdfast.Snapshot{ID: id, Name: q.Name, Created: s.cfg.Now().UTC(), State: holdfast.SnapshotWanted, Group: q.group, Labels: maps.Clone(q.Labels)})
	return true, nil
}

// claimSnapshot gives the name to a snapshot of the volume, for ever or until it
// is deleted. A claim whose snapshot is nowhere is one of a process that died
// before it put that down, or after it was deleted: it is taken over.
func (s *Service) claimSnapshot(ctx context.Context, name string, vol holdfast.VolumeID) (SnapshotRef, error) {
	ours := SnapshotRef{vol, holdfast.NewSnapshotID()}
	from := ""
	for range maxRaces {
		owner, err := s.cfg.Store.SwapClaim(ctx, name, from, ours.String())
		if err == nil {
			return ours, nil
		}
		if !errors.Is(err, holdfast.Busy) {
			return ours, err
		}
		ref, ok := ParseSnapshotRef(owner)
		if ok && ref.Volume == vol {
			return ref, nil
		}
		exists, err := s.snapshotExists(ctx, ref)
		if err != nil {
			return ours, err
		}
		if ok && exists {
			return ours, holdfast.E("", holdfast.Exists, fmt.Sprintf("a snapshot of volume %s has this name; choose another one", ref.Volume))
		}
		from = owner
	}
	return ours, errRaced()
}

func (s *Service) snapshotExists(ctx context.Context, ref SnapshotRef) (bool, error) {
	if ref.Volume == "" {
		return false, nil
	}
	rec, err := s.cfg.Store.Volume(ctx, string(ref.Volume))
	if errors.Is(err, holdfast.NotFound) {
		return false, nil
	}
	return err == nil && rec.ID == ref.Volume && rec.Snapshot(ref.Snapshot) != nil, err
}

// unclaim gives a name free again; failing leaves a claim that is taken over.
func (s *Service) unclaim(ctx context.Context, name string, ref SnapshotRef) {
	if exists, err := s.snapshotExists(ctx, ref); err != nil || exists {
		return
	}
	if _, err := s.cfg.Store.SwapClaim(ctx, name, ref.String(), ""); err != nil {
		s.cfg.Log.Debug("the name of a snapshot could not be given free; whoever wants it takes it over", "name", name, "err", err)
	}
}

// DeleteSnapshot deletes a snapshot: from its return on nobody sees it, and its
// space is given free in the background, or when the last clone that still reads
// from it is independent. One that does not exist is fine. Errors: InUse while it
// is being restored; Invalid for a member of a group.
func (s *Service) DeleteSnapshot(ctx context.Context, ref SnapshotRef) error {
	err := s.aloneOnly(ctx, ref)
	if errors.Is(err, holdfast.NotFound) {
		return nil
	}
	if err != nil {
		return holdfast.Wrap("delete snapshot "+ref.String(), err)
	}
	return s.dropSnapshot(ctx, ref)
}

// dropSnapshot is DeleteSnapshot, also for members of groups.
func (s *Service) dropSnapshot(ctx context.Context, ref SnapshotRef) error {
	op := "delete snapshot " + ref.String()
	var name string
	_, err := s.update(ctx, ref.Volume, func(r *holdfast.Record) (bool, error) {
		x := r.Snapshot(ref.Snapshot)
		switch {
		case x == nil:
			return false, nil
		case r.Restore != nil && r.Restore.Snapshot == ref.Snapshot:
			return false, holdfast.E("", holdfast.InUse, "the volume is being restored to it; wait until that is done")
		}
		name = x.Name
		switch x.State {
		case holdfast.SnapshotWanted:
			r.RemoveSnapshot(x.ID)
		case holdfast.SnapshotReady:
			next := *x
			next.State = holdfast.SnapshotDeleting
			r.PutSnapshot(next)
		default:
			return false, nil
		}
		return true, nil
	})
	if errors.Is(err, holdfast.NotFound) {
		return nil
	}
	if err == nil && name != "" {
		if _, err := s.cfg.Store.SwapClaim(ctx, name, ref.String(), ""); err != nil && !errors.Is(err, holdfast.Busy) {
			return holdfast.Wrap(op, err)
		}
	}
	return holdfast.Wrap(op, err)
}

// visibleSnapshots counts those that nobody has deleted.
func visibleSnapshots(rec holdfast.Record) int {
	n := 0
	for _, x := range rec.Snapshots {
		if x.State != holdfast.SnapshotDeleting {
			n++
		}
	}
	return n
}

// FindSnapshot finds a snapshot by its handle, or by its name. Errors: NotFound,
// also for one that is being deleted.
func (s *Service) FindSnapshot(ctx context.Context, handleOrName string) (holdfast.Record, holdfast.Snapshot, error) {
	op := "find snapshot " + handleOrName
	rec, ref, err := s.lookUp(ctx, handleOrName)
	if err != nil && !errors.Is(err, holdfast.NotFound) {
		return rec, holdfast.Snapshot{}, holdfast.Wrap(op, err)
	}
	if x := rec.Snapshot(ref.Snapshot); err == nil && x != nil && x.State != holdfast.SnapshotDeleting {
		return rec, *x, nil
	}
	return rec, holdfast.Snapshot{}, holdfast.E(op, holdfast.NotFound, "there is no such snapshot")
}

// lookUp finds the record that a snapshot's handle or name leads to. Errors:
// NotFound.
func (s *Service) lookUp(ctx context.Context, handleOrName string) (holdfast.Record, SnapshotRef, error) {
	if group, volume, ok := strings.Cut(handleOrName, "/"); ok {
		return s.memberOf(ctx, group, volume)
	}
	if ref, ok := ParseSnapshotRef(handleOrName); ok {
		rec, err := s.cfg.Store.Volume(ctx, string(ref.Volume))
		if !errors.Is(err, holdfast.NotFound) {
			return rec, ref, err
		}
	}
	owner, err := s.cfg.Store.Claim(ctx, handleOrName)
	if err != nil {
		return holdfast.Record{}, SnapshotRef{}, err
	}
	ref, ok := ParseSnapshotRef(owner)
	if !ok {
		return holdfast.Record{}, ref, holdfast.E("", holdfast.NotFound, "nothing has this name")
	}
	rec, err := s.cfg.Store.Volume(ctx, string(ref.Volume))
	return rec, ref, err
}

// Restore makes a volume's content that of one of its snapshots again, and answers
// when it is. The volume must not be attached, and is not until it is done. What
// was written since is lost, but for what other snapshots hold. Errors: NotFound;
// InUse; Unavailable when ctx ended first (it goes on).
func (s *Service) Restore(ctx context.Context, ref SnapshotRef) (holdfast.Record, error) {
	op := fmt.Sprintf("restore volume %s to snapshot %s", ref.Volume, ref.Snapshot)
	id := string(holdfast.NewSnapshotID())
	rec, err := s.update(ctx, ref.Volume, func(r *holdfast.Record) (bool, error) {
		x := r.Snapshot(ref.Snapshot)
		switch {
		case r.Phase != holdfast.PhaseReady:
			return false, notReady(*r)
		case x == nil || x.State != holdfast.SnapshotReady:
			return false, holdfast.E("", holdfast.NotFound, "there is no such snapshot, or it is not ready")
		case r.AttachedTo() != "":
			return false, holdfast.E("", holdfast.InUse, fmt.Sprintf("the volume is attached to node %s; unmount and detach it first, or clone the snapshot", r.AttachedTo()))
		case r.Restore != nil && r.Restore.Snapshot == ref.Snapshot:
			id = r.Restore.ID
			return false, nil // joins the one under way
		case r.Restore != nil:
			return false, holdfast.E("", holdfast.InUse, fmt.Sprintf("it is being restored to snapshot %s; wait until that is done", r.Restore.Snapshot))
		}
		r.SetRestore(&holdfast.Restore{ID: id, Snapshot: ref.Snapshot, Asked: s.cfg.Now().UTC()})
		return true, nil
	})
	if err != nil {
		return rec, holdfast.Wrap(op, err)
	}
	rec, err = s.waitRecord(ctx, ref.Volume, func(r *holdfast.Record) (bool, error) {
		return r.Restore == nil || r.Restore.ID != id, nil
	})
	return rec, holdfast.Wrap(op, err)
}

// waitRecord reads a volume's record until done says so.
func (s *Service) waitRecord(ctx context.Context, vol holdfast.VolumeID, done func(*holdfast.Record) (bool, error)) (holdfast.Record, error) {
	for {
		rec, err := s.cfg.Store.Volume(ctx, string(vol))
		if err == nil {
			ok, err := done(&rec)
			if ok || err != nil {
				return rec, err
			}
		} else if !errors.Is(err, holdfast.Unavailable) {
			return rec, err
		}
		if !waitOr(ctx, s.cfg.Poll) {
			return rec, holdfast.WrapKind("it is not done yet and goes on; repeat the call to wait for it"+waitsFor(rec), holdfast.Unavailable, errors.Join(ctx.Err(), err))
		}
	}
}

// waitsFor says what a snapshot or a restore can only wait for.
func waitsFor(rec holdfast.Record) string {
	if rec.ID != "" && rec.Primary == nil && !slices.ContainsFunc(rec.Replicas, func(x holdfast.Replica) bool { return x.State == holdfast.InSync }) {
		return ": no replica of the volume is in sync"
	}
	return ""
}
