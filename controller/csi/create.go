package csi

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/controller/lifecycle"
	"github.com/holdfast-storage/holdfast/controller/placement"
)

// agentLabel says through which node's view a volume was created.
const agentLabel = holdfast.DriverName + "/agent"

// CreateVolume makes a volume with exactly the required bytes. The same again
// answers the same.
func (s *Server) CreateVolume(ctx context.Context, q *csipb.CreateVolumeRequest) (*csipb.CreateVolumeResponse, error) {
	op := "create volume " + q.GetName()
	create, required, err := s.readCreate(op, q)
	if err != nil {
		return done[csipb.CreateVolumeResponse](nil, err)
	}
	nodes, err := s.cfg.Lifecycle.Nodes(ctx)
	if err != nil {
		return done[csipb.CreateVolumeResponse](nil, holdfast.Wrap(op, err))
	}
	if create.Source, err = s.source(ctx, op, q.GetVolumeContentSource()); err != nil {
		return done[csipb.CreateVolumeResponse](nil, err)
	}
	if create.Spec.FSType == "" && create.Source == nil {
		create.Spec.FSType = s.chooseFS(ctx, q.GetName(), create.Spec.SizeBytes)
	}
	rec, err := s.createWithin(ctx, create, required, nodes)
	if errors.Is(err, holdfast.Invalid) && len(required) > 0 && create.Source == nil {
		// Elsewhere there may be enough nodes: the orchestrator chooses again.
		err = holdfast.WrapKind("", holdfast.NoSpace, err)
	}
	if err != nil {
		return done[csipb.CreateVolumeResponse](nil, err)
	}
	if err := reachableFrom(rec, nodes, required); err != nil {
		return done[csipb.CreateVolumeResponse](nil, holdfast.Wrap(op, err))
	}
	return &csipb.CreateVolumeResponse{Volume: s.describe(rec, nodes)}, nil
}

// createWithin makes the volume where it is required. A volume whose locality is
// not required can be used from its whole region: when there is no room on the
// very nodes that are named, it is made elsewhere in the region.
func (s *Server) createWithin(ctx context.Context, create lifecycle.CreateRequest, required []holdfast.Domain, nodes []holdfast.Node) (holdfast.Record, error) {
	create.Spec.Requisite = placement.Within(required, nodes, create.Spec.Replicas)
	rec, err := s.cfg.Lifecycle.CreateVolume(ctx, create)
	noPlace := errors.Is(err, holdfast.NoSpace) || errors.Is(err, holdfast.Invalid) || errors.Is(err, holdfast.Unavailable)
	if !noPlace || ctx.Err() != nil || create.Spec.Locality == holdfast.LocalityRequired {
		return rec, err
	}
	wide := regions(required)
	if slices.Equal(wide, create.Spec.Requisite) {
		return rec, err
	}
	create.Spec.Requisite = wide
	return s.cfg.Lifecycle.CreateVolume(ctx, create)
}

// chooseFS is the filesystem for a volume whose creator does not care: that of
// the volume which exists already, else xfs where it can be made.
func (s *Server) chooseFS(ctx context.Context, name string, size int64) string {
	if rec, err := s.cfg.Lifecycle.Get(ctx, name); err == nil {
		return rec.Spec.FSType
	}
	return holdfast.Spec{SizeBytes: size}.WithDefaults().FSType
}

// readCreate checks a request and makes ours of it, but for the topology that is
// required, which depends on the nodes there are.
func (s *Server) readCreate(op string, q *csipb.CreateVolumeRequest) (c lifecycle.CreateRequest, required []holdfast.Domain, err error) {
	if err := holdfast.ValidateName(q.GetName()); err != nil {
		return c, nil, holdfast.Wrap("create volume", err)
	}
	fs, mount, err := checkCapabilities(op, q.GetVolumeCapabilities())
	if err != nil {
		return c, nil, err
	}
	p, err := s.parameters(op, q.GetParameters())
	if err != nil {
		return c, nil, err
	}
	changes, err := mutable(op, q.GetMutableParameters())
	if err != nil {
		return c, nil, err
	}
	p.spec = changes.Apply(p.spec) // they take precedence
	if fs != "" && p.spec.FSType != "" && fs != p.spec.FSType {
		return c, nil, invalid(op, "the capability asks for the filesystem %s, the parameter fsType for %s; make them the same", fs, p.spec.FSType)
	}
	c = lifecycle.CreateRequest{Name: q.GetName(), Spec: p.spec, From: s.cfg.Agent, Changing: true}
	if fs != "" {
		c.Spec.FSType = fs
	}
	if c.Spec.SizeBytes, c.MaxBytes, err = s.capacity(op, q.GetCapacityRange()); err != nil {
		return c, nil, err
	}
	clone := q.GetVolumeContentSource() != nil
	if clone && q.GetCapacityRange().GetRequiredBytes() == 0 {
		c.Spec.SizeBytes = 0 // the source's
	}
	if mount && !clone && c.Spec.FSType == "xfs" && c.Spec.SizeBytes < holdfast.MinXFSBytes {
		return c, nil, holdfast.E(op, holdfast.OutOfRange, fmt.Sprintf("%s are too small for an xfs filesystem, which needs %s; ask for a larger volume, or for ext4", placement.Bytes(c.Spec.SizeBytes), placement.Bytes(holdfast.MinXFSBytes)))
	}
	fs = c.Spec.FSType
	c.Spec = c.Spec.WithDefaults()
	c.Spec.FSType = fs // chosen later when nobody cares
	if clone {
		c.Spec.LogicalBlk = p.spec.LogicalBlk
	}
	c.Spec.Parameters = maps.Clone(q.GetParameters())
	if c.Spec.Parameters == nil {
		c.Spec.Parameters = map[string]string{}
	}
	maps.Copy(c.Spec.Parameters, q.GetMutableParameters())
	if s.cfg.Agent != "" {
		c.Spec.Labels = map[string]string{agentLabel: string(s.cfg.Agent)}
	}
	required, c.Spec.Preferred, err = requirements(op, q.GetAccessibilityRequirements())
	return c, required, err
}

// requirements reads where a volume must be usable, and where it should be first:
// preferred ones before the others that would do.
func requirements(op string, r *csipb.TopologyRequirement) (required, first []holdfast.Domain, err error) {
	if required, err = domains(op, r.GetRequisite()); err != nil {
		return nil, nil, err
	}
	first, err = domains(op, append(append([]*csipb.Topology(nil), r.GetPreferred()...), r.GetRequisite()...))
	return required, first, err
}

// capacity is the size to make, and the largest that will do.
func (s *Server) capacity(op string, r *csipb.CapacityRange) (size, most int64, err error) {
	required, limit := r.GetRequiredBytes(), r.GetLimitBytes()
	switch {
	case required < 0 || limit < 0:
		return 0, 0, invalid(op, "required_bytes %d, limit_bytes %d: sizes are not negative", required, limit)
	case limit > 0 && required > limit:
		return 0, 0, invalid(op, "required_bytes %d are more than limit_bytes %d", required, limit)
	}
	most = limit
	if limit == 0 {
		most = math.MaxInt64
	}
	size = required
	if required == 0 {
		size = min(s.cfg.DefaultBytes, most)
	}
	return size, most, nil
}

// DeleteVolume removes a volume for good. One that does not exist is fine.
func (s *Server) DeleteVolume(ctx context.Context, q *csipb.DeleteVolumeRequest) (*csipb.DeleteVolumeResponse, error) {
	op := "delete volume"
	err := needID(op, "volume_id", q.GetVolumeId())
	if err == nil {
		err = s.cfg.Lifecycle.Delete(ctx, q.GetVolumeId())
	}
	return done(&csipb.DeleteVolumeResponse{}, err)
}

// ControllerExpandVolume makes a volume larger, also while it is in use.
func (s *Server) ControllerExpandVolume(ctx context.Context, q *csipb.ControllerExpandVolumeRequest) (*csipb.ControllerExpandVolumeResponse, error) {
	answer, err := s.expand(ctx, q)
	return done(answer, err)
}

func (s *Server) expand(ctx context.Context, q *csipb.ControllerExpandVolumeRequest) (*csipb.ControllerExpandVolumeResponse, error) {
	op := "expand volume " + q.GetVolumeId()
	if err := needID(op, "volume_id", q.GetVolumeId()); err != nil {
		return nil, err
	}
	required, limit := q.GetCapacityRange().GetRequiredBytes(), q.GetCapacityRange().GetLimitBytes()
	if q.GetCapacityRange() == nil || required == 0 && limit == 0 {
		return nil, invalid(op, "a capacity_range is needed")
	}
	if _, _, err := s.capacity(op, q.GetCapacityRange()); err != nil {
		return nil, err
	}
	mount := true
	if c := q.GetVolumeCapability(); c != nil {
		var err error
		if _, mount, err = checkCapability(op, c); err != nil {
			return nil, err
		}
	}
	rec, err := s.volume(ctx, op, q.GetVolumeId())
	if err != nil {
		return nil, err
	}
	if limit > 0 && rec.Spec.SizeBytes > limit {
		return nil, holdfast.E(op, holdfast.OutOfRange, fmt.Sprintf("it has %d bytes already, more than limit_bytes %d; volumes never shrink", rec.Spec.SizeBytes, limit))
	}
	if rec, err = s.cfg.Lifecycle.Expand(ctx, string(rec.ID), required); err != nil {
		return nil, err
	}
	return &csipb.ControllerExpandVolumeResponse{CapacityBytes: rec.Spec.SizeBytes, NodeExpansionRequired: mount}, nil
}
