package replication

import "github.com/holdfast-storage/holdfast"

// flusher makes flushes that come in while one is running share the next one.
type flusher struct {
	waiting []*Request
	running []*Request
	left    uint32 // peers whose answer the running one needs
	number  uint64 // of the running one: a late answer to an earlier one does not count
}

func (f *flusher) idle() bool { return len(f.waiting) == 0 && len(f.running) == 0 }

// kickFlush begins a flush for all that wait (invariant 4): every needed replica
// makes everything durable that it has applied, which is everything that was
// acknowledged.
func (p *Primary) kickFlush() {
	f := &p.flush
	if len(f.running) > 0 || len(f.waiting) == 0 || p.phase == ended {
		return
	}
	f.running, f.waiting = f.waiting, nil
	f.left = 0
	f.number++
	for _, t := range p.peers {
		if t.required {
			f.left |= t.bit
		}
	}
	for _, t := range p.peers {
		if t.required && t.up {
			f.send(p, t)
		}
	}
}

func (f *flusher) send(p *Primary, t *peer) {
	number := f.number
	p.ask(t, &Message{Type: MsgFlush}, func(m *Message) {
		switch {
		case m == nil || number != f.number: // asked again when it is back, or taken out when dropped
		case m.Status == StatusOK:
			f.clear(p, t.bit)
		case m.Status == StatusFailed:
			p.diskFailed(t)
		default:
			p.lose(t, "it refused a flush")
		}
	})
}

// resend asks a peer again that came back.
func (f *flusher) resend(p *Primary, t *peer) {
	if len(f.running) > 0 && f.left&t.bit != 0 {
		f.send(p, t)
	}
}

// clear takes peers out of what the running flush waits for.
func (f *flusher) clear(p *Primary, bits uint32) {
	if len(f.running) == 0 || f.left == 0 {
		return
	}
	f.left &^= bits
	if mutant(Mutate4FlushFirst) {
		f.left = 0
	}
	if f.left == 0 {
		f.finish(p)
	}
}

// settle answers a flush that minInSync has held back.
func (f *flusher) settle(p *Primary) {
	if len(f.running) > 0 && f.left == 0 {
		f.finish(p)
	}
}

// finish answers a flush that all needed replicas have done, unless too few of
// them are in sync to acknowledge anything: what it makes durable on fewer than
// minInSync replicas is as little acknowledged as a write would be. A repaired
// replica counts for it, since it was flushed before it came in.
func (f *flusher) finish(p *Primary) {
	if !p.mayAck() {
		return
	}
	rs := f.running
	f.running = nil
	for _, r := range rs {
		p.counters.Flushes++
		p.counters.FlushTime.add(p.awake() - r.at)
		r.Done(r, nil)
	}
	p.kickFlush()
	p.finishRelease()
}

// fail answers all flushes.
func (f *flusher) fail(err error) {
	if err == nil {
		err = holdfast.Unavailable
	}
	rs := append(f.running, f.waiting...)
	f.running, f.waiting = nil, nil
	for _, r := range rs {
		r.Done(r, err)
	}
}

// commit passes on what a ping tells about committed writes, so that an idle
// volume's tail and intents empty.
func (r *Replica) commit(s *session, m *Message) {
	if m.Committed <= r.committed {
		return
	}
	r.committed = m.Committed
	r.submit(&Task{Kind: TaskCommit, Grant: s.grant, Committed: m.Committed}, job{then: func(*Task) {}})
}
