package nodecsi

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/holdfast-storage/holdfast"
)

// volume is what a call is about.
type volume struct {
	id     holdfast.VolumeID
	called string // as the caller calls it: id or name
	fsType string // its own filesystem type
	bytes  int64  // size that was asked for; 0 where the record could not be read
}

// resolve finds the volume by id or name. While the metadata store does not
// answer, a volume that this node knows is found in its state.
func (s *Service) resolve(ctx context.Context, called string) (volume, error) {
	op := "find volume " + called
	rec, err := s.vols.Lookup(ctx, called)
	if errors.Is(err, holdfast.Unavailable) {
		st, serr := s.states.find(called, "")
		if serr == nil && st != nil && len(st.Entries) > 0 {
			return volume{id: st.Volume, called: called, fsType: st.FSType}, nil
		}
	}
	if err != nil {
		return volume{}, holdfast.Wrap(op, err)
	}
	if rec.Phase == holdfast.PhaseDeleting {
		return volume{}, holdfast.E(op, holdfast.NotFound, "the volume is being deleted")
	}
	return volume{id: rec.ID, called: called, fsType: rec.Spec.FSType, bytes: holdfast.RoundUp(rec.Spec.SizeBytes)}, nil
}

// request is what NodeStageVolume and NodePublishVolume have in common.
type request struct {
	op           string
	volume       string
	staging      string // real path; "" for none
	target       string // real path; "" when staging
	use          use
	orchestrated bool // a publish context came along
	readOnly     bool // of the target
}

// NodeStageVolume attaches the volume if need be and mounts its filesystem at
// the staging path. For a block volume attaching is all there is to do.
func (s *Service) NodeStageVolume(ctx context.Context, r *csi.NodeStageVolumeRequest) (*csi.NodeStageVolumeResponse, error) {
	return run(ctx, s, asked{"stage volume " + r.GetVolumeId(), r}, func(ctx context.Context) (*csi.NodeStageVolumeResponse, error) {
		op := "stage volume " + r.GetVolumeId()
		if err := firstError(checkVolume(op, r.GetVolumeId()), checkPath(op, "staging_target_path", r.GetStagingTargetPath())); err != nil {
			return nil, err
		}
		u, err := checkCapability(op, r.GetVolumeCapability())
		if err != nil {
			return nil, err
		}
		err = s.bring(ctx, request{
			op: op, volume: r.GetVolumeId(), staging: realPath(r.GetStagingTargetPath()),
			use: u, orchestrated: len(r.GetPublishContext()) > 0,
		})
		return &csi.NodeStageVolumeResponse{}, err
	})
}

// NodePublishVolume makes the volume appear at the target path. It stages the
// volume too where that was not done, or where its mount has died.
func (s *Service) NodePublishVolume(ctx context.Context, r *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	return run(ctx, s, asked{"publish volume " + r.GetVolumeId(), r}, func(ctx context.Context) (*csi.NodePublishVolumeResponse, error) {
		op := "publish volume " + r.GetVolumeId()
		if err := firstError(checkVolume(op, r.GetVolumeId()), checkPath(op, "target_path", r.GetTargetPath())); err != nil {
			return nil, err
		}
		u, err := checkCapability(op, r.GetVolumeCapability())
		if err != nil {
			return nil, err
		}
		q := request{
			op: op, volume: r.GetVolumeId(), target: realPath(r.GetTargetPath()),
			use: u, orchestrated: len(r.GetPublishContext()) > 0, readOnly: r.GetReadonly() || u.readOnly,
		}
		if p := r.GetStagingTargetPath(); p != "" {
			if err := checkPath(op, "staging_target_path", p); err != nil {
				return nil, err
			}
			q.staging = realPath(p)
		}
		if q.staging == q.target {
			return nil, invalid(op, "the staging path and the target are both %s", q.target)
		}
		return &csi.NodePublishVolumeResponse{}, s.bring(ctx, q)
	})
}

// bring does what a stage or publish asks for, or leaves things as they were.
func (s *Service) bring(ctx context.Context, q request) error {
	v, err := s.resolve(ctx, q.volume)
	if err != nil {
		return holdfast.Wrap(q.op, err)
	}
	defer s.locks.lock(string(v.id), q.staging, q.target)()
	st, _, err := s.states.load(v.id)
	if err != nil {
		return holdfast.Wrap(q.op, err)
	}
	if err := checkExclusive(q, st); err != nil {
		return err
	}
	before := slices.Clone(st.Entries)
	_, wasAttached := s.vols.Attached(v.id)
	err = s.bringLocked(ctx, q, v, st)
	if err == nil {
		return nil
	}
	s.undo(ctx, st, before, wasAttached)
	return holdfast.Wrap(q.op, err)
}

func (s *Service) bringLocked(ctx context.Context, q request, v volume, st *volumeState) error {
	path, err := s.vols.Attach(ctx, v.id)
	if err != nil {
		return err
	}
	dev, err := openDev(path)
	if err != nil {
		return err
	}
	st.FSType, st.Orchestrated = v.fsType, st.Orchestrated || q.orchestrated
	if v.called != string(v.id) && !slices.Contains(st.Names, v.called) {
		st.Names = append(st.Names, v.called)
	}
	if q.use.block {
		st.Formatting = false // from now on the device may hold data without a filesystem
	}
	if q.staging != "" {
		if err := s.ensureStaged(ctx, q, st, dev); err != nil {
			return err
		}
	}
	if q.target != "" {
		if err := s.ensurePublished(ctx, q, st, dev); err != nil {
			return err
		}
	}
	s.remake(ctx, st, dev)
	return nil
}

// remake shows the volume again at its other paths, whose dead mounts were taken
// away. Errors are only logged: whoever uses such a path stages or publishes again.
func (s *Service) remake(ctx context.Context, st *volumeState, dev blockDev) {
	for _, e := range st.dropped {
		t, err := readMounts()
		if err == nil && t.top(e.Path) == nil {
			err = s.remakeOne(ctx, st, e, dev)
		}
		if err != nil {
			s.cfg.Log.Warn("a path of the volume could not be mounted again", "volume", st.Volume, "path", e.Path, "err", err)
		}
	}
	if len(st.dropped) == 0 {
		return
	}
	st.dropped = nil
	if err := s.states.save(st); err != nil {
		s.cfg.Log.Warn("the state of a volume could not be written", "volume", st.Volume, "err", err)
	}
}

func (s *Service) remakeOne(ctx context.Context, st *volumeState, e entry, dev blockDev) error {
	s.guard(e.Path)
	if e.Block {
		if err := bind(dev.path, e.Path, false); err != nil {
			return err
		}
	} else {
		f := filesystem{dev: dev, path: e.Path, use: use{group: -1}, st: st}
		if err := s.mountOnce(ctx, f); err != nil {
			return err
		}
		if err := setVFSReadOnly(e.Path, e.ReadOnly); err != nil {
			return s.undoMount(e.Path, err)
		}
	}
	e.Device = dev.id
	st.put(e)
	return nil
}

// undo takes back what a failed call has begun: the paths that it added to the
// state, and the attachment if it made that.
func (s *Service) undo(ctx context.Context, st *volumeState, before []entry, wasAttached bool) {
	for _, e := range slices.Clone(st.Entries) {
		if slices.ContainsFunc(before, func(b entry) bool { return b.Path == e.Path }) {
			continue
		}
		if err := s.bare(ctx, st, e.Path); err != nil {
			s.cfg.Log.Warn("a failed call left a mount behind; unstaging removes it", "volume", st.Volume, "path", e.Path, "err", err)
			continue
		}
		st.drop(e.Path)
	}
	var err error
	formatting := st.Formatting
	switch {
	case len(st.Entries) > 0:
		err = s.states.save(st)
	case wasAttached:
		err = s.states.remove(st.Volume)
	default:
		err = s.release(ctx, st)
	}
	if formatting && err == nil {
		err = s.states.save(st) // the next attempt goes on formatting
	}
	if err != nil {
		s.cfg.Log.Warn("a failed call was not undone completely; unstaging does it", "volume", st.Volume, "err", err)
	}
}

// checkExclusive upholds SINGLE_NODE_SINGLE_WRITER: one target at a time.
func checkExclusive(q request, st *volumeState) error {
	if q.target == "" {
		return nil
	}
	for _, e := range st.Entries {
		if e.Role == published && e.Path != q.target && (q.use.exclude || e.Exclude) {
			return holdfast.E(q.op, holdfast.InUse, fmt.Sprintf(
				"it is published at %s, and with SINGLE_NODE_SINGLE_WRITER only one target is possible; unpublish it there first", e.Path))
		}
	}
	return nil
}

// ensureStaged makes the staging path show the volume, if it does not yet.
func (s *Service) ensureStaged(ctx context.Context, q request, st *volumeState, dev blockDev) error {
	e := entry{Path: q.staging, Role: staged, Block: q.use.block, ReadOnly: q.use.readOnly, Device: dev.id}
	if old := st.entry(e.Path); old != nil && old.Block != e.Block {
		return holdfast.E("", holdfast.Exists, fmt.Sprintf("it is staged at %s for another access type (block or mount); unstage it first", e.Path))
	}
	if e.Block {
		if st.entry(e.Path) == nil {
			if err := checkDir("staging_target_path", e.Path); err != nil {
				return err
			}
		}
		st.put(e)
		return s.states.save(st)
	}
	there, err := s.inspect(st, e.Path, dev)
	if err != nil {
		return err
	}
	if there {
		return s.restage(ctx, q, st, e)
	}
	if err := checkDir("staging_target_path", e.Path); err != nil {
		return err
	}
	st.put(e)
	if err := s.states.save(st); err != nil {
		return err
	}
	s.guard(e.Path)
	if err := s.mountOnce(ctx, filesystem{dev: dev, path: e.Path, use: q.use, st: st}); err != nil {
		return err
	}
	return s.toGroup(ctx, e.Path, q.use, q.use.readOnly)
}

// restage makes sure that a path that was staged before suits this use too: a
// first reader does not keep a writer out.
func (s *Service) restage(ctx context.Context, q request, st *volumeState, e entry) error {
	if old := st.entry(e.Path); q.use.readOnly && (old == nil || !old.ReadOnly) {
		e.ReadOnly = false
	}
	if !q.use.readOnly {
		if err := makeWritable(e.Path); err != nil {
			return err
		}
	}
	st.put(e)
	if err := s.states.save(st); err != nil {
		return err
	}
	return s.toGroup(ctx, e.Path, q.use, q.use.readOnly)
}

func (s *Service) toGroup(ctx context.Context, path string, u use, readOnly bool) error {
	if u.group < 0 || readOnly {
		return nil
	}
	return giveToGroup(ctx, path, u.group)
}

// inspect says whether path shows the volume's device and works. A mount there
// of a device that the volume had before, or that has shut down, is cleaned away
// first. Anything else mounted there is an error.
func (s *Service) inspect(st *volumeState, path string, dev blockDev) (bool, error) {
	t, err := readMounts()
	if err != nil {
		return false, err
	}
	m := t.top(path)
	if m == nil {
		return false, nil
	}
	known := st.entry(path)
	has := mountedDev(m)
	switch {
	case shows(m, dev.id) && !isDead(path):
		return true, nil
	case has == dev.id && known != nil, known != nil && known.Device == has:
		if err := s.dropDead(st, has); err != nil {
			return false, err
		}
		return s.inspect(st, path, dev)
	}
	who := "not a Holdfast volume as far as this node knows"
	if o, oerr := s.states.owner(path); oerr == nil && o != nil {
		who = "volume " + string(o.Volume)
	}
	return false, holdfast.E("", holdfast.Exists, fmt.Sprintf(
		"%s (%s, %s) is mounted at %s already; unmount it or use another path", m.Source, m.FSType, who, path))
}

// mountOnce mounts the filesystem at a path where nothing is mounted: a further
// path of a filesystem that is mounted here is a bind, never a second mount.
func (s *Service) mountOnce(ctx context.Context, f filesystem) error {
	t, err := readMounts()
	if err != nil {
		return err
	}
	for _, m := range t.of(f.dev.id) {
		if isNode(m) || isDead(m.Mountpoint) {
			continue
		}
		if err := bind(m.Mountpoint, f.path, f.use.readOnly); err != nil {
			return err
		}
		if !f.use.readOnly {
			err = makeWritable(f.path)
		}
		if err = firstError(err, addVFSFlags(f.path, vfsFlags(strings.Join(f.use.flags, ",")))); err != nil {
			return s.undoMount(f.path, err)
		}
		return nil
	}
	if err := s.mountNew(ctx, f); err != nil {
		return err
	}
	if isDead(f.path) {
		return s.undoMount(f.path, holdfast.E("", holdfast.Unavailable,
			"the filesystem has shut down after an input/output error, and something still holds it open; end the containers that use the volume and try again"))
	}
	return nil
}

func checkDir(field, path string) error {
	fi, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return invalid("", "the %s %s does not exist; it must be made first", field, path)
	case err != nil:
		return holdfast.WrapKind("look at "+path, holdfast.Other, err)
	case !fi.IsDir():
		return invalid("", "the %s %s is not a directory", field, path)
	}
	return nil
}
