package replication

import "github.com/holdfast-storage/holdfast"

// onRecord keeps a newer record of the same epoch. What comes after waits, since
// only one promise may be on its way to the disk at a time.
func (r *Replica) onRecord(s *session, m *Message) {
	s.promising = true
	done := func(t *Task) { r.entered(s, m, s.epoch, t.Err) }
	r.submit(&Task{Kind: TaskPromise, Promise: r.promise, Record: m.Record}, job{then: done})
}

// onEpoch follows the session's primary into a new epoch: the promise and the
// marks are durable before anything that comes after is looked at.
func (r *Replica) onEpoch(s *session, m *Message) {
	if m.Record == nil || m.Epoch <= s.epoch {
		r.refuse(s.conn, m, StatusInvalid)
		return
	}
	if r.failure != nil {
		r.refuse(s.conn, m, StatusFailed)
		return
	}
	s.promising = true
	p := Promise{Epoch: m.Epoch, Grant: s.grant}
	mark := func(t *Task) {
		if t.Err == nil {
			r.promise = t.Promise
			if len(m.Extents) > 0 {
				r.submit(&Task{Kind: TaskMark, Epoch: m.Epoch, Extents: r.within(m.Extents)}, job{then: func(t *Task) { r.entered(s, m, m.Epoch, t.Err) }})
				return
			}
		}
		r.entered(s, m, m.Epoch, t.Err)
	}
	r.submit(&Task{Kind: TaskPromise, Promise: p, Record: m.Record}, job{then: mark})
}

// entered answers a new epoch and then serves what was held.
func (r *Replica) entered(s *session, m *Message, epoch holdfast.Epoch, err error) {
	var st Status
	if err != nil {
		st = r.undone(err)
	}
	if r.session != s {
		return
	}
	s.promising = false
	if st != StatusOK {
		r.refuse(s.conn, m, st)
	} else {
		s.epoch = epoch
		r.answer(s, &Message{Type: m.Type, ID: m.ID})
	}
	r.goOn(s)
}

// alive answers a ping while a record or an epoch is being made durable, which on
// a slow disk takes its time: the process lives. The answer carries the session's
// epoch. Where that is the primary's, nobody newer was promised anything yet, as
// ever (invariant 3); while a newer one is on its way to the disk, the answer does
// not count as one to it, and only breaks the silence.
func (r *Replica) alive(s *session, m *Message) {
	m.Buf.Release()
	r.answer(s, &Message{Type: m.Type, ID: m.ID})
}
