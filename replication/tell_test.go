package replication

import (
	"testing"

	"github.com/holdfast-storage/holdfast"
)

// A record of the same epoch that comes between a Hello and its answer is shown
// afterwards (invariant 10; simulation, seed 70028671: the store was lost, and
// made anew from a record of before the volume grew).
func TestAReplicaThatIsBeingGreetedIsShownTheNewerRecord(t *testing.T) {
	g := served(t, states{in, in}, nil)
	g.lost(1)
	hello := g.dialed(1)
	g.control(func(r *holdfast.Record) { r.Spec.Labels = map[string]string{"a": "b"} })
	g.welcome(1, hello, Welcome{})
	told := 0
	for _, m := range g.conn(1).sent {
		if m.Type == MsgRecord && m.Record.Revision == g.stored.Revision {
			told++
		}
	}
	if told != 1 {
		t.Fatalf("it was told %d times, and sent %v", told, kinds(g.conn(1).sent))
	}
	g.serve()
	g.lost(1)
	g.greet(1, Welcome{})
	if g.sent(1, MsgRecord) != 0 {
		t.Fatal("the Hello had the newest record already")
	}
}
