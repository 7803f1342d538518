package replication

import (
	"fmt"
	"time"

	"github.com/holdfast-storage/holdfast"
)

// The commands for a group's snapshot: all members are held before the first is
// cut, and released after the last. Their results come as calls of done, under
// the volume's lock, which must not call back.

func (p *Primary) holdError(kind holdfast.Kind, format string, args ...any) error {
	return holdfast.E("hold volume "+p.rec.Name, kind, fmt.Sprintf(format, args...))
}

// Hold stops new writes and flushes for at most ttl (and MaxHold); done is called
// when none is under way any more. The same token again extends it. Errors: Busy
// while another hold is there; Unavailable when the volume cannot be held now, or
// was not quiet within ttl.
func (p *Primary) Hold(token string, ttl time.Duration, done func(error)) {
	h := p.snaps.hold
	ttl = min(ttl, MaxHold)
	switch {
	case token == "" || ttl <= 0:
		done(p.holdError(holdfast.Invalid, "a token and a time are needed"))
	case h != nil && h.token == token:
		h.until = p.now() + ttl
		if h.quiet {
			done(nil)
			return
		}
		if h.told != nil {
			h.told(p.holdError(holdfast.Busy, "another call waits for the same hold"))
		}
		h.told = done
	case h != nil:
		done(p.holdError(holdfast.Busy, "its writes are held for another snapshot"))
	case !p.cuttable() || p.rec.Restore != nil:
		done(p.holdError(holdfast.Unavailable, "it is not served at the moment with all its in-sync replicas"))
	default:
		p.beginHold(&writeHold{token: token, until: p.now() + ttl, told: done})
	}
}

// Cut takes a group's snapshot, which the record shows as wanted, or is about to,
// while the hold of this token is there. done is called with nil when every
// in-sync replica has it; the record shows it as ready some time later. Errors:
// Unavailable when the hold is not there (any more); NoSpace; Busy.
func (p *Primary) Cut(token string, id holdfast.SnapshotID, done func(error)) {
	h := p.snaps.hold
	if s := p.takenSnapshot(id); s != nil {
		done(nil)
		return
	}
	if s := p.rec.Snapshot(id); s != nil && s.State == holdfast.SnapshotReady {
		done(nil)
		return
	}
	switch {
	case h == nil || h.token != token || token == "":
		done(p.holdError(holdfast.Unavailable, "the hold of its writes is over"))
	case h.cut != nil || h.next != "":
		done(p.holdError(holdfast.Busy, "another snapshot is being taken"))
	default:
		h.next, h.nextDone = id, done
		p.stepHold(h)
	}
}

// Unhold lets writes go. It fails with Unavailable if the hold of this token was
// not there any more: then the group's snapshots are not of one point in time.
func (p *Primary) Unhold(token string) error {
	h := p.snaps.hold
	if h == nil || h.token != token || token == "" {
		return p.holdError(holdfast.Unavailable, "the hold of its writes is over")
	}
	p.endHold(p.holdError(holdfast.Unavailable, "it was released"))
	return nil
}
