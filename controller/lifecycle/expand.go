package lifecycle

import (
	"context"
	"fmt"
	"maps"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/controller/placement"
)

// Expand makes a volume larger: sizeBytes or what it has already. While a live
// node has it attached, Expand answers when every in-sync replica and the device
// have grown; else it takes effect when the volume is attached next. Errors:
// OutOfRange, NoSpace, Unavailable when ctx ended first (it still grows).
func (s *Service) Expand(ctx context.Context, volume string, sizeBytes int64) (holdfast.Record, error) {
	op := "expand volume " + volume
	rec, err := s.Get(ctx, volume)
	if err != nil {
		return rec, holdfast.Wrap(op, err)
	}
	var cluster placement.Cluster
	if sizeBytes > rec.Spec.SizeBytes {
		if cluster, err = s.Cluster(ctx); err != nil {
			return rec, holdfast.Wrap(op, err)
		}
	}
	rec, err = s.update(ctx, rec.ID, func(r *holdfast.Record) (bool, error) {
		if r.Phase != holdfast.PhaseReady {
			return false, notReady(*r)
		}
		if sizeBytes <= r.Spec.SizeBytes {
			return false, nil
		}
		had := r.Spec.SizeBytes
		r.Spec.SizeBytes = sizeBytes
		if err := r.Spec.Validate(); err != nil {
			return false, err
		}
		return true, roomToGrow(cluster, *r, holdfast.RoundUp(sizeBytes)-holdfast.RoundUp(had))
	})
	if err != nil {
		return rec, holdfast.Wrap(op, err)
	}
	rec, err = s.waitGrown(ctx, rec)
	return rec, holdfast.Wrap(op, err)
}

// roomToGrow is nil if every replica's pool may be promised so much more. Pools
// that nobody knows now do not count: their replicas are not in the way.
func roomToGrow(c placement.Cluster, rec holdfast.Record, more int64) error {
	for _, n := range c.Nodes {
		for _, p := range n.Pools {
			for _, x := range rec.Replicas {
				if x.Pool != p.ID || !n.Alive {
					continue
				}
				if room := c.Policy.Room(p, c.Provisioned[p.ID]); room < more {
					return holdfast.E("", holdfast.NoSpace, fmt.Sprintf("pool %s of node %s has room for %s more, %s are needed; free or add space there, or move the replica",
						p.ID, n.ID, placement.Bytes(room), placement.Bytes(more)))
				}
			}
		}
	}
	return nil
}

// waitGrown waits until the volume's holder has grown it.
func (s *Service) waitGrown(ctx context.Context, rec holdfast.Record) (holdfast.Record, error) {
	want := holdfast.RoundUp(rec.Spec.SizeBytes)
	for {
		holder := rec.AttachedTo()
		if holder == "" || rec.SizeBytes >= want {
			return rec, nil
		}
		next, alive, err := s.lookAt(ctx, rec.ID, holder)
		if ctx.Err() != nil || err == nil && alive && !waitOr(ctx, s.cfg.Poll) {
			return rec, holdfast.WrapKind(fmt.Sprintf("node %s has not grown it to %d bytes yet; repeat the call to wait for it", holder, want),
				holdfast.Unavailable, ctx.Err())
		}
		if err != nil || !alive {
			return rec, err
		}
		rec = next
	}
}

// lookAt reads a record, and whether its holder lives.
func (s *Service) lookAt(ctx context.Context, id holdfast.VolumeID, holder holdfast.NodeID) (rec holdfast.Record, alive bool, err error) {
	if alive, err = s.cfg.Store.Alive(ctx, holder); err == nil {
		rec, err = s.cfg.Store.Volume(ctx, string(id))
	}
	return rec, alive, err
}

// SetLabels sets and removes labels of a volume.
func (s *Service) SetLabels(ctx context.Context, volume string, set map[string]string, remove []string) (holdfast.Record, error) {
	op := "label volume " + volume
	rec, err := s.Get(ctx, volume)
	if err != nil {
		return rec, holdfast.Wrap(op, err)
	}
	rec, err = s.update(ctx, rec.ID, func(r *holdfast.Record) (bool, error) {
		if r.Spec.Labels == nil {
			r.Spec.Labels = map[string]string{}
		}
		before := maps.Clone(r.Spec.Labels)
		maps.Copy(r.Spec.Labels, set)
		for _, k := range remove {
			delete(r.Spec.Labels, k)
		}
		return !maps.Equal(before, r.Spec.Labels), nil
	})
	return rec, holdfast.Wrap(op, err)
}
