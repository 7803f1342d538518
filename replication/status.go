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
	RepairBytes           uint64 // sent to replicas under repair by the copier
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
	Counters   Counters
	Scrub      ScrubStatus // the present or last one
	Peers      []PeerStatus
}

// PeerStatus is one replica as its primary sees it.
type PeerStatus struct {
	Replica     holdfast.Replica
	Connected   bool
	TotalBytes  int64 // found to be missing in the present repair
	LeftBytes   int64
	CopiedBytes int64 // really sent
	Message     string
}

// Status reports. It is cheap, but copies the record.
func (p *Primary) Status() PrimaryStatus {
	s := PrimaryStatus{State: p.phase.String(), Err: p.err, Record: p.rec.Clone(), Epoch: p.epoch, SizeBytes: p.size,
		InFlight: len(p.inflight) + p.readers.n + len(p.backlog), Counters: p.counters, Scrub: p.scrubStatus()}
	if p.waits.what != "" {
		s.WaitingFor, s.Waiting = p.waits.what, p.now()-p.waits.since
	}
	for _, t := range p.peers {
		ps := PeerStatus{Replica: t.rep, Connected: t.up, Message: t.refusal, CopiedBytes: t.lastCopied, TotalBytes: t.lastTotal}
		if r := t.repair; r != nil {
			ps.TotalBytes, ps.LeftBytes, ps.CopiedBytes = r.total, r.left, r.copied
		}
		if t.noSpaceSince != 0 {
			ps.Message = "its pool is full"
		}
		s.Peers = append(s.Peers, ps)
	}
	return s
}

// SizeBytes is the device's size.
func (p *Primary) SizeBytes() int64 { return p.size }

// waits says what I/O waits for and since when.
type waits struct {
	what  string
	since time.Duration
}

// noteWaits looks at what holds I/O up. It is called with every tick, so a wait
// shorter than that is not seen.
func (p *Primary) noteWaits(now time.Duration) {
	what := p.waitReason()
	if what == p.waits.what {
		return
	}
	if p.waits.what != "" && now-p.waits.since > time.Second {
		p.changed("I/O went on after %.1f s of waiting for %s", (now - p.waits.since).Seconds(), p.waits.what)
	}
	p.waits = waits{what: what, since: now}
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
