package api

import (
	"context"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/controller/lifecycle"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

// UpdateVolumePolicy implements the service; see api.proto.
func (s *Server) UpdateVolumePolicy(ctx context.Context, q *holdfastv1.UpdateVolumePolicyRequest) (*holdfastv1.Volume, error) {
	op := "change policy of volume " + q.GetVolume()
	c := lifecycle.Changes{IOTimeoutMillis: q.IoTimeoutMillis, IOPS: q.Iops, Bandwidth: q.Bandwidth, BurstMillis: q.BurstMillis}
	number := func(n *int32) *int {
		if n == nil {
			return nil
		}
		x := int(*n)
		return &x
	}
	c.Replicas, c.MinInSync = number(q.Replicas), number(q.MinInSync)
	if q.SlowReplicas != nil {
		p := holdfast.SlowPolicy(q.GetSlowReplicas())
		c.SlowReplicas = &p
	}
	if q.Locality != nil {
		l := holdfast.Locality(q.GetLocality())
		c.Locality = &l
	}
	if c.None() {
		return nil, holdfast.E(op, holdfast.Invalid, "nothing is to be changed; give an I/O timeout, a policy for slow replicas, a number of replicas, a locality, or limits of I/O")
	}
	if err := s.known(ctx, op, q.GetVolume()); err != nil {
		return nil, err
	}
	r, err := s.cfg.Lifecycle.Modify(ctx, q.GetVolume(), c)
	if err != nil {
		return nil, err
	}
	return s.show(ctx, r)
}
