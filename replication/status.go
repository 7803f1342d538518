package replication

import (
	"fmt"
	"time"

	"github.com/holdfast-storage/holdfast"
)

// Counters count since the primary began. Reads and writes are those of the
// device; bytes likewise.
type Counters struct {
	Reads, Writes         uint64
	ReadBytes, WriteBytes uint64
	Trims, TrimBytes      uint64
	Flushes               uint64
	Expired               uint64 // requests that failed as they had waited too long

	// From submission to the answer, of those that were answered well.
	ReadTime, WriteTime, TrimTime, FlushTime Latencies
	RepairBytes                              uint64 // sent to replicas under repair by the copier
}

// PrimaryStatus is what a person or a metric can know of a primary.
type PrimaryStatus struct {
	State      string // connecting, reconciling, serving, releasing, ended
	Err        error  // why it ended
	Record     holdfast.Record
	Epoch      holdfast.Epoch
	SizeBytes  int64
	WaitingFor string        // what I/O waits for; "" when it does not
	Waiting    time.Duration // for how long
	InFlight   int
	// FailedWrites are those that were failed as they waited too long, and are
	// still in flight.
	FailedWrites int
	// Growing is what the volume's growth waits for, and Grows for how long.
	Growing   string
	Grows     time.Duration
	Counters  Counters
	Scrub     ScrubStatus // the present or last one
	Snapshots string      // why the last attempt to take one came to nothing; "" if it did not
	Peers     []PeerStatus
}

// PeerStatus is one replica as its primary sees it.
type PeerStatus struct {
	Replica     holdfast.Replica
	Connected   bool
	TotalBytes  int64 // found to be missing in the present repair
	LeftBytes   int64
	CopiedBytes int64 // really sent
	Message     string
	// WaitingFor is what keeps it from being repaired or promoted; "" when it is in
	// sync or that goes on.
	WaitingFor string
	Waiting    time.Duration // for how long
	Answers    time.Duration // the median time in which it answers writes; 0: not known
	Slow       bool          // much slower than the others, for SlowFor
	SlowFor    time.Duration // for how long
}

// Status reports. It is cheap, but copies the record.
func (p *Primary) Status() PrimaryStatus {
	s := PrimaryStatus{State: p.phase.String(), Err: p.err, Record: p.rec.Clone(), Epoch: p.epoch, SizeBytes: p.size,
		InFlight: len(p.inflight) + p.readers.n + len(p.backlog), FailedWrites: p.limit.left, Counters: p.counters, Scrub: p.scrubStatus(), Snapshots: p.snaps.why}
	s.WaitingFor, s.Waiting = p.waits.told(p.now())
	s.Growing, s.Grows = p.growth.told(p.now())
	for _, t := range p.peers {
		s.Peers = append(s.Peers, p.peerStatus(t))
	}
	return s
}

func (p *Primary) peerStatus(t *peer) PeerStatus {
	s := PeerStatus{Replica: t.rep, Connected: t.up, Message: t.refusal, CopiedBytes: t.lastCopied, TotalBytes: t.lastTotal,
		Answers: t.slow.typical, Slow: t.slow.slow}
	if r := t.repair; r != nil {
		s.TotalBytes, s.LeftBytes, s.CopiedBytes = r.total, r.left, r.copied
	}
	if t.noSpaceSince != 0 {
		s.Message = "its pool is full"
	}
	if s.Slow {
		s.SlowFor = p.now() - t.slow.since
		if s.Message == "" {
			s.Message = fmt.Sprintf("it is slow: it answers writes in %v", roundTime(s.Answers))
		}
	}
	s.WaitingFor, s.Waiting = t.waits.told(p.now())
	return s
}

// SizeBytes is the device's size.
func (p *Primary) SizeBytes() int64 { return p.size }

// Limits are those of the newest record that is known. They are kept by whoever
// submits the device's requests.
func (p *Primary) Limits() holdfast.Limits { return p.rec.Spec.Limits }

// waits says what I/O waits for and since when.
type waits struct {
	what  string
	since time.Duration
}

// told is the wait and its length at a time.
func (w waits) told(now time.Duration) (string, time.Duration) {
	if w.what == "" {
		return "", 0
	}
	return w.what, now - w.since
}

// note takes down what is waited for now.
func (w *waits) note(what string, now time.Duration) {
	if what != w.what {
		*w = waits{what: what, since: now}
	}
}

// noteWaits looks at what holds I/O, repairs and growth up. It is called with
// every tick, so a wait shorter than that is not seen.
func (p *Primary) noteWaits(now time.Duration) {
	what := p.waitReason()
	if what != p.waits.what && p.waits.what != "" && now-p.waits.since > time.Second {
		p.changed("I/O went on after %.1f s of waiting for %s", (now - p.waits.since).Seconds(), p.waits.what)
	}
	p.waits.note(what, now)
	p.growth.note(p.growReason(), now)
	scrub := ""
	if p.scrubs.run != nil {
		scrub = p.scrubWaits()
	}
	p.scrubs.waits.note(scrub, now)
	for _, t := range p.peers {
		t.waits.note(p.repairWaits(t, now), now)
	}
}

// growReason says what the volume's growth waits for.
func (p *Primary) growReason() string {
	target := p.target()
	if target <= p.rec.SizeBytes || p.phase == ended {
		return ""
	}
	if p.phase < serving {
		return "the volume to be served"
	}
	for _, t := range p.peers {
		switch {
		case !t.inSync() || t.size >= target:
		case !t.up:
			return fmt.Sprintf("node %s to answer", t.rep.Node)
		case !t.growing:
			return fmt.Sprintf("space in the pool of node %s", t.rep.Node)
		default:
			return fmt.Sprintf("the replica on node %s to grow", t.rep.Node)
		}
	}
	return "the metadata store"
}

// repairWaits says what keeps a replica from being repaired or promoted.
func (p *Primary) repairWaits(t *peer, now time.Duration) string {
	switch {
	case t.inSync() || t.rep.Leaving || p.phase == ended:
		return ""
	case !p.working():
		return "the volume to be served"
	case !t.up:
		return fmt.Sprintf("node %s to answer", t.rep.Node)
	case p.member.losing != 0:
		return "the membership to change"
	case t.repair == nil && p.heldOff(t, now):
		return "a while to pass, as it was slow; it is taken back when it is needed"
	case t.repair == nil && now < t.repairAt && t.refusal != "":
		return "the next attempt: " + t.refusal
	case t.repair != nil && t.repair.waits != "":
		return t.repair.waits
	case t.repair != nil && t.repair.roomWait(now) != "":
		return t.repair.roomWait(now)
	case t.repair != nil && t.repair.stage == repairReady:
		return "the metadata store, to say that it is in sync"
	}
	return ""
}

func (p *Primary) waitReason() string {
	switch {
	case p.phase == connecting:
		return "the in-sync replicas to answer" + p.missing()
	case p.phase == reconciling:
		return "the replicas to be made equal"
	case p.member.outage != 0 && (p.member.losing != 0 || p.member.unknown):
		return "the metadata store, to change the membership"
	case p.member.losing != 0:
		return "the membership to change"
	case p.snaps.hold != nil:
		return "a snapshot to be taken"
	case len(p.rec.InSyncReplicas()) < p.rec.Spec.MinInSync:
		return fmt.Sprintf("%d replicas to be in sync (minInSync)", p.rec.Spec.MinInSync)
	case len(p.inflight) == 0 && len(p.readers.parked) == 0 && p.flush.idle():
		return ""
	}
	for _, t := range p.peers {
		switch {
		case t.required && t.noSpaceSince != 0:
			return fmt.Sprintf("space in the pool of node %s", t.rep.Node)
		case t.required && !t.up:
			return "a replica to answer" + p.missing()
		}
	}
	return ""
}

func (p *Primary) missing() string {
	s := ""
	for _, t := range p.peers {
		if t.required && !t.up {
			s += fmt.Sprintf("; node %s: %s", t.rep.Node, t.why())
		}
	}
	return s
}

// Phase is where the primary is in its life, as in PrimaryStatus.State.
func (p *Primary) Phase() string { return p.phase.String() }

// Grant is the epoch that granted the volume to this primary.
func (p *Primary) Grant() holdfast.Epoch { return p.grant }

// RepairStages lists the stages of a repair, in order.
func RepairStages() []string {
	return []string{"mapping", "copying", "draining", "marking", "ready"}
}

// EachRepair calls f with the stage of each repair under way.
func (p *Primary) EachRepair(f func(id holdfast.ReplicaID, stage string)) {
	for _, t := range p.peers {
		if t.repair != nil {
			f(t.rep.ID, RepairStages()[t.repair.stage])
		}
	}
}
