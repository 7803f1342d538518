package agent

import (
	"slices"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/replication"
)

// shownWait is from when on an operation under way counts as waiting.
const shownWait = 500 * time.Millisecond

// Wait is something on this node that cannot go on now.
type Wait struct {
	What string // I/O, attach, detach, repair, resize or scrub
	For  string
	Long time.Duration
	Node holdfast.NodeID // of the replica that it is about; "" if of none
}

// operation is an attach or a detach under way.
type operation struct {
	what  string
	since time.Time
	step  string // what it does now; guarded by the agent's mutex
}

// begun notes that an operation on a volume begins. It waits for its turn first.
func (a *Agent) begun(id holdfast.VolumeID, what string) *operation {
	op := &operation{what: what, since: time.Now(), step: "another operation on the volume here"}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.operations[id] = append(a.operations[id], op)
	return op
}

// now notes what the operation does, and therefore waits for.
func (a *Agent) now(op *operation, step string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	op.step = step
}

func (a *Agent) over(id holdfast.VolumeID, op *operation) {
	a.mu.Lock()
	defer a.mu.Unlock()
	rest := slices.DeleteFunc(a.operations[id], func(o *operation) bool { return o == op })
	if a.operations[id] = rest; len(rest) == 0 {
		delete(a.operations, id)
	}
}

// waiter is a Plane that knows for what I/O, and a take-over, of a volume wait.
type waiter interface {
	Waiting(id holdfast.VolumeID) string
}

// limiter is a Volume that holds back I/O beyond the volume's limits.
type limiter interface {
	Limited() (what string, long time.Duration)
}

// Waits lists what waits here, by volume; an empty id means all.
func (a *Agent) Waits(only holdfast.VolumeID) map[holdfast.VolumeID][]Wait {
	out := map[holdfast.VolumeID][]Wait{}
	a.mu.Lock()
	for id, ops := range a.operations {
		for _, op := range ops {
			if long := time.Since(op.since); long >= shownWait && (only == "" || only == id) {
				out[id] = append(out[id], Wait{What: op.what, For: op.step, Long: long})
			}
		}
	}
	a.mu.Unlock()
	if plane, ok := a.deps.Plane.(waiter); ok {
		for id, ws := range out {
			if what := plane.Waiting(id); what != "" {
				for i := range ws {
					ws[i].For += ", which waits for " + what
				}
			}
		}
	}
	for _, x := range a.serving() {
		if only == "" || only == x.id {
			out[x.id] = append(out[x.id], primaryWaits(x.vol.Status())...)
			if l, ok := x.vol.(limiter); ok {
				if what, long := l.Limited(); what != "" && long >= shownWait {
					out[x.id] = append(out[x.id], Wait{What: "I/O", For: what, Long: long})
				}
			}
		}
	}
	return out
}

// primaryWaits are the waits of one primary.
func primaryWaits(s replication.PrimaryStatus) []Wait {
	var ws []Wait
	add := func(what, on string, long time.Duration, node holdfast.NodeID) {
		if on != "" && long >= shownWait {
			ws = append(ws, Wait{What: what, For: on, Long: long, Node: node})
		}
	}
	add("I/O", s.WaitingFor, s.Waiting, "")
	add("resize", s.Growing, s.Grows, "")
	for _, p := range s.Peers {
		add("repair", p.WaitingFor, p.Waiting, p.Replica.Node)
	}
	if !s.Scrub.Ended() {
		add("scrub", s.Scrub.WaitingFor, s.Scrub.Waiting, "")
	}
	return ws
}
