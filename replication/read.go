package replication

import (
	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/buf"
)

// readers are the reads under way.
type readers struct {
	n      int     // begun and not done, waiting for a range or for a peer
	parked []*read // waiting until the primary may read again
	next   int     // where the search for a peer begins, when none is local
}

// read is a read on its way.
type read struct {
	req   *Request
	ext   holdfast.Extent // in whole blocks
	hold  hold
	inner bool // runs under somebody else's hold
	tries int
	done  bool
	// inPlace: a store of this process writes straight into the request's buffer.
	inPlace bool
}

// beginRead waits for writes in flight in its range, then reads.
func (p *Primary) beginRead(r *Request) {
	ext := blockRange(r.Offset, r.Length)
	if ext.Length > buf.Max {
		p.halves(r, p.beginRead)
		return
	}
	rd := &read{req: r, ext: ext}
	rd.hold = hold{ext: rd.ext}
	if p.locks.acquire(&rd.hold) {
		p.startRead(rd)
		return
	}
	rd.hold.granted = func() { p.startRead(rd) }
	rd.hold.at, rd.hold.fail = r.at, func(err error) { p.finishRead(rd, err) }
}

// readable says whether reads may be answered now (invariant 3): every in-sync
// replica has answered in this epoch to something sent within the read window.
// So must one that may have become in sync without a word to us: another primary
// could have been granted the volume with it alone.
func (p *Primary) readable() bool {
	if p.phase != serving && p.phase != releasing || p.member.losing != 0 {
		return false
	}
	oldest := p.now() - p.cfg.ReadWindow
	for _, t := range p.peers {
		if mutant(Mutate3NoWindow) && t.inSync() && t.up {
			continue
		}
		needed := t.inSync() || t.required && p.member.open()
		if needed && (!t.up || t.epochPending || t.asked == 0 || t.asked < oldest) {
			return false
		}
	}
	return true
}

// startRead asks a replica, the local one if it is in sync.
func (p *Primary) startRead(rd *read) {
	if p.phase == ended {
		p.finishRead(rd, p.endErr())
		return
	}
	p.readers.n++
	p.askRead(rd)
}

func (p *Primary) askRead(rd *read) {
	if !p.readable() {
		p.readers.parked = append(p.readers.parked, rd)
		p.refreshWindow()
		return
	}
	t := p.readFrom(rd)
	m := &Message{Type: MsgRead, Offset: rd.ext.Offset, Length: rd.ext.Length}
	if t.rep.Node == p.cfg.Self && rd.ext.Length == rd.req.Length {
		m.Buf, rd.inPlace = rd.req.Buf.Retain(), true // same process: read in place
	}
	p.send(t, m, call{rd: rd})
}

// readFrom chooses an in-sync peer: the local one first, another one after a
// failure.
func (p *Primary) readFrom(rd *read) *peer {
	able := func(t *peer) bool { return (t.inSync() || mutant(Mutate3ReadRebuilding)) && t.up }
	if rd.tries == 0 {
		for _, t := range p.peers {
			if t.rep.Node == p.cfg.Self && able(t) {
				return t
			}
		}
	}
	for {
		p.readers.next++
		if t := p.peers[p.readers.next%len(p.peers)]; able(t) {
			return t
		}
	}
}

// refreshWindow asks those for a sign of life whose last one is too old.
func (p *Primary) refreshWindow() {
	now := p.now()
	for _, t := range p.peers {
		if t.required && t.up && now-t.sentAt >= p.cfg.PingEvery/4 {
			p.ping(t)
		}
	}
}

// readDone is a replica's answer to a read.
func (p *Primary) readDone(t *peer, rd *read, m *Message) {
	defer m.Buf.Release()
	if rd.done {
		return
	}
	rd.inPlace = false
	switch {
	case m.Status == StatusFailed:
		rd.tries++
		p.parkRead(rd)
		p.diskFailed(t)
		p.retryReads()
	case m.Status != StatusOK || m.Buf == nil || int64(len(m.Buf.B)) != rd.ext.Length:
		p.parkRead(rd)
		p.lose(t, "it refused a read")
	case !p.readable() || !t.inSync() && !mutant(Mutate3ReadRebuilding):
		// The window closed while the data was on its way: a process that was
		// paused notices here.
		p.parkRead(rd)
		p.refreshWindow()
	default:
		if m.Buf != rd.req.Buf {
			copy(rd.req.Buf.B, m.Buf.B[rd.req.Offset-rd.ext.Offset:])
		}
		p.readers.n--
		p.finishRead(rd, nil)
	}
}

// readLost takes back a read whose connection broke. A store that was to read in
// place may still do so, at any time and with what is old by then: the request
// gets another buffer.
func (p *Primary) readLost(rd *read) {
	if rd.done {
		return
	}
	rd.leaveBuffer()
	p.parkRead(rd)
}

func (p *Primary) parkRead(rd *read) {
	p.readers.parked = append(p.readers.parked, rd)
}

// retryReads goes on with parked reads when the primary may read again.
func (p *Primary) retryReads() {
	if len(p.readers.parked) == 0 {
		return
	}
	if !p.readable() {
		if p.phase == serving || p.phase == releasing {
			p.refreshWindow()
		}
		return
	}
	rs := p.readers.parked
	p.readers.parked = nil
	for _, rd := range rs {
		if !rd.done {
			p.askRead(rd)
		}
	}
}

func (p *Primary) finishRead(rd *read, err error) {
	rd.done = true
	if err == nil && !rd.inner {
		p.counters.Reads++
		p.counters.ReadBytes += uint64(rd.req.Length)
		took := p.awake() - rd.req.at
		p.counters.ReadTime.add(took)
		p.tellGate(OpRead, rd.req.Length, took)
	}
	rd.req.Done(rd.req, err)
	if !rd.inner {
		p.locks.release(&rd.hold)
		p.finishRelease()
	}
}

// failReads ends the parked reads; those at a peer are parked by hangUp before.
func (p *Primary) failReads(err error) {
	if err == nil {
		err = holdfast.Unavailable
	}
	rs := p.readers.parked
	p.readers.parked, p.readers.n = nil, 0
	for _, rd := range rs {
		if !rd.done {
			p.finishRead(rd, err)
		}
	}
}
