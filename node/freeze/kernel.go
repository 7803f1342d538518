package freeze

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
)

// fiThaw is FITHAW of linux/fs.h: _IOWR('X', 120, int).
const fiThaw = 0xc0045878

// thaw lets the filesystem of dir go on; one that is not frozen is fine. A process
// of its own does it, as ext4 then writes to the device, which this one serves. Why
// it did not succeed, mostly because nothing is frozen, this one asks: the kernel
// writes only for what is frozen.
func thaw(dir *os.File) error {
	if child(context.Background(), []*os.File{dir}, "fsfreeze", "--unfreeze", "/proc/self/fd/3") == nil {
		return nil
	}
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, dir.Fd(), fiThaw, 0)
		switch errno {
		case 0, unix.EINVAL:
			return nil
		case unix.EINTR:
		default:
			return os.NewSyscallError("FITHAW", errno)
		}
	}
}

// child runs a program to its end, or until ctx ends: then it is left to itself, as
// the kernel may keep it for as long as a device does not answer.
func child(ctx context.Context, files []*os.File, name string, args ...string) error {
	cmd := exec.Command(name, args...)
	cmd.ExtraFiles = files
	var said strings.Builder
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		return holdfast.WrapKind(name, holdfast.Unavailable, err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		if err != nil {
			err = fmt.Errorf("%w: %s", err, strings.TrimSpace(said.String()))
		}
		return holdfast.WrapKind(name, holdfast.Unavailable, err)
	case <-ctx.Done():
		return holdfast.WrapKind(name+" does not end: the device does not take what is written", holdfast.Unavailable, ctx.Err())
	}
}

// mounted is where a device's filesystem is mounted.
type mounted struct{ path, dev string }

// mountOf finds the mounted filesystem of a device; nil if there is none. Denied
// when this daemon keeps something there.
func (f *Freezer) mountOf(device string) (*mounted, error) {
	var st unix.Stat_t
	if err := unix.Stat(device, &st); err != nil {
		return nil, holdfast.WrapKind("look at "+device, holdfast.Unavailable, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return nil, holdfast.E("look at "+device, holdfast.Invalid, "it is no block device")
	}
	m, err := f.mountByID(fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev)))
	if m == nil || err != nil {
		return nil, err
	}
	for _, p := range f.cfg.Protect {
		if dev, err := filesystemOf(p); err != nil || dev == m.dev {
			return nil, errors.Join(err, holdfast.E("", holdfast.Denied, "this node's daemon itself keeps "+p+" on it: it would wait for itself"))
		}
	}
	return m, nil
}

// mountByID finds a place where the filesystem of the device "major:minor" is seen,
// not covered by another mount; nil if there is none.
func (f *Freezer) mountByID(dev string) (*mounted, error) {
	table, err := mountinfo.GetMounts(nil)
	if err != nil {
		return nil, holdfast.WrapKind("read the mount table", holdfast.Unavailable, err)
	}
	top := map[string]string{} // of each mount point
	for _, m := range table {
		top[m.Mountpoint] = fmt.Sprintf("%d:%d", m.Major, m.Minor)
	}
	for _, m := range table {
		if top[m.Mountpoint] == dev && m.Root == "/" {
			return &mounted{m.Mountpoint, dev}, nil
		}
	}
	return nil, nil
}

// filesystemOf is the device of the filesystem that a path, or what is there of it,
// is on.
func filesystemOf(path string) (string, error) {
	var st unix.Stat_t
	err := unix.Stat(path, &st)
	for errors.Is(err, unix.ENOENT) && path != "/" {
		path = filepath.Dir(path)
		err = unix.Stat(path, &st)
	}
	return fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev)), holdfast.WrapKind("look at "+path, holdfast.Other, err)
}
