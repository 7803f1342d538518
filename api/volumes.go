package api

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/holdfast-storage/holdfast"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

// CreateVolume implements the service; see api.proto.
func (s *Server) CreateVolume(ctx context.Context, q *holdfastv1.CreateVolumeRequest) (*holdfastv1.Volume, error) {
	op := "create volume " + q.GetName()
	if err := holdfast.ValidateName(q.GetName()); err != nil {
		return nil, holdfast.Wrap("create volume", err)
	}
	if err := validateLabels(q.GetLabels()); err != nil {
		return nil, holdfast.Wrap(op, err)
	}
	if q.GetSourceSnapshot() != "" || q.GetSourceVolume() != "" {
		return s.clone(ctx, op, q)
	}
	spec := specFrom(q).WithDefaults()
	if err := spec.Validate(); err != nil {
		return nil, holdfast.Wrap(op, err)
	}
	if spec.FSType == "xfs" && spec.SizeBytes < holdfast.MinXFSBytes {
		return nil, holdfast.E(op, holdfast.OutOfRange, fmt.Sprintf("%s are too small for an xfs filesystem, which needs %s; ask for a larger volume, or for ext4",
			Bytes(spec.SizeBytes), Bytes(holdfast.MinXFSBytes)))
	}
	r, err := s.cfg.Lifecycle.Create(ctx, q.GetName(), spec)
	if err != nil {
		return nil, err
	}
	return s.show(ctx, r)
}

// ListVolumes implements the service; see api.proto.
func (s *Server) ListVolumes(ctx context.Context, q *holdfastv1.ListVolumesRequest) (*holdfastv1.ListVolumesResponse, error) {
	rs, err := s.cfg.Store.Volumes(ctx)
	if err != nil {
		return nil, holdfast.Wrap("list volumes", err)
	}
	ns, err := s.cfg.Store.Nodes(ctx)
	if err != nil {
		return nil, holdfast.Wrap("list volumes", err)
	}
	idx, now := indexNodes(ns), time.Now()
	out := &holdfastv1.ListVolumesResponse{}
	for i := range rs {
		if wanted(&rs[i], q) {
			out.Volumes = append(out.Volumes, volumeProto(&rs[i], idx, liveView{}, now))
		}
	}
	slices.SortFunc(out.Volumes, byName)
	return out, nil
}

func wanted(r *holdfast.Record, q *holdfastv1.ListVolumesRequest) bool {
	for k, v := range q.GetLabels() {
		if have, ok := r.Spec.Labels[k]; !ok || have != v {
			return false
		}
	}
	n := holdfast.NodeID(q.GetNode())
	return n == "" || r.On(n) != nil || r.AttachedTo() == n
}

// GetVolume implements the service; see api.proto.
func (s *Server) GetVolume(ctx context.Context, q *holdfastv1.GetVolumeRequest) (*holdfastv1.Volume, error) {
	r, err := s.cfg.Store.Volume(ctx, q.GetVolume())
	if err != nil {
		return nil, unknownVolume("inspect volume "+q.GetVolume(), err)
	}
	return s.show(ctx, r)
}

// show is a record with what its nodes say now.
func (s *Server) show(ctx context.Context, r holdfast.Record) (*holdfastv1.Volume, error) {
	ns, err := s.cfg.Store.Nodes(ctx)
	if err != nil {
		return nil, holdfast.Wrap("inspect volume "+r.Name, err)
	}
	idx := indexNodes(ns)
	return volumeProto(&r, idx, s.live.read(ctx, r.ID, concerned(&r, idx)), time.Now()), nil
}

// concerned lists the living nodes that serve or store the volume.
func concerned(r *holdfast.Record, idx nodeIndex) []holdfast.NodeID {
	set := map[holdfast.NodeID]bool{}
	for _, x := range r.Replicas {
		set[x.Node] = true
	}
	if r.Primary != nil {
		set[r.Primary.Node] = true
	}
	for id := range idx { // an attach may wait anywhere
		set[id] = true
	}
	maps.DeleteFunc(set, func(id holdfast.NodeID, _ bool) bool { return !idx.alive(id) })
	return slices.Collect(maps.Keys(set))
}

// ExpandVolume implements the service; see api.proto.
func (s *Server) ExpandVolume(ctx context.Context, q *holdfastv1.ExpandVolumeRequest) (*holdfastv1.Volume, error) {
	op := "expand volume " + q.GetVolume()
	if q.GetSizeBytes() <= 0 || q.GetSizeBytes() > holdfast.MaxVolumeBytes {
		return nil, holdfast.E(op, holdfast.OutOfRange, fmt.Sprintf("a size of %d bytes is not possible; give the new size, up to 64 TiB", q.GetSizeBytes()))
	}
	before, err := s.cfg.Store.Volume(ctx, q.GetVolume())
	if err != nil {
		return nil, unknownVolume(op, err)
	}
	if q.GetSizeBytes() < before.Spec.SizeBytes {
		return nil, holdfast.E(op, holdfast.OutOfRange, fmt.Sprintf("it has %s already, and volumes cannot shrink", Bytes(before.Spec.SizeBytes)))
	}
	r, err := s.cfg.Lifecycle.Expand(ctx, q.GetVolume(), q.GetSizeBytes())
	if err != nil {
		return nil, err
	}
	return s.show(ctx, r)
}

// AttachVolume implements the service; see api.proto.
func (s *Server) AttachVolume(ctx context.Context, q *holdfastv1.AttachVolumeRequest) (*holdfastv1.AttachVolumeResponse, error) {
	node := holdfast.NodeID(q.GetNode())
	if node == "" {
		node = s.cfg.Self
	}
	if err := s.known(ctx, "attach volume "+q.GetVolume(), q.GetVolume()); err != nil {
		return nil, err
	}
	r, path, err := s.cfg.Lifecycle.Attach(ctx, q.GetVolume(), node, q.GetForce())
	if err != nil {
		return nil, err
	}
	v, err := s.show(ctx, r)
	if err != nil {
		return nil, err
	}
	return &holdfastv1.AttachVolumeResponse{Node: string(node), DevicePath: path, Volume: v}, nil
}

// DetachVolume implements the service; see api.proto.
func (s *Server) DetachVolume(ctx context.Context, q *holdfastv1.DetachVolumeRequest) (*holdfastv1.Volume, error) {
	if err := s.known(ctx, "detach volume "+q.GetVolume(), q.GetVolume()); err != nil {
		return nil, err
	}
	r, err := s.cfg.Lifecycle.Detach(ctx, q.GetVolume(), q.GetForce())
	if err != nil {
		return nil, err
	}
	return s.show(ctx, r)
}

// DeleteVolume implements the service; see api.proto.
func (s *Server) DeleteVolume(ctx context.Context, q *holdfastv1.DeleteVolumeRequest) (*holdfastv1.DeleteVolumeResponse, error) {
	if q.GetVolume() == "" {
		return nil, holdfast.E("delete volume", holdfast.Invalid, "name the volume to delete")
	}
	if err := s.cfg.Lifecycle.Delete(ctx, q.GetVolume()); err != nil && !errors.Is(err, holdfast.NotFound) {
		return nil, err
	}
	return &holdfastv1.DeleteVolumeResponse{}, nil
}

// UpdateVolumeLabels implements the service; see api.proto. A record that
// somebody changed meanwhile is read again.
func (s *Server) UpdateVolumeLabels(ctx context.Context, q *holdfastv1.UpdateVolumeLabelsRequest) (*holdfastv1.Volume, error) {
	op := "label volume " + q.GetVolume()
	if err := validateLabels(q.GetSet()); err != nil {
		return nil, holdfast.Wrap(op, err)
	}
	for {
		r, err := s.cfg.Store.Volume(ctx, q.GetVolume())
		if err != nil {
			return nil, unknownVolume(op, err)
		}
		next := r.Clone()
		if next.Spec.Labels == nil {
			next.Spec.Labels = map[string]string{}
		}
		maps.Copy(next.Spec.Labels, q.GetSet())
		for _, k := range q.GetRemove() {
			delete(next.Spec.Labels, k)
		}
		if maps.Equal(next.Spec.Labels, r.Spec.Labels) {
			return s.show(ctx, r)
		}
		swapped, err := s.cfg.Store.SwapVolume(ctx, next)
		if err == nil {
			return s.show(ctx, swapped)
		}
		if !errors.Is(err, holdfast.Busy) || ctx.Err() != nil {
			return nil, holdfast.Wrap(op, err)
		}
	}
}

// Limits of labels, so that records stay small.
const (
	maxLabels     = 64
	maxLabelBytes = 256
)

func validateLabels(ls map[string]string) error {
	const op = "validate labels"
	if len(ls) > maxLabels {
		return holdfast.E(op, holdfast.Invalid, fmt.Sprintf("there are %d labels; at most %d are allowed", len(ls), maxLabels))
	}
	for k, v := range ls {
		if k == "" || len(k) > maxLabelBytes || len(v) > maxLabelBytes {
			return holdfast.E(op, holdfast.Invalid, fmt.Sprintf("the label %.40q=%.40q is not possible; a key has 1 to %d bytes, a value up to %d", k, v, maxLabelBytes, maxLabelBytes))
		}
	}
	return nil
}

// known fails if there is no such volume.
func (s *Server) known(ctx context.Context, op, volume string) error {
	_, err := s.cfg.Store.Volume(ctx, volume)
	return unknownVolume(op, err)
}

// unknownVolume makes a NotFound say how to find out what there is.
func unknownVolume(op string, err error) error {
	if errors.Is(err, holdfast.NotFound) {
		return &holdfast.Error{Op: op, Kind: holdfast.NotFound, Msg: "there is no such volume; holdfast volume list shows those there are"}
	}
	return holdfast.Wrap(op, err)
}
