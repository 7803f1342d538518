package nodecsi

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	mountutils "k8s.io/mount-utils"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/buf"
	"github.com/holdfast-storage/holdfast/internal/mountpoint"
)

// busyPause is how long to wait before something busy is tried again.
const busyPause = 50 * time.Millisecond

// clearPath unmounts what is mounted at path and below it, layer by layer, and
// returns nil only when a fresh look at the mount table shows nothing there
// (gotcha 3). Mounts of a dead device are detached lazily; one that is merely
// busy never is: it is tried until the busy timeout, and then the error says so.
// What is not the volume's is left alone, and the error names it.
func (s *Service) clearPath(ctx context.Context, st *volumeState, path string) error {
	op := "unmount " + path
	ctx, cancel := context.WithTimeout(ctx, s.cfg.BusyTimeout)
	defer cancel()
	var last error
	for {
		t, err := readMounts()
		if err != nil {
			return holdfast.Wrap(op, err)
		}
		left := t.under(path)
		if len(left) == 0 {
			return nil
		}
		if err := s.mayUnmount(st, path, left); err != nil {
			return holdfast.Wrap(op, err)
		}
		progress := false
		for _, m := range slices.Backward(left) {
			if err := s.unmountOne(st, m); err != nil {
				last = fmt.Errorf("%s: %w", m.Mountpoint, err)
				break // what is below it in the stack cannot go before it
			}
			progress = true
		}
		if progress {
			continue
		}
		if !pause(ctx) {
			return holdfast.WrapKind(op+": it is still in use; end what uses it and try again; mounted there: "+left.String(), holdfast.InUse, last)
		}
	}
}

// guard makes what is at path refuse writes while nothing is mounted there: when a
// mount is taken away from a task that goes on, it must not write to the host's
// disk instead. Where that is impossible the path works as it did without; the
// first time, an operator is told.
func (s *Service) guard(path string) {
	err := mountpoint.Guard(path)
	if err == nil {
		return
	}
	s.cfg.Log.Debug("the path takes writes while the volume is not mounted there", "path", path, "err", err)
	if errors.Is(err, holdfast.Unsupported) {
		s.unguarded.Do(func() {
			s.cfg.Log.Warn("mount points take writes while no volume is mounted there: a task that goes on after its volume was taken away by force would write to this machine's disk; guarding them needs CAP_LINUX_IMMUTABLE and a filesystem with that attribute", "path", path, "err", err)
		})
	}
}

// bare is clearPath, after which what is at path takes writes again.
func (s *Service) bare(ctx context.Context, st *volumeState, path string) error {
	if err := s.clearPath(ctx, st, path); err != nil {
		return err
	}
	return mountpoint.Release(path)
}

// pause waits a moment; false when ctx has ended.
func pause(ctx context.Context) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(busyPause):
		return true
	}
}

// unmountOne takes one mount away, lazily if its device is dead.
func (s *Service) unmountOne(st *volumeState, m *mountinfo.Info) error {
	return unmount(m.Mountpoint, s.isStale(st, m))
}

// unmount has a process of its own do it: unmounting writes to the device, which
// this process serves. When this one is killed meanwhile, a thread of it that
// waits for such a write would keep it from ending, and the device, which waits
// for that, from failing: both would hang for ever.
func unmount(path string, lazy bool) error {
	args := []string{"--internal-only", "--no-canonicalize"}
	if lazy {
		args = append(args, "--lazy")
	}
	out, err := exec.Command("umount", append(args, "--", path)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

// isStale says whether a mount of the volume shows a device that it no longer
// has, one that gives errors, or a filesystem that has shut down.
func (s *Service) isStale(st *volumeState, m *mountinfo.Info) bool {
	if e := st.entry(m.Mountpoint); e != nil && e.Device == mountedDev(m) {
		now := s.attachedDev(st.Volume)
		if now != "" && now != e.Device || now == "" && deviceFails(m) {
			return true
		}
	}
	return isDead(m.Mountpoint)
}

// deviceFails says whether the device that m shows cannot be read: nobody serves
// it any more. When in doubt it can.
func deviceFails(m *mountinfo.Info) bool {
	path := m.Source
	if isNode(m) {
		path = m.Mountpoint
	}
	if rdev, err := rdevOf(path); err != nil || devID(rdev) != mountedDev(m) {
		return false
	}
	// First by a process of its own: when this one serves the device after all, or
	// somebody keeps it from being opened, it would wait for itself.
	if readable(path) {
		return false
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return mountutils.IsCorruptedMnt(err) || errors.Is(err, unix.ENXIO)
	}
	defer func() { _ = f.Close() }()
	b := buf.Get(holdfast.BlockSize)
	defer b.Release()
	n, err := f.ReadAt(b.B, 0)
	return n == 0 && err != nil
}

// readLimit is how long a device may take to fail.
const readLimit = 2 * time.Second

// readable says whether the beginning of a device can be read, or at least does not
// fail in time. Who waits for longer is left to itself.
func readable(path string) bool {
	cmd := exec.Command("dd", "if="+path, "of=/dev/null", "iflag=direct", "count=1", fmt.Sprintf("bs=%d", holdfast.BlockSize))
	if err := cmd.Start(); err != nil {
		return true
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		return err == nil
	case <-time.After(readLimit):
		return true
	}
}

// attachedDev is the device that the volume has now, as "major:minor"; "" if it
// is not attached.
func (s *Service) attachedDev(id holdfast.VolumeID) string {
	path, ok := s.vols.Attached(id)
	if !ok {
		return ""
	}
	rdev, err := rdevOf(path)
	if err != nil {
		return ""
	}
	return devID(rdev)
}

// mayUnmount says whether what is mounted at path and below is the volume's to
// unmount: the path is in its state, or everything there shows its device.
func (s *Service) mayUnmount(st *volumeState, path string, there mountTable) error {
	if st.entry(path) != nil {
		return nil
	}
	dev := s.attachedDev(st.Volume)
	for _, m := range there {
		if dev != "" && mountedDev(m) == dev {
			continue
		}
		who := ""
		if o, err := s.states.owner(path); err == nil && o != nil {
			who = " (the path is volume " + string(o.Volume) + "'s)"
		}
		return holdfast.E("", holdfast.InUse, fmt.Sprintf("%s is mounted at %s, and is not this volume's%s; it is left alone; if it should go, unmount it by hand",
			m.Source, m.Mountpoint, who))
	}
	return nil
}

// dropDead detaches every mount of the volume that shows dead, the device that
// it had before, or that has shut down. Containers that still use such a mount
// keep what they have: errors.
func (s *Service) dropDead(st *volumeState, dead string) error {
	t, err := readMounts()
	if err != nil {
		return err
	}
	for _, m := range slices.Backward(t) {
		e := st.entry(m.Mountpoint)
		if mountedDev(m) != dead || e == nil {
			continue
		}
		if err := unmount(m.Mountpoint, true); err != nil {
			return holdfast.WrapKind("detach the dead mount at "+m.Mountpoint, holdfast.InUse, err)
		}
		st.dropped = append(st.dropped, *e)
		s.cfg.Log.Warn("a mount of a dead device was detached", "volume", st.Volume, "path", m.Mountpoint, "device", m.Source)
	}
	return nil
}

// removeTarget removes the file or directory that was a target. Never more than
// that: a directory with files, or a file with content, is somebody's data.
func removeTarget(path string) error {
	op := "remove target " + path
	fi, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		return nil
	case err != nil:
		return holdfast.WrapKind(op, holdfast.Other, err)
	case fi.Mode().IsRegular() && fi.Size() > 0:
		return holdfast.E(op, holdfast.InUse, "nothing is mounted there, but it is a file with content; move it away")
	case !fi.IsDir() && !fi.Mode().IsRegular():
		return holdfast.E(op, holdfast.InUse, "it is neither a directory nor a regular file, so it was not made for this volume; move it away")
	}
	if err := mountpoint.Release(path); err != nil {
		return holdfast.Wrap(op, err)
	}
	err = os.Remove(path)
	if errors.Is(err, unix.ENOTEMPTY) {
		return holdfast.E(op, holdfast.InUse, "nothing is mounted there, but the directory holds files; move them away")
	}
	return holdfast.WrapKind(op, holdfast.Other, err)
}

// release ends the volume's stay on this node when no path of it is left and
// nothing shows its device: the device is detached, unless an orchestrator's
// controller does that, and the state is forgotten. Else the state is saved.
func (s *Service) release(ctx context.Context, st *volumeState) error {
	if len(st.Entries) > 0 {
		return s.states.save(st)
	}
	if dev := s.attachedDev(st.Volume); dev != "" && !st.Orchestrated {
		t, err := readMounts()
		if err != nil {
			return err
		}
		if others := t.of(dev); len(others) > 0 {
			s.cfg.Log.Warn("the volume stays attached: it is mounted elsewhere", "volume", st.Volume, "mounts", others.String())
			return s.states.save(st)
		}
		if err := s.detach(ctx, st.Volume); err != nil {
			// The state stays, so that the repeated call detaches.
			return errors.Join(err, s.states.save(st))
		}
	}
	return s.states.remove(st.Volume)
}

// detach retries while something (udev, a container that ends) has the device
// open.
func (s *Service) detach(ctx context.Context, id holdfast.VolumeID) error {
	busy, cancel := context.WithTimeout(ctx, s.cfg.BusyTimeout)
	defer cancel()
	for {
		err := s.vols.Detach(ctx, id)
		if !errors.Is(err, holdfast.InUse) || !pause(busy) {
			return holdfast.Wrap("detach volume "+string(id), err)
		}
	}
}
