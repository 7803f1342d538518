package replication

import (
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
)

// A repaired replica learns what those that are away lack, so that it can be their
// source. Where the source's maps do not reach back so far, it cannot say, but the
// target's may: without a mark they would say that nothing is lacking.
func TestATargetIsTaughtThatNobodyKnowsWhatOthersLack(t *testing.T) {
	for name, c := range map[string]struct {
		status Status
		want   extentSet
	}{
		"known":  {StatusOK, extentSet{blocks(7, 2)}},
		"no map": {StatusNoMap, extentSet{blocks(0, rigBlocks)}},
	} {
		t.Run(name, func(t *testing.T) {
			g := served(t, states{in, stale, stale}, func(cfg *Config) { cfg.Record.Replicas[2].Since = 3 })
			g.conn(0).holding(MsgChanged)
			g.greet(1, Welcome{}).holding(MsgMark)
			g.settleDown(2 * time.Second)
			if m := g.take(0, MsgChanged); m.Since != 5 {
				t.Fatalf("asked for changes since %d for the target", m.Since)
			} else {
				g.answer(0, m, StatusOK)
			}
			g.settleDown(time.Second)
			m := g.take(0, MsgChanged)
			if m.Since != 3 {
				t.Fatalf("asked for changes since %d for the one that is away", m.Since)
			}
			g.changes[rigID(0)] = []holdfast.Extent{blocks(7, 2)}
			g.answer(0, m, c.status)
			g.settleDown(time.Second)
			if g.sent(1, MsgMark) != 1 {
				t.Fatalf("it was not taught, and is %s", g.state(1))
			}
			mark := g.take(1, MsgMark)
			if got := union(mark.Extents); len(got.minus(c.want)) > 0 || len(c.want.minus(got)) > 0 {
				t.Fatalf("it was taught %v, not %v", got, c.want)
			}
			if g.state(1) == in {
				t.Fatal("it is in sync before it was taught")
			}
			g.answer(1, mark, StatusOK)
			g.settleDown(time.Second)
			if g.state(1) != in {
				t.Fatalf("it is %s", g.state(1))
			}
		})
	}
}
