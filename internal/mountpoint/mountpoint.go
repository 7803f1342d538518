// Package mountpoint keeps applications from writing into a bare mount point: the
// directory or file that is left when what was mounted over it is gone. A write
// there would be acknowledged by the host's own disk, and hidden as soon as the
// volume is mounted again.
//
// It promises that a guarded mount point refuses every change (EPERM, for root
// too) while nothing is mounted over it, and that neither guarding nor releasing
// touches the root of a mounted filesystem, a directory that holds files, a file
// with content or anything but directories and regular files. Mounting over a
// guarded path, and unmounting, work as ever. The guard is the immutable
// attribute of the inode, see ioctl_iflags(2) and chattr(1) +i: it is on the
// disk, so it outlives the process and a reboot.
//
// It does not look whether something is mounted below a path. Kernels before 5.8
// do not say what a mount's root is (statx(2), STATX_ATTR_MOUNT_ROOT); there, as
// on filesystems without such attributes, nothing can be guarded.
//
// It owns no goroutines.
package mountpoint

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
)

// immutable is FS_IMMUTABLE_FL of linux/fs.h.
const immutable = 0x10

// Guard makes the empty directory or empty file at path refuse changes. Repeating
// it changes nothing. InUse when something is mounted there or when it holds
// something; Unsupported where the filesystem, the kernel or the process's
// capabilities (CAP_LINUX_IMMUTABLE) do not allow it.
func Guard(path string) error {
	op := "make " + path + " refuse writes"
	f, err := open(path)
	if err != nil {
		return holdfast.Wrap(op, err)
	}
	defer func() { _ = f.Close() }()
	if err := f.mustBeEmpty(); err != nil {
		return holdfast.Wrap(op, err)
	}
	if err := f.set(true); err != nil {
		return holdfast.WrapKind(op, holdfast.Unsupported, err)
	}
	// Somebody may have put a file there meanwhile; from here on nobody can.
	if err := f.mustBeEmpty(); err != nil {
		return holdfast.Wrap(op, errors.Join(err, f.set(false)))
	}
	return nil
}

// Release undoes Guard, also one of another process. It is fine if there is no
// such path, if it is not guarded, or if it is nothing that Guard guards: that is
// left as it is. InUse when something is mounted there; Denied when it is guarded
// and the process may not change that.
func Release(path string) error {
	op := "let " + path + " take writes"
	f, err := open(path)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR), errors.Is(err, holdfast.Unsupported), errors.Is(err, holdfast.Invalid):
		return nil
	case err != nil:
		return holdfast.Wrap(op, err)
	}
	defer func() { _ = f.Close() }()
	flags, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil || flags&immutable == 0 || f.mustBeEmpty() != nil {
		return nil // no such attributes here, not guarded, or not by Guard
	}
	if err := f.set(false); err != nil {
		return holdfast.WrapKind(op, holdfast.Denied, fmt.Errorf("%w; as root: chattr -i %s", err, path))
	}
	return nil
}

// ReleaseBelow releases dir and everything below it, so that it can be removed;
// for the leftovers of processes that were killed. It does not go into what is
// mounted there.
func ReleaseBelow(dir string) error {
	var errs []error
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			if !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, holdfast.Wrap("release "+path, err))
			}
			return nil
		}
		if !d.IsDir() && !emptyFile(d) {
			return nil
		}
		err = Release(path)
		if errors.Is(err, holdfast.InUse) && d.IsDir() {
			return filepath.SkipDir
		}
		if !errors.Is(err, holdfast.InUse) {
			errs = append(errs, err)
		}
		return nil
	})
	return errors.Join(errs...)
}

func emptyFile(d fs.DirEntry) bool {
	fi, err := d.Info()
	return err == nil && fi.Mode().IsRegular() && fi.Size() == 0
}

// bare is an open directory or regular file which is not the root of a mount.
type bare struct {
	*os.File
	dir bool
}

// open opens what is at path itself. Invalid if that is neither a directory nor a
// regular file; InUse if something is mounted there.
func open(path string) (*bare, error) {
	// First without opening it for real: that would have effects on a device.
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(fd) }()
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_TYPE, &st); err != nil {
		return nil, err
	}
	kind := st.Mode & unix.S_IFMT
	switch {
	case st.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT == 0:
		return nil, holdfast.E("", holdfast.Unsupported, "this kernel does not say whether something is mounted there")
	case st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0:
		return nil, holdfast.E("", holdfast.InUse, "something is mounted there")
	case kind != unix.S_IFDIR && kind != unix.S_IFREG:
		return nil, holdfast.E("", holdfast.Invalid, "it is neither a directory nor a regular file")
	}
	// The same inode of the same mount, whatever is mounted over the path meanwhile.
	f, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", fd), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	return &bare{File: f, dir: kind == unix.S_IFDIR}, nil
}

func (b *bare) mustBeEmpty() error {
	if !b.dir {
		fi, err := b.Stat()
		if err == nil && fi.Size() > 0 {
			err = holdfast.E("", holdfast.InUse, "the file has content")
		}
		return err
	}
	if _, err := b.Seek(0, io.SeekStart); err != nil {
		return err
	}
	names, err := b.Readdirnames(1)
	if len(names) > 0 {
		return holdfast.E("", holdfast.InUse, "the directory holds files ("+names[0]+")")
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// set gives the inode the immutable attribute, or takes it.
func (b *bare) set(on bool) error {
	flags, err := unix.IoctlGetUint32(int(b.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil || flags&immutable != 0 == on {
		return err
	}
	return unix.IoctlSetPointerInt(int(b.Fd()), unix.FS_IOC_SETFLAGS, int(flags^immutable))
}
