package nodecsi

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
)

// ensurePublished makes the target show the volume, if it does not yet. The
// caller has staged it, unless there is no staging.
func (s *Service) ensurePublished(ctx context.Context, q request, st *volumeState, dev blockDev) error {
	e := entry{Path: q.target, Role: published, Block: q.use.block, ReadOnly: q.readOnly, Exclude: q.use.exclude, Device: dev.id}
	if old := st.entry(e.Path); old != nil && (old.Block != e.Block || old.Role != e.Role) {
		return holdfast.E("", holdfast.Exists, fmt.Sprintf("%s is in use by this volume in another way (staging, block or mount); unpublish or unstage it first", e.Path))
	}
	if q.use.block {
		if err := blockAccess(st, e, dev); err != nil {
			return err
		}
	}
	there, err := s.inspect(st, e.Path, dev)
	if err != nil {
		return err
	}
	if there {
		return s.republish(ctx, q, st, e)
	}
	made, err := makeTarget(e)
	if err != nil {
		return err
	}
	st.put(e)
	err = s.states.save(st)
	if err == nil {
		err = s.show(ctx, q, st, dev)
	}
	if err != nil && made {
		if rerr := removeTarget(e.Path); rerr != nil && s.bare(ctx, st, e.Path) == nil {
			_ = removeTarget(e.Path) // best effort: the error that counts is err
		}
	}
	return err
}

// show mounts or binds at a target that is there and on which nothing is mounted.
func (s *Service) show(ctx context.Context, q request, st *volumeState, dev blockDev) error {
	s.guard(q.target)
	switch {
	case q.use.block:
		return bind(dev.path, q.target, false)
	case q.staging != "":
		if err := bind(q.staging, q.target, q.readOnly); err != nil {
			return err
		}
	default:
		// The filesystem is writable unless the access mode says otherwise: other
		// targets may write, and only this one mount is read-only.
		if err := s.mountOnce(ctx, filesystem{dev: dev, path: q.target, use: q.use, st: st}); err != nil {
			return err
		}
		if err := setVFSReadOnly(q.target, q.readOnly); err != nil {
			return s.undoMount(q.target, err)
		}
	}
	return s.toGroup(ctx, q.target, q.use, q.readOnly)
}

// republish makes sure that a target that was published before suits this call:
// a reader does not take a writer's access away, a writer gets his.
func (s *Service) republish(ctx context.Context, q request, st *volumeState, e entry) error {
	if old := st.entry(e.Path); old != nil && q.readOnly && !old.ReadOnly {
		e.ReadOnly = false
	}
	if !q.use.block && !q.readOnly {
		if err := makeWritable(e.Path); err != nil {
			return err
		}
	}
	st.put(e)
	if err := s.states.save(st); err != nil {
		return err
	}
	return s.toGroup(ctx, e.Path, q.use, q.readOnly || q.use.block)
}

// blockAccess sets whether the device takes writes. A bind mount that is
// read-only does not keep anybody from writing to the device that it shows, so
// a device is read-only for all of its targets, or for none.
func blockAccess(st *volumeState, e entry, dev blockDev) error {
	for _, o := range st.Entries {
		if o.Role == published && o.Path != e.Path && o.ReadOnly != e.ReadOnly {
			return holdfast.E("", holdfast.InUse, fmt.Sprintf(
				"the volume is published at %s with other access (read-only or not); a block device has one access for all targets of a node; unpublish it there first", o.Path))
		}
	}
	if old := st.entry(e.Path); old != nil && e.ReadOnly && !old.ReadOnly {
		return nil // it is published for writing already, and stays so
	}
	ro, err := dev.isReadOnly()
	if err != nil {
		return holdfast.WrapKind("look at device "+dev.path, holdfast.Unavailable, err)
	}
	if ro == e.ReadOnly {
		return nil
	}
	return dev.setReadOnly(e.ReadOnly)
}

// makeTarget makes the directory or, for block, the file to mount on. One that
// is there already is used if it is empty.
func makeTarget(e entry) (made bool, err error) {
	op := "make target " + e.Path
	fi, err := os.Lstat(e.Path)
	if err == nil {
		return false, checkTarget(e, fi)
	}
	if !errors.Is(err, os.ErrNotExist) {
		return false, holdfast.WrapKind(op, holdfast.Other, err)
	}
	if err := checkDir("directory of the target_path,", filepath.Dir(e.Path)); err != nil {
		return false, err
	}
	if !e.Block {
		return true, holdfast.WrapKind(op, holdfast.Other, os.Mkdir(e.Path, 0o750))
	}
	f, err := os.OpenFile(e.Path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return false, holdfast.WrapKind(op, holdfast.Other, err)
	}
	return true, holdfast.WrapKind(op, holdfast.Other, f.Close())
}

func checkTarget(e entry, fi os.FileInfo) error {
	if e.Block {
		if !fi.Mode().IsRegular() || fi.Size() > 0 {
			return invalid("", "the target %s exists and is no empty file; remove it", e.Path)
		}
		return nil
	}
	if !fi.IsDir() {
		return invalid("", "the target %s exists and is no directory; remove it", e.Path)
	}
	names, err := readNames(e.Path)
	if err != nil {
		return holdfast.WrapKind("look at target "+e.Path, holdfast.Other, err)
	}
	if len(names) > 0 {
		return holdfast.E("", holdfast.Exists, fmt.Sprintf("the target %s holds files (%s), which the mount would hide; move them away", e.Path, names[0]))
	}
	return nil
}

func readNames(dir string) ([]string, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = d.Close() }()
	names, err := d.Readdirnames(1)
	if len(names) > 0 || errors.Is(err, unix.ENOTDIR) {
		return names, nil
	}
	return nil, ignoreEOF(err)
}
