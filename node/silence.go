package node

import (
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/node/dataplane"
)

// silentAfter is how long a pool's disk must have been silent to be reported.
const silentAfter = 5 * time.Second

// silence adds to what is known of a pool that its disk does not answer: since
// when is the question for it under way, or none of a replica's tasks was done.
func (p *pool) silence(info *holdfast.Pool, since time.Time, status map[holdfast.ReplicaID]dataplane.ReplicaStatus) {
	p.mu.Lock()
	for id := range p.served {
		if s := status[id]; !s.Waiting.IsZero() && (since.IsZero() || s.Waiting.Before(since)) {
			since = s.Waiting
		}
	}
	p.mu.Unlock()
	if since.IsZero() || time.Since(since) < silentAfter {
		return
	}
	info.SilentSince = since.UTC().Truncate(time.Second)
	info.Message = "its disk has not answered since " + info.SilentSince.Format(time.TimeOnly) + " UTC"
}
