package fuseloop

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/node/device/blockdev"
)

// loopDevice is a loop device that was bound to a file of ours. The file's name
// (see fileName) is the mark of ownership: the kernel shows it in
// /sys/block/loopN/loop/backing_file without asking the file's filesystem, which
// may be hung or dead, and in every mount namespace.
type loopDevice struct {
	blockdev.Node
	File string // base name of the file behind it
}

// configureTries bounds the races for a free device that one call may lose; with
// configureWait between two of them that is about five seconds.
const (
	configureTries = 500
	configureWait  = 10 * time.Millisecond
)

// attachLoop binds a free loop device to the file that is open as fileFD, whose
// path is path. The descriptor stays the caller's.
func attachLoop(fileFD int, path string, blk int) (loopDevice, error) {
	const op = "set up a loop device"
	ctl, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return loopDevice{}, holdfast.WrapKind(op, holdfast.Unavailable, err)
	}
	defer ctl.Close()
	for try := range configureTries {
		n, err := unix.IoctlRetInt(int(ctl.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return loopDevice{}, holdfast.WrapKind(op+": find a free one", holdfast.Unavailable, err)
		}
		l := loopDevice{Node: blockdev.Node{Path: fmt.Sprintf("/dev/loop%d", n)}, File: filepath.Base(path)}
		err = l.configure(fileFD, path, blk)
		if err == nil {
			return l, nil
		}
		if !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENXIO) {
			return loopDevice{}, holdfast.WrapKind(op+": "+l.Path, holdfast.Unavailable, err)
		}
		// Somebody else was faster: ask again.
		if try > 10 {
			<-time.After(configureWait)
		}
	}
	return loopDevice{}, holdfast.E(op, holdfast.Busy, fmt.Sprintf("lost the race for a free device %d times; try again", configureTries))
}

func (l *loopDevice) configure(fileFD int, path string, blk int) error {
	if err := l.Ensure(); err != nil {
		return err
	}
	fd, err := unix.Open(l.Path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	c := unix.LoopConfig{Fd: uint32(fileFD), Size: uint32(blk)}
	c.Info.Flags = unix.LO_FLAGS_DIRECT_IO
	copy(c.Info.File_name[:], path) // for people; cut at 63 bytes
	if err := unix.IoctlLoopConfigure(fd, &c); err != nil {
		return err
	}
	// Whoever had this loop device before may have set it read-only (BLKROSET),
	// which outlives the binding. A read-only file keeps it read-only.
	return unix.IoctlSetPointerInt(fd, unix.BLKROSET, 0)
}

// bound says whether the device still serves our file. It cannot block.
func (l loopDevice) bound() bool {
	raw, err := os.ReadFile(l.Sys("loop/backing_file"))
	return err == nil && filepath.Base(strings.TrimSpace(string(raw))) == l.File
}

// open opens the device for control if it still is ours: ErrNotExist if not.
// While it is open it stays ours. flags are added to O_RDONLY.
func (l loopDevice) open(flags int) (int, error) {
	if !l.bound() {
		return -1, os.ErrNotExist
	}
	fd, err := unix.Open(l.Path, unix.O_RDONLY|unix.O_CLOEXEC|flags, 0)
	if errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENOENT) {
		return -1, os.ErrNotExist
	}
	if err != nil {
		return -1, err
	}
	if !l.bound() {
		unix.Close(fd)
		return -1, os.ErrNotExist
	}
	return fd, nil
}

// clear unbinds the device; while somebody holds it open the kernel does so at
// the last close. Not ours any more is fine. wanted is asked once it is open.
func (l loopDevice) clear(flags int, wanted func() bool) error {
	fd, err := l.open(flags)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if !wanted() {
		return errUnwanted
	}
	if err := unix.IoctlSetInt(fd, unix.LOOP_CLR_FD, 0); err != nil && !errors.Is(err, unix.ENXIO) {
		return err
	}
	return nil
}

// errUnwanted is for what nobody waits for any more.
var errUnwanted = errors.New("the process that wanted it is gone")

// keep takes back a clear that the kernel has put off. wanted is asked last.
func (l loopDevice) keep(wanted func() bool) error {
	fd, err := l.open(0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	info, err := unix.IoctlLoopGetStatus64(fd)
	if err != nil {
		return err
	}
	if !wanted() {
		return errUnwanted
	}
	info.Flags &^= unix.LO_FLAGS_AUTOCLEAR
	return unix.IoctlLoopSetStatus64(fd, info)
}

// resize makes the kernel ask for the file's size again.
func (l loopDevice) resize() error {
	fd, err := l.open(0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.IoctlSetInt(fd, unix.LOOP_SET_CAPACITY, 0)
}

// discardMax bounds one discard, in bytes: the loop driver starts nothing else
// while one runs.
const discardMax = 1 << 30

// tune checks that the kernel took the file as meant, and sets what can only be
// set afterwards.
func (l loopDevice) tune(blk int, readOnly bool) error {
	const op = "check the loop device"
	bad := func(what string, got any) error {
		return holdfast.E(op+" "+l.Path, holdfast.Unsupported, fmt.Sprintf("%s is %v; this kernel's loop driver does not fit", what, got))
	}
	if dio, err := l.Number("loop/dio"); err != nil || dio != 1 {
		return bad("direct I/O", dio)
	}
	if n, err := l.Number("queue/logical_block_size"); err != nil || n != int64(blk) {
		return bad("the logical block size", n)
	}
	// One request of the block layer becomes one of FUSE; failing to set it costs
	// speed only.
	_ = os.WriteFile(l.Sys("queue/max_sectors_kb"), []byte(strconv.Itoa(maxWrite>>10)), 0)
	if readOnly {
		if ro, err := l.Number("ro"); err != nil || ro != 1 {
			return bad("the read-only flag", ro)
		}
		return nil
	}
	cache, err := os.ReadFile(l.Sys("queue/write_cache"))
	if err != nil || strings.TrimSpace(string(cache)) != "write back" {
		return bad("the write cache (without it flushes would be dropped)", strings.TrimSpace(string(cache)))
	}
	if n, err := l.Number("queue/discard_max_hw_bytes"); err == nil && n > discardMax {
		// Failing to lower it costs latency only.
		_ = os.WriteFile(l.Sys("queue/discard_max_bytes"), []byte(strconv.Itoa(discardMax)), 0)
	}
	return nil
}
