package replication

import (
	"errors"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
)

// orders are invariants that break only in a certain order of events, each with that
// order made by hand: the simulation has to come upon it, this does not. A build with
// mutations shows that they notice.
var orders = map[Mutation]func(t *testing.T) error{
	Mutate2AckBeforePromise: ackAfterPromise,
	Mutate3NoWindow:         noReadWithoutWindow,
	Mutate5SendTwice:        sentOnce,
	Mutate6CopiesUntold:     copiesInTails,
}

func TestOrders(t *testing.T) {
	for m, order := range orders {
		if err := order(t); err != nil {
			t.Errorf("order of mutation %d: %v", m, err)
		}
	}
}

func ackAfterPromise(t *testing.T) error {
	g := served(t, states{in, in, in}, nil)
	g.conn(1).holding(MsgEpoch)
	g.conn(2).holding(MsgWrite)
	w := g.submit(OpWrite, blocks(3, 1))
	g.serve()
	g.lost(2)
	g.pass(time.Second)
	g.commit()
	g.serve()
	if w.done {
		return errors.New("a write is acknowledged that no change map names for the replica that lacks it")
	}
	g.conn(1).hold = map[MsgType]bool{}
	g.serve()
	g.must(w, "all have promised")
	return nil
}

func noReadWithoutWindow(t *testing.T) error {
	g := served(t, states{in, in}, func(c *Config) { c.SilentAfter, c.ReadWindow = 6*time.Second, time.Second })
	g.conn(1).holding(MsgPing)
	g.pass(1500 * time.Millisecond)
	r := g.submit(OpRead, blocks(3, 1))
	g.serve()
	if r.done {
		return errors.New("a read is answered though a replica was not heard for longer than the window")
	}
	g.conn(1).hold = map[MsgType]bool{}
	g.serve()
	g.must(r, "it was heard again")
	return nil
}

func sentOnce(t *testing.T) error {
	g := served(t, states{in, in, in}, nil)
	g.conn(1).holding(MsgEpoch)
	g.lost(2)
	g.pass(time.Second)
	w := g.submit(OpWrite, blocks(3, 1)) // held, while a replica is dropped
	g.commit()
	g.serve()
	g.lost(1)
	hello := g.dialed(1)
	g.conn(1).holding(MsgWrite)
	g.welcome(1, hello, Welcome{})
	g.serve()
	if n := g.sent(1, MsgWrite); n != 1 {
		return errors.New("a replica that is back gets a write more than once, and may apply the second after a later write")
	}
	g.conn(1).hold = map[MsgType]bool{}
	g.serve()
	g.must(w, "both have it")
	if s := g.state(2); s != holdfast.Stale {
		t.Errorf("the lost replica is %s", s)
	}
	return nil
}

// copiesInTails: what a take-over copies to one replica stays in its tail until all
// have it. If it is broken off and the source does not come back, nobody else knows
// that the two others differ.
func copiesInTails(t *testing.T) error {
	g := newRig(t, states{in, in, in}, nil)
	g.greet(0, Welcome{Tail: []holdfast.Extent{blocks(1, 1), blocks(9, 1)}})
	g.greet(1, Welcome{}).holding(MsgTrim, MsgFlush)
	g.greet(2, Welcome{}).holding(MsgTrim)
	g.serve()
	seq := uint64(0)
	for range 2 {
		for i := 1; i <= 2; i++ {
			m := g.take(i, MsgTrim)
			if m.Seq == 0 || m.Seq <= m.Committed {
				return errors.New("what was copied to one replica is in no tail, though another may not get it")
			}
			seq = m.Seq
			g.answer(i, m, StatusOK)
		}
		g.serve()
	}
	if m := g.take(1, MsgFlush); m.Committed >= seq {
		return errors.New("the tails forget what was copied before it is durable everywhere")
	}
	g.lost(1)
	for i := range 3 { // all are greeted again
		if _, ok := g.dials[rigID(i)]; ok {
			g.greet(i, Welcome{Tail: []holdfast.Extent{blocks(1, 1)}})
		}
	}
	g.settleDown(2 * time.Second)
	if !g.serving || g.p.committed() < seq {
		t.Errorf("serving %v, committed up to %d of %d: the tails are never forgotten", g.serving, g.p.committed(), seq)
	}
	return nil
}
