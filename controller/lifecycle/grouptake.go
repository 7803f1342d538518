package lifecycle

import (
	"context"
	"crypto/rand"
	"errors"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-storage/holdfast"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

// How a group is one point in time: there is a moment, when the last hold has been
// answered, at which all members' writes are held, and each is cut under the very
// hold that was there at that moment. So whatever was acknowledged before it is in
// all snapshots, and nothing that began later is in any. A hold is known by a token
// that is used once: one that ran out and was taken again is another one, and a cut
// under it is refused.

// taking is one attempt at a group.
type taking struct {
	s     *Service
	g     holdfast.Group
	hands []hand        // by member
	held  time.Duration // from before the first hold until after the last release
}

// hand is one member's hold.
type hand struct {
	node  holdfast.NodeID
	token string
}

// takeGroup puts the members' snapshots down and takes them. It says for how long
// their writes were held at most.
func (s *Service) takeGroup(ctx context.Context, g holdfast.Group, q GroupRequest) (held time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.GroupTimeout)
	defer cancel()
	if err := s.roomForGroup(ctx, g); err != nil {
		return 0, err
	}
	for _, m := range g.Members {
		_, err := s.update(ctx, m.Volume, func(r *holdfast.Record) (bool, error) {
			if r.Restore != nil {
				return false, holdfast.E("", holdfast.InUse, "volume "+r.Name+" is being restored; wait until that is done")
			}
			return s.addSnapshot(r, m.Snapshot, SnapshotRequest{Name: g.Name + "/" + r.Name, group: string(g.ID), Labels: q.Labels, Max: q.Max})
		})
		if err != nil {
			return 0, holdfast.Wrap("volume "+string(m.Volume), err)
		}
	}
	t := &taking{s: s, g: g, hands: make([]hand, len(g.Members))}
	thaw, err := s.freezeGroup(ctx, g, q.Freeze)
	if err != nil {
		return 0, err
	}
	err = t.tryOn(ctx)
	// A cut fixes what is in the snapshots. What was frozen until now was so then.
	frozen := thaw()
	if err != nil {
		return 0, err
	}
	for _, m := range g.Members {
		if _, err := s.waitReady(ctx, SnapshotRef(m)); ctx.Err() != nil {
			return 0, holdfast.E("volume "+string(m.Volume), holdfast.Unavailable, "the snapshot was not written down in the volume's record in time")
		} else if err != nil {
			return 0, holdfast.Wrap("volume "+string(m.Volume), err)
		}
		if !frozen[m.Volume] {
			continue
		}
		if _, err := s.noteFrozen(ctx, SnapshotRef(m)); err != nil {
			return 0, holdfast.Wrap("volume "+string(m.Volume), err)
		}
	}
	return t.held, nil
}

// tryOn tries until the members are cut, or one was and not all could be, or the
// time is over: then it says what the last whole try failed at.
func (t *taking) tryOn(ctx context.Context) error {
	var last error
	for tries := 0; ; tries++ {
		again, err := t.try(ctx, tries)
		if err == nil {
			return nil
		}
		if last == nil || ctx.Err() == nil {
			last = err
		}
		if !again || !errors.Is(err, holdfast.Unavailable) && !errors.Is(err, holdfast.Busy) || !waitOr(ctx, t.s.cfg.Poll) {
			return last
		}
	}
}

// try holds all members, cuts all and releases all. again says whether nothing was
// cut, so that it may be tried again.
func (t *taking) try(ctx context.Context, tries int) (again bool, err error) {
	if err := t.each(ctx, func(ctx context.Context, i int) error { return t.prepare(ctx, i, tries) }); err != nil {
		return true, err
	}
	began := time.Now()
	end := began.Add(t.s.cfg.HoldFor)
	soon, cancel := context.WithDeadline(ctx, end.Add(-t.s.cfg.HoldFor/2))
	err = t.each(soon, t.hold)
	late := soon.Err() != nil
	cancel()
	if err != nil {
		t.letGo(ctx)
		return !late, err
	}
	ctx, cancel = context.WithDeadline(ctx, end)
	defer cancel()
	if err = t.each(ctx, t.cut); err != nil {
		t.letGo(ctx)
		return false, err
	}
	err = t.each(context.WithoutCancel(ctx), t.unhold)
	t.held = time.Since(began)
	return false, err
}

// each does something for all members at once. The first error ends the others.
func (t *taking) each(ctx context.Context, f func(ctx context.Context, i int) error) error {
	g, ctx := errgroup.WithContext(ctx)
	for i := range t.hands {
		g.Go(func() error {
			return holdfast.Wrap("volume "+string(t.g.Members[i].Volume), f(ctx, i))
		})
	}
	return g.Wait()
}

// call makes one short call to the node that serves a member.
func (t *taking) call(ctx context.Context, i int, f func(context.Context, holdfastv1.NodeServiceClient) error) error {
	ctx, cancel := context.WithTimeout(ctx, t.s.cfg.CallTimeout)
	defer cancel()
	return t.s.call(ctx, t.hands[i].node, f)
}

// prepare finds the node that serves a member, or has one serve it.
func (t *taking) prepare(ctx context.Context, i, tries int) error {
	rec, err := t.s.cfg.Store.Volume(ctx, string(t.g.Members[i].Volume))
	if err != nil {
		return err
	}
	ns, err := t.s.cfg.Store.Nodes(ctx)
	if err != nil {
		return err
	}
	node, err := server(rec, ns, tries)
	if err != nil {
		return err
	}
	t.hands[i] = hand{node: node}
	return t.call(ctx, i, func(ctx context.Context, c holdfastv1.NodeServiceClient) error {
		_, err := c.PrepareHold(ctx, &holdfastv1.PrepareHoldRequest{VolumeId: string(rec.ID), KeepMillis: t.s.cfg.GroupTimeout.Milliseconds()})
		return err
	})
}

// server is the node to ask for a volume's primary: who is it, or else one that
// may be; another one with each try.
func server(rec holdfast.Record, ns []holdfast.Node, tries int) (holdfast.NodeID, error) {
	alive := func(id holdfast.NodeID) bool {
		return slices.ContainsFunc(ns, func(n holdfast.Node) bool { return n.ID == id && n.Alive })
	}
	if p := rec.Primary; p != nil {
		if alive(p.Node) {
			return p.Node, nil
		}
		if p.Kind == holdfast.ClientPrimary {
			return "", holdfast.E("", holdfast.Unavailable, "it is attached to node "+string(p.Node)+", which does not live; detach it, or start the node")
		}
	}
	var able []holdfast.NodeID
	for _, leaving := range []bool{false, true} {
		for _, x := range rec.Replicas {
			if x.State == holdfast.InSync && x.Leaving == leaving && alive(x.Node) {
				able = append(able, x.Node)
			}
		}
	}
	if len(able) == 0 {
		return "", holdfast.E("", holdfast.Unavailable, "no living node has a replica in sync")
	}
	return able[tries%len(able)], nil
}

func (t *taking) hold(ctx context.Context, i int) error {
	t.hands[i].token = rand.Text()
	return t.call(ctx, i, func(ctx context.Context, c holdfastv1.NodeServiceClient) error {
		_, err := c.Hold(ctx, &holdfastv1.HoldRequest{VolumeId: string(t.g.Members[i].Volume), Token: t.hands[i].token, TtlMillis: t.s.cfg.HoldFor.Milliseconds()})
		return err
	})
}

func (t *taking) cut(ctx context.Context, i int) error {
	return t.call(ctx, i, func(ctx context.Context, c holdfastv1.NodeServiceClient) error {
		m := t.g.Members[i]
		_, err := c.Cut(ctx, &holdfastv1.CutRequest{VolumeId: string(m.Volume), Token: t.hands[i].token, SnapshotId: string(m.Snapshot)})
		return err
	})
}

// unhold lets a member go. Should the hold have run out, it fails.
func (t *taking) unhold(ctx context.Context, i int) error {
	return t.call(ctx, i, func(ctx context.Context, c holdfastv1.NodeServiceClient) error {
		_, err := c.Unhold(ctx, &holdfastv1.UnholdRequest{VolumeId: string(t.g.Members[i].Volume), Token: t.hands[i].token})
		return err
	})
}

// letGo releases whatever may be held, without waiting for who does not answer:
// such a hold ends by itself.
func (t *taking) letGo(ctx context.Context) {
	ctx = context.WithoutCancel(ctx)
	hands := slices.Clone(t.hands)
	was := &taking{s: t.s, g: t.g, hands: hands}
	for i := range hands {
		if hands[i].token == "" {
			continue
		}
		go func() {
			ctx, end := t.s.background(ctx)
			defer end()
			_ = was.unhold(ctx, i)
		}()
	}
}
