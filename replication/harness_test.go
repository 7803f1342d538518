package replication

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/buf"
)

// rig is a Primary on node n0 whose ports are in the hands of the test: nothing
// arrives, and no time passes, unless the test says so.
type rig struct {
	t       *testing.T
	now     time.Duration
	p       *Primary
	stored  holdfast.Record // in the metadata store
	swaps   []holdfast.Record
	reads   int
	dials   map[holdfast.ReplicaID]uint64
	conns   map[holdfast.ReplicaID]*fakeConn
	boots   map[holdfast.ReplicaID]string
	sizes   map[holdfast.ReplicaID]int64
	changes map[holdfast.ReplicaID][]holdfast.Extent
	allocs  map[holdfast.ReplicaID][]holdfast.Extent // where it is no hole
	serving bool
	ended   bool
	err     error
}

const rigBlocks = 64

// fakeConn is the primary's end of a connection; sent are the messages that
// nobody has answered yet.
type fakeConn struct {
	id     holdfast.ReplicaID
	sent   []*Message
	hold   map[MsgType]bool // serve does not answer these
	closed bool
}

func (c *fakeConn) Send(m *Message) {
	if c.closed {
		m.Buf.Release()
		return
	}
	c.sent = append(c.sent, m)
}

func (c *fakeConn) Close() { c.closed = true }

func (c *fakeConn) holding(kinds ...MsgType) *fakeConn {
	for _, k := range kinds {
		c.hold[k] = true
	}
	return c
}

func (g *rig) Now() time.Duration                       { return g.now }
func (g *rig) Dial(to holdfast.Replica, attempt uint64) { g.dials[to.ID] = attempt }
func (g *rig) Swap(want holdfast.Record)                { g.swaps = append(g.swaps, want) }
func (g *rig) Read()                                    { g.reads++ }
func rigID(i int) holdfast.ReplicaID                    { return holdfast.ReplicaID(fmt.Sprintf("r%d", i)) }
func blocks(first, n int64) holdfast.Extent {
	return holdfast.Extent{Offset: first << 12, Length: n << 12}
}
func (g *rig) conn(i int) *fakeConn              { return g.conns[rigID(i)] }
func (g *rig) peer(i int) *peer                  { return findPeer(g.p.peers, rigID(i)) }
func (g *rig) state(i int) holdfast.ReplicaState { return g.stored.Replica(rigID(i)).State }
func (g *rig) lost(i int)                        { c := g.conn(i); c.closed = true; g.p.OnClosed(c) }

// newRig makes a started primary of a volume with a replica in each state, on
// n0, n1 and so on. change, if any, adjusts record and times.
func newRig(t *testing.T, states []holdfast.ReplicaState, change func(*Config)) *rig {
	t.Helper()
	rec := holdfast.Record{Version: holdfast.RecordVersion, ID: "vol", Name: "vol", Phase: holdfast.PhaseReady, SizeBytes: rigBlocks << 12,
		Epoch: 10, Revision: 100, Primary: &holdfast.Primary{Node: "n0", Kind: holdfast.ClientPrimary, Grant: 10},
		Spec: holdfast.Spec{SizeBytes: rigBlocks << 12, Replicas: len(states)}.WithDefaults()}
	for i, s := range states {
		rep := holdfast.Replica{ID: rigID(i), Node: holdfast.NodeID(fmt.Sprintf("n%d", i)), State: s, Since: 1}
		if s == holdfast.Stale || s == holdfast.Rebuilding {
			rep.Since = 5
		}
		rec.Replicas = append(rec.Replicas, rep)
	}
	cfg := Config{Cluster: "c", Self: "n0", Record: rec}
	if change != nil {
		change(&cfg)
	}
	g := &rig{t: t, now: time.Hour, stored: cfg.Record.Clone(), dials: map[holdfast.ReplicaID]uint64{}, conns: map[holdfast.ReplicaID]*fakeConn{},
		boots: map[holdfast.ReplicaID]string{}, sizes: map[holdfast.ReplicaID]int64{}, changes: map[holdfast.ReplicaID][]holdfast.Extent{}, allocs: map[holdfast.ReplicaID][]holdfast.Extent{}}
	g.p = NewPrimary(cfg, Ports{Clock: g, Dialer: g, Records: g, Events: Events{
		Serving: func() { g.serving = true },
		Ended:   func(err error) { g.ended, g.err = true, err },
	}})
	g.p.Start()
	return g
}

// served is newRig with every replica greeted and the volume served.
func served(t *testing.T, states []holdfast.ReplicaState, change func(*Config)) *rig {
	t.Helper()
	g := newRig(t, states, change)
	for i := range states {
		if states[i] == holdfast.InSync {
			g.greet(i, Welcome{})
		}
	}
	g.serve()
	if !g.serving {
		g.pass(DefaultConfig().AbsentAfter) // those that are not in sync do not answer
	}
	if !g.serving {
		t.Fatalf("not serving: %+v", g.p.Status())
	}
	return g
}

// dialed connects a replica that is being dialled and takes the Hello.
func (g *rig) dialed(i int) *Message {
	g.t.Helper()
	attempt, ok := g.dials[rigID(i)]
	if !ok {
		g.t.Fatalf("replica %d is not being dialled", i)
	}
	delete(g.dials, rigID(i))
	c := &fakeConn{id: rigID(i), hold: map[MsgType]bool{}}
	g.p.OnConnected(attempt, c)
	if c.closed || len(c.sent) != 1 || c.sent[0].Type != MsgHello {
		g.t.Fatalf("replica %d is not greeted: %+v", i, c)
	}
	g.conns[rigID(i)] = c
	m := c.sent[0]
	c.sent = nil
	return m
}

// greet connects a replica and answers the Hello.
func (g *rig) greet(i int, w Welcome) *fakeConn {
	g.t.Helper()
	m := g.dialed(i)
	g.welcome(i, m, w)
	return g.conn(i)
}

func (g *rig) welcome(i int, hello *Message, w Welcome) {
	if w.Boot == "" {
		w.Boot = "boot"
	}
	if w.SizeBytes == 0 {
		w.SizeBytes = rigBlocks << 12
	}
	if w.QuietNanos == 0 {
		w.QuietNanos = int64(time.Hour)
	}
	g.p.OnMessage(g.conn(i), &Message{Type: MsgHello, Answer: true, ID: hello.ID, Epoch: hello.Epoch, Welcome: &w})
}

// take removes the oldest unanswered message of a kind.
func (g *rig) take(i int, kind MsgType) *Message {
	g.t.Helper()
	c := g.conn(i)
	for k, m := range c.sent {
		if m.Type == kind {
			c.sent = slices.Delete(c.sent, k, k+1)
			return m
		}
	}
	g.t.Fatalf("replica %d was not sent a message of type %d; it was sent %v", i, kind, kinds(c.sent))
	return nil
}

// sent counts the unanswered messages of a kind.
func (g *rig) sent(i int, kind MsgType) int {
	n := 0
	for _, m := range g.conn(i).sent {
		if m.Type == kind {
			n++
		}
	}
	return n
}

func kinds(ms []*Message) []MsgType {
	var out []MsgType
	for _, m := range ms {
		out = append(out, m.Type)
	}
	return out
}

// answer answers a message well, or as status says.
func (g *rig) answer(i int, m *Message, status Status) {
	a := &Message{Type: m.Type, Answer: true, ID: m.ID, Epoch: m.Epoch, Status: status}
	switch {
	case status != StatusOK:
	case m.Type == MsgRead:
		a.Buf = m.Buf.Retain()
		if a.Buf == nil {
			a.Buf = buf.Get(int(m.Length))
			clear(a.Buf.B)
		}
	case m.Type == MsgHash:
		a.Hashes = make([]Hash, (m.Length+HashBlock-1)/HashBlock)
	case m.Type == MsgAllocated:
		a.Extents = g.allocs[rigID(i)]
	case m.Type == MsgChanged:
		a.Extents = g.changes[rigID(i)]
	}
	m.Buf.Release()
	g.p.OnMessage(g.conn(i), a)
}

// serve answers all messages that are not held, until there are none.
func (g *rig) serve() {
	for again := true; again; {
		again = false
		for i := range len(g.conns) + len(g.p.peers) {
			c := g.conns[rigID(i)]
			if c == nil || c.closed {
				continue
			}
			k := slices.IndexFunc(c.sent, func(m *Message) bool { return !c.hold[m.Type] })
			if k >= 0 {
				m := c.sent[k]
				c.sent = slices.Delete(c.sent, k, k+1)
				g.answer(i, m, StatusOK)
				again = true
			}
		}
	}
}

// commit lets the oldest swap succeed, or fail as Busy, as the store decides.
func (g *rig) commit() {
	g.t.Helper()
	want := g.swapped()
	if !g.land(want) {
		g.p.OnSwap(g.stored.Clone(), holdfast.Busy)
		return
	}
	g.p.OnSwap(g.stored.Clone(), nil)
}

// swapped takes the oldest swap.
func (g *rig) swapped() holdfast.Record {
	g.t.Helper()
	if len(g.swaps) == 0 {
		g.t.Fatalf("no swap was asked for: %+v", g.p.Status())
	}
	want := g.swaps[0]
	g.swaps = g.swaps[1:]
	return want
}

// land applies a swap in the store, without a word to the primary.
func (g *rig) land(want holdfast.Record) bool {
	if want.Revision != g.stored.Revision {
		return false
	}
	g.stored = want.Clone()
	g.stored.Revision++
	return true
}

// control changes the record as the controller does, and shows it in the watch.
func (g *rig) control(change func(*holdfast.Record)) {
	next := g.stored.Clone()
	change(&next)
	g.land(next)
	g.p.OnRecord(g.stored.Clone())
}

// pass lets time pass, ticking and answering.
func (g *rig) pass(d time.Duration) {
	for end := g.now + d; g.now < end; {
		g.serve()
		g.now += 50 * time.Millisecond
		g.p.Tick()
	}
	g.serve()
}

// result is what came of a request.
type result struct {
	done bool
	err  error
	r    *Request
}

func (g *rig) submit(op Op, x holdfast.Extent) *result {
	res := &result{}
	r := &Request{Op: op, Offset: x.Offset, Length: x.Length}
	if op == OpWrite || op == OpRead {
		r.Buf = buf.Get(int(x.Length))
		clear(r.Buf.B)
	}
	res.r = r
	r.Done = func(_ *Request, err error) {
		if res.done {
			g.t.Error("a request is done twice")
		}
		res.done, res.err = true, err
	}
	g.p.Submit(r)
	return res
}

func (g *rig) must(res *result, why string) {
	g.t.Helper()
	if !res.done || res.err != nil {
		g.t.Fatalf("%s: done %v, error %v; %+v", why, res.done, res.err, g.p.Status())
	}
}

func (g *rig) mustWait(res *result, why string) {
	g.t.Helper()
	if res.done {
		g.t.Fatalf("%s: it is done, error %v", why, res.err)
	}
}

var (
	in    = holdfast.InSync
	stale = holdfast.Stale
)

func TestAWriteIsDoneWhenAllHaveAnswered(t *testing.T) {
	g := served(t, []holdfast.ReplicaState{in, in}, nil)
	g.conn(1).holding(MsgWrite)
	w := g.submit(OpWrite, blocks(3, 1))
	g.serve()
	g.mustWait(w, "one replica has not answered")
	m := g.take(1, MsgWrite)
	g.answer(1, m, StatusOK)
	g.must(w, "both have answered")
}
