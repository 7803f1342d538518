package nodecsi

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	mountutils "k8s.io/mount-utils"

	"github.com/holdfast-storage/holdfast"
)

// mountTable is what is mounted, in the kernel's order: a mount that covers
// another comes after it.
type mountTable []*mountinfo.Info

// readMounts reads the mount table of this process. A single pass over the file
// can miss an entry while others mount and unmount, and an entry that was missed
// would make us say OK too early; so it is read until two passes agree.
func readMounts() (mountTable, error) {
	const op, tries = "read /proc/self/mountinfo", 50
	var last []byte
	for i := range tries {
		now, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			return nil, holdfast.WrapKind(op, holdfast.Unavailable, err)
		}
		if i > 0 && bytes.Equal(now, last) {
			t, err := mountinfo.GetMountsFromReader(bytes.NewReader(now), nil)
			if err != nil {
				return nil, holdfast.WrapKind(op, holdfast.Other, err)
			}
			return t, nil
		}
		last = now
	}
	return nil, holdfast.E(op, holdfast.Unavailable, "the mount table changes all the time; try again")
}

// top is the mount that is seen at path; nil if path is no mount point.
func (t mountTable) top(path string) *mountinfo.Info {
	for _, m := range slices.Backward(t) {
		if m.Mountpoint == path {
			return m
		}
	}
	return nil
}

// under lists what is mounted at path and below it, in the order of the table.
func (t mountTable) under(path string) mountTable {
	var in mountTable
	for _, m := range t {
		if m.Mountpoint == path || strings.HasPrefix(m.Mountpoint, path+"/") {
			in = append(in, m)
		}
	}
	return in
}

// shows says whether m shows the device dev: its whole filesystem, or its node
// bind-mounted onto a file.
func shows(m *mountinfo.Info, dev string) bool {
	return mountedDev(m) == dev && (m.Root == "/" || isNode(m))
}

// mountedDev is the device that m gives access to, as "major:minor". For a
// device node that is bind-mounted onto a file that is the device of the node,
// not the filesystem in which the node stands.
func mountedDev(m *mountinfo.Info) string {
	if isNode(m) {
		if rdev, err := rdevOf(m.Mountpoint); err == nil {
			return devID(rdev)
		}
	}
	return fmt.Sprintf("%d:%d", m.Major, m.Minor)
}

// isNode says whether m is a device node in /dev mounted onto a file.
func isNode(m *mountinfo.Info) bool {
	return (m.FSType == "devtmpfs" || m.FSType == "tmpfs") && m.Root != "/"
}

// of lists the mounts that show dev.
func (t mountTable) of(dev string) mountTable {
	var in mountTable
	for _, m := range t {
		if shows(m, dev) {
			in = append(in, m)
		}
	}
	return in
}

func (t mountTable) String() string {
	var s []string
	for _, m := range t {
		s = append(s, fmt.Sprintf("%s (%s, %s)", m.Mountpoint, m.Source, m.FSType))
	}
	return strings.Join(s, ", ")
}

// hasOption says whether a comma-separated list holds an option.
func hasOption(list, option string) bool {
	return slices.Contains(strings.Split(list, ","), option)
}

// vfsFlags are the flags of one mount as they must be repeated when it is
// mounted again, which otherwise clears them.
func vfsFlags(options string) uintptr {
	flags := map[string]uintptr{
		"nosuid": unix.MS_NOSUID, "nodev": unix.MS_NODEV, "noexec": unix.MS_NOEXEC,
		"noatime": unix.MS_NOATIME, "nodiratime": unix.MS_NODIRATIME, "relatime": unix.MS_RELATIME,
	}
	var f uintptr
	for _, o := range strings.Split(options, ",") {
		f |= flags[o]
	}
	return f
}

// bind mounts source at target too; read-only if asked, else as source is. When
// it fails nothing is mounted at target.
func bind(source, target string, readOnly bool) error {
	op := "bind " + source + " to " + target
	if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
		return holdfast.WrapKind(op, holdfast.Other, err)
	}
	if err := setVFSReadOnly(target, readOnly); err != nil {
		return errors.Join(err, unix.Unmount(target, unix.UMOUNT_NOFOLLOW))
	}
	return nil
}

// setVFSReadOnly makes the one mount at path read-only or writable; other mounts
// of the same filesystem stay as they are.
func setVFSReadOnly(path string, readOnly bool) error {
	op := "set read-only of mount " + path
	t, err := readMounts()
	if err != nil {
		return err
	}
	m := t.top(path)
	if m == nil {
		return holdfast.E(op, holdfast.Other, "it is not mounted any more")
	}
	if hasOption(m.Options, "ro") == readOnly {
		return nil
	}
	flags := unix.MS_REMOUNT | unix.MS_BIND | vfsFlags(m.Options)
	if readOnly {
		flags |= unix.MS_RDONLY
	}
	return holdfast.WrapKind(op, holdfast.Other, unix.Mount("none", path, "", flags, ""))
}

// addVFSFlags adds flags to the one mount at path.
func addVFSFlags(path string, add uintptr) error {
	if add == 0 {
		return nil
	}
	t, err := readMounts()
	if err != nil {
		return err
	}
	op := "set mount flags of " + path
	m := t.top(path)
	if m == nil {
		return holdfast.E(op, holdfast.Other, "it is not mounted any more")
	}
	flags := unix.MS_REMOUNT | unix.MS_BIND | vfsFlags(m.Options) | add
	if hasOption(m.Options, "ro") {
		flags |= unix.MS_RDONLY
	}
	return holdfast.WrapKind(op, holdfast.Other, unix.Mount("none", path, "", flags, ""))
}

// makeWritable makes the filesystem and the mount at path writable.
func makeWritable(path string) error {
	t, err := readMounts()
	if err != nil {
		return err
	}
	if m := t.top(path); m != nil && hasOption(m.VFSOptions, "ro") {
		if err := unix.Mount("none", path, "", unix.MS_REMOUNT|vfsFlags(m.Options), ""); err != nil {
			return holdfast.WrapKind("make "+path+" writable: the volume is in use read-only on this node; unpublish it there first",
				holdfast.InUse, err)
		}
	}
	return setVFSReadOnly(path, false)
}

// isDead says whether the mount at path gives input/output errors: its device
// is gone, or its filesystem has shut down.
func isDead(path string) bool {
	fi, err := os.Stat(path)
	if err != nil {
		return mountutils.IsCorruptedMnt(err)
	}
	if !fi.IsDir() {
		return false
	}
	d, err := os.Open(path)
	if err != nil {
		return mountutils.IsCorruptedMnt(err)
	}
	defer func() { _ = d.Close() }()
	// XFS answers EIO to everything once it has shut down; ext4 only to what it
	// has to read.
	_, err = d.Readdirnames(1)
	return mountutils.IsCorruptedMnt(err)
}

// realPath is path with the symbolic links of its parent resolved, as the
// kernel shows it in the mount table. The last component is not followed: that
// is what gets mounted on. A parent that cannot be resolved leaves path as is.
func realPath(path string) string {
	path = filepath.Clean(path)
	dir, err := filepath.EvalSymlinks(filepath.Dir(path))
	if err != nil {
		return path
	}
	return filepath.Join(dir, filepath.Base(path))
}
