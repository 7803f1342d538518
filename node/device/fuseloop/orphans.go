package fuseloop

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/node/device/blockdev"
)

// CleanOrphans removes what a killed predecessor with the same root directory
// left: FUSE mounts without a server, and loop devices over them. Filesystems
// that are still mounted from such a device are dead; they are reported in the
// log and unmounted lazily. Devices of this front end, and those of other
// owners and those that a keeper held are not touched.
func (f *FrontEnd) CleanOrphans(ctx context.Context) ([]holdfast.VolumeID, error) {
	const op = "clean up after a predecessor"
	if err := ctx.Err(); err != nil {
		return nil, holdfast.WrapKind(op, holdfast.Unavailable, err)
	}
	cleaned, err := f.clean(func(v holdfast.VolumeID) bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		_, ours := f.devices[v]
		return !ours && f.adopted[v] == nil
	})
	if err == nil {
		f.mu.Lock()
		f.swept = true
		f.mu.Unlock()
	}
	return cleaned, holdfast.Wrap(op, err)
}

// CleanRoot removes what a killed process left below c.Root without starting a
// front end there: CleanOrphans for demonstrations and tests, whose daemons do
// not come back. It fails with InUse while a process that lives has the root.
func CleanRoot(ctx context.Context, c Config) ([]holdfast.VolumeID, error) {
	f, err := New(c)
	if err != nil {
		return nil, err
	}
	cleaned, err := f.CleanOrphans(ctx)
	return cleaned, errors.Join(err, f.Close())
}

// clean removes the devices and mounts of the volumes that orphan names, and
// says which there were. The lock on the root directory proves that no other
// process serves them.
func (f *FrontEnd) clean(orphan func(holdfast.VolumeID) bool) ([]holdfast.VolumeID, error) {
	var left leftovers
	dirs, err := os.ReadDir(f.root.Dir())
	if err != nil {
		return nil, holdfast.WrapKind("list the mount points", holdfast.Other, err)
	}
	// The mounts first: it ends their connections, so that no step after it can
	// wait for an answer.
	for _, e := range dirs {
		if vol := holdfast.VolumeID(e.Name()); blockdev.IsVolume(e.Name()) && orphan(vol) {
			left.remove(vol, func() error { return f.cleanMount(vol) })
		}
	}
	left.wait()
	for _, l := range loopsOnFiles() {
		if vol, ours := f.root.VolumeOf(l.File); ours && orphan(vol) {
			left.remove(vol, func() error { return f.cleanLoop(vol, l) })
		}
	}
	left.wait()
	return slices.Sorted(maps.Keys(left.found)), errors.Join(left.errs...)
}

// leftovers are being removed, some at a time: the kernel lets each of them wait for
// all its CPUs, some ten milliseconds, and there may be a thousand.
type leftovers struct {
	found map[holdfast.VolumeID]bool
	work  errgroup.Group
	mu    sync.Mutex
	errs  []error
}

// removedAtOnce bounds how many are being removed.
const removedAtOnce = 16

func (x *leftovers) remove(vol holdfast.VolumeID, f func() error) {
	if x.found == nil {
		x.found = map[holdfast.VolumeID]bool{}
		x.work.SetLimit(removedAtOnce)
	}
	x.found[vol] = true
	x.work.Go(func() error {
		err := f()
		x.mu.Lock()
		defer x.mu.Unlock()
		x.errs = append(x.errs, err)
		return nil
	})
}

// wait returns when all has been removed, or not.
func (x *leftovers) wait() { _ = x.work.Wait() }

func (f *FrontEnd) cleanMount(vol holdfast.VolumeID) error {
	if err := abortMount(f.dir(vol)); err != nil {
		return err
	}
	err := os.Remove(f.dir(vol))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return holdfast.WrapKind("remove a mount point", holdfast.Other, err)
}

func (f *FrontEnd) cleanLoop(vol holdfast.VolumeID, l loopDevice) error {
	points, err := l.DetachMounts()
	if err != nil {
		return err
	}
	if err := l.clear(0, task{}.always); err != nil {
		return holdfast.WrapKind("unbind "+l.Path, holdfast.Other, err)
	}
	stillOpen := l.bound()
	f.mark(vol, stillOpen)
	f.log.Warn("removed a device whose server is gone", "volume", vol, "device", l.Path, "mounts", points, "stillOpen", stillOpen)
	return nil
}

// abortMounts ends all connections below the root. Only for when their server
// is known to be dying.
func abortMounts(root string) {
	dirs, err := os.ReadDir(root)
	if err != nil {
		return
	}
	for _, e := range dirs {
		if blockdev.IsVolume(e.Name()) {
			_ = abortMount(filepath.Join(root, e.Name()))
		}
	}
}

// loopsOnFiles lists the loop devices whose file is named like ours. It asks
// /sys only, so it neither blocks nor disturbs other people's devices.
func loopsOnFiles() []loopDevice {
	backing, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	var all []loopDevice
	for _, path := range backing {
		raw, err := os.ReadFile(path)
		if err != nil {
			continue // unbound meanwhile
		}
		l := loopDevice{File: filepath.Base(strings.TrimSpace(string(raw)))}
		if !strings.HasPrefix(l.File, blockdev.MarkPrefix) {
			continue
		}
		l.Path = filepath.Join("/dev", filepath.Base(filepath.Dir(filepath.Dir(path))))
		if l.Ensure() == nil {
			all = append(all, l)
		}
	}
	return all
}
