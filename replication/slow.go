package replication

import (
	"time"

	"github.com/holdfast-storage/holdfast"
)

// A replica that answers, but much later than the others, makes every write as
// slow as itself. It is found by the median time in which it answers writes,
// against that of the fastest other one, window by window, and only counts as slow
// when that was so for a while. By the volume's policy it is then reported, or
// dropped for a while as well. It comes back by repair.

const (
	// slowWindow is how long times are gathered, and slowPatience for how long if
	// there are few.
	slowWindow   = time.Second
	slowPatience = 10 * time.Second
	// slowSamples is how many answered writes make a median, fewSamples where
	// patience has ended.
	slowSamples = 16
	fewSamples  = 5
	// slowDoublings bounds how often the time doubles for which a replica is kept
	// out that was dropped again and again.
	slowDoublings = 4
)

// slowness is what is known of how fast one replica is.
type slowness struct {
	window  sampler
	typical time.Duration // the last median; 0: not known
	behind  time.Duration // for how long it has been slow, less how long not since
	slow    bool
	since   time.Duration

	drops   int           // in a row
	dropped time.Duration // when last
	until   time.Duration // not repaired before, unless it is needed
	keep    int           // it is needed when fewer than so many are in sync
}

// policy is what is done about slow replicas of this volume.
func (p *Primary) policy() holdfast.SlowPolicy {
	if x := p.rec.Spec.SlowReplicas; x.Known() {
		return x
	}
	return p.cfg.SlowPolicy
}

// tickSlow judges the in-sync replicas when a window has ended.
func (p *Primary) tickSlow(now time.Duration) {
	span := now - p.slowBegan
	if span < slowWindow {
		return
	}
	enough := uint32(slowSamples)
	if span >= slowPatience {
		enough = fewSamples
	}
	known := 0
	for _, t := range p.peers {
		if t.inSync() && t.up {
			if t.slow.typical = t.answers(enough, now); t.slow.typical > 0 {
				known++
			}
		}
	}
	if known < 2 && span < slowPatience && p.policy() != holdfast.SlowOff {
		return // gathering goes on
	}
	for _, t := range p.peers {
		p.judgeSlow(t, span)
	}
	p.resetSlow(now)
	p.dropSlow(now)
}

func (p *Primary) resetSlow(now time.Duration) {
	p.slowBegan = now
	for _, t := range p.peers {
		t.slow.window = sampler{}
	}
}

// answers is the time in which a replica answers a write: the median or, where it
// is so slow that there is none, for how long the oldest one has been with it.
func (t *peer) answers(enough uint32, now time.Duration) time.Duration {
	if t.slow.window.n >= enough {
		return t.slow.window.median()
	}
	oldest := time.Duration(0)
	for _, k := range t.pending {
		if k.w != nil {
			oldest = max(oldest, now-k.at)
		}
	}
	if oldest < slowWindow {
		return 0
	}
	return oldest
}

// judgeSlow counts a window for or against a replica.
func (p *Primary) judgeSlow(t *peer, span time.Duration) {
	s := &t.slow
	fastest := time.Duration(0)
	for _, o := range p.peers {
		if x := o.slow.typical; o != t && o.inSync() && o.up && x > 0 && (fastest == 0 || x < fastest) {
			fastest = x
		}
	}
	switch {
	case !t.inSync() || !t.up || p.policy() == holdfast.SlowOff:
		s.behind, s.typical = 0, 0
	case s.typical > 0 && fastest > 0 && s.typical-fastest >= p.cfg.SlowDifference && float64(s.typical) >= p.cfg.SlowFactor*float64(fastest):
		s.behind = min(s.behind+span, p.cfg.SlowFor)
	default:
		s.behind = max(s.behind-span, 0)
	}
	switch {
	case !s.slow && s.behind >= p.cfg.SlowFor:
		s.slow, s.since = true, p.now()-p.cfg.SlowFor
		p.changed("replica %s on node %s is slow: it answers writes in %v, the fastest other in %v", t.rep.ID, t.rep.Node, roundTime(s.typical), roundTime(fastest))
	case s.slow && s.behind == 0:
		s.slow = false
		if t.inSync() && t.up {
			p.changed("replica %s on node %s is not slow any more", t.rep.ID, t.rep.Node)
		}
	}
}

func roundTime(d time.Duration) time.Duration {
	if d < 10*time.Millisecond {
		return d.Round(10 * time.Microsecond)
	}
	return d.Round(time.Millisecond)
}

// dropSlow drops the slowest replica that is slow, if the policy says so and
// enough others are in sync and there.
func (p *Primary) dropSlow(now time.Duration) {
	if p.policy() != holdfast.SlowDrop || p.phase != serving || p.member.losing != 0 || p.member.open() {
		return
	}
	var worst *peer
	others := -1
	for _, t := range p.peers {
		switch {
		case !t.inSync():
			continue
		case !t.up:
			return // whoever is away may have to be dropped first
		case t.slow.slow && (worst == nil || t.slow.typical > worst.slow.typical):
			worst = t
		}
		others++
	}
	if worst == nil || others < max(1, p.rec.Spec.MinInSync) {
		return
	}
	s := &worst.slow
	worst.refusal = "it is much slower than the others"
	if !p.condemn(worst) {
		return
	}
	if now-s.dropped > 4*p.cfg.SlowHoldOff<<slowDoublings {
		s.drops = 0
	}
	s.until = now + p.cfg.SlowHoldOff<<min(s.drops, slowDoublings)
	s.drops, s.dropped, s.keep = s.drops+1, now, others
	s.slow, s.behind = false, 0
}

// heldOff says whether a replica that was dropped for being slow is not taken
// back yet. A slow replica is better than none: when others are lost, it is.
func (p *Primary) heldOff(t *peer, now time.Duration) bool {
	return now < t.slow.until && len(p.rec.InSyncReplicas()) >= max(t.slow.keep, p.rec.Spec.MinInSync)
}
