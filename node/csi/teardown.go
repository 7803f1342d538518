package nodecsi

import (
	"context"
	"errors"
	"io"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/holdfast-storage/holdfast"
)

func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// NodeUnpublishVolume unmounts the target and removes it.
func (s *Service) NodeUnpublishVolume(ctx context.Context, r *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	return run(ctx, s, asked{"unpublish volume " + r.GetVolumeId(), r}, func(ctx context.Context) (*csi.NodeUnpublishVolumeResponse, error) {
		op := "unpublish volume " + r.GetVolumeId()
		if err := firstError(checkVolume(op, r.GetVolumeId()), checkPath(op, "target_path", r.GetTargetPath())); err != nil {
			return nil, err
		}
		err := s.takeAway(ctx, r.GetVolumeId(), entry{Path: realPath(r.GetTargetPath()), Role: published})
		return &csi.NodeUnpublishVolumeResponse{}, holdfast.Wrap(op, err)
	})
}

// NodeUnstageVolume unmounts the staging path, whose directory stays: it is the
// orchestrator's. With the last path of the volume it is detached.
func (s *Service) NodeUnstageVolume(ctx context.Context, r *csi.NodeUnstageVolumeRequest) (*csi.NodeUnstageVolumeResponse, error) {
	return run(ctx, s, asked{"unstage volume " + r.GetVolumeId(), r}, func(ctx context.Context) (*csi.NodeUnstageVolumeResponse, error) {
		op := "unstage volume " + r.GetVolumeId()
		if err := firstError(checkVolume(op, r.GetVolumeId()), checkPath(op, "staging_target_path", r.GetStagingTargetPath())); err != nil {
			return nil, err
		}
		err := s.takeAway(ctx, r.GetVolumeId(), entry{Path: realPath(r.GetStagingTargetPath()), Role: staged})
		return &csi.NodeUnstageVolumeResponse{}, holdfast.Wrap(op, err)
	})
}

// takeAway undoes what bring did at a path. What this node remembers of the
// volume is enough: the metadata store is only asked when that is nothing, and a
// volume that nobody knows is fine as long as nothing is mounted there.
func (s *Service) takeAway(ctx context.Context, called string, e entry) error {
	st, err := s.states.find(called, e.Path)
	if err != nil {
		return err
	}
	id := holdfast.VolumeID("")
	if st != nil {
		id = st.Volume
	} else {
		rec, err := s.vols.Lookup(ctx, called)
		switch {
		case err == nil:
			id = rec.ID
		case !errors.Is(err, holdfast.NotFound):
			return err
		}
	}
	defer s.locks.lock(string(id), e.Path)()
	if id == "" {
		return s.takeUnknown(ctx, e)
	}
	st, known, err := s.states.load(id) // again: the lock was not held
	if err != nil {
		return err
	}
	if s.cfg.Thaw != nil { // unmounted while it is frozen, it would stay so
		if err := s.cfg.Thaw(ctx, id); err != nil {
			return err
		}
	}
	if err := s.bare(ctx, st, e.Path); err != nil {
		return err
	}
	if e.Role == published {
		if err := removeTarget(e.Path); err != nil {
			return err
		}
	}
	st.drop(e.Path)
	if !known && e.Role == published && !s.cfg.NoStaging {
		return nil // whoever unstages it decides
	}
	return s.release(ctx, st)
}

// takeUnknown is takeAway for a volume that does not exist.
func (s *Service) takeUnknown(ctx context.Context, e entry) error {
	if err := s.bare(ctx, &volumeState{}, e.Path); err != nil {
		return err
	}
	if e.Role == published {
		return removeTarget(e.Path)
	}
	return nil
}
