package dataplane

import (
	"slices"
	"time"

	"github.com/holdfast-storage/holdfast"
)

const (
	// turnHeld is after which a turn ends that is not used, turnQueued after which
	// a place in the queue does whose holder does not ask, as it does every turnAsk.
	turnHeld   = 5 * time.Second
	turnQueued = time.Second
	turnAsk    = 100 * time.Millisecond
)

// turns lets few large repairs by primaries elsewhere write to replicas here at
// once. Nobody says when such a repair ends, or its primary dies; a turn ends when
// it is not used. Whoever waits for one holds nothing of this node; a turn on its
// own node it may hold, but no turn here waits for that one, so that nothing goes
// round in a circle. turns knows no clock and has no lock.
type turns struct {
	most    int
	running map[holdfast.ReplicaID]time.Duration // when it was last used
	queue   []guest
}

type guest struct {
	id    holdfast.ReplicaID
	asked time.Duration
}

// turn says whether the repair of a replica may go on; if not, ask again after
// turnAsk.
func (t *turns) turn(id holdfast.ReplicaID, now time.Duration) bool {
	for x, used := range t.running {
		if now-used > turnHeld {
			delete(t.running, x)
		}
	}
	t.queue = slices.DeleteFunc(t.queue, func(q guest) bool { return q.id != id && now-q.asked > turnQueued })
	if _, ok := t.running[id]; ok {
		t.running[id] = now
		return true
	}
	at := slices.IndexFunc(t.queue, func(q guest) bool { return q.id == id })
	if at < 0 {
		at = len(t.queue)
		t.queue = append(t.queue, guest{id: id})
	}
	t.queue[at].asked = now
	if len(t.running)+at >= t.most {
		return false
	}
	t.queue = slices.Delete(t.queue, at, at+1)
	t.running[id] = now
	return true
}
