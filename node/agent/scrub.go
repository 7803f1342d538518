package agent

import (
	"context"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/replication"
)

// scrubPoll is how often the scrubs of the volumes served here are looked at.
const scrubPoll = time.Second

// scrubber is a Volume whose replicas can be compared.
type scrubber interface {
	Scrub(id string, source holdfast.ReplicaID)
	CancelScrub()
}

// keepScrubbing has the volumes served here scrubbed as their records say, notes
// in the record what came of it, and asks for scrubs that are due.
func (a *Agent) keepScrubbing(ctx context.Context) {
	every(ctx, scrubPoll, nil, func() {
		for _, x := range a.serving() {
			a.scrubServed(ctx, x)
		}
		if a.cfg.ScrubEvery > 0 {
			a.scheduleScrub(ctx, time.Now())
		}
	})
}

// scrubServed does for one volume what its record says.
func (a *Agent) scrubServed(ctx context.Context, x served) {
	a.mu.Lock()
	want := a.records[x.id].Scrub
	a.mu.Unlock()
	s, able := x.vol.(scrubber)
	if want == nil || !able {
		return
	}
	is := x.vol.Status().Scrub
	switch {
	case !want.Pending():
		if is.ID != "" && !is.Ended() {
			s.CancelScrub()
		}
	case is.ID != want.ID:
		s.Scrub(want.ID, want.Source)
	case is.State == replication.ScrubDone:
		if err := a.noteScrub(ctx, x.id, is); err != nil && ctx.Err() == nil {
			a.log.Debug("the outcome of a scrub cannot be noted yet", "volume", string(x.id), "err", err)
		}
	}
}

// noteScrub writes the outcome into the record.
func (a *Agent) noteScrub(ctx context.Context, id holdfast.VolumeID, is replication.ScrubStatus) error {
	rec, err := a.deps.Store.Volume(ctx, string(id))
	if err != nil || !rec.Scrub.Pending() || rec.Scrub.ID != is.ID {
		return err
	}
	next := rec.Clone()
	s := *rec.Scrub
	s.Ended = time.Now().UTC().Round(0)
	s.Blocks, s.Mismatches, s.Healed, s.Unhealed = is.Blocks, is.Mismatches, is.Healed, is.Unhealed
	next.SetScrub(s)
	if _, err = a.deps.Store.SwapVolume(ctx, next); err != nil {
		return err // tried again, also when somebody else was first
	}
	if s.Mismatches > 0 || s.Unhealed > 0 {
		a.log.Error("a scrub found damaged blocks", "volume", string(id), "mismatches", s.Mismatches, "healed", s.Healed, "unhealed", s.Unhealed)
	}
	return nil
}

// scheduleScrub asks for the scrub that is overdue for longest among the volumes
// that are this node's to look after, one at a time.
func (a *Agent) scheduleScrub(ctx context.Context, now time.Time) {
	a.mu.Lock()
	var next holdfast.Record
	var since time.Time
	for _, r := range a.records {
		if scrubKeeper(r) != a.cfg.ID {
			continue
		}
		if r.Scrub.Pending() {
			a.mu.Unlock()
			return
		}
		if last := lastScrub(r); now.Sub(last) >= a.cfg.ScrubEvery && (next.ID == "" || last.Before(since)) {
			next, since = r.Clone(), last
		}
	}
	a.mu.Unlock()
	if next.ID == "" {
		return
	}
	next.SetScrub(holdfast.Scrub{ID: string(holdfast.NewReplicaID()), Asked: now.UTC().Round(0), Scheduled: true})
	if _, err := a.deps.Store.SwapVolume(ctx, next); err != nil && ctx.Err() == nil {
		a.log.Debug("a scrub that is due cannot be asked for yet", "volume", string(next.ID), "err", err)
	}
}

// scrubKeeper is the node that asks for a volume's scheduled scrubs: where it is
// attached, or that of its first in-sync replica; "" if it needs none.
func scrubKeeper(r holdfast.Record) holdfast.NodeID {
	in := r.InSyncReplicas()
	switch {
	case r.Phase != holdfast.PhaseReady || len(in) < 2:
		return ""
	case r.AttachedTo() != "":
		return r.AttachedTo()
	}
	return in[0].Node
}

func lastScrub(r holdfast.Record) time.Time {
	if r.Scrub == nil {
		return r.Created
	}
	return r.Scrub.Ended
}

// scrubbable says whether a maintenance primary could do a scrub that the record
// asks for: with two in-sync replicas whose nodes live, or if there is one only.
func scrubbable(r holdfast.Record, alive map[holdfast.NodeID]bool) bool {
	n := 0
	for _, x := range r.InSyncReplicas() {
		if alive[x.Node] {
			n++
		}
	}
	return r.Scrub.Pending() && n >= min(2, len(r.Replicas))
}
