package replication

import (
	"errors"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
)

// limited is a volume of two replicas whose I/O waits for three seconds at most.
func limited(t *testing.T, change func(*Config)) *rig {
	return served(t, states{in, in}, func(c *Config) {
		c.Record.Spec.IOTimeoutMillis = 3000
		if change != nil {
			change(c)
		}
	})
}

func (g *rig) mustFail(res *result, why string) {
	g.t.Helper()
	if !res.done || !errors.Is(res.err, holdfast.Unavailable) {
		g.t.Fatalf("%s: done %v, error %v; %+v", why, res.done, res.err, g.p.Status())
	}
}

func TestALimitFailsWhatWaitsAndWhatComesLater(t *testing.T) {
	g := limited(t, nil)
	g.conn(1).holding(MsgWrite)
	sent := g.submit(OpWrite, blocks(3, 1))
	behind := g.submit(OpWrite, blocks(3, 1))
	g.serve()
	g.lost(1)
	g.pass(2500 * time.Millisecond) // it is being dropped, and the metadata store does not answer
	held := g.submit(OpFlush, holdfast.Extent{})
	read := g.submit(OpRead, blocks(9, 1))
	for _, r := range []*result{sent, behind, held, read} {
		g.mustWait(r, "the limit is not over")
	}
	g.pass(time.Second)
	g.mustFail(sent, "it was sent, and waits for longer than the limit")
	g.mustFail(behind, "it waits for its range for longer than the limit")
	g.mustWait(held, "its own limit is not over")
	late := g.submit(OpWrite, blocks(20, 1))
	g.mustFail(late, "others have waited in vain for what it would wait for")
	g.mustFail(g.submit(OpRead, blocks(20, 1)), "nothing can be read either")
	if g.ended {
		t.Fatal("the device is gone")
	}
	g.commit()
	g.pass(100 * time.Millisecond)
	g.must(held, "the replica is dropped")
	g.must(read, "the replica is dropped")
	g.must(g.submitServed(OpWrite, blocks(3, 1)), "I/O can go on, in the range of the failed write, too")
	if s := g.p.Status(); s.FailedWrites != 0 || s.Counters.Expired != 4 {
		t.Errorf("%d failed writes are left, %d requests expired", s.FailedWrites, s.Counters.Expired)
	}
}

func (g *rig) submitServed(op Op, x holdfast.Extent) *result {
	r := g.submit(op, x)
	g.serve()
	return r
}

// TestAFailedWriteIsTheSameEverywhere: a write that the application was told of as
// failed goes on: nothing in its range is read or written before all have it, and
// no replica forgets that it may have it alone (invariant 6).
func TestAFailedWriteIsTheSameEverywhere(t *testing.T) {
	g := limited(t, nil)
	g.conn(1).holding(MsgWrite, MsgTrim)
	w := g.submit(OpWrite, blocks(3, 2))
	g.serve()
	g.answer(1, g.take(1, MsgWrite), StatusNoSpace)
	g.pass(3500 * time.Millisecond)
	g.mustFail(w, "the pool is full for longer than the limit")
	if what := g.p.Status().WaitingFor; what == "" {
		t.Error("nothing says that the pool is full")
	}
	read := g.submitServed(OpRead, blocks(4, 1))
	g.mustWait(read, "one replica has the write, the other one does not")
	other := g.submitServed(OpWrite, blocks(30, 1))
	g.pass(100 * time.Millisecond)
	before := g.p.committed() // what the take-over copied has a number, too
	if got := g.p.seq - before; got != 2 {
		t.Errorf("%d of two writes count as not being everywhere", got)
	}
	for g.sent(1, MsgWrite) > 0 { // space again
		g.answer(1, g.take(1, MsgWrite), StatusOK)
	}
	g.pass(600 * time.Millisecond)
	g.must(other, "there is space again")
	g.must(read, "both have the write")
	if g.p.committed() != before+2 || g.p.Status().FailedWrites != 0 {
		t.Errorf("committed up to %d, %d failed writes left", g.p.committed(), g.p.Status().FailedWrites)
	}
}

func TestFailedWritesAreBounded(t *testing.T) {
	g := limited(t, nil)
	g.conn(1).holding(MsgWrite)
	for i := range int64(maxLeft) {
		g.submitServed(OpWrite, blocks(i%rigBlocks, 1))
	}
	g.pass(3500 * time.Millisecond)
	if n := g.p.Status().FailedWrites; n != maxLeft {
		t.Fatalf("%d writes failed", n)
	}
	g.mustFail(g.submitServed(OpWrite, blocks(1, 1)), "too many failed writes are in flight")
	g.must(g.submitServed(OpFlush, holdfast.Extent{}), "a flush needs no memory")
}

func TestADetachDoesNotWaitForAFailedWrite(t *testing.T) {
	g := limited(t, nil)
	g.conn(1).holding(MsgWrite)
	w := g.submit(OpWrite, blocks(3, 2))
	g.serve()
	g.answer(1, g.take(1, MsgWrite), StatusNoSpace)
	g.p.Release()
	g.pass(time.Second)
	if len(g.swaps) > 0 {
		t.Fatal("the volume is given back with a write under way")
	}
	g.pass(3 * time.Second)
	g.mustFail(w, "its limit is over")
	g.commit()
	if !g.ended || g.err != nil || g.stored.Primary != nil {
		t.Errorf("ended %v, error %v, primary %v", g.ended, g.err, g.stored.Primary)
	}
}

func TestAFlushThatFailedDoesNotStopTheNext(t *testing.T) {
	g := limited(t, nil)
	g.conn(1).holding(MsgFlush)
	first := g.submitServed(OpFlush, holdfast.Extent{})
	g.pass(3500 * time.Millisecond)
	g.mustFail(first, "its limit is over")
	g.conn(1).hold = map[MsgType]bool{}
	stale := g.take(1, MsgFlush)
	second := g.submit(OpFlush, holdfast.Extent{})
	g.answer(1, stale, StatusOK)
	g.mustWait(second, "what is answered is the flush before it")
	g.serve()
	g.must(second, "all have flushed")
}

func TestAFailedReadLeavesItsBuffer(t *testing.T) {
	g := limited(t, nil)
	g.conn(0).holding(MsgRead)
	r := g.submit(OpRead, blocks(3, 1))
	before := r.r.Buf
	g.pass(3500 * time.Millisecond)
	g.mustFail(r, "the disk keeps it for longer than the limit")
	if r.r.Buf == before {
		t.Error("the store may still write into the request's buffer")
	}
	g.answer(0, g.take(0, MsgRead), StatusOK)
	g.conn(0).hold = map[MsgType]bool{}
	g.must(g.submitServed(OpRead, blocks(3, 1)), "the disk answers again")
}

func TestAPausedProcessFailsNothing(t *testing.T) {
	g := limited(t, nil)
	g.conn(1).holding(MsgWrite)
	w := g.submitServed(OpWrite, blocks(3, 1))
	g.now += time.Minute // this process was stopped
	g.p.Tick()
	g.mustWait(w, "nobody could do anything for it")
	g.conn(1).hold = map[MsgType]bool{}
	g.serve()
	g.must(w, "all have answered")
}

func TestALimitIsChangedOnline(t *testing.T) {
	g := served(t, states{in, in}, nil)
	g.conn(1).holding(MsgWrite)
	w := g.submitServed(OpWrite, blocks(3, 2))
	g.answer(1, g.take(1, MsgWrite), StatusNoSpace)
	g.pass(20 * time.Second)
	g.mustWait(w, "there is no limit")
	g.control(func(r *holdfast.Record) { r.Spec.IOTimeoutMillis = 5000 })
	g.pass(100 * time.Millisecond)
	g.mustFail(w, "it has waited for longer than the new limit")
	g.control(func(r *holdfast.Record) { r.Spec.IOTimeoutMillis = 0 })
	g.pass(100 * time.Millisecond)
	v := g.submitServed(OpWrite, blocks(20, 1))
	g.pass(20 * time.Second)
	g.mustWait(v, "there is no limit any more")
}
