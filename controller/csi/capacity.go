package csi

import (
	"cmp"
	"context"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/controller/placement"
)

// capacityUnit is what capacities are multiples of: Mesos counts in MiB.
const capacityUnit = 1 << 20

// GetCapacity says how large volumes with these parameters may be, together: what
// pools have that is neither written nor promised, divided by the replicas. It
// counts with less overcommit than placement does: Mesos offers what it reports to
// frameworks as disk space, and grows it again by what thin volumes do not use,
// and Kubernetes' scheduler sends tasks where it is, so that both would fill pools
// until writes wait. Making a volume may still succeed where it says 0. A topology narrows it only where locality
// is required, or to a region: elsewhere a volume is as large wherever it is used.
func (s *Server) GetCapacity(ctx context.Context, q *csipb.GetCapacityRequest) (*csipb.GetCapacityResponse, error) {
	const op = "get capacity"
	if len(q.GetVolumeCapabilities()) > 0 {
		if _, _, err := checkCapabilities(op, q.GetVolumeCapabilities()); err != nil {
			return &csipb.GetCapacityResponse{}, nil // no volume of that kind can be made
		}
	}
	p, err := s.parameters(op, q.GetParameters())
	if err != nil {
		return done[csipb.GetCapacityResponse](nil, err)
	}
	at, err := domain(op, q.GetAccessibleTopology())
	if err != nil {
		return done[csipb.GetCapacityResponse](nil, err)
	}
	var c placement.Cluster
	err = s.patient(ctx, func(ctx context.Context) (err error) {
		c, err = s.cfg.Lifecycle.Cluster(ctx)
		return err
	})
	if err != nil {
		return done[csipb.GetCapacityResponse](nil, holdfast.Wrap(op, err))
	}
	total, largest := s.capacityAt(c, p.spec.WithDefaults(), at)
	return &csipb.GetCapacityResponse{
		AvailableCapacity: total / capacityUnit * capacityUnit,
		MaximumVolumeSize: wrapperspb.Int64(largest / capacityUnit * capacityUnit),
		MinimumVolumeSize: wrapperspb.Int64(holdfast.MinVolumeBytes),
	}, nil
}

// capacityAt is the capacity for volumes that can be used from a domain.
func (s *Server) capacityAt(c placement.Cluster, spec holdfast.Spec, at holdfast.Domain) (total, largest int64) {
	c.Policy.Overcommit = min(c.Policy.Overcommit, s.cfg.ReportedOvercommit)
	if at.Region != "" {
		spec.Requisite = []holdfast.Domain{{Region: at.Region}}
	}
	total, largest = placement.Capacity(c, spec)
	if spec.Locality == holdfast.LocalityRequired && at != (holdfast.Domain{}) {
		// One replica has to be there.
		one := spec
		one.Replicas, one.Requisite = 1, []holdfast.Domain{at}
		t, l := placement.Capacity(c, one)
		total, largest = min(total, t), min(largest, l)
	}
	if s.cfg.Agent == "" {
		return total, largest
	}
	agents := int64(0)
	for _, n := range c.Nodes {
		if n.Alive {
			agents++
		}
	}
	total /= cmp.Or(agents, 1)
	return total, min(total, largest)
}
