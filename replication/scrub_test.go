package replication

import (
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/buf"
)

// copies are the replicas of a rig with content: one byte stands for what a
// block of HashBlock bytes holds.
type copies struct {
	*rig
	n    int
	data [][]byte
	hash int // hashes asked for
	// marked is what the replicas were told to mark.
	marked extentSet
}

const rigHashBlocks = rigBlocks << 12 / HashBlock

func withCopies(t *testing.T, st states, change func(*Config)) *copies {
	c := &copies{rig: served(t, st, change), n: len(st)}
	for range st {
		c.data = append(c.data, []byte{1, 2, 3, 4})
	}
	for i := range st {
		if c.conn(i) != nil {
			c.own(i)
		}
	}
	return c
}

func (c *copies) own(i int) {
	c.conn(i).holding(MsgAllocated, MsgHash, MsgRead, MsgWrite, MsgTrim, MsgEpoch)
}

// answerHeld answers one message in the name of the content; false if none waits.
func (c *copies) answerHeld(i int) bool {
	conn := c.conn(i)
	if conn == nil || conn.closed || len(conn.sent) == 0 {
		return false
	}
	m := conn.sent[0]
	conn.sent = conn.sent[1:]
	at := m.Offset / HashBlock
	a := &Message{Type: m.Type, Answer: true, ID: m.ID, Epoch: m.Epoch}
	switch m.Type {
	case MsgAllocated:
		a.Extents = []holdfast.Extent{{Offset: m.Offset, Length: m.Length}}
	case MsgHash:
		c.hash++
		for b := at; b < (m.Offset+m.Length+HashBlock-1)/HashBlock; b++ {
			a.Hashes = append(a.Hashes, Hash{c.data[i][b]})
		}
	case MsgRead:
		a.Buf = buf.Get(int(m.Length))
		for k := range a.Buf.B {
			a.Buf.B[k] = c.data[i][at]
		}
	case MsgWrite:
		c.data[i][at] = m.Buf.B[0]
	case MsgTrim:
		c.data[i][at] = 0
	case MsgEpoch:
		c.marked = union(c.marked, m.Extents)
		c.changes[rigID(i)] = c.marked
	default:
		c.answer(i, m, StatusOK)
		return true
	}
	m.Buf.Release()
	c.p.OnMessage(conn, a)
	return true
}

// settle lets everything go on for a while.
func (c *copies) settle(d time.Duration) {
	for end := c.now + d; c.now < end; c.now += 50 * time.Millisecond {
		for again := true; again; {
			again = false
			c.rig.serve()
			for i := range c.n {
				again = c.answerHeld(i) || again
			}
			for len(c.swaps) > 0 {
				c.commit()
				again = true
			}
		}
		c.p.Tick()
	}
}

func (c *copies) scrub() ScrubStatus { return c.p.Status().Scrub }

func (c *copies) mustBeDone(mismatches, healed int64) {
	c.t.Helper()
	s := c.scrub()
	if s.State != ScrubDone || s.Mismatches != mismatches || s.Healed != healed || s.Unhealed != 0 || s.DoneBytes != s.TotalBytes || s.Blocks != rigHashBlocks {
		c.t.Fatalf("want %d mismatches, %d healed: %+v", mismatches, healed, s)
	}
}

func TestAScrubOfEqualReplicasFindsNothing(t *testing.T) {
	c := withCopies(t, states{in, in, in}, nil)
	c.p.Scrub("a", "")
	c.settle(time.Second)
	c.mustBeDone(0, 0)
	asked := c.hash
	c.p.Scrub("a", "")
	c.settle(time.Second)
	if c.hash != asked {
		t.Fatal("the same scrub is done twice")
	}
	c.p.Scrub("b", "")
	c.settle(time.Second)
	if c.mustBeDone(0, 0); c.hash != 2*asked || c.scrub().ID != "b" {
		t.Fatalf("another scrub is not done: %+v", c.scrub())
	}
}

func TestAScrubHealsFromTheMajority(t *testing.T) {
	for i := range 3 { // also the source of repairs, and the local replica
		c := withCopies(t, states{in, in, in}, nil)
		c.data[i][2] = 0xbd
		c.p.Scrub("a", "")
		c.settle(3 * time.Second)
		c.mustBeDone(1, 1)
		for j := range 3 {
			if c.data[j][2] != 3 || c.state(j) != in {
				t.Fatalf("replica %d was damaged: replica %d holds %x and is %s", i, j, c.data[j][2], c.state(j))
			}
		}
		if got := c.p.Status().Counters.RepairBytes; got != HashBlock {
			t.Fatalf("%d bytes were copied for one block", got)
		}
	}
}

func TestAScrubHealsTwoReplicasOneAfterTheOther(t *testing.T) {
	c := withCopies(t, states{in, in, in, in, in}, nil)
	c.data[0][1], c.data[1][1], c.data[1][3] = 0xbd, 0xbd, 0xbe
	c.p.Scrub("a", "")
	for range 200 {
		c.settle(50 * time.Millisecond)
		if n := len(c.stored.InSyncReplicas()); n < 4 {
			t.Fatalf("only %d replicas are in sync", n)
		}
	}
	if s := c.scrub(); s.State != ScrubDone || s.Unhealed != 0 || s.Healed != s.Mismatches {
		t.Fatalf("%+v", s)
	}
	for j := range 5 {
		if c.data[j][1] != 2 || c.data[j][3] != 4 {
			t.Fatalf("replica %d holds %x", j, c.data[j])
		}
	}
}

func TestWithoutAMajorityTheOneInSyncForLongestIsRight(t *testing.T) {
	c := withCopies(t, states{in, in}, func(cfg *Config) {
		cfg.Record.Replicas[0].Since, cfg.Record.Replicas[1].Since = 7, 3
	})
	c.data[0][0] = 0xbd
	c.p.Scrub("a", "")
	c.settle(3 * time.Second)
	c.mustBeDone(1, 1)
	if c.data[0][0] != 1 || c.data[1][0] != 1 {
		t.Fatalf("%x %x", c.data[0], c.data[1])
	}
}

// What differs only because it is being written is no damage, and is looked at
// again only when the write is over.
func TestAWriteUnderWayIsNoMismatch(t *testing.T) {
	c := withCopies(t, states{in, in}, nil)
	w := c.submit(OpWrite, blocks(16, 16))
	for k := range w.r.Buf.B {
		w.r.Buf.B[k] = 9
	}
	c.rig.serve()
	first := c.take(0, MsgWrite) // is applied on one
	c.data[0][1] = 9
	c.answer(0, first, StatusOK)
	late := c.take(1, MsgWrite)
	c.p.Scrub("a", "")
	c.settle(time.Second)
	c.mustWait(w, "one replica has not answered")
	if s := c.scrub(); s.State != ScrubRunning || s.Mismatches != 0 {
		t.Fatalf("%+v", s)
	}
	c.data[1][1] = 9
	c.answer(1, late, StatusOK)
	c.must(w, "both have answered")
	c.settle(time.Second)
	c.mustBeDone(0, 0)
}

// A scrub holds no range while it compares, and only the differing block while
// it looks again.
func TestAScrubDoesNotLockTheVolume(t *testing.T) {
	c := withCopies(t, states{in, in}, nil)
	c.p.Scrub("a", "")
	for _, i := range []int{0, 1} {
		c.answerHeld(i) // allocated
	}
	if len(c.p.locks.held) != 0 || c.sent(0, MsgHash) != 1 {
		t.Fatalf("held %d, sent %v", len(c.p.locks.held), kinds(c.conn(0).sent))
	}
	c.data[1][3] = 0xbd
	for _, i := range []int{0, 1} {
		c.answerHeld(i)
	}
	if len(c.p.locks.held) != 1 || c.p.locks.held[0].ext != (holdfast.Extent{Offset: 3 * HashBlock, Length: HashBlock}) {
		t.Fatalf("held %+v", c.p.locks.held)
	}
	c.p.CancelScrub()
	if s := c.scrub(); s.State != ScrubCancelled {
		t.Fatalf("%+v", s)
	}
	c.settle(time.Second)
	if len(c.p.locks.held) != 0 || c.state(1) != in {
		t.Fatalf("after it was cancelled: %d ranges held, the replica is %s", len(c.p.locks.held), c.state(1))
	}
}

func TestAScrubWaitsForASecondReplica(t *testing.T) {
	c := withCopies(t, states{in, in}, nil)
	c.lost(1)
	c.settle(time.Second)
	c.p.Scrub("a", "")
	c.settle(time.Second)
	if s := c.scrub(); s.State != ScrubWaiting || s.WaitingFor == "" || s.Blocks != 0 {
		t.Fatalf("%+v", s)
	}
	c.changes[rigID(0)] = nil
	c.greet(1, Welcome{})
	c.own(1)
	c.settle(3 * time.Second)
	c.mustBeDone(0, 0)
}

// A replica that is lost while it answers is not damaged.
func TestAScrubBeginsAWindowAgainWhenTheMembershipChanges(t *testing.T) {
	c := withCopies(t, states{in, in, in}, nil)
	c.data[2][0] = 0xbd
	c.p.Scrub("a", "")
	for i := range 3 {
		c.answerHeld(i)
	}
	c.answerHeld(0)
	c.lost(2)
	c.settle(4 * time.Second)
	c.mustBeDone(0, 0)
	if c.state(2) != stale || len(c.marked) != 0 {
		t.Fatalf("%s, marked %v", c.state(2), c.marked)
	}
}

// Mending what never gets well ends.
func TestAScrubEndsThoughADiskGarblesAgain(t *testing.T) {
	c := withCopies(t, states{in, in, in}, nil)
	c.p.Scrub("a", "")
	for range 400 {
		c.data[1][2] = 0xbd
		c.settle(50 * time.Millisecond)
	}
	if s := c.scrub(); s.State != ScrubDone || s.Unhealed != 1 || s.Mismatches != 6 {
		t.Fatalf("%+v", s)
	}
}

func TestAScrubKeepsToItsRate(t *testing.T) {
	const rate = 64 << 10 // a block a second
	c := withCopies(t, states{in, in}, func(cfg *Config) { cfg.ScrubRate = rate })
	c.settle(100 * time.Millisecond)
	c.p.scrubs.pace.tokens = -rate
	c.p.Scrub("a", "")
	c.settle(500 * time.Millisecond)
	if s := c.scrub(); s.State != ScrubRunning || c.hash != 0 {
		t.Fatalf("%d hashes: %+v", c.hash, s)
	}
	c.settle(time.Second)
	c.mustBeDone(0, 0)
}

// budget is a node's budget that has nothing until it is filled.
type budget struct {
	full  bool
	again []func()
}

func (b *budget) Turn(holdfast.ReplicaID) string  { return "" }
func (b *budget) Done(holdfast.ReplicaID)         {}
func (b *budget) Served(Op, int64, time.Duration) {}
func (b *budget) Take(_ int64, again func()) bool {
	if !b.full {
		b.again = append(b.again, again)
	}
	return b.full
}

func TestAScrubWaitsForTheNodesBudget(t *testing.T) {
	c := withCopies(t, states{in, in}, nil)
	b := &budget{}
	c.p.ports.Repairs = b
	c.p.Scrub("a", "")
	c.settle(500 * time.Millisecond)
	if s := c.scrub(); s.State != ScrubRunning || c.hash != 0 || len(b.again) != 1 {
		t.Fatalf("%d hashes, asked %d times: %+v", c.hash, len(b.again), s)
	}
	b.full = true
	b.again[0]()
	c.settle(time.Second)
	c.mustBeDone(0, 0)
}

// Of three replicas one is away, and the two others differ: the one that is in sync
// for longest may be the damaged one. The third decides when it is back.
func TestAScrubWithoutAMajorityWaitsForTheThird(t *testing.T) {
	for wrong := range 2 {
		c := withCopies(t, states{in, in, in}, nil)
		c.lost(2)
		c.settle(time.Second)
		if c.state(2) != stale {
			t.Fatal("the third is not away")
		}
		c.data[wrong][1] = 0xbd
		c.p.Scrub("a", "")
		c.settle(3 * time.Second)
		if s := c.scrub(); s.State != ScrubDone || s.Unhealed != 1 || s.Healed != 0 || s.Mismatches != 1 {
			t.Fatalf("%+v", s)
		}
		if c.state(0) != in || c.state(1) != in || c.data[wrong][1] != 0xbd || c.data[1-wrong][1] != 2 {
			t.Fatalf("%s %s, %x %x", c.state(0), c.state(1), c.data[0], c.data[1])
		}
		c.greet(2, Welcome{})
		c.own(2)
		c.settle(3 * time.Second)
		c.p.Scrub("b", "")
		c.settle(3 * time.Second)
		c.mustBeDone(1, 1)
		for i := range 3 {
			if c.data[i][1] != 2 || c.state(i) != in {
				t.Fatalf("damaged was %d: replica %d holds %x and is %s", wrong, i, c.data[i][1], c.state(i))
			}
		}
	}
}

// One that has never been in sync has nothing of its own to decide with.
func TestAScrubDoesNotWaitForAReplicaThatIsBuilt(t *testing.T) {
	c := withCopies(t, states{in, in, holdfast.New}, func(cfg *Config) {
		cfg.Record.Replicas[1].Since, cfg.Record.Replicas[2].Since = 4, 0
	})
	c.data[1][0] = 0xbd
	c.p.Scrub("a", "")
	c.settle(3 * time.Second)
	c.mustBeDone(1, 1)
	if c.data[1][0] != 1 {
		t.Fatalf("%x", c.data[1])
	}
}

// Three that all differ: no copy is better than another.
func TestAScrubOfThreeDifferentCopiesDropsNobody(t *testing.T) {
	c := withCopies(t, states{in, in, in}, nil)
	c.data[0][1], c.data[1][1], c.data[1][3] = 0xbd, 0xbe, 0xbf
	c.p.Scrub("a", "")
	c.settle(3 * time.Second)
	if s := c.scrub(); s.State != ScrubDone || s.Unhealed != 1 || s.Healed != 1 || s.Mismatches != 2 {
		t.Fatalf("%+v", s)
	}
	if c.data[0][1] != 0xbd || c.data[1][1] != 0xbe || c.data[2][1] != 2 || c.data[1][3] != 4 {
		t.Fatalf("%x", c.data)
	}
}

// An operator may know better, even than the majority.
func TestAScrubBelievesTheDesignatedSource(t *testing.T) {
	c := withCopies(t, states{in, in, in}, nil)
	c.data[0][1], c.data[1][1], c.data[2][3] = 0xbd, 0xbe, 0xbf
	c.p.Scrub("a", c.p.peers[2].rep.ID)
	c.settle(10 * time.Second)
	if s := c.scrub(); s.State != ScrubDone || s.Unhealed != 0 {
		t.Fatalf("%+v, %x", s, c.data)
	}
	for i := range 3 {
		if c.data[i][1] != 2 || c.data[i][3] != 0xbf || c.state(i) != in {
			t.Fatalf("replica %d: %x, %s", i, c.data[i], c.state(i))
		}
	}
}

// Who was named but is away decides nothing, and nobody does instead.
func TestAScrubWithoutItsDesignatedSourceDropsNobody(t *testing.T) {
	c := withCopies(t, states{in, in}, nil)
	c.data[1][1] = 0xbd
	c.p.Scrub("a", "somebody-else")
	c.settle(3 * time.Second)
	if s := c.scrub(); s.State != ScrubDone || s.Unhealed != 1 || s.Healed != 0 || c.data[1][1] != 0xbd {
		t.Fatalf("%+v, %x", s, c.data[1])
	}
}
