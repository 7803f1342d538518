package nodecsi

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/holdfast-storage/holdfast"
)

// use is a volume capability that was checked: how the volume is to be used.
type use struct {
	block    bool
	fsType   string   // "xfs", "ext4" or "" where the volume's own type is meant
	flags    []string // mount options without duplicates, "ro" and "rw" taken out
	group    int      // group that is to own the filesystem; -1 for none
	readOnly bool     // no path of this use may write
	exclude  bool     // SINGLE_NODE_SINGLE_WRITER
}

func invalid(op, format string, a ...any) error {
	return holdfast.E(op, holdfast.Invalid, fmt.Sprintf(format, a...))
}

// checkVolume refuses an empty volume id.
func checkVolume(op, id string) error {
	if id == "" {
		return invalid(op, "a volume_id is needed; it is empty")
	}
	return nil
}

// checkPath refuses a path that is not absolute and clean, or is the root.
func checkPath(op, field, path string) error {
	switch {
	case path == "":
		return invalid(op, "a %s is needed; it is empty", field)
	case !filepath.IsAbs(path):
		return invalid(op, "the %s %q is not an absolute path", field, path)
	case strings.ContainsRune(path, 0) || slices.Contains(strings.Split(path, "/"), ".."):
		return invalid(op, "the %s %q contains '..' or a zero byte", field, path)
	case filepath.Clean(path) == "/":
		return invalid(op, "the %s is the root directory", field)
	}
	return nil
}

// checkCapability makes a use of a capability, or says why there is none: kind
// Invalid, since the call can never work as it is.
func checkCapability(op string, c *csi.VolumeCapability) (use, error) {
	u := use{group: -1}
	if c == nil {
		return u, invalid(op, "a volume_capability is needed")
	}
	switch mode := c.GetAccessMode().GetMode(); mode {
	case csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER, csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER:
	case csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER:
		u.exclude = true
	case csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY:
		u.readOnly = true
	case csi.VolumeCapability_AccessMode_UNKNOWN:
		return u, invalid(op, "the volume_capability has no access_mode; set one")
	default:
		// Also MULTI_NODE_READER_ONLY: who accepts it says that the volume can be
		// published at several nodes at the same time.
		return u, invalid(op, "the access mode %v is not supported: a volume is attached to one node at a time; use a SINGLE_NODE mode", mode)
	}
	if c.GetBlock() != nil {
		u.block = true
		return u, nil
	}
	m := c.GetMount()
	if m == nil {
		return u, invalid(op, "the volume_capability has neither block nor mount; set one")
	}
	return checkMount(op, u, m)
}

func checkMount(op string, u use, m *csi.VolumeCapability_MountVolume) (use, error) {
	u.fsType = m.GetFsType()
	if u.fsType != "" && u.fsType != "xfs" && u.fsType != "ext4" {
		return u, invalid(op, "the filesystem %q is not supported; ask for xfs or ext4", u.fsType)
	}
	if g := m.GetVolumeMountGroup(); g != "" {
		gid, err := strconv.ParseUint(g, 10, 32)
		if err != nil || gid == 1<<32-1 {
			return u, invalid(op, "the volume_mount_group %q is not a group number", g)
		}
		u.group = int(gid)
	}
	return checkFlags(op, u, m.GetMountFlags())
}

// forbiddenFlags change what is mounted or where, not how.
func forbiddenFlags() []string {
	return []string{"bind", "rbind", "move", "remount", "loop", "offset", "sizelimit", "encryption",
		"helper", "uhelper", "user", "users", "owner", "group", "logdev", "rtdev", "journal_dev", "journal_path", "journal_async_commit",
		"shared", "rshared", "private", "rprivate", "slave", "rslave", "unbindable", "runbindable"}
}

// checkFlags takes duplicates out and refuses flags that contradict each other
// or that would do something else than mount this volume.
func checkFlags(op string, u use, flags []string) (use, error) {
	ro, rw := slices.Contains(flags, "ro"), slices.Contains(flags, "rw")
	if ro && rw {
		return u, invalid(op, "the mount flags contain both ro and rw")
	}
	if rw && u.readOnly {
		return u, invalid(op, "the mount flag rw contradicts the access mode, which is read-only")
	}
	u.readOnly = u.readOnly || ro
	for _, f := range flags {
		name, _, _ := strings.Cut(f, "=")
		bad := f == "" || strings.HasPrefix(f, "-") || strings.ContainsFunc(f, func(r rune) bool {
			return r == ',' || r == '"' || unicode.IsSpace(r) || unicode.IsControl(r)
		})
		switch {
		case bad:
			return u, invalid(op, "the mount flag %q is not one option; give each option by itself", f)
		case slices.Contains(forbiddenFlags(), name) || strings.HasPrefix(strings.ToLower(f), "x-"):
			return u, invalid(op, "the mount flag %q is not allowed: it changes what is mounted", f)
		case slices.Contains(flags, "no"+f):
			return u, invalid(op, "the mount flags contain both %s and no%s", f, f)
		case f == "ro" || f == "rw" || slices.Contains(u.flags, f):
			continue
		}
		u.flags = append(u.flags, f)
	}
	return u, nil
}
