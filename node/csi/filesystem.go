package nodecsi

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
)

// xfsMinBytes is the smallest device that mkfs.xfs accepts.
const xfsMinBytes = 300 << 20

// filesystem is one volume's filesystem that is to be mounted at a path.
type filesystem struct {
	dev  blockDev
	path string
	use  use
	st   *volumeState
}

// mountNew makes the filesystem if the device is empty, lets it grow to the
// device's size, and mounts it. When it fails, nothing is mounted at the path.
func (s *Service) mountNew(ctx context.Context, f filesystem) error {
	op := "mount volume " + string(f.st.Volume) + " at " + f.path
	fsType, err := s.fsTypeOf(f)
	if err != nil {
		return holdfast.Wrap(op, err)
	}
	deviceRO, err := f.dev.isReadOnly()
	if err != nil {
		return holdfast.WrapKind(op, holdfast.Unavailable, err)
	}
	if deviceRO && !f.use.readOnly {
		if err := f.dev.setReadOnly(false); err != nil {
			return holdfast.Wrap(op, err)
		}
		deviceRO = false
	}
	if fsType == "ext4" && !f.use.readOnly {
		if err := growUnmounted(ctx, f.dev); err != nil {
			return holdfast.Wrap(op, err)
		}
	}
	opts := f.options(fsType, deviceRO)
	if err := s.mounter.FormatAndMountSensitiveWithFormatOptions(f.dev.path, f.path, fsType, opts, nil, mkfsOptions(fsType)); err != nil {
		if fsType != "xfs" || s.mountAgain(f, opts) != nil {
			return mountFailed(op, f.use.flags, err)
		}
	}
	if f.st.Formatting {
		f.st.Formatting = false
		if err := s.states.save(f.st); err != nil {
			return holdfast.Wrap(op, s.undoMount(f.path, err))
		}
	}
	if f.use.readOnly {
		return nil
	}
	if err := growMounted(ctx, f.dev, f.path, fsType); err != nil {
		// A smaller filesystem than asked for is usable: NodeExpandVolume reports
		// the same error to whoever asked for growth.
		s.cfg.Log.Warn("the filesystem was mounted, but did not grow", "volume", f.st.Volume, "path", f.path, "err", err)
	}
	return nil
}

// undoMount unmounts what a failed call has just mounted.
func (s *Service) undoMount(path string, err error) error {
	if uerr := unmount(path, false); uerr != nil {
		s.cfg.Log.Warn("a failed call left its mount behind", "path", path, "err", uerr)
	}
	return err
}

// mountAgain mounts an XFS that the kernel refused since it still knows the same
// filesystem from another device. That can only be a device which this volume had
// before and which is dead, while a container that has not ended holds it: a
// volume has one device, and nobody else has that UUID. Hence nouuid is safe.
func (s *Service) mountAgain(f filesystem, opts []string) error {
	if err := s.mounter.Mount(f.dev.path, f.path, "xfs", append(slices.Clone(opts), "nouuid")); err != nil {
		return err
	}
	s.cfg.Log.Warn("mounted although the filesystem is still held by its former, dead device; end the containers that use that",
		"volume", f.st.Volume, "path", f.path)
	return nil
}

// mountFailed makes what mount(8) and mkfs said one line.
func mountFailed(op string, flags []string, err error) error {
	msg := tidy([]byte(err.Error()))
	if len(flags) > 0 {
		return invalid(op, "%s; check that the filesystem knows the mount flags %s", msg, strings.Join(flags, ","))
	}
	return holdfast.E(op, holdfast.Other, msg)
}

// fsTypeOf is the filesystem on the device, or the one to make on a device that
// is provably empty; then the state says durably that formatting has begun.
func (s *Service) fsTypeOf(f filesystem) (string, error) {
	op := "look for a filesystem on " + f.dev.path
	has, err := s.mounter.GetDiskFormat(f.dev.path)
	if err != nil {
		return "", holdfast.WrapKind(op, holdfast.Unavailable, err)
	}
	if has == "xfs" && !f.use.readOnly {
		unfinished, err := f.dev.xfsUnfinished()
		if err == nil && unfinished {
			has, f.st.Formatting = "", true
			err = f.dev.wipeHead()
		}
		if err != nil {
			return "", holdfast.WrapKind(op, holdfast.Unavailable, err)
		}
	}
	switch {
	case has == "":
		return s.beginFormat(op, f)
	case has != "xfs" && has != "ext4":
		return "", holdfast.E(op, holdfast.InUse, fmt.Sprintf("it holds %s, which is neither xfs nor ext4; it is left as it is", has))
	case f.use.fsType != "" && f.use.fsType != has:
		return "", invalid(op, "the volume holds %s, but %s was asked for; leave fs_type out or ask for %s", has, f.use.fsType, has)
	}
	return has, nil
}

func (s *Service) beginFormat(op string, f filesystem) (string, error) {
	fsType := f.use.fsType
	if fsType == "" {
		fsType = f.st.FSType
	}
	if fsType == "" {
		fsType = "xfs"
	}
	if f.use.readOnly {
		return "", holdfast.E(op, holdfast.InUse, "the volume holds no filesystem yet, and is asked for read-only; use it read-write once first")
	}
	if fsType == "xfs" && f.dev.size < xfsMinBytes {
		return "", holdfast.E(op, holdfast.OutOfRange, fmt.Sprintf(
			"xfs needs at least %d bytes (300 MiB), the volume has %d; ask for ext4 or a larger volume", int64(xfsMinBytes), f.dev.size))
	}
	// What an mkfs of ours that was interrupted left behind is no one's data.
	if err := f.dev.proveEmpty(); err != nil && (!f.st.Formatting || !errors.Is(err, holdfast.InUse)) {
		return "", err
	}
	f.st.Formatting = true
	return fsType, s.states.save(f.st)
}

// mkfsOptions make mkfs leave the device's blocks alone: it is thin, and empty.
func mkfsOptions(fsType string) []string {
	if fsType == "ext4" {
		return []string{"-E", "nodiscard"}
	}
	return []string{"-K"}
}

// options are those of mount(8).
func (f filesystem) options(fsType string, deviceRO bool) []string {
	opts := slices.Clone(f.use.flags)
	if f.use.readOnly {
		opts = append(opts, "ro")
	}
	if deviceRO {
		// A log cannot be replayed onto a device that takes no writes.
		opts = append(opts, map[string]string{"xfs": "norecovery", "ext4": "noload"}[fsType])
	}
	return opts
}

// growUnmounted grows an ext4 that is smaller than its device and not mounted,
// where the process may not do so later: growing a mounted one needs
// CAP_SYS_RESOURCE.
func growUnmounted(ctx context.Context, dev blockDev) error {
	const op = "grow the ext4 before mounting it"
	// No ext4 there yet is fine: it is made with the device's size.
	if has, err := dev.ext4Bytes(); err != nil || has+holdfast.BlockSize > dev.size || maySysResource() {
		return nil
	}
	t, err := readMounts()
	if err != nil || len(t.of(dev.id)) > 0 {
		return err
	}
	out, err := exec.CommandContext(ctx, "e2fsck", "-f", "-p", dev.path).CombinedOutput()
	if code := exitCode(err); code > 1 { // 1: it repaired something, all is well
		return holdfast.WrapKind(op, holdfast.Corrupt, fmt.Errorf("e2fsck: %w: %s", err, tidy(out)))
	}
	if out, err = exec.CommandContext(ctx, "resize2fs", dev.path).CombinedOutput(); err != nil {
		return holdfast.WrapKind(op, holdfast.Other, fmt.Errorf("resize2fs: %w: %s", err, tidy(out)))
	}
	return nil
}

// growMounted grows the filesystem at path to its device's size, and does
// nothing when it has it already.
func growMounted(ctx context.Context, dev blockDev, path, fsType string) error {
	op := "grow the " + fsType + " at " + path
	var has int64
	var err error
	cmd := exec.CommandContext(ctx, "xfs_growfs", "-d", path)
	if fsType == "ext4" {
		has, err = dev.ext4Bytes()
		cmd = exec.CommandContext(ctx, "resize2fs", dev.path)
	} else {
		has, err = xfsBytes(path)
	}
	if err != nil {
		return holdfast.WrapKind(op, holdfast.Unavailable, err)
	}
	if has+holdfast.BlockSize > dev.size {
		return nil
	}
	out, err := cmd.CombinedOutput()
	if err == nil {
		return nil
	}
	if fsType == "ext4" && !maySysResource() {
		return holdfast.WrapKind(op, holdfast.Denied, fmt.Errorf(
			"growing a mounted ext4 needs the capability CAP_SYS_RESOURCE, which this daemon does not have; "+
				"give it to the daemon, or unstage the volume and stage it again: it grows then: %w: %s", err, tidy(out)))
	}
	return holdfast.WrapKind(op, holdfast.Other, fmt.Errorf("%w: %s", err, tidy(out)))
}

// maySysResource says whether this process has CAP_SYS_RESOURCE.
func maySysResource() bool {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) {
		if hex, ok := strings.CutPrefix(line, "CapEff:"); ok {
			caps, err := strconv.ParseUint(strings.TrimSpace(hex), 16, 64)
			return err == nil && caps&(1<<unix.CAP_SYS_RESOURCE) != 0
		}
	}
	return false
}

func exitCode(err error) int {
	if err == nil {
		return 0
	}
	var e *exec.ExitError
	if errors.As(err, &e) && e.ExitCode() >= 0 {
		return e.ExitCode()
	}
	return 255 // it did not run, or was killed
}

// tidy makes a command's output one line.
func tidy(out []byte) string { return strings.Join(strings.Fields(string(out)), " ") }

// giveToGroup lets a group write to the filesystem at path, and makes new files
// belong to it. Files that are there are changed only when the root was not the
// group's yet; the root comes last, so that what was interrupted is done again.
func giveToGroup(ctx context.Context, path string, gid int) error {
	op := fmt.Sprintf("give %s to group %d", path, gid)
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return holdfast.WrapKind(op, holdfast.Other, err)
	}
	const want = unix.S_ISGID | 0o070
	if int(st.Gid) == gid && st.Mode&want == want {
		return nil
	}
	dev := st.Dev
	var dirs []string // given after what is in them
	err := filepath.WalkDir(path, func(p string, _ fs.DirEntry, err error) error {
		if err != nil || ctx.Err() != nil {
			return firstError(err, ctx.Err())
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		switch {
		case st.Dev != dev && st.Mode&unix.S_IFMT == unix.S_IFDIR:
			return filepath.SkipDir
		case st.Dev != dev:
			return nil
		case st.Mode&unix.S_IFMT == unix.S_IFDIR:
			dirs = append(dirs, p)
			return nil
		}
		return giveOne(p, st, gid, 0o060)
	})
	for _, d := range slices.Backward(dirs) {
		if err != nil {
			break
		}
		if err = unix.Lstat(d, &st); err == nil {
			err = giveOne(d, st, gid, want)
		}
	}
	return holdfast.WrapKind(op, holdfast.Other, err)
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// giveOne changes one file; a symbolic link itself, never what it points to.
func giveOne(path string, st unix.Stat_t, gid int, bits uint32) error {
	if err := os.Lchown(path, int(st.Uid), gid); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		return nil
	}
	return unix.Chmod(path, st.Mode&0o7777|bits)
}
