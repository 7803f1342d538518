package agent_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/metadata/memory"
)

// TestManyVolumesAreAttachedAgainSomeAtATime: those that hang hold up the others for a
// moment only.
func TestManyVolumesAreAttachedAgainSomeAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := memory.New()
		const n, atOnce = 80, 32
		for i := range n {
			rec := volume(t, db, fmt.Sprintf("vol-%d", i), "a")
			change(t, db, rec.ID, func(r *holdfast.Record) {
				r.Epoch++
				r.Primary = &holdfast.Primary{Node: "a", Kind: holdfast.ClientPrimary, Grant: r.Epoch}
			})
		}
		r := newRig(t, db, "a")
		r.plane.block = make(chan struct{})
		opens := func() int {
			synctest.Wait()
			r.plane.mu.Lock()
			defer r.plane.mu.Unlock()
			return r.plane.opens
		}
		r.start()
		if got := opens(); got != atOnce {
			t.Errorf("%d have begun at once, want %d", got, atOnce)
		}
		<-time.After(3 * time.Second)
		if got := opens(); got != n {
			t.Errorf("%d have begun after a while, want all %d", got, n)
		}
		close(r.plane.block)
		synctest.Wait()
		r.plane.mu.Lock()
		defer r.plane.mu.Unlock()
		if got := len(r.plane.open); got != n {
			t.Errorf("%d are served, want all %d", got, n)
		}
	})
}
