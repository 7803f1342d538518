package engine

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/engine/disk"
)

// run runs a command of util-linux or xfsprogs, and gives its output and exit
// status. The error is not nil when it could not be run, was cut short, or its
// status is none of those allowed; it contains what the command complained about.
func run(ctx context.Context, allowed []int, name string, args ...string) (out string, status int, err error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		for _, ok := range allowed {
			if exit.ExitCode() == ok {
				return stdout.String(), ok, nil
			}
		}
		msg := strings.Join(strings.Fields(stderr.String()), " ")
		return "", exit.ExitCode(), holdfast.WrapKind(fmt.Sprintf("%s %s: %.300s", name, strings.Join(args, " "), msg), holdfast.Other, err)
	}
	if err != nil {
		return "", -1, holdfast.WrapKind("run "+name+" (of util-linux or xfsprogs)", holdfast.Unavailable, err)
	}
	return stdout.String(), 0, nil
}

// blockDevice is a device that can be mounted: the pool's own, or a loop device
// over an image file.
type blockDevice struct {
	path   string
	loop   bool   // detach it when it is not needed any more
	opened bool   // attached by this call
	file   string // the image file behind the loop device
}

// attach gives the block device for a path: itself, or a loop device over it
// with direct I/O; one that a killed process left is found again.
func attach(ctx context.Context, path string, image bool) (blockDevice, error) {
	if !image {
		return blockDevice{path: path}, nil
	}
	if found := boundTo(path); found != "" {
		return blockDevice{path: found, loop: true, file: path}, nil
	}
	out, _, err := run(ctx, nil, "losetup", "--find", "--show", "--direct-io=on", path)
	if err != nil {
		// Not every filesystem that an image may be on can do direct I/O.
		if out, _, err = run(ctx, nil, "losetup", "--find", "--show", path); err != nil {
			return blockDevice{}, err
		}
	}
	dev := blockDevice{path: strings.TrimSpace(out), loop: true, opened: true, file: path}
	// Whoever had this loop device before may have set it read-only, which
	// outlives the binding.
	if _, _, err := run(ctx, nil, "blockdev", "--setrw", dev.path); err != nil {
		return blockDevice{}, errors.Join(err, dev.detach())
	}
	return dev, nil
}

// boundTo finds the loop device over an image file; "" if there is none. It opens
// none of them, as "losetup --associated" does: one may be a volume's that this
// very daemon is to serve once its pool is open.
func boundTo(path string) string {
	names, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	mounts := sync.OnceValue(readMounts) // there may be thousands, of devices as well
	for _, n := range names {
		if dev := (blockDevice{path: filepath.Join("/dev", strings.Split(n, "/")[3]), loop: true, file: path}); dev.over(mounts) {
			return dev.path
		}
	}
	return ""
}

// over says whether the loop device is over our image file, by whatever name. It
// looks at no file that is neither called like ours nor on the same filesystem: it
// may be a volume's, and looking would wait for its server, which may be us.
func (b blockDevice) over(mounts func() []mount) bool {
	name, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(b.path), "loop/backing_file"))
	if err != nil {
		return false
	}
	path, err := filepath.EvalSymlinks(b.file)
	if err != nil {
		return false
	}
	var have unix.Stat_t
	if err := unix.Stat(path, &have); err != nil {
		return false
	}
	behind := strings.TrimSpace(string(name))
	if filepath.Base(behind) != filepath.Base(path) && filesystemAt(behind, mounts()) != fmt.Sprintf("%d:%d", unix.Major(have.Dev), unix.Minor(have.Dev)) {
		return false
	}
	var now unix.Stat_t
	err = unix.Stat(behind, &now)
	return err == nil && now.Dev == have.Dev && now.Ino == have.Ino
}

// filesystemAt is the number of the filesystem that a path is on, by the mount
// table alone.
func filesystemAt(path string, mounts []mount) string {
	longest, on := -1, ""
	for _, m := range mounts {
		dir := strings.TrimSuffix(m.at, "/")
		if len(dir) >= longest && strings.HasPrefix(path, dir) && strings.HasPrefix(path[len(dir):], "/") {
			longest, on = len(dir), m.dev // of two at one place the later covers the other
		}
	}
	return on
}

func (b blockDevice) detach() error {
	if !b.loop || !b.bound() {
		return nil // it went by itself when its last user did, and may be somebody else's by now
	}
	_, _, err := run(context.Background(), nil, "losetup", "--detach", b.path)
	if err != nil && !b.bound() {
		return nil
	}
	return err
}

// bound says whether the loop device still is over our image file.
func (b blockDevice) bound() bool {
	if _, err := os.Stat(b.file); err != nil {
		return true // deleted or unreadable: let losetup say
	}
	return b.over(readMounts)
}

// mountOf finds where a block device is mounted, in this mount namespace; "" if
// it is not.
func mountOf(device string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(device, &st); err != nil {
		return "", holdfast.WrapKind("stat "+device, holdfast.NotFound, err)
	}
	want := fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	return findMount(func(dev, root, _ string) bool { return dev == want && root == "/" })
}

// mountAt gives the device number of what is mounted at dir; "" if nothing is.
func mountAt(dir string) (string, error) {
	dev := ""
	_, err := findMount(func(d, _, at string) bool {
		if at == dir {
			dev = d
		}
		return false
	})
	return dev, err
}

func findMount(match func(dev, root, at string) bool) (string, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", holdfast.WrapKind("list mounts", holdfast.Other, err)
	}
	for _, m := range parseMounts(data) {
		if match(m.dev, m.root, m.at) {
			return m.at, nil
		}
	}
	return "", nil
}

// mount is a line of the mount table: which part of which filesystem is where.
type mount struct{ dev, root, at string }

// readMounts is the mount table; empty when it cannot be read.
func readMounts() []mount {
	data, _ := os.ReadFile("/proc/self/mountinfo")
	return parseMounts(data)
}

func parseMounts(data []byte) (all []mount) {
	for s := bufio.NewScanner(bytes.NewReader(data)); s.Scan(); {
		if f := strings.Fields(s.Text()); len(f) >= 6 {
			all = append(all, mount{dev: f[2], root: unescapeMount(f[3]), at: unescapeMount(f[4])})
		}
	}
	return all
}

// unescapeMount undoes the octal escapes of mountinfo.
func unescapeMount(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// mounted is a pool's filesystem.
type mounted struct {
	dev    blockDevice
	dir    string
	fresh  bool   // mounted by this call
	memory string // where the pool's memory is mounted; "" for none
}

const mountFlags = unix.MS_NOATIME | unix.MS_NODEV | unix.MS_NOSUID | unix.MS_NOEXEC

// mountPool mounts a pool's device under root, or finds where it is mounted
// already: a killed process leaves its mounts.
func mountPool(dev blockDevice, root string, pool holdfast.PoolID) (*mounted, error) {
	at, err := mountOf(dev.path)
	if err != nil {
		return nil, err
	}
	if at != "" {
		return &mounted{dev: dev, dir: at}, nil
	}
	dir := filepath.Join(root, string(pool))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, holdfast.WrapKind("make mount point", holdfast.Invalid, err)
	}
	if other, err := mountAt(dir); err != nil || other != "" {
		return nil, errors.Join(err, errorf("mount "+dev.path, holdfast.InUse, "device %s is mounted at %s; unmount it first", other, dir))
	}
	if err := unix.Mount(dev.path, dir, "xfs", mountFlags, ""); err != nil {
		return nil, holdfast.WrapKind("mount "+dev.path+" at "+dir, mountKind(err), err)
	}
	return &mounted{dev: dev, dir: dir, fresh: true}, nil
}

func mountKind(err error) holdfast.Kind {
	switch {
	case errors.Is(err, unix.EBUSY):
		return holdfast.InUse
	case errors.Is(err, unix.EPERM):
		return holdfast.Denied
	case errors.Is(err, unix.EUCLEAN), errors.Is(err, unix.EINVAL):
		return holdfast.Corrupt
	}
	return holdfast.Other
}

// transient bounds waiting for what a child process holds between fork and exec:
// it has every file of this process for a moment, closed ones too.
const transient = 2 * time.Second

// patiently repeats f while it says that something is in use, for a while.
func patiently(f func() error) error {
	for deadline := time.Now().Add(transient); ; <-time.After(5 * time.Millisecond) {
		err := f()
		busy := errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EAGAIN)
		if !busy || time.Now().After(deadline) {
			return err
		}
	}
}

// release unmounts and detaches.
func (m *mounted) release() error {
	err := patiently(func() error { return unix.Unmount(m.dir, 0) })
	if err != nil {
		return holdfast.WrapKind("unmount "+m.dir, holdfast.InUse, err)
	}
	_ = os.Remove(m.dir) // an empty mount point that stays does no harm
	return errors.Join(m.releaseMemory(), m.dev.detach())
}

// memoryFlags are those of the memory's mount.
const memoryFlags = unix.MS_NOATIME | unix.MS_NODEV | unix.MS_NOSUID | unix.MS_NOEXEC

// mountMemory mounts a filesystem in memory for the pool under root, or finds the
// one that is there already: it lives as long as the pool's mount does.
func (m *mounted) mountMemory(root string, pool holdfast.PoolID) error {
	if root == "" {
		return errorf("mount the pool's memory", holdfast.Invalid, "a folder for it is needed")
	}
	dir := filepath.Join(root, string(pool))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return holdfast.WrapKind("make mount point", holdfast.Invalid, err)
	}
	dev, err := mountAt(dir)
	if err != nil {
		return err
	}
	if dev == "" {
		err := unix.Mount("holdfast", dir, "tmpfs", memoryFlags, "mode=0700,noswap")
		if errors.Is(err, unix.EINVAL) { // Linux before 6.4 does not know noswap
			err = unix.Mount("holdfast", dir, "tmpfs", memoryFlags, "mode=0700")
		}
		if err != nil {
			return holdfast.WrapKind("mount memory at "+dir, mountKind(err), err)
		}
	}
	m.memory = dir
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return holdfast.WrapKind("look at "+dir, holdfast.Other, err)
	}
	if fs.Type != unix.TMPFS_MAGIC {
		return errorf("mount the pool's memory", holdfast.InUse, "something else is mounted at %s; unmount it first", dir)
	}
	return nil
}

// releaseMemory unmounts the memory: what is in it counts no more.
func (m *mounted) releaseMemory() error {
	if m.memory == "" {
		return nil
	}
	if err := patiently(func() error { return unix.Unmount(m.memory, 0) }); err != nil && !errors.Is(err, unix.EINVAL) {
		return holdfast.WrapKind("unmount "+m.memory, holdfast.InUse, err)
	}
	_ = os.Remove(m.memory)
	return nil
}

// undo releases what this call made, and leaves alone what it found.
func (m *mounted) undo() error {
	if m.fresh {
		return m.release()
	}
	if m.dev.opened {
		return m.dev.detach()
	}
	return nil
}

// mounting is the content of the file mounted. A mounting is an interval in
// which what was written can only be lost with the whole machine: it changes when
// the pool is mounted anew, unless it was closed cleanly before.
type mounting struct {
	ID    string `json:"id"`
	Clean bool   `json:"clean"` // closed, everything durable
}

// beginMounting gives the mounting that a pool opened now belongs to.
func beginMounting(fs disk.FS, fresh bool) (string, error) {
	var m mounting
	err := readSealed(fs, mountedFile, "mounting", &m)
	if err != nil || m.ID == "" || len(m.ID) > maxInstance/2 || fresh && !m.Clean {
		m = mounting{ID: string(holdfast.NewPoolID())}
	}
	m.Clean = false
	return m.ID, writeSealed(fs, mountedFile, "mounting", m)
}

// endMounting says that everything is durable and closed.
func endMounting(fs disk.FS, id string) error {
	return writeSealed(fs, mountedFile, "mounting", mounting{ID: id, Clean: true})
}
