package replication

import (
	"time"

	"github.com/holdfast-storage/holdfast"
)

// progress makes that of a repair durable on its target, so that an interrupted
// one goes on instead of beginning again, also under another primary.
//
// "Complete before byte C as of epoch E" is true when E began after live writes
// went to the target, when the target has answered all writes of earlier epochs,
// and when what was copied before C is durable with them: then whatever it lacks
// there later is named by its tail, its suspects, or a change map of E or later.
// A new epoch is what separates these changes from those before, so a repair
// that lasts asks for one, once.
type progress struct {
	base      []ProgressPart // what an earlier repair left, as far as it is used
	liveEpoch holdfast.Epoch // of when live writes began
	wanted    bool           // an epoch after that is asked for
	asOf      holdfast.Epoch // of the one being saved; 0: none is
	barrier   uint64
	sent      bool
	next      time.Duration
	done      int64 // r.left as of the last one
}

// resume decides what of an earlier repair's progress can be relied on: the
// source must have been in sync ever since, as it has the change maps then.
func (p *Primary) resume(l *lacking) {
	t := l.r.t
	g := t.welcome.Progress
	if g == nil || g.Since != t.rep.Since || !g.Sound() {
		return
	}
	for _, x := range g.Parts {
		if x.AsOf < l.r.source.rep.Since || x.AsOf > p.epoch || x.End > t.size {
			return
		}
	}
	l.parts, l.r.save.base = g.Parts, g.Parts
}

// wantsEpoch says whether a repair needs a new epoch for its progress.
func (p *Primary) wantsEpoch(r *repair, epoch holdfast.Epoch) bool {
	return r.save.wanted && epoch <= r.save.liveEpoch && p.phase == serving && p.member.losing == 0
}

// saveProgress begins to save the progress, if it is time.
func (p *Primary) saveProgress(r *repair, now time.Duration) {
	s := &r.save
	switch {
	case r.t.welcome.Progress == nil || s.asOf != 0 || now < s.next || !r.isLive || r.st.snap != nil:
		// what a stage copies is not what the in-sync replicas hold
	case s.done == r.left || r.cursor(p.rec.SizeBytes) == 0:
		s.next = now + p.cfg.ProgressEvery
	case p.epoch <= s.liveEpoch:
		s.wanted = true
		p.plan()
	default:
		s.wanted = false
		s.asOf, s.barrier, s.sent = p.epoch, r.t.nextID, false
		p.sendProgress(r)
	}
}

// sendProgress saves it once all writes of earlier epochs are answered.
func (p *Primary) sendProgress(r *repair) {
	s := &r.save
	if !r.isLive && !s.sent {
		s.asOf = 0
	}
	if s.asOf == 0 || s.sent || !r.t.answered(s.barrier) && !mutant(Mutate7ProgressEarly) {
		return
	}
	s.sent, s.done = true, r.left
	at, left := r.cursor(p.rec.SizeBytes), r.left
	g := &Progress{Since: r.t.rep.Since, Parts: parts(ProgressPart{End: at, AsOf: s.asOf}, s.base)}
	p.ask(r.t, &Message{Type: MsgProgress, Progress: g}, func(m *Message) {
		s.asOf, s.next = 0, p.now()+p.cfg.ProgressEvery
		switch {
		case r.dead || m == nil:
		case m.Status == StatusOK:
			s.done = left
		case m.Status == StatusFailed:
			p.diskFailed(r.t)
		}
	})
}

// cursor is how far the repair has come: everything before it is done.
func (r *repair) cursor(size int64) int64 {
	at := r.todo.front(size)
	if r.pending != nil {
		at = min(at, r.pending.ext.Offset)
	}
	if mutant(Mutate7ProgressTooFar) {
		return at
	}
	for _, c := range r.chunks {
		at = min(at, c.ext.Offset)
	}
	return at
}

// parts puts what is done now before what an earlier repair has done after it.
func parts(now ProgressPart, base []ProgressPart) []ProgressPart {
	out := []ProgressPart{now}
	for _, x := range base {
		if x.End > now.End {
			out = append(out, x)
		}
	}
	for n := len(out); n > MaxParts; n-- {
		out[n-2] = ProgressPart{End: out[n-1].End, AsOf: min(out[n-2].AsOf, out[n-1].AsOf)}
		out = out[:n-1]
	}
	return out
}
