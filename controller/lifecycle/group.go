package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-storage/holdfast"
)

// GroupRequest asks for snapshots of several volumes at one point in time.
type GroupRequest struct {
	// Name is unique among groups; a repeated request of the same name and volumes
	// gets the same group.
	Name    string
	Volumes []string // ids or names
	Labels  map[string]string
	// Freeze has the volumes' filesystems frozen meanwhile, where they are mounted;
	// each member's Frozen says whether it was.
	Freeze bool
	// Max bounds the snapshots of each volume; 0: holdfast.DefaultSnapshots.
	Max int
}

// GroupSnapshot is a group with its members as their volumes' records have them.
type GroupSnapshot struct {
	Group   holdfast.Group
	Members []Member
}

// Member is one volume's snapshot in a group.
type Member struct {
	Record   holdfast.Record
	Snapshot holdfast.Snapshot
}

// groupKey tells creations of groups apart.
type groupKey struct{ name, volumes string }

// CreateGroupSnapshot takes snapshots of several volumes, attached or not, at one
// point in time: all are held before the first is cut. It answers when every
// in-sync replica of all has its snapshot. The same again answers with what exists.
// A group that fails leaves nothing behind. Errors: Invalid; NotFound when a volume
// is not there; Exists when the name is that of a group of other volumes; NoSpace;
// InUse while a volume is being restored; Unavailable, also when a volume could not
// be held in time, or when ctx ended first (it goes on); and with Freeze those of
// frozen snapshots, when a filesystem could not be frozen.
func (s *Service) CreateGroupSnapshot(ctx context.Context, q GroupRequest) (GroupSnapshot, error) {
	op := "create group snapshot " + q.Name
	ids, err := s.groupVolumes(ctx, q)
	if err != nil {
		return GroupSnapshot{}, holdfast.Wrap(op, err)
	}
	g, err := s.groups.Do(ctx, groupKey{q.Name, fmt.Sprint(ids)}, func(ctx context.Context) (holdfast.Group, error) {
		ctx, end := s.background(ctx)
		defer end()
		return s.createGroup(ctx, q, ids)
	})
	if err != nil {
		return GroupSnapshot{}, holdfast.Wrap(op, err)
	}
	out, err := s.viewGroup(ctx, g)
	return out, holdfast.Wrap(op, err)
}

// groupVolumes finds the volumes; in the order of their ids.
func (s *Service) groupVolumes(ctx context.Context, q GroupRequest) ([]holdfast.VolumeID, error) {
	if err := holdfast.ValidateName(q.Name); err != nil {
		return nil, err
	}
	if n := len(q.Volumes); n == 0 || n > holdfast.MaxGroupMembers {
		return nil, holdfast.E("", holdfast.Invalid, fmt.Sprintf("%d volumes are named; a group has 1 to %d", n, holdfast.MaxGroupMembers))
	}
	var ids []holdfast.VolumeID
	for _, v := range q.Volumes {
		rec, err := s.Get(ctx, v)
		if err == nil && rec.Phase != holdfast.PhaseReady {
			err = notReady(rec)
		}
		if err != nil {
			return nil, err
		}
		if slices.Contains(ids, rec.ID) {
			return nil, holdfast.E("", holdfast.Invalid, fmt.Sprintf("volume %s is named twice", v))
		}
		ids = append(ids, rec.ID)
	}
	slices.Sort(ids)
	return ids, nil
}

// createGroup begins a group, or joins or takes over what is there, and ends it.
func (s *Service) createGroup(ctx context.Context, q GroupRequest, ids []holdfast.VolumeID) (holdfast.Group, error) {
	g, err := s.beginGroup(ctx, q, ids)
	if err != nil || g.State == holdfast.GroupReady {
		return g, err
	}
	held, err := s.takeGroup(ctx, g, q)
	if err == nil {
		next := g.Clone()
		next.HeldMillis = held.Milliseconds() + 1
		next.State, next.Owner, next.Until = holdfast.GroupReady, "", time.Time{}
		if next, err = s.cfg.Store.PutGroup(ctx, next); err == nil {
			return next, nil
		}
	}
	return s.abandonGroup(ctx, g, err)
}

// beginGroup writes down what is to be taken, under ids that no earlier attempt
// had, or finds the group taken.
func (s *Service) beginGroup(ctx context.Context, q GroupRequest, ids []holdfast.VolumeID) (holdfast.Group, error) {
	for races := 0; races < maxRaces; {
		have, err := s.cfg.Store.Group(ctx, q.Name)
		gone := errors.Is(err, holdfast.NotFound)
		if err != nil && !gone {
			return have, err
		}
		switch {
		case gone:
			have = holdfast.Group{}
		case have.State == holdfast.GroupDeleting:
			if err := s.dropGroup(ctx, have); err != nil && !errors.Is(err, holdfast.Busy) {
				return have, holdfast.Wrap("the one of this name is being deleted", err)
			}
			races++
			continue
		case !sameVolumes(have, ids):
			return have, holdfast.E("", holdfast.Exists, "a group of this name has other volumes; choose another name")
		case have.State == holdfast.GroupReady:
			return have, nil
		case have.Owner != s.owner && !s.givenUp(ctx, have):
			if !waitOr(ctx, s.cfg.Poll) {
				return have, holdfast.WrapKind("another controller takes it", holdfast.Unavailable, ctx.Err())
			}
			continue
		}
		g, err := s.cfg.Store.PutGroup(ctx, s.newGroup(q, ids, have))
		if errors.Is(err, holdfast.Busy) {
			races++
			continue
		}
		if err == nil {
			s.dropMembers(ctx, have) // of an attempt that came to nothing
		}
		return g, err
	}
	return holdfast.Group{}, errRaced()
}

// newGroup is an attempt at a group; have is the one before it, if any.
func (s *Service) newGroup(q GroupRequest, ids []holdfast.VolumeID, have holdfast.Group) holdfast.Group {
	now := s.cfg.Now().UTC().Round(0)
	g := holdfast.Group{Version: holdfast.GroupVersion, ID: have.ID, Name: q.Name, Created: now, State: holdfast.GroupTaking,
		Labels: maps.Clone(q.Labels), Owner: s.owner, Until: now.Add(s.cfg.GroupTimeout), Revision: have.Revision}
	if g.ID == "" {
		g.ID = holdfast.NewGroupID()
	}
	for _, id := range ids {
		g.Members = append(g.Members, holdfast.GroupMember{Volume: id, Snapshot: holdfast.NewSnapshotID()})
	}
	return g
}

func sameVolumes(g holdfast.Group, ids []holdfast.VolumeID) bool {
	return slices.EqualFunc(g.Members, ids, func(m holdfast.GroupMember, id holdfast.VolumeID) bool { return m.Volume == id })
}

// givenUp says whether nobody takes the group any more. That is about not waiting
// for nothing, no more: who takes it has to find the group unchanged at the end.
func (s *Service) givenUp(ctx context.Context, g holdfast.Group) bool {
	node, _, _ := strings.Cut(g.Owner, "/")
	switch {
	case !s.cfg.Now().Before(g.Until):
		return true
	case g.Owner == s.owner || node == "":
		return false
	case holdfast.NodeID(node) == s.cfg.Self:
		return true // an earlier process of this node
	}
	alive, err := s.cfg.Store.Alive(ctx, holdfast.NodeID(node))
	return err == nil && !alive
}

// abandonGroup undoes an attempt that failed with cause. When the answer to the
// last change was lost, the group may be there after all.
func (s *Service) abandonGroup(ctx context.Context, g holdfast.Group, cause error) (holdfast.Group, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.CallTimeout)
	defer cancel()
	defer context.AfterFunc(s.life, cancel)()
	next := g.Clone()
	next.State = holdfast.GroupDeleting
	next, err := s.cfg.Store.PutGroup(ctx, next)
	switch {
	case err == nil:
		err = s.dropGroup(ctx, next)
	case errors.Is(err, holdfast.Busy) && next.State == holdfast.GroupReady && slices.Equal(next.Members, g.Members):
		return next, nil
	case errors.Is(err, holdfast.Busy):
		s.dropMembers(ctx, g) // somebody else has gone on, with other ones
		err = nil
	}
	if err != nil {
		s.cfg.Log.Warn("what a group snapshot that failed has left behind could not be removed yet; reconcile does it", "group", g.Name, "err", err)
	}
	return g, cause
}

// dropMembers deletes the snapshots of a group; what fails is left to reconcile.
func (s *Service) dropMembers(ctx context.Context, g holdfast.Group) {
	for _, m := range g.Members {
		if err := s.dropSnapshot(ctx, SnapshotRef(m)); err != nil {
			s.cfg.Log.Warn("a snapshot of a group that failed could not be deleted yet; reconcile does it", "group", g.Name, "snapshot", SnapshotRef(m).String(), "err", err)
		}
	}
}

// dropGroup ends a group that is marked as deleting.
func (s *Service) dropGroup(ctx context.Context, g holdfast.Group) error {
	for _, m := range g.Members {
		if err := s.dropSnapshot(ctx, SnapshotRef(m)); err != nil {
			return err
		}
	}
	return s.cfg.Store.DropGroup(ctx, g)
}

// viewGroup reads a group's members. One whose volume or snapshot is gone is left
// out.
func (s *Service) viewGroup(ctx context.Context, g holdfast.Group) (GroupSnapshot, error) {
	out := GroupSnapshot{Group: g.Clone()}
	for _, m := range g.Members {
		rec, err := s.cfg.Store.Volume(ctx, string(m.Volume))
		if errors.Is(err, holdfast.NotFound) {
			continue
		}
		if err != nil {
			return out, err
		}
		if x := rec.Snapshot(m.Snapshot); x != nil {
			out.Members = append(out.Members, Member{rec, *x})
		}
	}
	return out, nil
}
