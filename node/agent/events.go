package agent

import (
	"sync"
	"time"

	"github.com/holdfast-storage/holdfast"
)

// keptEvents is how many events per volume are kept.
const keptEvents = 64

// Event is something that happened to a volume on this node.
type Event struct {
	At   time.Time
	What string
}

// events keeps the last events of every volume, in memory only.
type events struct {
	mu   sync.Mutex
	byID map[holdfast.VolumeID][]Event
}

func newEvents() *events { return &events{byID: map[holdfast.VolumeID][]Event{}} }

func (e *events) add(id holdfast.VolumeID, what string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	l := append(e.byID[id], Event{At: time.Now(), What: what})
	if len(l) > keptEvents {
		l = append([]Event(nil), l[len(l)-keptEvents:]...)
	}
	e.byID[id] = l
}

func (e *events) of(id holdfast.VolumeID) []Event {
	e.mu.Lock()
	defer e.mu.Unlock()
	return append([]Event(nil), e.byID[id]...)
}

func (e *events) forget(id holdfast.VolumeID) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.byID, id)
}

// Events lists what lately happened to a volume on this node, oldest first.
func (a *Agent) Events(id holdfast.VolumeID) []Event { return a.events.of(id) }
