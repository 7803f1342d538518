package frontends

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
)

// The names of front ends. Auto lets the kernel decide.
const (
	Auto     = "auto"
	FuseLoop = "fuseloop"
	NBD      = "nbd"
	UBLK     = "ublk"
)

// Names are what a configuration may say.
func Names() []string { return []string{Auto, FuseLoop, NBD, UBLK} }

// Version is a kernel's.
type Version struct{ Major, Minor int }

// Before says whether v is older than major.minor.
func (v Version) Before(major, minor int) bool {
	return v.Major < major || v.Major == major && v.Minor < minor
}

// String is "6.1".
func (v Version) String() string { return fmt.Sprintf("%d.%d", v.Major, v.Minor) }

// Kernel is the version of the running kernel.
func Kernel() (Version, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return Version{}, holdfast.WrapKind("ask for the kernel's version", holdfast.Other, err)
	}
	return parseVersion(unix.ByteSliceToString(u.Release[:]))
}

func parseVersion(release string) (v Version, err error) {
	if _, err := fmt.Sscanf(release, "%d.%d", &v.Major, &v.Minor); err != nil {
		return v, holdfast.E("read the kernel's version", holdfast.Invalid, fmt.Sprintf("%q does not begin with two numbers", release))
	}
	return v, nil
}

// defect is why a front end must not be used with some kernels.
type defect struct {
	frontEnd string
	from     Version // the first that has it
	until    Version // the first that has it no more
	why      string
}

// defects are those found in reports of bugs and in the kernel's sources; where
// distributions correct older kernels, they are refused all the same: their
// versions do not tell.
var defects = []defect{
	{NBD, Version{0, 0}, Version{6, 0},
		"removing a device whose server is gone hangs with its I/O (corrected in 6.0 by \"nbd: fix io hung while disconnecting device\")"},
	{UBLK, Version{0, 0}, Version{6, 5},
		"there is no UBLK_F_USER_COPY"},
	{UBLK, Version{6, 5}, Version{6, 11},
		"the kernel dies when the daemon does: a null pointer in ublk_quiesce_work_fn (seen with 6.7, spdk issue 3384) and in ublk_ctrl_start_recovery (corrected in 6.10)"},
}

// Refused is why a front end must not be used with a kernel; empty if it may.
func Refused(frontEnd string, v Version) string {
	for _, d := range defects {
		if d.frontEnd == frontEnd && !v.Before(d.from.Major, d.from.Minor) && v.Before(d.until.Major, d.until.Minor) {
			return d.why
		}
	}
	return ""
}

// Order lists the front ends to try with a kernel, the best first; never one that
// is refused. Unsupported, with the reason, if that leaves nothing.
func Order(wanted string, v Version) ([]string, error) {
	var order []string
	switch {
	case wanted != Auto:
		order = []string{wanted}
	case v.Before(6, 9): // without FUSE_NOTIFY_RESEND fuseloop's devices end with the daemon
		order = []string{NBD, FuseLoop}
	default:
		order = []string{FuseLoop}
	}
	var good, why []string
	for _, name := range order {
		if reason := Refused(name, v); reason != "" {
			why = append(why, name+": "+reason)
		} else {
			good = append(good, name)
		}
	}
	if len(good) == 0 {
		return nil, holdfast.E("choose a front end for Linux "+v.String(), holdfast.Unsupported, strings.Join(why, "; ")+"; choose auto or another one")
	}
	return good, nil
}
