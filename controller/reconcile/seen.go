package reconcile

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/metadata"
)

// seen are the volumes' records as the leader's watch reports them. A pass works on
// these, as reading ten thousand records takes as long as all else that a pass does
// a hundred times. They are behind what is stored by the time that a report takes,
// which does no harm: records are changed by compare-and-swap. Should a watch
// fall silent without ending, the records are read as well now and then.
type seen struct {
	mu      sync.Mutex
	synced  bool
	records map[holdfast.VolumeID]holdfast.Record
	read    time.Time // when all were read last
}

// readEvery is how often the records are read though the watch reports them.
const readEvery = time.Minute

func (s *seen) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.synced, s.records, s.read = false, map[holdfast.VolumeID]holdfast.Record{}, time.Time{}
}

func (s *seen) note(e metadata.VolumeEvent) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case e.Synced:
		s.synced = true
	case e.Deleted:
		delete(s.records, e.ID)
	default:
		s.records[e.ID] = e.Record
	}
}

// volumes are all records, ordered by id.
func (r *Reconciler) volumes(ctx context.Context) ([]holdfast.Record, error) {
	s, now := &r.seen, r.cfg.Now()
	s.mu.Lock()
	if age := now.Sub(s.read); s.synced && age >= 0 && age < readEvery {
		defer s.mu.Unlock()
		return slices.SortedFunc(maps.Values(s.records), func(x, y holdfast.Record) int {
			return strings.Compare(string(x.ID), string(y.ID))
		}), nil
	}
	s.mu.Unlock()
	recs, err := r.cfg.Store.Volumes(ctx)
	if err == nil {
		s.mu.Lock()
		s.read = now
		s.mu.Unlock()
	}
	return recs, err
}
