package dataplane

import (
	"errors"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/engine"
)

const (
	// cloneStep is how many granules of a clone are taken over at once, during
	// which its flushes wait.
	cloneStep = 32
	// clonePause is the wait after a step took no time, and cloneRetry that after
	// a pool had no room.
	clonePause = time.Millisecond
	cloneRetry = time.Minute
)

// makeIndependent takes over in the background what a clone still reads from its
// origin, so that this can be deleted. It works at most half of the time.
func (p *Plane) makeIndependent(id holdfast.ReplicaID, r *engine.Replica) {
	for p.life.Err() == nil && p.serves(id) {
		began := time.Now()
		more, err := r.Independent(p.life, cloneStep)
		wait := max(clonePause, time.Since(began))
		switch {
		case err == nil && !more:
			return
		case errors.Is(err, holdfast.NoSpace):
			wait = cloneRetry
		case err != nil:
			if p.life.Err() == nil && p.serves(id) {
				p.log.Warn("a clone goes on depending on its origin until it is opened again", "replica", string(id), "err", err)
			}
			return
		}
		pause(p.life, wait)
	}
}

func (p *Plane) serves(id holdfast.ReplicaID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.replicas[id] != nil
}
