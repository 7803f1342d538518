package lifecycle

import (
	"context"
	"errors"
	"fmt"

	"github.com/holdfast-storage/holdfast"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

// attachKey is what joins: the same operation on the same volume and node.
type attachKey struct {
	volume holdfast.VolumeID
	node   holdfast.NodeID
	force  bool
}

type attached struct {
	rec  holdfast.Record
	path string
}

// Attach makes the volume a block device on a node and answers with its path
// there; again answers the same. Errors: NotFound for an unknown volume or node,
// InUse naming the holder while another live node has it and force is not set,
// Unavailable while the node is down.
func (s *Service) Attach(ctx context.Context, volume string, node holdfast.NodeID, force bool) (holdfast.Record, string, error) {
	op := fmt.Sprintf("attach volume %s to node %s", volume, node)
	rec, err := s.Get(ctx, volume)
	if err != nil {
		return holdfast.Record{}, "", holdfast.Wrap(op, err)
	}
	a, err := s.attaches.Do(ctx, attachKey{rec.ID, node, force}, func(ctx context.Context) (attached, error) {
		ctx, end := s.background(ctx)
		defer end()
		return s.attach(ctx, rec.ID, node, force)
	})
	return a.rec.Clone(), a.path, holdfast.Wrap(op, err)
}

func (s *Service) attach(ctx context.Context, id holdfast.VolumeID, node holdfast.NodeID, force bool) (attached, error) {
	if err := s.nodeIsUp(ctx, node); err != nil {
		return attached{}, err
	}
	rec, err := s.cfg.Store.Volume(ctx, string(id))
	if err != nil {
		return attached{}, err
	}
	if rec.Phase != holdfast.PhaseReady {
		return attached{}, notReady(rec)
	}
	if holder := rec.AttachedTo(); holder != "" && holder != node && !force {
		// Said here, so that it is said the same whatever the node finds out; the
		// node decides by compare-and-swap.
		alive, err := s.cfg.Store.Alive(ctx, holder)
		if err != nil {
			return attached{}, err
		}
		if alive {
			return attached{}, holdfast.E("", holdfast.InUse, fmt.Sprintf("it is attached to node %s; detach it there first", holder))
		}
	}
	var path string
	err = s.call(ctx, node, func(ctx context.Context, c holdfastv1.NodeServiceClient) error {
		a, err := c.Attach(ctx, &holdfastv1.AttachRequest{VolumeId: string(id), Force: force})
		path = a.GetDevicePath()
		return err
	})
	if err != nil {
		return attached{}, err
	}
	if rec, err = s.cfg.Store.Volume(ctx, string(id)); err != nil {
		return attached{}, err
	}
	return attached{rec: rec, path: path}, nil
}

// nodeIsUp is nil for a registered node with a lease.
func (s *Service) nodeIsUp(ctx context.Context, node holdfast.NodeID) error {
	if holdfast.ValidateNodeID(node) != nil {
		return holdfast.E("", holdfast.NotFound, fmt.Sprintf("there is no node %q", node))
	}
	if _, err := s.cfg.Store.Node(ctx, node); err != nil {
		return holdfast.Wrap("node "+string(node), err)
	}
	alive, err := s.cfg.Store.Alive(ctx, node)
	if err != nil {
		return err
	}
	if !alive {
		return holdfast.E("", holdfast.Unavailable, fmt.Sprintf("node %s is down", node))
	}
	return nil
}

// Detach removes the volume's device from where it is. A volume that is not
// attached, or that does not exist, is fine; then the record is zero. On a node
// whose lease is gone, the grant is cleared. Errors: InUse while it is mounted and
// force is not set.
func (s *Service) Detach(ctx context.Context, volume string, force bool) (holdfast.Record, error) {
	return s.DetachFrom(ctx, volume, "", force)
}

// DetachFrom is Detach from one node; it does nothing to a volume that is
// attached elsewhere. An unknown node is fine.
func (s *Service) DetachFrom(ctx context.Context, volume string, node holdfast.NodeID, force bool) (holdfast.Record, error) {
	op := "detach volume " + volume
	rec, err := s.Get(ctx, volume)
	if errors.Is(err, holdfast.NotFound) {
		return holdfast.Record{}, nil
	}
	if err != nil {
		return holdfast.Record{}, holdfast.Wrap(op, err)
	}
	if node == "" {
		node = rec.AttachedTo()
	}
	if node == "" {
		return rec, nil
	}
	_, err = s.detaches.Do(ctx, attachKey{rec.ID, node, force}, func(ctx context.Context) (struct{}, error) {
		ctx, end := s.background(ctx)
		defer end()
		return struct{}{}, s.detach(ctx, rec.ID, node, force)
	})
	if err != nil {
		return rec, holdfast.Wrap(op, err)
	}
	rec, err = s.Get(ctx, string(rec.ID))
	if errors.Is(err, holdfast.NotFound) {
		return holdfast.Record{}, nil
	}
	return rec, holdfast.Wrap(op, err)
}

func (s *Service) detach(ctx context.Context, id holdfast.VolumeID, node holdfast.NodeID, force bool) error {
	err := s.nodeIsUp(ctx, node)
	if err == nil {
		err = s.call(ctx, node, func(ctx context.Context, c holdfastv1.NodeServiceClient) error {
			_, err := c.Detach(ctx, &holdfastv1.DetachRequest{VolumeId: string(id), Force: force})
			return err
		})
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, holdfast.NotFound): // the node, or the volume meanwhile
	case !errors.Is(err, holdfast.Unavailable):
		return err
	}
	cleared, cerr := s.clearDeadGrant(ctx, id, node)
	if cerr != nil {
		return cerr
	}
	if !cleared && errors.Is(err, holdfast.Unavailable) {
		return err // it lives, but did not answer
	}
	return nil
}

// clearDeadGrant takes the grant from a node whose lease is gone, or says that
// the node is alive.
func (s *Service) clearDeadGrant(ctx context.Context, id holdfast.VolumeID, node holdfast.NodeID) (cleared bool, err error) {
	alive, err := s.cfg.Store.Alive(ctx, node)
	if err != nil || alive {
		return false, err
	}
	_, err = s.update(ctx, id, func(r *holdfast.Record) (bool, error) {
		if r.AttachedTo() != node {
			return false, nil
		}
		r.Primary = nil
		return true, nil
	})
	if errors.Is(err, holdfast.NotFound) {
		err = nil
	}
	return err == nil, err
}
