package netcluster

import (
	"errors"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
)

// What Linux offers to disturb a mounted filesystem, see linux/fs.h and
// xfs/xfs_fs.h: FIFREEZE, FITHAW and XFS_IOC_GOINGDOWN with its flags.
const (
	ioctlFreeze    = 0xc0045877
	ioctlThaw      = 0xc0045878
	ioctlGoingDown = 0x8004587d

	goingDownLogFlush   = 1
	goingDownNoLogFlush = 2
)

// StallDisk makes every write to a mounted filesystem wait, as a disk does that does
// not answer, until ThawDisk. Reads go on. One that is broken stays so.
func StallDisk(mount string) error {
	return unlessBroken(ioctlMount("stall "+mount, mount, ioctlFreeze, 0))
}

// unlessBroken ignores that a disk gives I/O errors.
func unlessBroken(err error) error {
	if errors.Is(err, unix.EIO) {
		return nil
	}
	return err
}

// ThawDisk ends StallDisk; one that does not stall, or is broken, is fine.
func ThawDisk(mount string) error {
	err := ioctlMount("thaw "+mount, mount, ioctlThaw, 0)
	if errors.Is(err, unix.EINVAL) {
		return nil
	}
	return unlessBroken(err)
}

// BreakDisk makes a mounted XFS answer with I/O errors until it is mounted anew. What
// was written stays, also what was not synced. One that is broken is fine.
func BreakDisk(mount string) error {
	return unlessBroken(ioctlMount("break "+mount, mount, ioctlGoingDown, goingDownLogFlush))
}

// UnplugDisk makes a mounted XFS forget what was not synced, as a power loss does, and
// answer with I/O errors until it is mounted anew. Data written over blocks that
// were allocated and synced before stays. One that is broken is fine.
func UnplugDisk(mount string) error {
	return unlessBroken(ioctlMount("take the power of "+mount, mount, ioctlGoingDown, goingDownNoLogFlush))
}

func ioctlMount(op, mount string, request uintptr, arg uint32) error {
	f, err := os.Open(mount)
	if err != nil {
		return holdfast.Wrap(op, err)
	}
	defer func() { _ = f.Close() }()
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(unsafe.Pointer(&arg))); e != 0 {
		return holdfast.WrapKind(op, holdfast.Other, e)
	}
	return nil
}

// PoolsBelow lists the mount points of the pools of the daemons that run below a
// folder, which is one daemon's or that of all of them.
func PoolsBelow(dir string) ([]string, error) {
	ms, err := MountsBelow(dir)
	var out []string
	for _, m := range ms {
		one, _ := filepath.Match(dir+"/run/pools/*", m.Point)
		all, _ := filepath.Match(dir+"/*/run/pools/*", m.Point)
		if one || all {
			out = append(out, m.Point)
		}
	}
	return out, err
}

// thawBelow thaws the pools below a folder, so that what waits for them can end.
func thawBelow(dir string) error {
	pools, err := PoolsBelow(dir)
	errs := []error{err}
	for _, p := range pools {
		errs = append(errs, ThawDisk(p))
	}
	return errors.Join(errs...)
}
