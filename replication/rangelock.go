package replication

import (
	"slices"
	"time"

	"github.com/holdfast-storage/holdfast"
)

// rangeLock orders what overlaps: writers exclude each other and readers,
// readers share. Who waits is served in the order of arrival among those it
// overlaps with, so nobody starves. Invariant 5 rests on it. It is as large as
// the queue depth, so it searches linearly.
type rangeLock struct {
	held    []*hold
	waiting []*hold
}

// hold is a place in the lock, held or waited for.
type hold struct {
	ext       holdfast.Extent
	exclusive bool
	repair    bool   // not for a request
	write     *write // it is for
	granted   func()
	// fail, if set, ends the request that waits since at, in the primary's waking
	// time, and lets go of the place.
	fail func(error)
	at   time.Duration
}

func (h *hold) conflicts(o *hold) bool {
	return (h.exclusive || o.exclusive) && h.ext.Overlaps(o.ext) && !mutant(Mutate5NoLock)
}

// acquire gives the range at once (true) or calls h.granted later from release.
func (l *rangeLock) acquire(h *hold) bool {
	if conflictsAny(h, l.held) || conflictsAny(h, l.waiting) {
		l.waiting = append(l.waiting, h)
		return false
	}
	l.held = append(l.held, h)
	return true
}

// release gives the range back, or leaves the queue, and lets those go on who
// waited for it.
func (l *rangeLock) release(h *hold) {
	i := slices.Index(l.held, h)
	if i < 0 {
		if i = slices.Index(l.waiting, h); i >= 0 {
			l.waiting = slices.Delete(l.waiting, i, i+1)
		}
	} else {
		n := len(l.held) - 1
		l.held[i] = l.held[n]
		l.held[n] = nil
		l.held = l.held[:n]
	}
	if len(l.waiting) == 0 {
		return
	}
	var ready []*hold
	rest := make([]*hold, 0, len(l.waiting))
	for _, w := range l.waiting {
		if conflictsAny(w, l.held) || conflictsAny(w, rest) {
			rest = append(rest, w)
			continue
		}
		l.held = append(l.held, w)
		ready = append(ready, w)
	}
	l.waiting = rest
	for _, w := range ready {
		w.granted()
	}
}

// wanted says whether a request waits.
func (l *rangeLock) wanted() bool {
	return slices.ContainsFunc(l.waiting, func(h *hold) bool { return !h.repair })
}

func conflictsAny(h *hold, hs []*hold) bool {
	for _, o := range hs {
		if h.conflicts(o) {
			return true
		}
	}
	return false
}
