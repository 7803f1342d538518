package replication

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/holdfast-storage/holdfast"
)

// membership changes the record: one swap at a time, planned anew from the
// newest record each time, so that it does not matter who else changed it.
type membership struct {
	swapping bool            // a swap is under way
	unknown  bool            // its outcome is not known yet
	reading  bool            // the record is being read
	want     holdfast.Record // what the swap asked for
	retryAt  time.Duration
	losing   uint32 // peers being dropped, until all others know the epoch without them
	gone     uint32 // of these, those that are not in the record any more
	marks    []holdfast.Extent
	doubt    holdfast.Epoch // a replica has promised this epoch, which is not ours
	pruned   holdfast.Epoch // change maps were pruned in this epoch
	outage   time.Duration  // since when the metadata store has not answered; 0: it does
}

// open says whether a swap could still take effect that nobody has heard of.
func (m *membership) open() bool { return m.swapping || m.unknown }

// undecided is the peer's bit if dropping it has been thought of but not asked
// for: it may stay.
func (m *membership) undecided(t *peer) uint32 {
	if m.open() || !t.inSync() {
		return 0
	}
	return t.bit
}

// condemn starts to drop an in-sync peer. It refuses (false) for the last one:
// without another in-sync peer that is there, I/O waits instead.
func (p *Primary) condemn(t *peer) bool {
	if !t.inSync() || p.member.losing&t.bit != 0 {
		p.plan()
		return true
	}
	for _, o := range p.peers {
		if o != t && o.inSync() && o.up && p.member.losing&o.bit == 0 {
			p.member.losing |= t.bit
			if mutant(Mutate2AckBeforeCommit) {
				p.clearWaiting(t.bit)
			}
			p.changed("dropping replica %s on node %s: %s", t.rep.ID, t.rep.Node, t.why())
			p.plan()
			return true
		}
	}
	return false
}

// disqualify begins to drop a needed peer that can never be relied on again as it
// is. Unlike one that is only silent, it is dropped also if nobody else is there
// at the moment: I/O waits for them. Without others the primary ends.
func (p *Primary) disqualify(t *peer) {
	t.unfit = true
	p.dropUnfit()
	p.plan()
}

// dropUnfit drops what must not be in sync; a candidate is unfit before it is
// known whether it became in sync.
func (p *Primary) dropUnfit() {
	if p.phase < serving || p.phase == ended {
		return // the take-over chooses
	}
	for _, t := range p.peers {
		if !t.unfit || !t.inSync() {
			continue
		}
		if !slices.ContainsFunc(p.peers, p.reliable) {
			p.end(holdfast.E("serve volume "+p.rec.Name, holdfast.Corrupt,
				"the last in-sync replica, on node "+string(t.rep.Node)+", cannot be relied on: "+t.why()+"; attach the volume again to go on from what is durable"))
			return
		}
		if p.member.losing&t.bit == 0 {
			p.member.losing |= t.bit
			p.changed("dropping replica %s on node %s: %s", t.rep.ID, t.rep.Node, t.why())
		}
	}
}

// reliable says whether a peer can be what the others are dropped for: in sync,
// and there, or not away for long.
func (p *Primary) reliable(t *peer) bool {
	return t.inSync() && !t.unfit && p.member.losing&t.bit == 0 && (t.up || p.now()-t.downSince < p.cfg.SilentAfter)
}

func (t *peer) why() string {
	if t.refusal != "" {
		return t.refusal
	}
	return "it must not stay in sync"
}

// plan asks for the next record, if one is wanted and none is under way.
func (p *Primary) plan() {
	m := &p.member
	if p.phase == ended || m.open() || m.reading || p.now() < m.retryAt {
		return
	}
	if m.doubt > p.epoch {
		m.reading = true
		p.ports.Records.Read()
		return
	}
	next, wanted := p.desired()
	if !wanted {
		return
	}
	m.swapping, m.want = true, next
	if next.Primary == nil {
		p.fallSilent()
	}
	p.ports.Records.Swap(next)
}

// desired is the record as it should be, and whether it differs.
func (p *Primary) desired() (holdfast.Record, bool) {
	next := p.rec.Clone()
	members := p.dropLosers(&next)
	wanted := false
	for _, t := range p.peers {
		rep := next.Replica(t.rep.ID)
		if rep == nil || rep.State == holdfast.InSync || t.repair == nil {
			continue
		}
		switch {
		case t.repair.stage == repairReady && !rep.Leaving && !t.epochPending && t.size >= next.SizeBytes && p.working() && p.member.losing == 0 && p.mayJoin(t):
			rep.State, rep.Since = holdfast.InSync, next.Epoch+1
			members = true
		case rep.State == holdfast.Stale || rep.State == holdfast.New:
			rep.State = holdfast.Rebuilding
			wanted = true
		}
		members = members || p.wantsEpoch(t.repair, next.Epoch)
	}
	if members {
		next.Epoch++
	}
	if p.desiredSnapshots(&next) {
		wanted = true
	}
	if size := p.grown(&next); size > next.SizeBytes {
		next.SizeBytes = size
		wanted = true
	}
	if p.phase == releasing && p.idle() && p.settled() {
		next.Primary = nil
		wanted = true
	}
	return next, wanted || members
}

// dropLosers makes the losers stale in next, as long as an in-sync replica that
// is there remains.
func (p *Primary) dropLosers(next *holdfast.Record) bool {
	survivors := false
	for _, t := range p.peers {
		if t.inSync() && t.up && p.member.losing&t.bit == 0 {
			survivors = true
		}
	}
	if !survivors && !p.dropLast(next) {
		return false
	}
	dropped := false
	for _, t := range p.peers {
		if rep := next.Replica(t.rep.ID); rep != nil && rep.State == holdfast.InSync && p.member.losing&t.bit != 0 {
			rep.State, rep.Since = holdfast.Stale, next.Epoch+1
			dropped = true
		}
	}
	return dropped
}

// dropLast is the mutation that promotes a stale replica in place of the last
// in-sync one; otherwise false.
func (p *Primary) dropLast(next *holdfast.Record) bool {
	if !mutant(Mutate9DropLast) || p.member.losing == 0 {
		return false
	}
	for _, t := range p.peers {
		if rep := next.Replica(t.rep.ID); !t.inSync() && t.up && rep != nil {
			rep.State, rep.Since = holdfast.InSync, next.Epoch+1
			return true
		}
	}
	return false
}

// grown is the size that all who will be in sync have reached, or 0.
func (p *Primary) grown(next *holdfast.Record) int64 {
	target := p.target()
	for _, t := range p.peers {
		if rep := next.Replica(t.rep.ID); rep != nil && rep.State == holdfast.InSync && t.size < target {
			return 0
		}
	}
	return target
}

// target is the size in whole blocks that the volume shall have.
func (p *Primary) target() int64 { return holdfast.RoundUp(p.rec.Spec.SizeBytes) }

// OnSwap is the outcome of Records.Swap.
func (p *Primary) OnSwap(rec holdfast.Record, err error) {
	if p.phase == ended || !p.member.swapping {
		return
	}
	m := &p.member
	m.swapping = false
	switch {
	case err == nil || errors.Is(err, holdfast.Busy):
		m.outage = 0
		p.adopt(rec)
		p.forgetCandidates() // also if a newer record was known already
	case errors.Is(err, holdfast.NotFound):
		p.OnDeleted()
	default:
		m.unknown = true
		p.metadataGone()
	}
}

// OnRead is the outcome of Records.Read.
func (p *Primary) OnRead(rec holdfast.Record, err error) {
	if p.phase == ended || !p.member.reading {
		return
	}
	m := &p.member
	m.reading = false
	switch {
	case err == nil && m.unknown && rec.Revision <= m.want.Revision:
		// The swap may still take effect later. Only another swap from the same
		// revision can decide which of the two it is.
		m.outage = 0
		m.want, _ = p.desired()
		m.swapping = true
		p.ports.Records.Swap(m.want)
	case err == nil:
		m.outage = 0
		doubt := m.doubt
		p.adopt(rec)
		if doubt > p.epoch && p.phase != ended {
			p.rolledBack("")
		}
	case errors.Is(err, holdfast.NotFound):
		p.OnDeleted()
	default:
		p.metadataGone()
	}
}

func (p *Primary) metadataGone() {
	if p.member.outage == 0 {
		p.member.outage = p.now()
	}
	p.member.retryAt = p.now() + p.cfg.SwapRetry
}

// tickMembership repeats what could not be done.
func (p *Primary) tickMembership(now time.Duration) {
	m := &p.member
	p.dropUnfit()
	p.leave()
	p.growPeers()
	if p.phase == ended || now < m.retryAt || m.swapping || m.reading {
		return
	}
	if m.unknown {
		m.reading = true
		p.ports.Records.Read()
		return
	}
	p.plan()
}

// adopt takes a newer record, from whomever it comes.
func (p *Primary) adopt(rec holdfast.Record) {
	if rec.Primary == nil || rec.Primary.Grant != p.grant || rec.Primary.Node != p.cfg.Self {
		p.superseded(rec)
		return
	}
	if rec.Revision < p.rec.Revision || rec.Epoch < p.rec.Epoch {
		return // older, or a store that was rolled back: what replicas have promised counts
	}
	if rec.Revision > p.member.want.Revision {
		// A newer record contains the swap whose outcome was unknown, or excludes
		// it for good.
		p.member.unknown = false
	}
	before := p.rec
	p.rec = rec.Clone()
	p.syncPeers()
	if rec.Epoch > p.epoch {
		p.enterEpoch()
	} else if rec.Revision > before.Revision {
		p.tellRecord()
	}
	p.size = max(p.size, rec.SizeBytes)
	if rec.SizeBytes > before.SizeBytes && p.ports.Events.Resized != nil {
		p.ports.Events.Resized(rec.SizeBytes)
	}
	p.adoptSnapshots()
	p.forgetCandidates()
	p.dropUnfit()
	if p.member.gone != 0 {
		p.announced()
	}
	p.growPeers()
	p.leave()
	p.settle()
	p.prune()
	p.plan()
	p.tickTakeover(p.now())
	if rec.Epoch == before.Epoch {
		p.settleHeld() // minInSync may be lower now
	}
	p.stepSnapshots()
	p.admit()
}

// superseded ends a primary that is not named in the record any more.
func (p *Primary) superseded(rec holdfast.Record) {
	if p.phase == releasing && (rec.Primary == nil || len(p.inflight) == 0) {
		p.end(nil)
		return
	}
	who := "nobody"
	if rec.Primary != nil {
		who = fmt.Sprintf("node %s", rec.Primary.Node)
	}
	p.end(holdfast.E("serve volume "+p.rec.Name, holdfast.Fenced, "the volume is now granted to "+who))
}

// forgetCandidates stops to require those whose promotion was not committed.
func (p *Primary) forgetCandidates() {
	if p.member.open() && !mutant(Mutate2ForgetUnknown) {
		return
	}
	for _, t := range p.peers {
		if t.required && !t.inSync() && t.repair == nil && p.member.losing&t.bit == 0 {
			p.unrequire(t)
		}
	}
}

// unrequire stops to wait for a peer that is not in sync.
func (p *Primary) unrequire(t *peer) {
	if t.required {
		t.required, t.unfit = false, false
		p.clearWaiting(t.bit)
	}
}

// leave drops in-sync replicas that the controller has marked as leaving, once
// enough others are in sync.
func (p *Primary) leave() {
	staying := 0
	for _, t := range p.peers {
		if t.inSync() && p.member.losing&t.bit == 0 {
			staying++
		}
	}
	for _, t := range p.peers {
		switch {
		case !t.rep.Leaving:
		case t.repair != nil:
			p.failRepair(t.repair, "it is leaving")
		case t.inSync() && p.member.losing&t.bit == 0 && p.phase == serving && staying > max(1, p.rec.Spec.MinInSync) && p.condemn(t):
			staying--
		}
	}
}

// growPeers makes the in-sync replicas, and those under repair, as large as the
// volume shall be.
func (p *Primary) growPeers() {
	if p.phase < serving {
		return
	}
	target := max(p.target(), p.rec.SizeBytes)
	for _, t := range p.peers {
		if !t.inSync() && t.repair == nil || !t.up || t.size >= target || t.growing || p.now() < t.growAt {
			continue
		}
		t.growing = true
		p.ask(t, &Message{Type: MsgGrow, Length: target}, func(m *Message) {
			t.growing = false
			switch {
			case m == nil: // asked again when it is back
			case m.Status == StatusOK:
				t.size = max(t.size, target)
				p.plan()
			case m.Status == StatusFailed:
				p.diskFailed(t)
			default:
				t.growAt = p.now() + p.cfg.NoSpaceRetry
			}
		})
	}
}

// tellRecord shows a newer record of the same epoch to all replicas
// (invariant 10). Nothing waits for it.
func (p *Primary) tellRecord() {
	for _, t := range p.peers {
		p.tellRecordTo(t)
	}
}

// tellRecordTo does it for one. Who is just being greeted gets it afterwards: the
// Hello may have gone with an older one.
func (p *Primary) tellRecordTo(t *peer) {
	if !t.up || t.shown >= p.rec.Revision || mutant(Mutate10NoTelling) {
		return
	}
	rec := p.rec.Clone()
	t.shown = rec.Revision
	p.ask(t, &Message{Type: MsgRecord, Record: &rec}, func(*Message) {})
}
