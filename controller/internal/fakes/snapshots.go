package fakes

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
)

// TakeSnapshots does what primaries, client or maintenance, do about snapshots and
// restores, until the test ends: one goroutine.
func (c *Cluster) TakeSnapshots(t testing.TB) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for cuts := 1; ctx.Err() == nil; cuts++ {
			recs, _ := c.Store.Volumes(ctx)
			for _, rec := range recs {
				if next, changed := served(rec.Clone(), cuts); changed {
					_, _ = c.Store.SwapVolume(ctx, next)
				}
			}
			<-time.After(time.Millisecond)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
}

func served(r holdfast.Record, cut int) (holdfast.Record, bool) {
	if r.Restore != nil {
		r.SetRestore(nil)
		return r, true
	}
	for _, x := range r.Snapshots {
		switch {
		case x.State == holdfast.SnapshotWanted && x.Group == "":
			r.Epoch++
			x.State, x.Epoch, x.Cut, x.SizeBytes = holdfast.SnapshotReady, r.Epoch, fmt.Sprint(cut), r.SizeBytes
			r.PutSnapshot(x)
			return r, true
		case x.State == holdfast.SnapshotDeleting:
			r.RemoveSnapshot(x.ID)
			return r, true
		}
	}
	return r, false
}
