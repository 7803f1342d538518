package nodecsi

import (
	"context"
	"fmt"
	"os"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
)

// NodeExpandVolume waits until the device has the size that the controller was
// asked for, and lets the filesystem grow to it. Repeating it changes nothing.
func (s *Service) NodeExpandVolume(ctx context.Context, r *csi.NodeExpandVolumeRequest) (*csi.NodeExpandVolumeResponse, error) {
	return run(ctx, s, asked{"expand volume " + r.GetVolumeId(), r}, func(ctx context.Context) (*csi.NodeExpandVolumeResponse, error) {
		op := "expand volume " + r.GetVolumeId()
		at, err := s.locate(ctx, op, r.GetVolumeId(), r.GetVolumePath())
		if err != nil {
			return nil, err
		}
		if at.dead {
			return nil, deadMount(op, at.path)
		}
		if c := r.GetVolumeCapability(); c != nil {
			if _, err := checkCapability(op, c); err != nil {
				return nil, err
			}
		}
		want, err := wantedSize(op, r.GetCapacityRange(), at.bytes)
		if err != nil {
			return nil, err
		}
		// Not under the volume's lock: unmounting need not wait for growth.
		if err := s.vols.WaitSize(ctx, at.id, want); err != nil {
			return nil, holdfast.Wrap(op, err)
		}
		size, err := s.grow(ctx, op, at)
		return &csi.NodeExpandVolumeResponse{CapacityBytes: size}, err
	})
}

// wantedSize is the device size to wait for: the one that the volume was set to.
func wantedSize(op string, c *csi.CapacityRange, has int64) (int64, error) {
	required, limit := c.GetRequiredBytes(), c.GetLimitBytes()
	switch {
	case required < 0 || limit < 0:
		return 0, invalid(op, "the capacity range (%d to %d bytes) is negative", required, limit)
	case limit > 0 && limit < required:
		return 0, invalid(op, "the capacity range is empty: required_bytes %d is above limit_bytes %d", required, limit)
	case has > 0 && holdfast.RoundUp(required) > has:
		return 0, holdfast.E(op, holdfast.OutOfRange, fmt.Sprintf("%d bytes are required, but the volume was set to %d; expand it by the controller first", required, has))
	case limit > 0 && has > holdfast.RoundUp(limit):
		return 0, holdfast.E(op, holdfast.OutOfRange, fmt.Sprintf("at most %d bytes are allowed, but the volume was set to %d; a volume does not shrink", limit, has))
	}
	return max(has, holdfast.RoundUp(required)), nil
}

// grow lets the filesystem at the place grow, and returns the device's size.
func (s *Service) grow(ctx context.Context, op string, at place) (int64, error) {
	defer s.locks.lock(string(at.id))()
	at, err := s.look(op, at) // again: it may have been unmounted meanwhile
	if err != nil {
		return 0, err
	}
	switch {
	case at.dead:
		return 0, deadMount(op, at.path)
	case at.block:
		return at.dev.size, nil
	case at.readOnly:
		return 0, holdfast.E(op, holdfast.InUse, "the filesystem is mounted read-only; it grows when it is next staged for writing")
	}
	return at.dev.size, holdfast.Wrap(op, growMounted(ctx, at.dev, at.path, at.fsType))
}

// place is a path where a volume is staged or published.
type place struct {
	volume
	path     string
	dev      blockDev
	block    bool
	readOnly bool // the filesystem, not only this mount
	dead     bool // it gives input/output errors
}

// locate finds what is at a path that the caller says is the volume's. NotFound
// if there is no such volume or it is not at that path.
func (s *Service) locate(ctx context.Context, op, called, path string) (place, error) {
	if err := checkVolume(op, called); err != nil {
		return place{}, err
	}
	if path == "" {
		return place{}, invalid(op, "a volume_path is needed; it is empty")
	}
	v, err := s.resolve(ctx, called)
	if err != nil {
		return place{}, holdfast.Wrap(op, err)
	}
	return s.look(op, place{volume: v, path: realPath(path)})
}

// look fills in what is at the place now.
func (s *Service) look(op string, at place) (place, error) {
	absent := holdfast.E(op, holdfast.NotFound, fmt.Sprintf("the volume is not staged or published at %s on this node", at.path))
	st, _, err := s.states.load(at.id)
	if err != nil {
		return at, holdfast.Wrap(op, err)
	}
	t, err := readMounts()
	if err != nil {
		return at, holdfast.Wrap(op, err)
	}
	e, m := st.entry(at.path), t.top(at.path)
	path, attached := s.vols.Attached(at.id)
	if attached {
		if at.dev, err = openDev(path); err != nil {
			return at, holdfast.Wrap(op, err)
		}
	}
	switch {
	case attached && e != nil && e.Block && (e.Role == staged || m != nil && shows(m, at.dev.id)):
		at.block = true
	case attached && m != nil && shows(m, at.dev.id):
		at.block, at.fsType = isNode(m), m.FSType
		at.readOnly = hasOption(m.VFSOptions, "ro")
		at.dead = !at.block && isDead(at.path)
	case m != nil && e != nil:
		at.dead = true // the mount of a device that it no longer has
	default:
		return at, absent
	}
	return at, nil
}

// NodeGetVolumeStats tells how full a filesystem is, or how large a block volume.
func (s *Service) NodeGetVolumeStats(ctx context.Context, r *csi.NodeGetVolumeStatsRequest) (*csi.NodeGetVolumeStatsResponse, error) {
	return run(ctx, s, asked{"statistics of volume " + r.GetVolumeId(), r}, func(ctx context.Context) (*csi.NodeGetVolumeStatsResponse, error) {
		op := "statistics of volume " + r.GetVolumeId()
		at, err := s.locate(ctx, op, r.GetVolumeId(), r.GetVolumePath())
		if err != nil {
			return nil, err
		}
		if at.dead {
			return nil, deadMount(op, at.path)
		}
		if at.block {
			return &csi.NodeGetVolumeStatsResponse{Usage: []*csi.VolumeUsage{{Unit: csi.VolumeUsage_BYTES, Total: at.dev.size}}}, nil
		}
		return statsOf(op, at.path)
	})
}

func deadMount(op, path string) error {
	return holdfast.E(op, holdfast.Unavailable, "the mount at "+path+" is dead: its device is gone or gives errors; stage and publish the volume again")
}

func statsOf(op, path string) (*csi.NodeGetVolumeStatsResponse, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return nil, holdfast.WrapKind(op, holdfast.Unavailable, &os.PathError{Op: "statfs", Path: path, Err: err})
	}
	return &csi.NodeGetVolumeStatsResponse{Usage: []*csi.VolumeUsage{
		{
			Unit: csi.VolumeUsage_BYTES, Total: int64(fs.Blocks) * fs.Bsize,
			Available: int64(fs.Bavail) * fs.Bsize, Used: int64(fs.Blocks-fs.Bfree) * fs.Bsize,
		},
		{Unit: csi.VolumeUsage_INODES, Total: int64(fs.Files), Available: int64(fs.Ffree), Used: int64(fs.Files - fs.Ffree)},
	}}, nil
}
