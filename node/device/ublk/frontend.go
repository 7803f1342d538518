package ublk

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/node/device"
	"github.com/holdfast-storage/holdfast/node/device/blockdev"
)

// Config describes a front end.
type Config struct {
	// Root is a directory of the daemon's own, made if missing. It holds the
	// owner mark and a file per device, by which a successor knows its
	// predecessor's devices, and a lock: two daemons cannot share it.
	Root string
	// Log receives what happens off the data path. Nil drops it.
	Log *slog.Logger
}

// FrontEnd is device.FrontEnd by the kernel's ublk driver.
type FrontEnd struct {
	root     *blockdev.Root
	log      *slog.Logger
	features uint64
	open     blockdev.Registry
}

var (
	_ device.FrontEnd  = (*FrontEnd)(nil)
	_ device.Successor = (*FrontEnd)(nil)
	_ device.Device    = (*Device)(nil)
)

// needed is what the driver must be able to do.
const needed = featRecovery | featReissue | featIoctlEncode | featUserCopy

// New takes the root directory and loads the module. Errors: InUse while another
// process that lives has the directory; Unsupported where the kernel has no ublk
// driver, too old a one, or forbids io_uring.
func New(c Config) (*FrontEnd, error) {
	const op = "start the ublk front end"
	f := &FrontEnd{log: c.Log}
	if f.log == nil {
		f.log = slog.New(slog.DiscardHandler)
	}
	var err error
	if f.features, err = loaded(); err != nil {
		return nil, holdfast.Wrap(op, err)
	}
	if f.root, err = blockdev.OpenRoot(c.Root, nil); err != nil {
		return nil, holdfast.Wrap(op, err)
	}
	return f, nil
}

// loaded loads the driver and says what it can.
func loaded() (uint64, error) {
	if _, err := os.Stat("/dev/ublk-control"); errors.Is(err, os.ErrNotExist) {
		if out, err := exec.Command("modprobe", "ublk_drv").CombinedOutput(); err != nil {
			return 0, holdfast.E("", holdfast.Unsupported, fmt.Sprintf("this kernel has no ublk driver: %v: %s", err, strings.TrimSpace(string(out))))
		}
	}
	can, err := features()
	switch {
	case missing(err):
		return 0, holdfast.E("", holdfast.Unsupported, fmt.Sprintf("the ublk driver cannot be used here (io_uring forbidden, or Linux before 6.5): %v", err))
	case err != nil:
		return 0, holdfast.WrapKind("", holdfast.Unavailable, err)
	case can&needed != needed:
		return 0, holdfast.E("", holdfast.Unsupported, fmt.Sprintf("the ublk driver can %#x, wanted %#x; Linux 6.5 and later have it", can, needed))
	}
	return can, nil
}

// Name is "ublk".
func (f *FrontEnd) Name() string { return "ublk" }

// CanGrow says whether this kernel's devices can grow while they are in use.
func (f *FrontEnd) CanGrow() bool { return f.features&featUpdateSize != 0 }

// Close gives the root directory back. It fails with InUse while devices are
// open.
func (f *FrontEnd) Close() error {
	if n := f.open.Len(); n > 0 {
		return holdfast.E("stop the ublk front end", holdfast.InUse, fmt.Sprintf("%d devices are open; close them first", n))
	}
	return f.root.Close()
}

// Open makes a device, or goes on with an adopted one: requests that were in
// flight reach b then, and Options.SizeBytes may be more than it had. An adopted
// device that cannot be served as the options say is removed, as it would hang. A
// volume that is open already is refused with Exists; what a killed predecessor
// left of it, and was not adopted, is removed first.
func (f *FrontEnd) Open(ctx context.Context, o device.Options, b device.Backend) (device.Device, error) {
	op := "open a device for volume " + string(o.Volume)
	if err := blockdev.Validate(o, b); err != nil {
		return nil, holdfast.Wrap(op, err)
	}
	if err := ctx.Err(); err != nil {
		return nil, holdfast.WrapKind(op, holdfast.Unavailable, err)
	}
	d, err := f.open.Enter(o.Volume, func(adopted bool) (device.Device, error) {
		if !adopted {
			return f.make(o, b)
		}
		d, err := f.resume(ctx, o, b)
		if err != nil {
			f.log.Error("a device that a predecessor left cannot be served and is removed", "volume", o.Volume, "error", err)
			return nil, errors.Join(err, f.remove(o.Volume))
		}
		return d, nil
	})
	return d, holdfast.Wrap(op, err)
}

// note is the file that says that the volume may have a device.
func (f *FrontEnd) note(vol holdfast.VolumeID) string {
	return filepath.Join(f.root.Dir(), string(vol)+noteSuffix)
}

const noteSuffix = ".ublk"

// tag is the mark of a volume's device: the driver keeps 64 bits for its server.
func (f *FrontEnd) tag(vol holdfast.VolumeID) uint64 {
	sum := sha256.Sum256([]byte(f.root.Mark(vol)))
	return binary.BigEndian.Uint64(sum[:])
}

// find gives the volume's device in the kernel: NotFound if there is none.
func (f *FrontEnd) find(vol holdfast.VolumeID) (info, error) {
	names, _ := filepath.Glob("/sys/class/ublk-char/ublkc*")
	for _, name := range names {
		id, err := strconv.ParseUint(strings.TrimPrefix(filepath.Base(name), "ublkc"), 10, 32)
		if err != nil {
			continue
		}
		i, err := getInfo(uint32(id))
		if errors.Is(err, unix.ENODEV) {
			continue // gone meanwhile
		}
		if err != nil {
			return info{}, holdfast.WrapKind("look at "+name, holdfast.Unavailable, err)
		}
		if i.tag == f.tag(vol) {
			return i, nil
		}
	}
	return info{}, holdfast.E("", holdfast.NotFound, "there is no device of it")
}

// noted lists the volumes that may have devices which nobody here serves.
func (f *FrontEnd) noted() ([]holdfast.VolumeID, error) {
	files, err := os.ReadDir(f.root.Dir())
	if err != nil {
		return nil, holdfast.WrapKind("list the devices", holdfast.Other, err)
	}
	var vols []holdfast.VolumeID
	for _, e := range files {
		name, ok := strings.CutSuffix(e.Name(), noteSuffix)
		if vol := holdfast.VolumeID(name); ok && blockdev.IsVolume(name) && !f.open.Has(vol) {
			vols = append(vols, vol)
		}
	}
	slices.Sort(vols)
	return vols, nil
}

// Adopt implements device.Successor: the devices are the predecessor's that has
// died, with the same root directory.
func (f *FrontEnd) Adopt(context.Context) ([]holdfast.VolumeID, error) {
	vols, err := f.left()
	if err != nil {
		return nil, holdfast.Wrap("take over the devices of a predecessor", err)
	}
	f.open.Adopt(vols)
	return vols, nil
}

// Discard implements device.Successor.
func (f *FrontEnd) Discard(vol holdfast.VolumeID, force bool) error {
	op := "remove the device of volume " + string(vol)
	if !f.open.Take(vol) {
		return holdfast.E(op, holdfast.NotFound, "no predecessor left one")
	}
	n, err := f.node(vol)
	if err == nil && !force {
		on, mountsErr := n.Mounts()
		if mountsErr != nil || len(on) > 0 {
			f.open.Adopt([]holdfast.VolumeID{vol})
			return holdfast.Wrap(op, errors.Join(mountsErr, holdfast.E("", holdfast.InUse, n.Users()+"; unmount it first")))
		}
	}
	return holdfast.Wrap(op, f.remove(vol))
}

// Leave implements device.Successor: the kernel holds the devices.
func (f *FrontEnd) Leave() []holdfast.VolumeID {
	devices, vols := f.open.Empty()
	for _, d := range devices {
		d.(*Device).q.leave()
	}
	return vols
}

// left lists the volumes whose devices wait for a server.
func (f *FrontEnd) left() ([]holdfast.VolumeID, error) {
	vols, err := f.noted()
	if err != nil {
		return nil, err
	}
	var left []holdfast.VolumeID
	for _, vol := range vols {
		i, err := f.find(vol)
		if err == nil && i.state != stateDead {
			left = append(left, vol)
		} else if err != nil && !errors.Is(err, holdfast.NotFound) {
			return nil, err
		}
	}
	return left, nil
}

// node is the volume's device in the kernel: NotFound if there is none.
func (f *FrontEnd) node(vol holdfast.VolumeID) (blockdev.Node, error) {
	i, err := f.find(vol)
	if err != nil {
		return blockdev.Node{}, err
	}
	n := blockdev.Node{Path: fmt.Sprintf("/dev/ublkb%d", i.devID)}
	return n, holdfast.WrapKind("look at "+n.Path, holdfast.Unavailable, n.Ensure())
}

// remove removes what a predecessor left of a volume.
func (f *FrontEnd) remove(vol holdfast.VolumeID) error {
	_, err := f.clean(vol)
	return err
}

// CleanOrphans removes the devices that a killed predecessor with the same root
// directory left: their I/O fails. Filesystems that are still mounted from them
// are unmounted lazily. Devices of this front end, and those of other owners,
// are not touched.
func (f *FrontEnd) CleanOrphans(ctx context.Context) ([]holdfast.VolumeID, error) {
	const op = "clean up after a predecessor"
	if err := ctx.Err(); err != nil {
		return nil, holdfast.WrapKind(op, holdfast.Unavailable, err)
	}
	vols, err := f.noted()
	if err != nil {
		return nil, holdfast.Wrap(op, err)
	}
	cleaned := []holdfast.VolumeID{}
	var errs []error
	for _, vol := range vols {
		was, err := f.clean(vol)
		if was {
			cleaned = append(cleaned, vol)
		}
		errs = append(errs, err)
	}
	return cleaned, holdfast.Wrap(op, errors.Join(errs...))
}

// clean removes what a predecessor left of a volume's device, and says whether
// there was one. The lock on the root directory proves that no other process
// serves it.
func (f *FrontEnd) clean(vol holdfast.VolumeID) (bool, error) {
	i, err := f.find(vol)
	if errors.Is(err, holdfast.NotFound) {
		return false, f.forget(vol)
	}
	if err != nil {
		return false, err
	}
	n := blockdev.Node{Path: fmt.Sprintf("/dev/ublkb%d", i.devID)}
	started := n.Ensure() == nil
	// First the device: unmounting would wait for I/O that nobody answers.
	if err := stopDevice(i.devID); err != nil {
		return true, err
	}
	var points []string
	if started {
		if points, err = n.DetachMounts(); err != nil {
			return true, err
		}
	}
	if err := deleteDevice(i.devID); err != nil {
		return true, err
	}
	f.log.Warn("removed a device whose server is gone", "volume", vol, "device", n.Path, "mounts", points)
	return true, f.forget(vol)
}

// forget removes the note of a volume's device.
func (f *FrontEnd) forget(vol holdfast.VolumeID) error {
	if err := os.Remove(f.note(vol)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return holdfast.WrapKind("remove a note", holdfast.Other, err)
	}
	return nil
}

// stopDevice ends all I/O of a device. No device is fine.
func stopDevice(devID uint32) error {
	if _, err := control(cmdStop, devID, 0, nil); err != nil && !errors.Is(err, unix.ENODEV) {
		return holdfast.WrapKind("stop the device", holdfast.Unavailable, err)
	}
	return nil
}

// deleteDevice takes a stopped device away; its number is free when the last
// user has closed it. No device is fine.
func deleteDevice(devID uint32) error {
	if _, err := control(cmdDeleteAsync, devID, 0, nil); err != nil && !errors.Is(err, unix.ENODEV) {
		return holdfast.WrapKind("delete the device", holdfast.Unavailable, err)
	}
	return nil
}
