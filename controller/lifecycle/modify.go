package lifecycle

import (
	"context"
	"errors"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/controller/placement"
)

// Changes are what may be changed about a volume while it is used; nil stays.
type Changes struct {
	Replicas        *int
	MinInSync       *int
	Locality        *holdfast.Locality
	IOTimeoutMillis *int64               // 0: I/O waits without limit
	SlowReplicas    *holdfast.SlowPolicy // "": as the node is configured
	IOPS            *int64               // 0: no limit
	Bandwidth       *int64               // bytes a second; 0: no limit
	BurstMillis     *int64               // 0: the default
}

// None says whether nothing is to be changed.
func (c Changes) None() bool { return c == Changes{} }

// Apply makes the changes.
func (c Changes) Apply(s holdfast.Spec) holdfast.Spec {
	put(&s.Replicas, c.Replicas)
	put(&s.MinInSync, c.MinInSync)
	put(&s.Locality, c.Locality)
	put(&s.IOTimeoutMillis, c.IOTimeoutMillis)
	put(&s.SlowReplicas, c.SlowReplicas)
	put(&s.Limits.IOPS, c.IOPS)
	put(&s.Limits.Bandwidth, c.Bandwidth)
	put(&s.Limits.BurstMillis, c.BurstMillis)
	if !s.Limits.Any() && c.BurstMillis == nil {
		s.Limits.BurstMillis = 0 // without a limit it says nothing
	}
	return s
}

func put[T any](to, from *T) {
	if from != nil {
		*to = *from
	}
}

// Modify changes a volume, also while it is in use, and answers when that is
// written down: limits of I/O are kept within a moment, replicas are built or
// removed in the background. All is changed or, on error, nothing; the same again
// changes nothing. Errors: NotFound; Invalid for what cannot be, also for more
// replicas than there are hosts for; NoSpace when they have no room.
func (s *Service) Modify(ctx context.Context, volume string, c Changes) (holdfast.Record, error) {
	op := "modify volume " + volume
	rec, err := s.Get(ctx, volume)
	if err != nil {
		return rec, holdfast.Wrap(op, err)
	}
	var cluster placement.Cluster
	if c.Replicas != nil && *c.Replicas > rec.Spec.Replicas {
		if cluster, err = s.Cluster(ctx); err != nil {
			return rec, holdfast.Wrap(op, err)
		}
	}
	rec, err = s.update(ctx, rec.ID, func(r *holdfast.Record) (bool, error) {
		if r.Phase != holdfast.PhaseReady {
			return false, notReady(*r)
		}
		had, next := r.Spec, c.Apply(r.Spec)
		if err := next.Validate(); err != nil {
			return false, err
		}
		r.SetSpec(next)
		if next.Replicas > had.Replicas {
			if err := roomForMore(cluster, *r); err != nil {
				return false, err
			}
		}
		return next.Replicas != had.Replicas || next.MinInSync != had.MinInSync || next.Locality != had.Locality ||
			next.IOTimeoutMillis != had.IOTimeoutMillis || next.SlowReplicas != had.SlowReplicas || next.Limits != had.Limits, nil
	})
	return rec, holdfast.Wrap(op, err)
}

// roomForMore is nil if there are places for as many replicas as are wanted, should
// the nodes that are down come back.
func roomForMore(c placement.Cluster, rec holdfast.Record) error {
	q := placement.Request{Cluster: c, Spec: rec.Spec}
	for _, x := range rec.Replicas {
		if !x.Leaving {
			q.Existing = append(q.Existing, x)
		}
	}
	q.Count = rec.Spec.Replicas - len(q.Existing)
	if _, err := placement.Choose(q); err != nil && !errors.Is(err, holdfast.Unavailable) {
		return err
	}
	return nil
}
