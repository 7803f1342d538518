package lifecycle

import (
	"context"
	"maps"
	"sync"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/controller/placement"
	"github.com/holdfast-storage/holdfast/metadata"
)

// promised follows the records of all volumes and knows what they promise of each
// pool, so that a creation need not read them all: with ten thousand volumes that
// takes longer than the creation. It may be behind what other processes have
// stored, by the moment that a change takes to be reported; like any two creations
// at the same time, two then may not see each other, which overcommitment allows
// for. This process's own creations are seen from before they are stored.
type promised struct {
	mu     sync.Mutex
	begun  bool // somebody follows
	synced bool // everything has been reported
	// storing are new records on their way: they are in of before they are reported.
	storing map[holdfast.VolumeID]bool
	of      map[holdfast.VolumeID]holdfast.Record
	sums    map[holdfast.PoolID]int64
}

func newPromised() *promised {
	return &promised{storing: map[holdfast.VolumeID]bool{}, of: map[holdfast.VolumeID]holdfast.Record{}, sums: map[holdfast.PoolID]int64{}}
}

// promisedRetry is the pause before what broke is begun again.
const promisedRetry = time.Second

// provisioned is what is promised of each pool.
func (s *Service) provisioned(ctx context.Context) (map[holdfast.PoolID]int64, error) {
	p := s.promised
	p.mu.Lock()
	if !p.begun {
		p.begun = true
		go s.follow()
	}
	if p.synced {
		defer p.mu.Unlock()
		return maps.Clone(p.sums), nil
	}
	p.mu.Unlock()
	recs, err := s.cfg.Store.Volumes(ctx)
	return placement.Provisioned(recs), err
}

// follow keeps what is promised until the service is closed.
func (s *Service) follow() {
	for {
		err := s.cfg.Store.WatchVolumes(s.life, s.promised.onEvent)
		s.promised.forget()
		if !waitOr(s.life, promisedRetry) {
			return
		}
		s.cfg.Log.Debug("the watch of volumes ended; it begins again", "err", err)
	}
}

// forget drops what was reported: what goes away from now on is not.
func (p *promised) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.synced = false
	for id := range p.of {
		if !p.storing[id] {
			p.put(id, holdfast.Record{})
		}
	}
}

func (p *promised) onEvent(e metadata.VolumeEvent) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case e.Synced:
		p.synced = true
		for id, r := range p.of {
			if r.Revision == 0 && !p.storing[id] { // gone before it was ever reported
				p.put(id, holdfast.Record{})
			}
		}
	case e.Deleted:
		p.put(e.ID, holdfast.Record{})
	default:
		p.put(e.ID, e.Record)
	}
}

// put replaces a volume's record; one without replicas is forgotten.
func (p *promised) put(id holdfast.VolumeID, rec holdfast.Record) {
	add := func(r holdfast.Record, sign int64) {
		for pool, n := range placement.Provisioned([]holdfast.Record{r}) {
			if p.sums[pool] += sign * n; p.sums[pool] == 0 {
				delete(p.sums, pool)
			}
		}
	}
	add(p.of[id], -1)
	add(rec, +1)
	if len(rec.Replicas) == 0 {
		delete(p.of, id)
		return
	}
	// Of the record, only what counts is kept.
	p.of[id] = holdfast.Record{Replicas: rec.Replicas, SizeBytes: rec.SizeBytes, Spec: holdfast.Spec{SizeBytes: rec.Spec.SizeBytes}, Revision: rec.Revision}
}

// store stores a new record, promised from now on.
func (s *Service) store(ctx context.Context, rec holdfast.Record) (holdfast.Record, error) {
	p := s.promised
	p.mu.Lock()
	p.storing[rec.ID] = true
	p.put(rec.ID, rec) // at revision 0, until it is reported
	p.mu.Unlock()
	stored, err := s.cfg.Store.CreateVolume(ctx, rec)
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.storing, rec.ID)
	if err != nil && p.of[rec.ID].Revision == 0 { // if it is there after all it will be reported
		p.put(rec.ID, holdfast.Record{})
	}
	return stored, err
}
