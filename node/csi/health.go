package nodecsi

import (
	"context"
	"errors"
	"fmt"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/holdfast-storage/holdfast"
)

// NodeGetVolumeHealth reports what is wrong with the volume as seen from this
// node: paths that are dead, and replicas that are missing.
func (s *Service) NodeGetVolumeHealth(ctx context.Context, r *csi.NodeGetVolumeHealthRequest) (*csi.NodeGetVolumeHealthResponse, error) {
	return run(ctx, s, asked{"health of volume " + r.GetVolumeId(), r}, func(ctx context.Context) (*csi.NodeGetVolumeHealthResponse, error) {
		op := "health of volume " + r.GetVolumeId()
		if err := checkVolume(op, r.GetVolumeId()); err != nil {
			return nil, err
		}
		rec, err := s.vols.Lookup(ctx, r.GetVolumeId())
		if err != nil {
			return nil, holdfast.Wrap(op, err)
		}
		h := &csi.VolumeHealth{VolumeId: r.GetVolumeId()}
		add := func(status csi.VolumeHealthErrorType, reason, message string) {
			h.HealthStatuses = append(h.HealthStatuses, &csi.VolumeHealth_VolumeHealthEntry{Status: status, Reason: reason, Message: message})
		}
		if err := s.deadPath(op, rec, r); err != nil {
			add(csi.VolumeHealthErrorType_INACCESSIBLE, "MountDead", err.Error())
		}
		if in := len(rec.InSyncReplicas()); in == 0 {
			add(csi.VolumeHealthErrorType_INACCESSIBLE, "NoReplicaInSync", "no replica is in sync")
		} else if !rec.Healthy() {
			add(csi.VolumeHealthErrorType_DEGRADED, "ReplicasMissing", fmt.Sprintf("%d of %d replicas are in sync", in, rec.Spec.Replicas))
		}
		return &csi.NodeGetVolumeHealthResponse{VolumeHealth: h}, nil
	})
}

// deadPath is an error when a path of the volume is mounted, or was, and does
// not work. Paths where the volume is not are not looked at.
func (s *Service) deadPath(op string, rec holdfast.Record, r *csi.NodeGetVolumeHealthRequest) error {
	v := volume{id: rec.ID, called: r.GetVolumeId(), fsType: rec.Spec.FSType}
	st, _, err := s.states.load(rec.ID)
	if err != nil {
		return err
	}
	paths := []string{r.GetVolumePublishPath(), r.GetStagingTargetPath()}
	for _, e := range st.Entries {
		paths = append(paths, e.Path)
	}
	for _, p := range paths {
		if p == "" {
			continue
		}
		at, err := s.look(op, place{volume: v, path: realPath(p)})
		switch {
		case errors.Is(err, holdfast.NotFound) && st.entry(realPath(p)) == nil:
			continue
		case err != nil:
			return err
		case at.dead:
			return deadMount(op, p)
		}
	}
	return nil
}

// NodeGetStorageHealth reports failed pools of this node.
func (s *Service) NodeGetStorageHealth(context.Context, *csi.NodeGetStorageHealthRequest) (*csi.NodeGetStorageHealthResponse, error) {
	failed, message := 0, ""
	for _, p := range s.vols.Node().Pools {
		if p.State == holdfast.PoolFailed {
			failed++
			message = fmt.Sprintf("pool %s on %s: %s", p.ID, p.Device, p.Message)
		}
	}
	r := &csi.NodeGetStorageHealthResponse{}
	if failed > 0 {
		r.BackendHealth = append(r.BackendHealth, &csi.NodeGetStorageHealthResponse_StorageBackendHealth{
			Status: csi.StorageHealthErrorType_STORAGE_DEGRADED, Reason: "PoolFailed",
			Message: fmt.Sprintf("%d pools have failed, the last of them: %s", failed, message),
		})
	}
	return r, nil
}
