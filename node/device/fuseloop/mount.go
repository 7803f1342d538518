package fuseloop

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

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

// mountEntry is a line of the mount table.
type mountEntry struct {
	Dev    string // "major:minor"
	Root   string // which part of the filesystem is mounted
	Point  string
	FSType string
	Source string
}

// mounts reads the mount table of this process's mount namespace, in the order
// in which the mounts were made. It touches no mounted filesystem.
func mounts() ([]mountEntry, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, holdfast.WrapKind("read the mount table", holdfast.Other, err)
	}
	defer f.Close()
	var all []mountEntry
	sc := bufio.NewScanner(f)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		if e, ok := parseMount(sc.Text()); ok {
			all = append(all, e)
		}
	}
	return all, holdfast.WrapKind("read the mount table", holdfast.Other, sc.Err())
}

// parseMount reads a line as proc_pid_mountinfo(5) describes it: six fields, any
// number of optional ones, a dash, three fields.
func parseMount(line string) (mountEntry, bool) {
	before, after, ok := strings.Cut(line, " - ")
	a, b := strings.Fields(before), strings.Fields(after)
	if !ok || len(a) < 6 || len(b) < 2 {
		return mountEntry{}, false
	}
	return mountEntry{Dev: a[2], Root: unescape(a[3]), Point: unescape(a[4]), FSType: b[0], Source: unescape(b[1])}, true
}

// unescape undoes the kernel's octal escapes of blanks and backslashes.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var out strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if v, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				out.WriteByte(byte(v))
				i += 3
				continue
			}
		}
		out.WriteByte(s[i])
	}
	return out.String()
}

// mountsOf gives the mounts that live on the block device: its filesystems, and
// bind mounts of a device node of it (a published raw block volume), which would
// show the next owner of the name somebody else's data.
func mountsOf(l loopDevice) ([]mountEntry, error) {
	all, err := mounts()
	if err != nil {
		return nil, err
	}
	var on []mountEntry
	for _, e := range all {
		node := (e.FSType == "devtmpfs" || e.FSType == "tmpfs") && filepath.Base(e.Root) == filepath.Base(l.Path)
		if e.Dev == l.Dev || node {
			on = append(on, e)
		}
	}
	return on, nil
}

// detachAll takes every mount that lives on the device away lazily, newest
// first, and says where they were. A mount that is covered by another one is
// left: it goes with the namespace or when the other one is gone.
func detachAll(l loopDevice) ([]string, error) {
	all, err := mounts()
	if err != nil {
		return nil, err
	}
	on, err := mountsOf(l)
	if err != nil {
		return nil, err
	}
	top := map[string]mountEntry{}
	for _, e := range all {
		top[e.Point] = e
	}
	var (
		points []string
		errs   []error
	)
	for _, e := range slices.Backward(on) {
		if top[e.Point] != e {
			continue
		}
		points = append(points, e.Point)
		if err := unix.Unmount(e.Point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && err != unix.EINVAL {
			errs = append(errs, holdfast.WrapKind("unmount "+e.Point, holdfast.Other, err))
		}
	}
	return points, errors.Join(errs...)
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
