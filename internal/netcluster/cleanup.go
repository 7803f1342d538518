package netcluster

import (
	"bufio"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/mountpoint"
	"github.com/holdfast-storage/holdfast/node/device/fuseloop"
)

// Mount is one line of mountinfo.
type Mount struct {
	Point, Source, Type, Dev string
}

// MountsBelow lists what is mounted below a folder, the newest first.
func MountsBelow(dir string) ([]Mount, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, holdfast.Wrap("read mounts", err)
	}
	defer func() { _ = f.Close() }()
	var out []Mount
	s := bufio.NewScanner(f)
	for s.Scan() {
		if m, ok := parseMount(s.Text()); ok && strings.HasPrefix(m.Point, dir+"/") {
			out = append(out, m)
		}
	}
	slices.Reverse(out)
	return out, holdfast.Wrap("read mounts", s.Err())
}

// parseMount reads a line of mountinfo, see proc(5).
func parseMount(line string) (Mount, bool) {
	before, after, ok := strings.Cut(line, " - ")
	left, right := strings.Fields(before), strings.Fields(after)
	if !ok || len(left) < 6 || len(right) < 2 {
		return Mount{}, false
	}
	return Mount{Point: unescape(left[4]), Dev: left[2], Type: right[0], Source: unescape(right[1])}, true
}

// unescape undoes the octal escapes of mountinfo.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// Forget removes by force what is mounted below dir and the loop devices on
// files there, as the end of a kernel would: FUSE connections are aborted first,
// so that nothing waits for a server that is gone.
func Forget(dir string) error {
	// First what the front ends know by their own marks: once its FUSE mount is
	// gone, a loop device does not show any more that it was below dir.
	errs := []error{thawBelow(dir), forgetDevices(dir)}
	ms, err := MountsBelow(dir)
	errs = append(errs, err)
	for _, m := range ms {
		if strings.HasPrefix(m.Type, "fuse") {
			errs = append(errs, abortFuse(m))
		}
	}
	for _, m := range ms {
		err := unix.Unmount(m.Point, 0)
		if errors.Is(err, unix.EBUSY) {
			err = unix.Unmount(m.Point, unix.MNT_DETACH)
		}
		if err != nil && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, holdfast.Wrap("unmount "+m.Point, err))
		}
	}
	for _, l := range LoopsBelow(dir) {
		errs = append(errs, detachLoop(l))
	}
	return errors.Join(errs...)
}

// forgetDevices removes the volumes' devices of the daemons that ran below dir,
// which is one daemon's folder or that of all of them.
func forgetDevices(dir string) error {
	one, _ := filepath.Glob(filepath.Join(dir, "run/devices"))
	all, _ := filepath.Glob(filepath.Join(dir, "*/run/devices"))
	var errs []error
	for _, root := range append(one, all...) {
		_, err := fuseloop.CleanRoot(context.Background(), fuseloop.Config{Root: root})
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// abortFuse ends a FUSE connection; its number is the device's minor number.
func abortFuse(m Mount) error {
	_, minor, _ := strings.Cut(m.Dev, ":")
	err := os.WriteFile("/sys/fs/fuse/connections/"+minor+"/abort", []byte("1"), 0o200)
	if errors.Is(err, os.ErrNotExist) {
		return nil // the server's end has ended it
	}
	return holdfast.Wrap("abort FUSE connection of "+m.Point, err)
}

// LoopsBelow lists the loop devices whose backing file is, or was, below dir.
func LoopsBelow(dir string) []string {
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	var out []string
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err == nil && strings.HasPrefix(strings.TrimSpace(string(raw)), dir+"/") {
			out = append(out, "/dev/"+strings.Split(f, "/")[3])
		}
	}
	return out
}

func detachLoop(dev string) error {
	f, err := os.Open(dev)
	if err != nil {
		return holdfast.Wrap("detach "+dev, err)
	}
	defer func() { _ = f.Close() }()
	if err := unix.IoctlSetInt(int(f.Fd()), unix.LOOP_CLR_FD, 0); err != nil && !errors.Is(err, unix.ENXIO) {
		return holdfast.Wrap("detach "+dev, err)
	}
	return nil
}

// Clean removes everything that a run made, also an earlier one that was killed.
// It is called before and after each run. ctx must not be the interrupted one.
func Clean(ctx context.Context, n Network, dir string) error {
	kill := func() error { return KillAll(ctx, func() []int { return n.Processes(ctx) }) }
	errs := []error{thawBelow(dir)}
	stuck, kept := kill(), Forget(dir)
	if stuck != nil { // they waited for devices that are gone now, and kept others
		stuck, kept = kill(), Forget(dir)
	}
	errs = append(errs, stuck, kept, n.Down(ctx))
	if ms, err := MountsBelow(dir); err != nil || len(ms) > 0 {
		// Removing the folder now could remove what is mounted in it.
		return errors.Join(append(errs, err, holdfast.E("clean up "+dir, holdfast.InUse, "something is still mounted below it; see: findmnt | grep "+dir))...)
	}
	return errors.Join(append(errs, Remove(dir))...)
}

// Remove removes a folder below which volumes were mounted, and nothing is any
// more: what a daemon that was killed has left refuses to go otherwise.
func Remove(dir string) error {
	return holdfast.Wrap("remove "+dir, errors.Join(mountpoint.ReleaseBelow(dir), os.RemoveAll(dir)))
}
