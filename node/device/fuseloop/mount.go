package fuseloop

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
)

// fsType and sourcePrefix are how our mounts look in a mount table.
const (
	fsType       = "fuse.holdfast"
	sourcePrefix = "holdfast:"
)

// connect mounts a filesystem at dir and gives its connection, in non-blocking
// mode. Only root may look into it.
func connect(dir, source string) (*os.File, int, error) {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, -1, holdfast.WrapKind("open /dev/fuse (is the fuse module loaded?)", holdfast.Unavailable, err)
	}
	opts := fmt.Sprintf("fd=%d,rootmode=40700,user_id=0,group_id=0,max_read=%d", fd, maxWrite)
	if err := unix.Mount(source, dir, fsType, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_NOATIME, opts); err != nil {
		unix.Close(fd)
		return nil, -1, holdfast.WrapKind("mount FUSE at "+dir, holdfast.Unavailable, err)
	}
	// Not before the mount: os.NewFile has the runtime poll the descriptor, and
	// polling one that is not connected yet never wakes up.
	return os.NewFile(uintptr(fd), "/dev/fuse"), fd, nil
}

// abortMount ends the connection that is mounted at dir, also when its server
// hangs or is gone, and takes the mount away. Requests in flight fail. It looks
// at nothing below dir, which could block. Not mounted is fine.
func abortMount(dir string) error {
	err := unix.Unmount(dir, unix.MNT_FORCE|unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err == unix.EINVAL || err == unix.ENOENT {
		return nil
	}
	return holdfast.WrapKind("unmount "+dir, holdfast.Other, err)
}

// pollOnce asks with poll(2) whether fd can be polled.
func pollOnce(fd int) error {
	for {
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		if err != unix.EINTR {
			return err
		}
	}
}
