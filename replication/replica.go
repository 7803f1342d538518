package replication

import (
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/buf"
)

// ReplicaConfig says which replica a Replica is.
type ReplicaConfig struct {
	Cluster holdfast.ClusterID
	Volume  holdfast.VolumeID
	Replica holdfast.ReplicaID
	Clock   Clock
	// Room, if set, says whether its node has room for n bytes more that a repair
	// by a primary elsewhere copies to or from this replica; left is what the repair
	// has left to copy to it, 0 at the source. If there is none, it says false and
	// calls again, once, as an event of the machine, when it is worth asking again.
	// In the end it says true.
	Room func(n, left int64, again func()) bool
}

// Replica is the state machine that stands before one store: it serves the
// session of the highest epoch it has promised, and refuses everybody else
// (invariant 1).
type Replica struct {
	cfg     ReplicaConfig
	store   Store
	promise Promise // durable
	highest Promise // durable or on its way to the disk
	size    int64

	session *session
	hello   *greeting // the newest Hello that waits for older tasks and the promise
	active  int       // tasks in the store
	failure error     // the store has failed: nothing is served any more
	closed  bool

	// When an answer was last given to a primary that answers reads, to whom, and
	// when last to any other grant: see Welcome.QuietNanos.
	answered      time.Duration
	answeredGrant holdfast.Epoch
	otherAnswered time.Duration
	committed     uint64
}

// session is the one primary that is served.
type session struct {
	conn  Conn
	epoch holdfast.Epoch
	grant holdfast.Epoch
	quiet bool // its primary answers no reads
	// held are messages that came while a record or a new epoch is being made
	// durable; pings are answered.
	promising bool
	taking    bool // a snapshot is being taken: only pings and reads are served
	held      []*Message
}

// greeting is a Hello on its way to become the session.
type greeting struct {
	conn Conn
	m    *Message
}

// job is what a task was submitted for.
type job struct {
	session  *session
	greeting *greeting
	m        *Message
	then     func(t *Task) // instead of an answer
}

// maxListed bounds the lists of a Welcome, which must fit into one message:
// longer ones are told more coarsely.
const maxListed = 16 << 10

// never is before any answer.
const never = time.Duration(-1 << 60)

// NewReplica makes the machine over an opened store.
func NewReplica(cfg ReplicaConfig, store Store) *Replica {
	st := store.State()
	now := cfg.Clock.Now() // until which an earlier process may have answered
	if st.Promise == (Promise{}) {
		now = never
	}
	return &Replica{cfg: cfg, store: store, promise: st.Promise, highest: st.Promise, size: st.SizeBytes,
		answered: now, otherAnswered: now, answeredGrant: st.Promise.Grant}
}

// Promise is the replica's durable word.
func (r *Replica) Promise() Promise { return r.promise }

// Failure is why the replica serves nothing any more; nil while it does.
func (r *Replica) Failure() error { return r.failure }

// Idle says whether no task is in the store.
func (r *Replica) Idle() bool { return r.active == 0 }

// Close ends the session; tasks in the store still report to OnDone.
func (r *Replica) Close() {
	r.closed = true
	r.cut()
	if r.hello != nil {
		r.hello.conn.Close()
		r.hello = nil
	}
}

// OnClosed is the event that a connection is gone.
func (r *Replica) OnClosed(c Conn) {
	if r.session != nil && r.session.conn == c {
		r.drop(r.session)
		r.session = nil
	}
	if r.hello != nil && r.hello.conn == c {
		r.hello = nil
	}
}

// OnMessage is the event that a message came in.
func (r *Replica) OnMessage(c Conn, m *Message) {
	if r.closed {
		m.Buf.Release()
		c.Close()
		return
	}
	if m.Type == MsgHello {
		r.onHello(c, m)
		return
	}
	s := r.session
	switch {
	case s == nil || s.conn != c:
		r.refuse(c, m, StatusFenced)
	case s.promising && m.Type == MsgPing && m.Epoch >= s.epoch:
		r.alive(s, m)
	case s.promising || s.taking && m.Type != MsgPing && m.Type != MsgRead:
		s.held = append(s.held, m)
	default:
		r.serve(s, m)
	}
}

// refuse answers without doing anything.
func (r *Replica) refuse(c Conn, m *Message, st Status) {
	m.Buf.Release()
	c.Send(&Message{Type: m.Type, Answer: true, Status: st, ID: m.ID, Epoch: r.promise.Epoch})
}

// onHello takes a greeting if nobody newer was promised; it becomes the session
// when all older tasks are done and the promise is durable.
func (r *Replica) onHello(c Conn, m *Message) {
	h := m.Hello
	if h == nil || h.Cluster != r.cfg.Cluster || h.Volume != r.cfg.Volume || h.Replica != r.cfg.Replica ||
		h.Grant == 0 || h.Grant > m.Epoch {
		r.refuse(c, m, StatusInvalid)
		return
	}
	if r.failure != nil {
		r.refuse(c, m, StatusFailed)
		return
	}
	// Invariant 1: promises never go back. An epoch belongs to one grant, so the
	// same epoch is the same primary calling again.
	newest := r.highest
	if r.hello != nil {
		newest = Promise{Epoch: r.hello.m.Epoch, Grant: r.hello.m.Hello.Grant}
	}
	if mutant(Mutate1AcceptOlder) {
		newest = Promise{}
	}
	if st := r.refusal(newest, m); st != StatusOK {
		c.Send(&Message{Type: m.Type, Answer: true, Status: st, ID: m.ID, Epoch: newest.Epoch})
		return
	}
	if r.session != nil && r.session.conn == c {
		r.session.conn = nil // the same connection greets again: keep it open
	}
	r.cut()
	if r.hello != nil && r.hello.conn != c {
		r.hello.conn.Close()
	}
	r.hello = &greeting{conn: c, m: m}
	r.advance()
}

// cut ends the present session. Its tasks in flight still run; their answers go
// nowhere.
func (r *Replica) cut() {
	if r.session == nil {
		return
	}
	r.drop(r.session)
	if r.session.conn != nil {
		r.session.conn.Close()
	}
	r.session = nil
}

// drop lets go of what a session holds.
func (r *Replica) drop(s *session) {
	for _, m := range s.held {
		m.Buf.Release()
	}
	s.held = nil
}

// advance makes the promise for the waiting Hello once the store is idle, so
// that no write of an older session can be applied after the answer.
func (r *Replica) advance() {
	g := r.hello
	if g == nil || r.active > 0 && !mutant(Mutate1NoDrain) {
		return
	}
	p := Promise{Epoch: g.m.Epoch, Grant: g.m.Hello.Grant}
	r.submit(&Task{Kind: TaskPromise, Promise: p, Record: &g.m.Hello.Record}, job{greeting: g, then: r.promised})
}

// promised welcomes the primary, unless a newer one has called meanwhile.
func (r *Replica) promised(t *Task) {
	g := t.job.greeting
	if t.Err != nil {
		st := r.undone(t.Err)
		if r.hello == g {
			r.hello = nil
			r.refuse(g.conn, g.m, st)
		}
		return
	}
	r.promise = t.Promise
	if r.hello != g {
		return // replaced or closed; OnDone advances the newer one
	}
	r.hello = nil
	r.open(g)
}

// open starts the session and answers with what a new primary must know.
func (r *Replica) open(g *greeting) {
	grant := g.m.Hello.Grant
	if r.answeredGrant != grant {
		r.otherAnswered = max(r.otherAnswered, r.answered)
		r.answeredGrant, r.committed = grant, 0
	}
	now := r.cfg.Clock.Now()
	by := g.m.Hello.Record.Primary
	r.session = &session{conn: g.conn, epoch: g.m.Epoch, grant: grant, quiet: by != nil && by.Kind == holdfast.MaintenancePrimary}
	st := r.store.State()
	r.size = st.SizeBytes
	w := &Welcome{Boot: st.Boot, SizeBytes: st.SizeBytes, MapSince: st.MapSince, Tail: union(st.Tail).coarsen(maxListed, r.size),
		Suspects: union(st.Suspects).coarsen(maxListed, r.size), QuietNanos: int64(now - r.otherAnswered), Progress: &st.Progress, Snapshots: st.Snapshots, Room: r.cfg.Room != nil}
	r.answer(r.session, &Message{Type: MsgHello, ID: g.m.ID, Welcome: w})
}

// serve acts on a message of the session.
func (r *Replica) serve(s *session, m *Message) {
	if m.Type == MsgEpoch {
		r.onEpoch(s, m)
		return
	}
	switch {
	case m.Epoch < s.epoch:
		r.refuse(s.conn, m, StatusFenced)
		return
	case m.Epoch != s.epoch || !r.sensible(m):
		r.refuse(s.conn, m, StatusInvalid)
		return
	case r.failure != nil:
		r.refuse(s.conn, m, StatusFailed)
		return
	}
	if m.Type == MsgRecord {
		r.onRecord(s, m)
		return
	}
	if m.Type == MsgRoom {
		r.room(s, m)
		return
	}
	t := r.task(s, m)
	if t == nil { // a ping, or the same with a last word
		if m.Type == MsgQuiet {
			s.quiet, r.answered = true, never
		}
		r.commit(s, m)
		r.answer(s, &Message{Type: m.Type, ID: m.ID})
		return
	}
	if t.Kind == TaskSnapshot {
		s.taking = true
	}
	r.submit(t, job{session: s, m: m})
}

// sensible checks a message's arguments before the store sees them.
func (r *Replica) sensible(m *Message) bool {
	aligned := m.Offset >= 0 && m.Length > 0 && m.Offset%holdfast.BlockSize == 0 && m.Length%holdfast.BlockSize == 0
	inside := aligned && m.Offset <= r.size && m.Length <= r.size-m.Offset
	switch m.Type {
	case MsgWrite:
		return m.Buf != nil && inside && int64(len(m.Buf.B)) == m.Length
	case MsgRead:
		return inside && m.Length <= MaxData && (m.Buf == nil || int64(len(m.Buf.B)) == m.Length)
	case MsgHash:
		return inside && m.Offset%HashBlock == 0 && m.Length <= MaxHashes*HashBlock
	case MsgTrim, MsgAllocated:
		return inside
	case MsgGrow:
		return m.Length > 0 && m.Length%holdfast.BlockSize == 0
	case MsgRecord:
		return m.Record != nil
	case MsgRoom:
		return sensibleRoom(m)
	case MsgProgress:
		return m.Progress != nil && m.Progress.Sound()
	case MsgPing, MsgQuiet, MsgFlush, MsgChanged, MsgMark, MsgSettle:
		return true
	}
	return r.sensibleSnapshot(m, inside)
}

// task translates a message; nil for those that are not for the store.
func (r *Replica) task(s *session, m *Message) *Task {
	t := &Task{Epoch: s.epoch, Grant: s.grant, Seq: m.Seq, Committed: m.Committed, FUA: m.FUA,
		Offset: m.Offset, Length: m.Length, Since: m.Since, Extents: m.Extents, Buf: m.Buf, Copied: m.Copied}
	t.about(m.Snapshot)
	switch m.Type {
	case MsgWrite:
		t.Kind, r.committed = TaskWrite, max(r.committed, m.Committed)
	case MsgTrim:
		t.Kind, r.committed = TaskTrim, max(r.committed, m.Committed)
	case MsgRestore:
		t.Kind, r.committed = TaskRestore, max(r.committed, m.Committed)
	case MsgRead, MsgSnapRead:
		t.Kind = TaskRead
		if m.Buf == nil { // a primary in the same process hands in its own
			t.Buf = buf.Get(int(m.Length))
		}
	case MsgFlush:
		t.Kind = TaskFlush
	case MsgChanged:
		t.Kind = TaskChanged
	case MsgAllocated, MsgSnapAllocated:
		t.Kind = TaskAllocated
	case MsgHash, MsgSnapHash:
		t.Kind = TaskHash
	case MsgSnapshot:
		t.Kind = TaskSnapshot
	case MsgDropSnapshot:
		t.Kind = TaskDropSnapshot
	case MsgDiff:
		t.Kind = TaskDiff
	case MsgMark:
		t.Kind, t.Extents = TaskMark, r.within(m.Extents)
	case MsgGrow:
		t.Kind = TaskGrow
	case MsgSettle:
		t.Kind = TaskSettle
	case MsgProgress:
		t.Kind, t.Progress = TaskProgress, m.Progress
	default:
		return nil
	}
	return t
}

// submit hands a task to the store.
func (r *Replica) submit(t *Task, j job) {
	if t.Kind == TaskPromise {
		r.highest = t.Promise
	}
	t.job = j
	r.active++
	if t.Kind == TaskPromise && mutant(Mutate10KeepOldRecord) {
		if old := r.store.State().Record; old.Version != 0 {
			t.Record = &old
		}
	}
	t.FUA = t.FUA && !mutant(Mutate4IgnoreFUA)
	if t.Kind == TaskPromise && mutant(Mutate1ForgetPromise) || t.Kind == TaskFlush && mutant(Mutate4FlushNothing) {
		t.Kind = TaskCommit
	}
	r.store.Submit(t)
}

// OnDone is the event that the store has finished a task.
func (r *Replica) OnDone(t *Task) {
	j := t.job
	r.active--
	if j.then != nil {
		j.then(t)
	} else {
		r.done(j, t)
	}
	r.advance()
}

// done answers the message that a task was for.
func (r *Replica) done(j job, t *Task) {
	if t.Kind == TaskWrite {
		t.Buf.Release()
	}
	a := &Message{Type: j.m.Type, ID: j.m.ID, Offset: t.Offset, Length: t.Length}
	switch {
	case t.Err == nil:
	case t.Kind == TaskChanged && holdfast.KindOf(t.Err) == holdfast.NotFound:
		a.Status = StatusNoMap
	case aboutSnapshot(j.m.Type) && snapshotRefusal(t.Err) != StatusOK:
		a.Status = snapshotRefusal(t.Err)
	default:
		a.Status = r.undone(t.Err)
	}
	switch {
	case t.Kind == TaskRead && t.Err == nil && r.session == j.session:
		a.Buf = t.Buf
	case t.Kind == TaskRead:
		t.Buf.Release()
	case t.Kind == TaskGrow && t.Err == nil:
		r.size = max(r.size, t.Length)
	case t.Kind == TaskDropSnapshot:
		a.More = t.More
	case t.Kind == TaskChanged || t.Kind == TaskAllocated || t.Kind == TaskDiff:
		a.Extents, a.More = page(t.Extents, j.m.Offset)
	case t.Kind == TaskHash:
		a.Hashes = t.Hashes
	}
	if r.session != j.session {
		return
	}
	r.answer(j.session, a)
	if t.Kind == TaskSnapshot {
		j.session.taking = false
		if !j.session.promising {
			r.goOn(j.session)
		}
	}
}

// answer sends an answer in the session's name and notes when.
func (r *Replica) answer(s *session, m *Message) {
	m.Answer, m.Epoch = true, s.epoch
	if !s.quiet {
		r.answered = r.cfg.Clock.Now()
	}
	s.conn.Send(m)
}

// undone is the status for a task that failed. But for a full pool, the store
// cannot be relied on any more (a failed fdatasync is final: field lesson 28).
func (r *Replica) undone(err error) Status {
	if holdfast.KindOf(err) == holdfast.NoSpace {
		return StatusNoSpace
	}
	if r.failure == nil {
		r.failure = err
	}
	return StatusFailed
}
