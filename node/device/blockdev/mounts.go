package blockdev

import (
	"bufio"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
)

// Mount is a line of the mount table.
type Mount struct {
	Dev    string // "major:minor"
	Root   string // which part of the filesystem is mounted
	Point  string
	FSType string
	Source string
}

// mounts reads the mount table of this process's mount namespace, in the order
// in which the mounts were made. It touches no mounted filesystem.
func mounts() ([]Mount, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, holdfast.WrapKind("read the mount table", holdfast.Other, err)
	}
	defer f.Close()
	var all []Mount
	sc := bufio.NewScanner(f)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		if e, ok := parseMount(sc.Text()); ok {
			all = append(all, e)
		}
	}
	return all, holdfast.WrapKind("read the mount table", holdfast.Other, sc.Err())
}

// MountPoints are where filesystems of this type are mounted.
func MountPoints(fsType string) (map[string]bool, error) {
	all, err := mounts()
	at := map[string]bool{}
	for _, m := range all {
		if m.FSType == fsType {
			at[m.Point] = true
		}
	}
	return at, err
}

// parseMount reads a line as proc_pid_mountinfo(5) describes it: six fields, any
// number of optional ones, a dash, three fields.
func parseMount(line string) (Mount, bool) {
	before, after, ok := strings.Cut(line, " - ")
	a, b := strings.Fields(before), strings.Fields(after)
	if !ok || len(a) < 6 || len(b) < 2 {
		return Mount{}, false
	}
	return Mount{Dev: a[2], Root: unescape(a[3]), Point: unescape(a[4]), FSType: b[0], Source: unescape(b[1])}, true
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

// Mounts gives the mounts that live on the block device: its filesystems, and
// bind mounts of a device node of it (a published raw block volume), which would
// show the next owner of the name somebody else's data.
func (n Node) Mounts() ([]Mount, error) {
	all, err := mounts()
	if err != nil {
		return nil, err
	}
	return n.among(all), nil
}

func (n Node) among(all []Mount) (on []Mount) {
	for _, e := range all {
		node := (e.FSType == "devtmpfs" || e.FSType == "tmpfs") && filepath.Base(e.Root) == filepath.Base(n.Path)
		if e.Dev == n.Dev || node {
			on = append(on, e)
		}
	}
	return on
}

// DetachMounts takes every mount that lives on the device away lazily, newest
// first, and says where they were. A mount that is covered by another one is
// left: it goes with the namespace or when the other one is gone.
func (n Node) DetachMounts() ([]string, error) {
	all, err := mounts()
	if err != nil {
		return nil, err
	}
	on := n.among(all)
	if len(on) == 0 {
		return nil, nil
	}
	top := map[string]Mount{}
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
