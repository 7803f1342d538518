package lifecycle

import (
	"context"
	"errors"
	"fmt"

	"github.com/holdfast-storage/holdfast"
)

// Groups reads all group snapshots but those that are being deleted.
func (s *Service) Groups(ctx context.Context) ([]GroupSnapshot, error) {
	const op = "list group snapshots"
	gs, err := s.cfg.Store.Groups(ctx)
	if err != nil {
		return nil, holdfast.Wrap(op, err)
	}
	var out []GroupSnapshot
	for _, g := range gs {
		if g.State == holdfast.GroupDeleting {
			continue
		}
		v, err := s.viewGroup(ctx, g)
		if err != nil {
			return nil, holdfast.Wrap(op, err)
		}
		out = append(out, v)
	}
	return out, nil
}

// FindGroup finds a group by id, or by name. Errors: NotFound, also for one that is
// being deleted.
func (s *Service) FindGroup(ctx context.Context, idOrName string) (GroupSnapshot, error) {
	op := "find group snapshot " + idOrName
	g, err := s.findGroup(ctx, idOrName)
	if err == nil && g.State == holdfast.GroupDeleting {
		err = noGroup()
	}
	if err != nil {
		return GroupSnapshot{}, holdfast.Wrap(op, err)
	}
	v, err := s.viewGroup(ctx, g)
	return v, holdfast.Wrap(op, err)
}

func noGroup() error {
	return holdfast.E("", holdfast.NotFound, "there is no such group snapshot")
}

// findGroup finds a group in whatever state.
func (s *Service) findGroup(ctx context.Context, idOrName string) (holdfast.Group, error) {
	gs, err := s.cfg.Store.Groups(ctx)
	if err != nil {
		return holdfast.Group{}, err
	}
	for _, g := range gs {
		if string(g.ID) == idOrName {
			return g, nil
		}
	}
	for _, g := range gs {
		if g.Name == idOrName {
			return g, nil
		}
	}
	return holdfast.Group{}, noGroup()
}

// DeleteGroup deletes a group with its members' snapshots: from its return on
// nobody sees them. One that does not exist is fine. Errors: InUse while a volume is
// being restored to one of them.
func (s *Service) DeleteGroup(ctx context.Context, idOrName string) error {
	op := "delete group snapshot " + idOrName
	for range maxRaces {
		g, err := s.findGroup(ctx, idOrName)
		if errors.Is(err, holdfast.NotFound) {
			return nil
		}
		if err != nil {
			return holdfast.Wrap(op, err)
		}
		if g.State != holdfast.GroupDeleting {
			if err = s.groupUsed(ctx, g); err == nil {
				g.State = holdfast.GroupDeleting
				g, err = s.cfg.Store.PutGroup(ctx, g)
			}
		}
		if err == nil {
			err = s.dropGroup(ctx, g)
		}
		if !errors.Is(err, holdfast.Busy) {
			return holdfast.Wrap(op, err)
		}
	}
	return holdfast.Wrap(op, errRaced())
}

// groupUsed fails while one of the members is being restored.
func (s *Service) groupUsed(ctx context.Context, g holdfast.Group) error {
	v, err := s.viewGroup(ctx, g)
	for _, m := range v.Members {
		if r := m.Record.Restore; r != nil && r.Snapshot == m.Snapshot.ID {
			return holdfast.E("", holdfast.InUse, fmt.Sprintf("volume %s is being restored to it; wait until that is done", m.Record.Name))
		}
	}
	return err
}

// FinishGroup takes a group that is half deleted, or that nobody takes any more, on
// to its end, or does nothing. It is for reconcile.
func (s *Service) FinishGroup(ctx context.Context, name string) error {
	op := "finish group snapshot " + name
	g, err := s.cfg.Store.Group(ctx, name)
	if err == nil && g.State == holdfast.GroupTaking && s.givenUp(ctx, g) {
		g.State = holdfast.GroupDeleting
		g, err = s.cfg.Store.PutGroup(ctx, g)
	}
	if err == nil && g.State == holdfast.GroupDeleting {
		err = s.dropGroup(ctx, g)
	}
	if errors.Is(err, holdfast.NotFound) || errors.Is(err, holdfast.Busy) {
		return nil // somebody else was first
	}
	return holdfast.Wrap(op, err)
}

// memberOf finds a group's snapshot by GROUP/VOLUME, its name: neither can contain
// a slash.
func (s *Service) memberOf(ctx context.Context, group, volume string) (holdfast.Record, SnapshotRef, error) {
	g, err := s.cfg.Store.Group(ctx, group)
	if err != nil {
		return holdfast.Record{}, SnapshotRef{}, err
	}
	rec, err := s.cfg.Store.Volume(ctx, volume)
	if err != nil {
		return rec, SnapshotRef{}, err
	}
	for _, m := range g.Members {
		if m.Volume == rec.ID {
			return rec, SnapshotRef(m), nil
		}
	}
	return rec, SnapshotRef{}, noGroup()
}

// aloneOnly refuses a snapshot that is a member of a group, which is deleted as a
// whole.
func (s *Service) aloneOnly(ctx context.Context, ref SnapshotRef) error {
	rec, err := s.cfg.Store.Volume(ctx, string(ref.Volume))
	if err != nil {
		return err
	}
	x := rec.Snapshot(ref.Snapshot)
	if x == nil || x.Group == "" {
		return nil
	}
	gs, err := s.cfg.Store.Groups(ctx)
	for _, g := range gs {
		if string(g.ID) == x.Group && g.Has(ref.Volume, ref.Snapshot) {
			return holdfast.E("", holdfast.Invalid, fmt.Sprintf("it is part of group snapshot %s, and deleted with that", g.Name))
		}
	}
	return err
}
