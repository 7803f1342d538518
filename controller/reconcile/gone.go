package reconcile

import (
	"context"
	"errors"
	"time"

	"github.com/holdfast-storage/holdfast"
)

// rememberNodes says since when nodes have no lease. It is kept in their
// registrations, so that the next leader goes on counting; what could not be
// written yet is remembered here until it is.
func (r *Reconciler) rememberNodes(ctx context.Context, nodes []holdfast.Node, now time.Time) map[holdfast.NodeID]time.Time {
	gone := map[holdfast.NodeID]time.Time{}
	for _, n := range nodes {
		var since time.Time
		if !n.Alive {
			if since = n.GoneSince; since.IsZero() {
				if since = r.nodeGone[n.ID]; since.IsZero() {
					since = now
				}
			}
			gone[n.ID] = since
		}
		if since.Equal(n.GoneSince) {
			continue
		}
		n.GoneSince = since.UTC().Round(0)
		// Busy: it has just registered anew, or somebody drained it; the next pass sees.
		if _, err := r.cfg.Store.PutNode(ctx, n); err != nil && !errors.Is(err, holdfast.Busy) {
			r.cfg.Log.Debug("since when a node is gone could not be written yet", "node", string(n.ID), "err", err)
		}
	}
	r.nodeGone = gone
	return gone
}

// rememberPools says since when pools that replicas are on have failed, which
// their nodes write down, or are not among their live node's any more, as when a
// disk was exchanged: that only this leader remembers. A dead node's pools count
// as they did when it died.
func (r *Reconciler) rememberPools(nodes []holdfast.Node, volumes []holdfast.Record, now time.Time) map[holdfast.PoolID]time.Time {
	gone, there, alive := map[holdfast.PoolID]time.Time{}, map[holdfast.PoolID]bool{}, map[holdfast.NodeID]bool{}
	for _, n := range nodes {
		alive[n.ID] = n.Alive
		for _, p := range n.Pools {
			there[p.ID] = true
			if p.State != holdfast.PoolFailed {
				continue
			}
			switch since, known := r.poolGone[p.ID]; {
			case !p.FailedSince.IsZero():
				gone[p.ID] = p.FailedSince
			case known:
				gone[p.ID] = since
			case n.Alive:
				gone[p.ID] = now
			}
		}
	}
	for _, v := range volumes {
		for _, x := range v.Replicas {
			since, known := r.poolGone[x.Pool]
			switch {
			case there[x.Pool]:
			case known:
				gone[x.Pool] = since
			case alive[x.Node]:
				gone[x.Pool] = now
			}
		}
	}
	r.poolGone = gone
	return gone
}
