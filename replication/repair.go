package replication

import (
	"fmt"
	"time"

	"github.com/holdfast-storage/holdfast"
)

// repairStage is how far the repair of one replica has come.
type repairStage uint8

const (
	repairMapping  repairStage = iota // finding out what it lacks
	repairCopying                     // copying that under range locks
	repairDraining                    // its answer is needed from now on; older writes finish
	repairMarking                     // flushed; it learns what those that are away lack
	repairReady                       // may become in sync with the next swap
)

// repair brings one replica back in sync: live writes go to it from the start,
// and a copier takes what it lacks piece by piece. What it lacks only shrinks,
// so the repair ends however much is written meanwhile, at any rate above zero.
type repair struct {
	t      *peer
	source *peer
	stage  repairStage
	isLive bool
	dead   bool // stopped; callbacks only let go of what they hold

	todo    backlog
	chunks  []*chunk // under way
	pending *chunk   // cut, and waiting for the node's budget
	flying  int64    // bytes under way
	barrier uint64   // requests up to this one must be answered before the flush
	turn    bool     // it asked the gate for its turn, and has it
	asked   bool     // it asked
	waits   string   // what it waits for
	save    progress
	rooms   [2]room // at its target and its source

	st                  staged
	total, left, copied int64
	began               time.Duration
}

// live says whether live writes go to a peer that is not in sync.
func (t *peer) live() bool { return t.repair != nil && t.repair.isLive }

// pacer bounds the repair traffic of a volume.
type pacer struct {
	rate   int64 // bytes a second; 0: no bound
	chunk  int64 // two of them may always go at once
	tokens float64
	last   time.Duration
}

// refill adds what the time since the last call allows, at most a tenth of a
// second's worth or two chunks.
func (b *pacer) refill(now time.Duration) {
	if b.rate == 0 {
		return
	}
	limit := max(float64(b.rate)/10, 2*float64(b.chunk))
	b.tokens = min(limit, b.tokens+float64(b.rate)*(now-b.last).Seconds())
	b.last = now
}

// working says whether replicas are repaired: while the volume is served, and
// while a release waits for writes and flushes that minInSync holds back.
func (p *Primary) working() bool {
	return p.phase == serving || p.phase == releasing && (len(p.inflight) > 0 || len(p.flush.running) > 0)
}

// tickRepairs starts repairs and keeps them going.
func (p *Primary) tickRepairs(now time.Duration) {
	p.repairs.refill(now)
	if !p.working() || p.member.losing != 0 {
		return
	}
	for _, t := range p.peers {
		switch {
		case t.inSync() || !t.up || t.rep.Leaving:
		case t.repair == nil && now >= t.repairAt && !t.required && !p.heldOff(t, now) && p.startable(t):
			p.startRepair(t)
		case t.repair != nil && t.repair.stage == repairCopying:
			p.saveProgress(t.repair, now)
			p.pump(t.repair)
		}
	}
}

// startRepair begins with the size, then live writes, then the maps: in this
// order nothing falls between.
func (p *Primary) startRepair(t *peer) {
	source := p.repairSource()
	if source == nil {
		return
	}
	r := &repair{t: t, source: source, began: p.now()}
	t.repair = r
	size := max(p.target(), p.rec.SizeBytes)
	p.ask(t, &Message{Type: MsgGrow, Length: size}, func(m *Message) {
		switch {
		case r.dead:
		case m == nil || m.Status != StatusOK:
			p.failRepair(r, "it could not grow")
		default:
			t.size = max(t.size, size)
			p.nextStage(r)
		}
	})
}

// repairSource is the in-sync peer that knows most: in sync for longest, the
// local one among equals.
func (p *Primary) repairSource() *peer {
	var best *peer
	for _, t := range p.peers {
		if !t.inSync() || !t.up {
			continue
		}
		if best == nil || t.rep.Since < best.rep.Since || t.rep.Since == best.rep.Since && t.rep.Node == p.cfg.Self {
			best = t
		}
	}
	return best
}

// requireTarget makes every write wait for the target from now on, also those
// under way that were sent to it, then waits until it has answered all older
// ones: only then a flush covers them.
func (p *Primary) requireTarget(r *repair) {
	r.stage = repairDraining
	r.t.required = true
	r.barrier = r.t.nextID
	for _, w := range p.inflight {
		if w.owed&r.t.bit != 0 && !w.done {
			w.waiting |= r.t.bit
		}
	}
	p.repairProgress(r.t)
}

// answered says whether a peer has answered every write up to a request.
func (t *peer) answered(barrier uint64) bool {
	for id, k := range t.pending {
		if k.w != nil && id <= barrier {
			return false
		}
	}
	return true
}

// repairProgress is called when the target has answered a write.
func (p *Primary) repairProgress(t *peer) {
	r := t.repair
	if r == nil {
		return
	}
	if r.stage == repairCopying {
		p.sendProgress(r)
	}
	if r.stage != repairDraining || !t.answered(r.barrier) {
		return
	}
	r.stage = repairMarking
	if mutant(Mutate4PromoteUnflushed) {
		p.teachTarget(r)
		return
	}
	p.ask(t, &Message{Type: MsgFlush}, func(m *Message) {
		switch {
		case r.dead:
		case m == nil || m.Status != StatusOK:
			p.failRepair(r, "it could not be flushed")
		default:
			p.teachTarget(r)
		}
	})
}

// teachTarget marks on the target what those that are still away lack, so that
// it can be their source (field lesson 20), then asks for its promotion.
func (p *Primary) teachTarget(r *repair) {
	oldest, away := holdfast.Epoch(0), false
	for _, t := range p.peers {
		if t != r.t && !t.inSync() && t.rep.Since != 0 && (!away || t.rep.Since < oldest) {
			oldest, away = t.rep.Since, true
		}
	}
	ready := func(ok bool) {
		switch {
		case r.dead:
		case !ok:
			p.failRepair(r, "it could not learn what others lack")
		default:
			r.stage = repairReady
			p.plan()
		}
	}
	if !away || mutant(Mutate7NoTeaching) {
		ready(true)
		return
	}
	p.list(r.source, &Message{Type: MsgChanged, Since: oldest}, func(changed extentSet, st Status) {
		switch {
		case r.dead:
		case st == StatusNoMap:
			// Nobody knows what they lack. The target's own maps may reach back
			// further, and would say it is nothing: so all of it is.
			p.markAll([]*peer{r.t}, extentSet{{Length: p.rec.SizeBytes}}, ready)
		case st != StatusOK:
			ready(false)
		default:
			p.markAll([]*peer{r.t}, union(changed, clip(r.source.welcome.Suspects, p.rec.SizeBytes)), ready)
		}
	})
}

// failRepair ends a repair that cannot go on now; it begins again later, from
// its last durable progress.
func (p *Primary) failRepair(r *repair, why string) {
	if r.dead {
		return
	}
	t := r.t
	t.refusal = why
	p.stopRepair(t)
	t.repairAt = p.now() + p.cfg.RepairRetry
}

// stopRepair forgets a repair. Its target stays required while a swap that
// makes it in sync may still take effect.
func (p *Primary) stopRepair(t *peer) {
	if r := t.repair; r != nil {
		t.repair = nil
		t.lastTotal, t.lastCopied = r.total, r.copied
		r.dead = true
		p.endTurn(r)
		t.repairAt = p.now() + p.cfg.RepairRetry
		if !t.inSync() && (!p.member.open() || mutant(Mutate2ForgetUnknown)) && p.phase != ended {
			p.unrequire(t)
		}
	}
	p.stopRepairsFrom(t)
}

// stopRepairsFrom ends the repairs that copy from a peer that is gone, or is not
// in sync any more: what is acknowledged without it is missing there.
func (p *Primary) stopRepairsFrom(source *peer) {
	for _, o := range p.peers {
		if o.repair != nil && o.repair.source == source {
			p.failRepair(o.repair, "its source was lost")
		}
	}
}

// mustWait says what keeps a repair from copying now; "" if nothing does.
func (p *Primary) mustWait(r *repair) string {
	if better := p.better(r); better != nil {
		p.endTurn(r)
		return fmt.Sprintf("the repair on node %s, which has less left to copy", better.t.rep.Node)
	}
	if p.ports.Repairs == nil || r.turn || r.left <= p.cfg.SmallRepair {
		return ""
	}
	r.asked = true
	why := p.ports.Repairs.Turn(r.t.rep.ID)
	r.turn = why == ""
	return why
}

// tellGate tells what shares the node with repairs how long a request took.
func (p *Primary) tellGate(op Op, bytes int64, took time.Duration) {
	if p.ports.Repairs != nil {
		p.ports.Repairs.Served(op, bytes, took)
	}
}

// endTurn lets the next repair of this node have its turn.
func (p *Primary) endTurn(r *repair) {
	if r.asked {
		p.ports.Repairs.Done(r.t.rep.ID)
		r.asked, r.turn = false, false
	}
}

// better is a repair with less left than r where there are more than are wanted,
// as when a replica returns while its replacement is being built: whichever is
// in sync first makes the other one surplus. At least one always goes on.
func (p *Primary) better(r *repair) *repair {
	wanted := p.rec.Spec.Replicas
	for _, t := range p.peers {
		if t.inSync() && !t.rep.Leaving {
			wanted--
		}
	}
	wanted = max(wanted, 1)
	var best *repair
	seen := false
	for _, t := range p.peers {
		o := t.repair
		if o == r {
			seen = true
		}
		if o == nil || o == r || o.stage < repairCopying || o.left > r.left || o.left == r.left && seen {
			continue
		}
		if wanted--; best == nil || o.left < best.left {
			best = o
		}
	}
	if wanted > 0 {
		return nil
	}
	return best
}
