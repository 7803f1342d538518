package replication

import (
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
)

// fakeStore is a Store whose tasks are done when the test says so.
type fakeStore struct {
	state StoreState
	tasks []*Task
}

func (s *fakeStore) State() StoreState { return s.state }
func (s *fakeStore) Submit(t *Task)    { s.tasks = append(s.tasks, t) }

// bay is a Replica in the hands of the test.
type bay struct {
	t     *testing.T
	now   time.Duration
	store *fakeStore
	r     *Replica
	ids   uint64
}

func (b *bay) Now() time.Duration { return b.now }

func newBay(t *testing.T, promise Promise) *bay {
	b := &bay{t: t, now: time.Hour, store: &fakeStore{state: StoreState{Promise: promise, SizeBytes: rigBlocks << 12}}}
	b.r = NewReplica(ReplicaConfig{Cluster: "c", Volume: "vol", Replica: "r0", Clock: b}, b.store)
	return b
}

// done finishes the oldest task.
func (b *bay) done(err error) *Task {
	b.t.Helper()
	if len(b.store.tasks) == 0 {
		b.t.Fatal("no task is in the store")
	}
	t := b.store.tasks[0]
	b.store.tasks = b.store.tasks[1:]
	t.Err = err
	b.r.OnDone(t)
	return t
}

func (b *bay) finish() {
	for len(b.store.tasks) > 0 {
		b.done(nil)
	}
}

func (b *bay) send(c *fakeConn, m *Message) {
	b.ids++
	m.ID = b.ids
	b.r.OnMessage(c, m)
}

func (b *bay) hello(c *fakeConn, epoch, grant holdfast.Epoch, kind holdfast.PrimaryKind) {
	rec := holdfast.Record{ID: "vol", Epoch: epoch, Primary: &holdfast.Primary{Node: "n1", Kind: kind, Grant: grant}}
	b.send(c, &Message{Type: MsgHello, Epoch: epoch, Hello: &Hello{Cluster: "c", Volume: "vol", Replica: "r0", Grant: grant, Record: rec}})
}

// open makes a session and gives its welcome.
func (b *bay) open(epoch, grant holdfast.Epoch, kind holdfast.PrimaryKind) (*fakeConn, *Welcome) {
	b.t.Helper()
	c := &fakeConn{hold: map[MsgType]bool{}}
	b.hello(c, epoch, grant, kind)
	b.finish()
	if len(c.sent) != 1 || c.sent[0].Welcome == nil {
		b.t.Fatalf("not welcomed: %+v", c.sent)
	}
	w := c.sent[0].Welcome
	c.sent = nil
	return c, w
}

func (b *bay) quiet(w *Welcome, want time.Duration) {
	b.t.Helper()
	got := time.Duration(w.QuietNanos)
	if want < 0 && got < 24*time.Hour || want >= 0 && got != want {
		b.t.Fatalf("quiet for %v, not %v", got, want)
	}
}

const longAgo = time.Duration(-1)

func TestQuietCountsFromTheLastAnswerToAnotherGrant(t *testing.T) {
	b := newBay(t, Promise{})
	_, w := b.open(1, 1, holdfast.ClientPrimary)
	b.quiet(w, longAgo) // nobody was ever answered
	b.now += time.Second
	c, w := b.open(2, 2, holdfast.ClientPrimary)
	b.quiet(w, time.Second)
	b.now += time.Second
	b.send(c, &Message{Type: MsgPing, Epoch: 2})
	b.now += time.Second
	_, w = b.open(2, 2, holdfast.ClientPrimary)
	b.quiet(w, 3*time.Second) // the same grant again
	_, w = b.open(3, 3, holdfast.ClientPrimary)
	b.quiet(w, 0)
}

func TestQuietAfterARestartCountsFromIt(t *testing.T) {
	b := newBay(t, Promise{Epoch: 4, Grant: 4})
	b.now += time.Second
	_, w := b.open(5, 5, holdfast.ClientPrimary)
	b.quiet(w, time.Second)
}

func TestAPrimaryThatAnswersNoReadsDoesNotCount(t *testing.T) {
	b := newBay(t, Promise{})
	b.open(1, 1, holdfast.ClientPrimary)
	b.now += time.Second
	c, _ := b.open(2, 2, holdfast.MaintenancePrimary)
	b.now += time.Second
	b.send(c, &Message{Type: MsgPing, Epoch: 2})
	c, w := b.open(3, 3, holdfast.ClientPrimary)
	b.quiet(w, 2*time.Second) // since the client before the maintenance
	b.send(c, &Message{Type: MsgQuiet, Epoch: 3})
	b.send(c, &Message{Type: MsgPing, Epoch: 3})
	_, w = b.open(4, 4, holdfast.ClientPrimary)
	b.quiet(w, 2*time.Second) // the released one does not count, an older one does
	b.now += time.Second
	_, w = b.open(5, 5, holdfast.ClientPrimary)
	b.quiet(w, time.Second)
}

func TestATakeOverWaitsForOlderReadsWhateverTheRecordSaid(t *testing.T) {
	g := newRig(t, states{in, in}, nil)
	g.greet(0, Welcome{QuietNanos: int64(100 * time.Millisecond)})
	g.greet(1, Welcome{QuietNanos: int64(200 * time.Millisecond)})
	g.settleDown(1900 * time.Millisecond)
	if g.serving {
		t.Fatal("an older primary may still answer reads")
	}
	g.settleDown(200 * time.Millisecond)
	if !g.serving {
		t.Fatal("no older primary can answer reads any more")
	}
}

func TestAReleaseTellsThatNoReadIsAnswered(t *testing.T) {
	g := served(t, states{in, in}, nil)
	r := g.submit(OpRead, blocks(0, 1))
	g.p.Release()
	if g.sent(0, MsgQuiet)+g.sent(1, MsgQuiet) > 0 {
		t.Fatal("a read is still under way")
	}
	g.serve()
	g.must(r, "it was under way")
	if len(g.swaps) != 1 || g.swaps[0].Primary != nil {
		t.Fatalf("not given back: %+v", g.swaps)
	}
	g.commit()
	if !g.ended || g.err != nil {
		t.Fatalf("not ended well: %v", g.err)
	}
	g2 := served(t, states{in, in}, nil)
	g2.conn(0).holding(MsgQuiet)
	g2.conn(1).holding(MsgQuiet)
	g2.p.Release()
	if g2.sent(0, MsgQuiet) != 1 || g2.sent(1, MsgQuiet) != 1 {
		t.Fatal("the replicas do not know")
	}
}

func TestMarksBeyondAReplicasEndDoNotFailIt(t *testing.T) {
	b := newBay(t, Promise{})
	c, _ := b.open(1, 1, holdfast.ClientPrimary)
	for _, m := range []*Message{
		{Type: MsgMark, Epoch: 1, Extents: []holdfast.Extent{blocks(rigBlocks-1, 3)}},
		{Type: MsgEpoch, Epoch: 2, Record: &holdfast.Record{ID: "vol", Epoch: 2}, Extents: []holdfast.Extent{blocks(rigBlocks, 1), blocks(2, 1)}},
	} {
		b.send(c, m)
		for len(b.store.tasks) > 0 {
			for _, x := range b.done(nil).Extents {
				if x.End() > rigBlocks<<12 {
					t.Fatalf("%v is marked, beyond the end", x)
				}
			}
		}
		if a := c.sent[len(c.sent)-1]; a.Status != StatusOK {
			t.Fatalf("status %d", a.Status)
		}
	}
}

func TestAFullPoolDoesNotFailAReplicaForGood(t *testing.T) {
	full := holdfast.E("promise", holdfast.NoSpace, "full")
	b := newBay(t, Promise{})
	c := &fakeConn{}
	b.hello(c, 1, 1, holdfast.ClientPrimary)
	b.done(full)
	if b.r.Failure() != nil || c.sent[0].Status != StatusNoSpace {
		t.Fatalf("status %d, failure %v", c.sent[0].Status, b.r.Failure())
	}
	c, _ = b.open(1, 1, holdfast.ClientPrimary)
	b.send(c, &Message{Type: MsgEpoch, Epoch: 2, Record: &holdfast.Record{ID: "vol", Epoch: 2}})
	b.done(full)
	if b.r.Failure() != nil || c.sent[0].Status != StatusNoSpace {
		t.Fatalf("status %d, failure %v", c.sent[0].Status, b.r.Failure())
	}
}

func TestALongListDoesNotOutgrowTheWelcome(t *testing.T) {
	b := newBay(t, Promise{})
	b.store.state.SizeBytes = 1 << 40
	for i := range int64(200_000) {
		b.store.state.Suspects = append(b.store.state.Suspects, holdfast.Extent{Offset: i * 5 << 20, Length: 4 << 20})
	}
	_, w := b.open(1, 1, holdfast.ClientPrimary)
	if len(w.Suspects) > maxListed || len(union(b.store.state.Suspects).minus(union(w.Suspects))) > 0 {
		t.Fatalf("%d extents; some suspects are not among them", len(w.Suspects))
	}
}

func TestAPingTellsTheStoreWhatIsCommitted(t *testing.T) {
	b := newBay(t, Promise{})
	c, _ := b.open(5, 5, holdfast.ClientPrimary)
	b.send(c, &Message{Type: MsgPing, Epoch: 5, Committed: 7})
	if len(b.store.tasks) != 1 || b.store.tasks[0].Kind != TaskCommit || b.store.tasks[0].Committed != 7 {
		t.Fatalf("the store is asked %+v: the tail of an idle volume stays for ever", b.store.tasks)
	}
	b.finish()
	b.send(c, &Message{Type: MsgPing, Epoch: 5, Committed: 7})
	if len(b.store.tasks) != 0 {
		t.Fatal("the store is told twice")
	}
}
