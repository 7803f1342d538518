package blockdev

import (
	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
)

// errnos is the edge between Holdfast's kinds and the kernel. ENOSYS is never in
// it: the kernel takes it as "does not exist here" and stops sending that
// operation, flushes included. EAGAIN and EINTR are not either: the block layer
// gives them meanings of its own. Fenced is ENODEV because filesystems shut down
// on it at once, where they would repeat a metadata write after EIO for ever.
var errnos = map[holdfast.Kind]unix.Errno{
	holdfast.Other:       unix.EIO,
	holdfast.Invalid:     unix.EINVAL,
	holdfast.NotFound:    unix.ENOENT,
	holdfast.Exists:      unix.EEXIST,
	holdfast.InUse:       unix.EBUSY,
	holdfast.Busy:        unix.EBUSY,
	holdfast.NoSpace:     unix.ENOSPC,
	holdfast.OutOfRange:  unix.ERANGE,
	holdfast.Unavailable: unix.EIO,
	holdfast.Fenced:      unix.ENODEV,
	holdfast.Corrupt:     unix.EIO,
	holdfast.Unsupported: unix.EOPNOTSUPP,
	holdfast.Denied:      unix.EACCES,
}

// Errno is what the kernel is told about err; 0 for nil.
func Errno(err error) unix.Errno {
	if err == nil {
		return 0
	}
	if e, ok := errnos[holdfast.KindOf(err)]; ok {
		return e
	}
	return unix.EIO
}
