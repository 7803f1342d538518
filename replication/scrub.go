package replication

import (
	"fmt"
	"time"

	"github.com/holdfast-storage/holdfast"
)

// A scrub compares what the in-sync replicas hold, and mends what differs
// without having been written. It walks through the volume in windows: hashes of
// what any replica has allocated are compared without a lock, and what differs,
// which is mostly what is being written, is compared again with its range locked.
// By then every write to it is applied everywhere, so a difference is damage.
//
// A damaged replica is not written to where it is: a crash half-way could make
// the damaged copy the one that a take-over copies from. It is dropped instead,
// the damaged blocks are marked as what it lacks, and the repair brings it back.
//
// The majority of those compared is right. Without one, as when one of three is
// away, nobody is dropped and nothing is healed while another replica may know
// better: to choose then could make the damaged copy everybody's. A later scrub,
// with that replica in sync again, decides: it was only repaired where it lacked
// something, so its copy is its own. Or an operator names the replica whose copies
// are right: then they are, whatever the others hold.

// Limits of a scrub.
const (
	// scrubWindow is after how many bytes found damage is mended: soon enough, and
	// not once for every block.
	scrubWindow = 64 << 20
	// scrubAway is how long a damaged replica that was dropped may be gone before
	// the scrub goes on without it. It is repaired whenever it returns.
	scrubAway = 30 * time.Second
)

// ScrubState is how far a scrub has come.
type ScrubState string

// The states of a scrub.
const (
	ScrubRunning   ScrubState = "running"
	ScrubHealing   ScrubState = "healing" // a damaged replica is being repaired
	ScrubWaiting   ScrubState = "waiting"
	ScrubDone      ScrubState = "done"
	ScrubCancelled ScrubState = "cancelled"
)

// ScrubStatus is a scrub as a person can know it. Blocks are of HashBlock bytes.
type ScrubStatus struct {
	ID         string     // as handed to Scrub; "" when there was none
	State      ScrubState // of the present one, or what became of the last
	WaitingFor string
	Waiting    time.Duration // for how long
	DoneBytes  int64         // of the volume's size
	TotalBytes int64
	Blocks     int64 // compared; those that no replica has allocated are not
	Mismatches int64 // damaged copies of blocks
	Healed     int64 // of these, repaired
	Unhealed   int64 // blocks that differ still: again after each repair, or without a majority
	Took       time.Duration
}

// Ended says whether nothing of it is to come.
func (s ScrubStatus) Ended() bool { return s.State == ScrubDone || s.State == ScrubCancelled }

type scrubStage uint8

const (
	scrubListing   scrubStage = iota // asking what is allocated in the window
	scrubComparing                   // without locks
	scrubChecking                    // again, with each differing block locked
	scrubHealing                     // a damaged replica is dropped and comes back
)

// scrubs are the present scrub, if any, and what the last one found.
type scrubs struct {
	pace pacer
	run  *scrub
	last ScrubStatus
	// waits is what the present one waits for.
	waits waits
}

// scrub is one on its way. It waits for one thing at a time: busy.
type scrub struct {
	status ScrubStatus
	source holdfast.ReplicaID // whose copies are right; "" for the majority's
	began  time.Duration
	stage  scrubStage
	busy   bool
	dead   bool // ended; what it waited for only lets go
	locked bool
	paced  bool // waits for the node's budget
	hold   hold

	window   holdfast.Extent
	epoch    holdfast.Epoch // in which the window was begun; another one begins it again
	peers    []*peer        // the in-sync set
	todo     extentSet      // of the window, to be compared
	doubts   extentSet      // blocks that differed without a lock
	compared int64          // blocks in this window
	bad      []extentSet    // damaged blocks of each of peers
	open     extentSet      // blocks that differ, of which it is not known who is right
	tries    int            // repairs in this window
	retryAt  time.Duration

	loser holdfast.ReplicaID // being healed
	lost  int64              // damaged blocks of it
}

// Scrub begins to compare all in-sync replicas. The id names it: again is fine,
// also when it has ended. One with another id takes the place of a running one.
// What differs from the copies of source is damaged; from the majority's if it is "".
func (p *Primary) Scrub(id string, source holdfast.ReplicaID) {
	if p.phase == ended || id == "" || p.scrubs.last.ID == id {
		return
	}
	p.CancelScrub()
	s := &scrub{began: p.now(), source: source, status: ScrubStatus{ID: id, State: ScrubRunning, TotalBytes: p.rec.SizeBytes}}
	p.scrubs.run, p.scrubs.last = s, s.status
	p.changed("a scrub of %d replicas began", len(p.rec.InSyncReplicas()))
	p.stepScrub(s)
}

// CancelScrub ends the present scrub, if there is one. A repair that it has begun
// goes on.
func (p *Primary) CancelScrub() {
	if s := p.scrubs.run; s != nil {
		p.endScrub(s, ScrubCancelled)
	}
}

func (p *Primary) endScrub(s *scrub, state ScrubState) {
	s.dead = true
	if s.locked && !s.busy {
		p.unlockScrub(s)
	}
	s.status.State, s.status.WaitingFor, s.status.Took = state, "", p.now()-s.began
	s.status.DoneBytes = min(s.window.Offset, s.status.TotalBytes)
	p.scrubs.run, p.scrubs.last = nil, s.status
	x := s.status
	p.changed("the scrub is %s: %d blocks compared, %d damaged, %d healed, %d differ still", x.State, x.Blocks, x.Mismatches, x.Healed, x.Unhealed)
}

// scrubStatus is the present or last scrub.
func (p *Primary) scrubStatus() ScrubStatus {
	s := p.scrubs.run
	if s == nil {
		return p.scrubs.last
	}
	x := s.status
	x.DoneBytes, x.Took = s.window.Offset, p.now()-s.began
	switch {
	case s.stage == scrubHealing:
		x.State = ScrubHealing
	default:
		if x.WaitingFor = p.scrubWaits(); x.WaitingFor != "" {
			x.State = ScrubWaiting
		}
		if p.scrubs.waits.what == x.WaitingFor {
			_, x.Waiting = p.scrubs.waits.told(p.now())
		}
	}
	return x
}

// scrubWaits says what keeps replicas from being compared now.
func (p *Primary) scrubWaits() string {
	n := 0
	for _, t := range p.peers {
		if !t.inSync() {
			continue
		}
		if n++; !t.up || t.epochPending {
			return fmt.Sprintf("node %s to answer", t.rep.Node)
		}
	}
	switch {
	case p.phase < serving:
		return "the volume to be served"
	case p.phase != serving:
		return "the next primary: the volume is being released"
	case p.member.losing != 0:
		return "the membership to change"
	case n < 2 && len(p.peers) > 1:
		return "a second replica to be in sync"
	}
	return ""
}

// tickScrub keeps the scrub going.
func (p *Primary) tickScrub(now time.Duration) {
	p.scrubs.pace.refill(now)
	if s := p.scrubs.run; s != nil {
		p.stepScrub(s)
	}
}

// stepScrub does what can be done now.
func (p *Primary) stepScrub(s *scrub) {
	for !s.dead && !s.busy && !s.paced && p.phase == serving && p.now() >= s.retryAt {
		if s.stage == scrubHealing {
			if !p.scrubHealed(s) {
				return
			}
			continue
		}
		if p.scrubWaits() != "" {
			return
		}
		if s.stage != scrubListing && s.epoch != p.epoch {
			s.stage = scrubListing // with whoever is in sync now
		}
		if !p.advanceScrub(s) {
			return
		}
	}
}

// advanceScrub does the next step of a scrub that need not wait; false when that
// is not possible before some time has passed.
func (p *Primary) advanceScrub(s *scrub) bool {
	switch s.stage {
	case scrubListing:
		p.listScrub(s)
	case scrubComparing:
		if len(s.todo) > 0 && p.scrubs.pace.rate > 0 && p.scrubs.pace.tokens <= 0 {
			return false
		}
		piece, ok := s.todo.take(RepairChunk)
		if !ok {
			s.stage = scrubChecking
			return true
		}
		if g := p.ports.Repairs; g != nil && !g.Take(piece.Length, func() { p.pacedScrub(s) }) {
			s.todo, s.paced = union(s.todo, []holdfast.Extent{piece}), true
			return false
		}
		p.scrubs.pace.tokens -= float64(piece.Length)
		p.hashScrub(s, piece, func(hashes [][]Hash) { s.compare(piece, hashes) })
	case scrubChecking:
		block, ok := s.doubts.take(HashBlock)
		if !ok {
			return p.closeWindow(s)
		}
		p.lockScrub(s, block)
	}
	return true
}

// pacedScrub goes on when the node's budget, which yields to the application's
// writes, may have room.
func (p *Primary) pacedScrub(s *scrub) {
	s.paced = false
	p.stepScrub(s)
}

// listScrub begins a window, if there is one left.
func (p *Primary) listScrub(s *scrub) {
	size := p.rec.SizeBytes
	s.status.TotalBytes = size
	if len(p.peers) < 2 {
		s.window.Offset = size // nothing to compare with
	}
	if s.window.Length = min(scrubWindow, size-s.window.Offset); s.window.Length <= 0 {
		p.endScrub(s, ScrubDone)
		return
	}
	s.epoch, s.peers, s.todo, s.doubts, s.open, s.compared = p.epoch, nil, nil, nil, nil, 0
	for _, t := range p.peers {
		if t.inSync() {
			s.peers = append(s.peers, t)
		}
	}
	s.bad = make([]extentSet, len(s.peers))
	s.busy = true
	left, good := len(s.peers), true
	for _, t := range s.peers {
		p.list(t, &Message{Type: MsgAllocated, Offset: s.window.Offset, Length: s.window.Length}, func(x extentSet, st Status) {
			good = good && st == StatusOK
			s.todo = union(s.todo, x)
			if left--; left > 0 {
				return
			}
			s.todo = s.todo.widen(HashBlock, size)
			s.stage = scrubComparing
			p.resumeScrub(s, good)
		})
	}
}

// resumeScrub goes on after an answer; one that did not come, or came in another
// epoch, makes the window begin again.
func (p *Primary) resumeScrub(s *scrub, good bool) {
	s.busy = false
	p.unlockScrub(s)
	if s.dead {
		return
	}
	if !good {
		s.stage = scrubListing
		s.retryAt = p.now() + p.cfg.RepairRetry
	}
	p.stepScrub(s)
}

// hashScrub asks all replicas for the hashes of a range; done gets them, in the
// order of s.peers, unless something has changed meanwhile.
func (p *Primary) hashScrub(s *scrub, x holdfast.Extent, done func(hashes [][]Hash)) {
	s.busy = true
	left, good := len(s.peers), true
	hashes := make([][]Hash, len(s.peers))
	want := int((x.Length + HashBlock - 1) / HashBlock)
	for i, t := range s.peers {
		p.ask(t, &Message{Type: MsgHash, Offset: x.Offset, Length: x.Length}, func(m *Message) {
			switch {
			case m == nil || m.Status != StatusOK || len(m.Hashes) != want:
				good = false
				if m != nil && m.Status == StatusFailed {
					p.diskFailed(t)
				}
			default:
				hashes[i] = m.Hashes
			}
			if left--; left > 0 {
				return
			}
			good = good && p.epoch == s.epoch && p.scrubWaits() == ""
			if good && !s.dead {
				done(hashes)
			}
			p.resumeScrub(s, good)
		})
	}
}

// compare notes which blocks of a piece differ.
func (s *scrub) compare(piece holdfast.Extent, hashes [][]Hash) {
	s.compared += int64(len(hashes[0]))
	for b := range hashes[0] {
		for _, h := range hashes[1:] {
			if h[b] != hashes[0][b] {
				off := piece.Offset + int64(b)*HashBlock
				s.doubts = union(s.doubts, []holdfast.Extent{{Offset: off, Length: min(HashBlock, piece.End()-off)}})
				break
			}
		}
	}
}

// lockScrub compares one block again, when no write to it is under way.
func (p *Primary) lockScrub(s *scrub, block holdfast.Extent) {
	s.busy, s.locked = true, true
	check := func() {
		if s.dead || p.phase != serving {
			p.resumeScrub(s, false)
			return
		}
		p.hashScrub(s, block, func(hashes [][]Hash) { p.judgeScrub(s, block, hashes) })
	}
	s.hold = hold{ext: block, exclusive: true, granted: check}
	if mutant(MutateScrubNoLock) {
		s.locked = false
		check()
		return
	}
	if p.locks.acquire(&s.hold) {
		check()
	}
}

func (p *Primary) unlockScrub(s *scrub) {
	if s.locked {
		s.locked = false
		p.locks.release(&s.hold)
	}
}

// dropDamaged drops a replica of which blocks are damaged: see the top.
func (p *Primary) dropDamaged(s *scrub, t *peer, bad extentSet) bool {
	n := blocksOf(bad)
	t.damaged, t.refusal = bad, fmt.Sprintf("a scrub found %d damaged blocks, the first at byte %d", n, bad[0].Offset)
	if !p.condemn(t) {
		t.damaged, t.refusal = nil, ""
		s.stage, s.retryAt = scrubListing, p.now()+p.cfg.RepairRetry
		return false
	}
	s.tries++
	s.status.Mismatches += n
	s.loser, s.lost, s.stage = t.rep.ID, n, scrubHealing
	return true
}

// damaged are the blocks for which replicas in lost were dropped: marked in the
// epoch that begins, they are what those lack.
func (p *Primary) damaged(lost uint32) extentSet {
	var marks extentSet
	for _, t := range p.peers {
		if lost&t.bit != 0 && !mutant(MutateScrubNoMarks) {
			marks = union(marks, t.damaged)
		}
	}
	return marks
}

// scrubHealed says whether the scrub may go on after it has dropped a replica.
func (p *Primary) scrubHealed(s *scrub) bool {
	t := findPeer(p.peers, s.loser)
	switch {
	case t == nil:
	case t.inSync() && t.rep.Since <= s.epoch && p.member.losing&t.bit == 0 && !p.member.open():
		// It was not dropped after all: its connection broke before anybody was
		// asked to. It will be found again.
		s.status.Mismatches -= s.lost
		t.damaged = nil
	case t.inSync() && t.rep.Since > s.epoch && p.member.losing&t.bit == 0:
		s.status.Healed += s.lost
		t.refusal = ""
		p.changed("%d damaged blocks of replica %s on node %s are healed", s.lost, t.rep.ID, t.rep.Node)
	case !t.up && t.downSince != 0 && p.now()-t.downSince >= scrubAway:
	case t.rep.Leaving && !t.inSync():
	default:
		return false
	}
	s.stage, s.loser = scrubListing, ""
	return true
}
