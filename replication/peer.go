package replication

import (
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/holdfast-storage/holdfast"
)

// peer is the primary's side of one replica.
type peer struct {
	rep holdfast.Replica // as in the record
	bit uint32           // in the writes' sets

	conn    Conn
	up      bool   // greeted: the session is open
	attempt uint64 // of the dial in progress; 0 if none
	nextAt  time.Duration
	nextID  uint64
	pending map[uint64]call
	welcome *Welcome
	size    int64

	// asked is when the newest answered request was sent: the peer surely
	// answered to our epoch after that, which is what the read window counts
	// from. heard is when anything came in.
	// Where nothing was asked for a while, it is not before the next question.
	asked, heard time.Duration
	sentAt       time.Duration // when anything was last sent
	told         uint64        // what it was told then to be committed
	downSince    time.Duration
	epochPending bool // it has not yet promised p.epoch
	refusal      string
	noSpaceSince time.Duration
	repairAt     time.Duration // not before this time
	lastTotal    int64         // of the last repair that ended well
	lastCopied   int64
	broke        bool // the connection was closed by the other side
	gone         bool // and then nobody listened there: its process has ended
	greetedAt    time.Duration
	growing      bool
	growAt       time.Duration // not asked to grow before this time
	shown        int64         // the revision of the record that was sent to it last
	unsettled    bool          // it was repaired, and has not been told to forget tail and suspects
	settling     int           // how often it was told so, without an answer yet
	// unfit: it lost acknowledged writes, or its disk failed, while its answer
	// was required. It must not be in sync, however soon it is back, before it
	// was dropped and repaired.
	unfit bool
	// damaged are the blocks for which a scrub has it dropped; marked with the drop.
	damaged extentSet

	slow  slowness
	waits waits // what its repair waits for

	// required: no write is acknowledged without its answer. All in-sync peers
	// are, and one that is about to become it.
	required bool
	repair   *repair

	snaps    []SnapshotRef // that it has, oldest first
	dropping bool          // it was asked to drop one
	dropAt   time.Duration // not asked again before this time
	cutting  bool          // it was asked to take one
}

// call is a request that waits for its answer.
type call struct {
	at   time.Duration
	data bool // a task for the disk, which must be done within IOTimeout
	ping bool
	w    *write
	rd   *read
	fn   func(*Message) // nil message: the connection is gone
}

func (t *peer) inSync() bool { return t.rep.State == holdfast.InSync }

// syncPeers makes the peers those of the record.
func (p *Primary) syncPeers() {
	old := p.peers
	p.peers = make([]*peer, 0, len(p.rec.Replicas))
	for _, rep := range p.rec.Replicas {
		t := findPeer(old, rep.ID)
		if t == nil {
			t = &peer{bit: p.freeBit(), downSince: p.now(), heard: p.now()}
			p.slots |= t.bit
		}
		t.rep = rep
		if t.inSync() {
			t.required = true
		}
		p.peers = append(p.peers, t)
	}
	for _, t := range old {
		if findPeer(p.peers, t.rep.ID) == nil {
			p.abandon(t)
		}
	}
}

// abandon lets go of a peer that is no longer in the record. It was not in sync.
// One that has just been dropped is waited for until the others know: its bit
// stays taken for so long.
func (p *Primary) abandon(t *peer) {
	p.hangUp(t)
	if p.member.losing&t.bit != 0 {
		p.member.gone |= t.bit
		return
	}
	p.unrequire(t)
	p.slots &^= t.bit
}

func (p *Primary) freeBit() uint32 {
	bit := uint32(1)
	for p.slots&bit != 0 {
		bit <<= 1
	}
	return bit
}

func findPeer(peers []*peer, id holdfast.ReplicaID) *peer {
	for _, t := range peers {
		if t.rep.ID == id {
			return t
		}
	}
	return nil
}

func (p *Primary) peerOf(c Conn) *peer {
	for _, t := range p.peers {
		if t.conn == c && c != nil {
			return t
		}
	}
	return nil
}

// dial starts to reach a peer.
func (p *Primary) dial(t *peer) {
	p.attempts++
	t.attempt = p.attempts
	p.ports.Dialer.Dial(t.rep, t.attempt)
}

// OnDialFailed is the event that a peer could not be reached.
func (p *Primary) OnDialFailed(attempt uint64, err error) {
	for _, t := range p.peers {
		if t.attempt == attempt && p.phase != ended {
			t.attempt = 0
			t.refusal = err.Error()
			t.gone = t.broke && errors.Is(err, holdfast.NotFound)
			p.backOff(t)
			p.missed(t, p.now())
		}
	}
}

func (p *Primary) backOff(t *peer) {
	wait := p.cfg.RepairRetry
	if t.required {
		wait = p.cfg.RedialEvery
	}
	t.nextAt = p.now() + wait
}

// OnConnected is the event that a dial has succeeded: the peer is greeted.
func (p *Primary) OnConnected(attempt uint64, c Conn) {
	for _, t := range p.peers {
		if t.attempt != attempt || p.phase == ended {
			continue
		}
		t.attempt = 0
		t.conn, t.up = c, false
		t.pending, t.heard = make(map[uint64]call), p.now()
		rec := p.rec.Clone()
		t.shown = rec.Revision
		h := &Hello{Cluster: p.cfg.Cluster, Volume: rec.ID, Replica: t.rep.ID, Node: p.cfg.Self, Grant: p.grant, Record: rec}
		epoch := p.epoch
		p.send(t, &Message{Type: MsgHello, Hello: h}, call{fn: func(m *Message) { p.greeted(t, epoch, m) }})
		return
	}
	c.Close()
}

// send gives a message its number and sends it; the answer goes to k.
func (p *Primary) send(t *peer, m *Message, k call) {
	t.nextID++
	m.ID, m.Epoch, m.Committed = t.nextID, p.epoch, p.committed()
	k.at = p.now()
	switch m.Type {
	case MsgRead, MsgWrite, MsgTrim, MsgFlush, MsgHash, MsgSnapshot, MsgRestore, MsgSnapRead, MsgSnapHash:
		k.data = true
	case MsgEpoch, MsgMark, MsgRecord, MsgSettle:
		k.data = true // pings are answered meanwhile, and I/O or a release may wait for it
	case MsgAllocated:
		k.data = p.phase == reconciling // a small range; a whole volume's takes its time
	}
	if len(t.pending) == 0 && k.at-t.heard >= p.cfg.SilentAfter/2 {
		t.heard = k.at
	}
	p.stir()
	t.sentAt, t.told = k.at, m.Committed
	t.pending[m.ID] = k
	t.conn.Send(m)
}

// ask is send with a function, answering nil at once where there is no session.
func (p *Primary) ask(t *peer, m *Message, fn func(*Message)) {
	if !t.up {
		fn(nil)
		return
	}
	p.send(t, m, call{fn: fn})
}

// OnMessage is the event that an answer came in.
func (p *Primary) OnMessage(c Conn, m *Message) {
	t := p.peerOf(c)
	if t == nil || p.phase == ended {
		m.Buf.Release()
		return
	}
	k, ok := t.pending[m.ID]
	if !ok || !m.Answer {
		m.Buf.Release()
		p.lose(t, "it broke the protocol")
		return
	}
	t.heard = p.now()
	if m.Status == StatusFenced {
		m.Buf.Release()
		p.fenced(t, m.Epoch) // the request waits for the next session, like all others
		return
	}
	delete(t.pending, m.ID)
	if m.Epoch == p.epoch && t.up {
		t.asked = max(t.asked, k.at)
	}
	switch {
	case k.w != nil:
		if m.Status == StatusOK {
			t.slow.window.add(t.heard - k.at)
		}
		p.wrote(t, k.w, m)
	case k.rd != nil:
		p.readDone(t, k.rd, m)
	default:
		k.fn(m)
		m.Buf.Release()
	}
}

// OnClosed is the event that a connection is gone.
func (p *Primary) OnClosed(c Conn) {
	if t := p.peerOf(c); t != nil && p.phase != ended {
		t.broke = true
		p.lose(t, "the connection broke")
	}
}

// hangUp closes a peer's connection and forgets what waited for it.
func (p *Primary) hangUp(t *peer) {
	c, pending := t.conn, t.pending
	t.conn, t.up, t.pending, t.attempt = nil, false, nil, 0
	p.stopRepair(t)
	if c != nil {
		c.Close()
	}
	for _, id := range sortedIDs(pending) {
		k := pending[id]
		switch {
		case k.w != nil:
			k.w.owed &^= t.bit
			p.unlockWrite(k.w)
		case k.rd != nil:
			p.readLost(k.rd)
		case k.fn != nil:
			k.fn(nil)
		}
	}
}

// lose is hangUp for a peer that should be there: it is dialled again, and if it
// is needed and does not come back in time, it is dropped (see tickPeer).
func (p *Primary) lose(t *peer, why string) {
	p.stir()
	if t.downSince == 0 {
		t.downSince = p.now()
	}
	t.refusal = why
	p.hangUp(t)
	if p.phase == ended {
		return
	}
	if t.required && p.now()-t.downSince < p.cfg.RedialEvery {
		p.dial(t) // one quick reconnect
		return
	}
	p.backOff(t)
}

// fenced is the word of a replica that it has promised a higher epoch. Only the
// metadata store can say who is right.
func (p *Primary) fenced(t *peer, promised holdfast.Epoch) {
	p.lose(t, "it has promised a higher epoch to another primary")
	if p.phase == ended {
		return
	}
	p.backOff(t)
	t.attempt = 0
	p.member.doubt = max(p.member.doubt, promised)
	p.plan()
}

// greeted is the answer to a Hello.
func (p *Primary) greeted(t *peer, epoch holdfast.Epoch, m *Message) {
	switch {
	case m == nil:
		return
	case m.Status == StatusRolledBack && !mutant(MutateRollbackGoOn):
		p.rolledBack(t.rep.Node)
		return
	case m.Status != StatusOK || m.Welcome == nil:
		why := map[Status]string{StatusFailed: "its disk has failed", StatusNoSpace: "its pool is full", StatusUnknown: "the replica is not there"}[m.Status]
		if why == "" {
			why = "it refuses us"
		}
		p.lose(t, why)
		p.backOff(t)
		if t.required && m.Status == StatusFailed {
			p.disqualify(t)
		}
		return
	case epoch != p.epoch:
		p.lose(t, "the epoch changed while greeting") // greet again, with the new record
		return
	}
	rebooted := t.welcome != nil && t.welcome.Boot != m.Welcome.Boot
	t.up, t.welcome, t.size = true, m.Welcome, m.Welcome.SizeBytes
	t.refusal, t.downSince, t.broke, t.gone, t.greetedAt = "", 0, false, false, p.now()
	t.snaps, t.dropping, t.cutting = slices.Clone(m.Welcome.Snapshots), false, false
	p.noteLostSnapshots()
	switch {
	case p.phase == reconciling && t.inSync():
		p.restartTakeover() // with what it says now
		return
	case p.phase < serving:
		p.remind(t)
	case t.required:
		p.rejoin(t, rebooted)
	default:
		t.epochPending = false // the greeting carried the epoch
	}
	p.tellRecordTo(t)
	p.tickTakeover(p.now())
	p.plan()
}

// rejoin goes on with a needed peer that was gone for a moment: everything it
// has not answered is sent again. If it lost writes in between it can not stay
// in sync.
func (p *Primary) rejoin(t *peer, rebooted bool) {
	if rebooted && !mutant(Mutate9CarryOn) && len(t.welcome.Suspects) > 0 {
		// Invariant 9: never carry on over lost acknowledged writes.
		t.refusal = "it lost power and with it acknowledged writes"
		p.disqualify(t)
	}
	if t.unfit {
		p.disqualify(t)
		return
	}
	p.member.losing &^= p.member.undecided(t)
	p.remind(t)
	for _, w := range p.inflight {
		if w.waiting&t.bit != 0 {
			p.sendWrite(t, w)
		}
	}
	p.flush.resend(p, t)
	p.resendCut(t)
	p.retryReads()
}

// tickPeer keeps one peer's session alive, or notices that it is not.
func (p *Primary) tickPeer(t *peer, calm bool, now time.Duration) {
	switch {
	case t.conn == nil && t.attempt == 0 && now >= t.nextAt:
		p.dial(t)
	case t.conn != nil && t.up && p.pingDue(t, calm, now):
		p.ping(t)
	}
	if t.conn != nil && len(t.pending) > 0 && now-t.heard >= p.cfg.SilentAfter {
		if t.downSince == 0 {
			t.downSince = t.heard
		}
		p.lose(t, "it does not answer")
		if p.ports.Events.Silent != nil {
			p.ports.Events.Silent(t.rep.Node)
		}
	}
	if t.up && p.stuck(t, now) && p.condemn(t) {
		p.lose(t, "it lives, but does not get its work done")
	}
	p.missed(t, now)
}

// missed drops a needed peer that has been away for too long.
func (p *Primary) missed(t *peer, now time.Duration) {
	if t.inSync() && t.downSince != 0 && now-t.downSince >= p.patience(t) && p.phase >= serving {
		p.condemn(t)
	}
}

// stuck says whether a disk keeps a peer's task for too long, whatever its
// process answers.
func (p *Primary) stuck(t *peer, now time.Duration) bool {
	for _, k := range t.pending {
		if k.data && now-max(k.at, p.woke) >= p.cfg.IOTimeout {
			return true
		}
	}
	return false
}

// patience is how long a needed peer may be away: not long when its connection
// broke, which says more than silence. One whose process is known to have ended is
// waited for only while nobody waits for it: its successor takes longer to start
// than an application should notice, and what it misses meanwhile is little.
func (p *Primary) patience(t *peer) time.Duration {
	switch {
	case t.gone && !p.idle():
		return 0
	case t.broke:
		return p.cfg.ReconnectFor
	}
	return p.cfg.SilentAfter
}

func sortedIDs(m map[uint64]call) []uint64 {
	return slices.Sorted(maps.Keys(m))
}
