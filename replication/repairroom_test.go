package replication

import (
	"strings"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
)

// crowded is a volume with an in-sync replica here, and one to be repaired on a
// node that answers no question for room yet.
func crowded(t *testing.T, change func(*Config)) *rig {
	t.Helper()
	g := served(t, states{in, stale}, change)
	g.changes[rigID(0)], g.allocs[rigID(0)] = []holdfast.Extent{blocks(0, 32)}, []holdfast.Extent{blocks(0, 32)}
	g.greet(1, Welcome{Room: true}).holding(MsgRoom, MsgTrim) // the source has zeros
	g.settleDown(300 * time.Millisecond)
	return g
}

// asked takes the questions for room that replica i was sent, and answers them.
func (g *rig) asked(i int) (bytes int64) {
	g.t.Helper()
	for g.sent(i, MsgRoom) > 0 {
		m := g.take(i, MsgRoom)
		bytes += m.Length
		g.answer(i, m, StatusOK)
		g.serve()
	}
	return bytes
}

func TestARepairAsksForRoomBeforeItLocks(t *testing.T) {
	g := crowded(t, nil)
	g.settleDown(time.Second)
	if g.sent(1, MsgRoom) != 1 {
		t.Fatalf("asked for room %d times", g.sent(1, MsgRoom))
	}
	if m := g.conn(1).sent[0]; m.Length <= 0 || m.Offset != 32<<12 {
		t.Errorf("%d bytes were asked for with %d left, which are %d", m.Length, m.Offset, 32<<12)
	}
	s := g.p.Status().Peers[1]
	if g.sent(1, MsgTrim) != 0 || s.LeftBytes == 0 {
		t.Fatalf("it copies without room: %+v", s)
	}
	if !strings.Contains(s.WaitingFor, "node n1 to have room") {
		t.Errorf("the repair waits for %q", s.WaitingFor)
	}
	w := g.submit(OpWrite, blocks(0, 32))
	g.serve()
	g.must(w, "a write waits for a repair that waits")
	g.asked(1)
	g.conn(1).hold = map[MsgType]bool{}
	g.settleDown(3 * time.Second)
	if g.state(1) != in {
		t.Fatalf("it is not repaired: %+v", g.p.Status())
	}
	if w := g.p.Status().Peers[1].WaitingFor; w != "" {
		t.Errorf("it still waits for %s", w)
	}
}

// TestARepairKeepsToTheRoomItHas: no more is copied than was granted, and little
// more is asked for than is copied.
func TestARepairKeepsToTheRoomItHas(t *testing.T) {
	const chunk, depth = 4 << 12, 2
	g := crowded(t, func(c *Config) { c.RepairChunk, c.RepairDepth = chunk, depth })
	var granted, copied int64
	for n := 0; n < 100 && g.state(1) != in; n++ {
		for g.sent(1, MsgTrim) > 0 {
			m := g.take(1, MsgTrim)
			copied += m.Length
			g.answer(1, m, StatusOK)
			g.serve()
		}
		if copied > granted {
			t.Fatalf("%d bytes were copied of %d granted", copied, granted)
		}
		if g.sent(1, MsgTrim) == 0 && g.sent(1, MsgRoom) > 0 {
			m := g.take(1, MsgRoom)
			granted += m.Length
			g.answer(1, m, StatusOK)
		}
		g.settleDown(50 * time.Millisecond)
	}
	if g.state(1) != in || copied != 32<<12 || granted < copied || granted > copied+2*depth*chunk {
		t.Fatalf("%d bytes were granted, %d copied: %+v", granted, copied, g.p.Status().Peers[1])
	}
}

// TestALostTargetIsAskedAnew: what was granted to a repair ends with it.
func TestALostTargetIsAskedAnew(t *testing.T) {
	g := crowded(t, nil)
	g.lost(1)
	g.settleDown(2 * time.Second)
	g.greet(1, Welcome{Room: true}).holding(MsgRoom)
	g.settleDown(300 * time.Millisecond)
	if g.sent(1, MsgRoom) != 1 {
		t.Fatalf("asked for room %d times", g.sent(1, MsgRoom))
	}
	g.conn(1).hold = map[MsgType]bool{}
	g.settleDown(3 * time.Second)
	if g.state(1) != in {
		t.Fatalf("it is not repaired: %+v", g.p.Status())
	}
}

// TestASourceElsewhereIsAskedToo: with nothing left, as it is no target.
func TestASourceElsewhereIsAskedToo(t *testing.T) {
	g := newRig(t, states{stale, in}, nil)
	g.changes[rigID(1)] = []holdfast.Extent{blocks(0, 32)}
	g.greet(1, Welcome{Room: true}).holding(MsgRoom)
	g.serve()
	g.settleDown(time.Second)
	g.greet(0, Welcome{Room: true}) // the primary's own node: its budget is asked directly
	g.settleDown(time.Second)
	if g.sent(1, MsgRoom) != 1 || g.state(0) == in {
		t.Fatalf("the source was asked for room %d times: %+v", g.sent(1, MsgRoom), g.p.Status())
	}
	if m := g.conn(1).sent[0]; m.Offset != 0 {
		t.Errorf("%d bytes are left at the source", m.Offset)
	}
	g.conn(1).hold = map[MsgType]bool{}
	g.asked(1)
	g.settleDown(3 * time.Second)
	if g.state(0) != in {
		t.Fatalf("it is not repaired: %+v", g.p.Status())
	}
}

// TestAReplicaWithoutLimitsIsNotAsked: it would not know what that is.
func TestAReplicaWithoutLimitsIsNotAsked(t *testing.T) {
	g := served(t, states{in, stale}, nil)
	g.changes[rigID(0)] = []holdfast.Extent{blocks(0, 32)}
	g.greet(1, Welcome{}).holding(MsgRoom)
	g.settleDown(3 * time.Second)
	if g.sent(1, MsgRoom) != 0 || g.state(1) != in {
		t.Fatalf("asked for room %d times: %+v", g.sent(1, MsgRoom), g.p.Status())
	}
}

// doorkeeper is a node's limits as one replica sees them.
type doorkeeper struct {
	open  bool
	left  int64
	again func()
}

func (d *doorkeeper) room(_, left int64, again func()) bool {
	d.left, d.again = left, again
	return d.open
}

func TestAReplicaAnswersWhenThereIsRoom(t *testing.T) {
	d := &doorkeeper{}
	b := newBay(t, Promise{})
	b.r.cfg.Room = d.room
	c, w := b.open(5, 5, holdfast.ClientPrimary)
	if !w.Room {
		t.Fatal("the primary is not told to ask")
	}
	ask := func() { b.send(c, &Message{Type: MsgRoom, Epoch: 5, Length: 4096, Offset: 8192}) }
	ask()
	d.again()
	if len(c.sent) != 0 || d.left != 8192 {
		t.Fatalf("answered without room, with %d left: %+v", d.left, c.sent)
	}
	b.send(c, &Message{Type: MsgPing, Epoch: 5})
	b.finish()
	if len(c.sent) != 1 || c.sent[0].Type != MsgPing {
		t.Fatalf("a ping waits for room: %+v", c.sent)
	}
	// It may come while an epoch is being made durable: the answer is of the old one.
	b.send(c, &Message{Type: MsgEpoch, Epoch: 6, Record: &holdfast.Record{ID: "vol", Epoch: 6}})
	d.open = true
	d.again()
	if m := c.sent[len(c.sent)-1]; len(c.sent) != 2 || m.Type != MsgRoom || m.ID != 2 || m.Epoch != 5 || m.Status != StatusOK {
		t.Fatalf("the answer is %+v", m)
	}
	b.finish()
	// Of a session that has ended nobody wants to know.
	d.open = false
	b.send(c, &Message{Type: MsgRoom, Epoch: 6, Length: 4096})
	n := len(c.sent)
	c2, _ := b.open(7, 7, holdfast.ClientPrimary)
	d.open = true
	d.again()
	if len(c.sent) != n || len(c2.sent) != 0 {
		t.Fatalf("answered: %+v, %+v", c.sent, c2.sent)
	}
	for _, bad := range []*Message{{}, {Length: -1}, {Length: maxRoom + 1}, {Length: 1, Offset: -1}} {
		bad.Type, bad.Epoch = MsgRoom, 7
		b.send(c2, bad)
		if m := c2.sent[len(c2.sent)-1]; m.Status != StatusInvalid {
			t.Errorf("%+v is answered with status %d", bad, m.Status)
		}
	}
}
