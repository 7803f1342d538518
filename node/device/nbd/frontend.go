package nbd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/node/device"
	"github.com/holdfast-storage/holdfast/node/device/blockdev"
)

// Config describes a front end.
type Config struct {
	// Root is a directory of the daemon's own, made if missing. It holds the
	// owner mark by which a successor knows its predecessor's devices, and a
	// lock: two daemons cannot share it.
	Root string
	// Keeper, if set, holds the devices' connections, so that the kernel notices
	// nothing when this process is replaced by another. Nil: the devices outlive
	// it as well, but their requests in flight wait for up to 2 s more.
	Keeper Keeper
	// Log receives what happens off the data path. Nil drops it.
	Log *slog.Logger
}

// FrontEnd is device.FrontEnd by the kernel's NBD client.
type FrontEnd struct {
	root   *blockdev.Root
	log    *slog.Logger
	kernel kernel
	open   blockdev.Registry
	keep   Keeper // nil: none

	keptMu sync.Mutex
	kept   map[holdfast.VolumeID]kept // of a predecessor, not in use yet
}

var (
	_ device.FrontEnd  = (*FrontEnd)(nil)
	_ device.Successor = (*FrontEnd)(nil)
	_ device.Device    = (*Device)(nil)
)

// New takes the root directory and loads the module. Errors: InUse while another
// process that lives has the directory; Unsupported where there is no module.
func New(c Config) (*FrontEnd, error) {
	const op = "start the nbd front end"
	family, err := findFamily()
	if errors.Is(err, holdfast.NotFound) {
		// The devices that the module makes by itself are not needed: they come
		// one by one.
		if out, err := exec.Command("modprobe", "nbd", "nbds_max=0").CombinedOutput(); err != nil {
			return nil, holdfast.E(op, holdfast.Unsupported, fmt.Sprintf("this kernel has no nbd module: %v: %s", err, strings.TrimSpace(string(out))))
		}
		family, err = findFamily()
	}
	if err != nil {
		return nil, holdfast.Wrap(op, err)
	}
	root, err := blockdev.OpenRoot(c.Root, nil)
	if err != nil {
		return nil, holdfast.Wrap(op, err)
	}
	f := &FrontEnd{root: root, log: c.Log, kernel: kernel{family}, keep: c.Keeper}
	if f.log == nil {
		f.log = slog.New(slog.DiscardHandler)
	}
	f.load()
	return f, nil
}

// Name is "nbd".
func (f *FrontEnd) Name() string { return "nbd" }

// Close gives the root directory back. It fails with InUse while devices are
// open.
func (f *FrontEnd) Close() error {
	if n := f.open.Len(); n > 0 {
		return holdfast.E("stop the nbd front end", holdfast.InUse, fmt.Sprintf("%d devices are open; close them first", n))
	}
	for _, vol := range f.keptVolumes() {
		if k, ok := f.takeKept(vol); ok {
			k.close() // the keeper has its own
		}
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
			return f.connect(o, b)
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

func (f *FrontEnd) newDevice(o device.Options) *Device {
	return &Device{fe: f, opts: o, mark: f.root.Mark(o.Volume), serial: blockdev.NewSerial(), aborted: make(chan struct{})}
}

func (f *FrontEnd) connect(o device.Options, b device.Backend) (device.Device, error) {
	if _, err := f.clean(func(v holdfast.VolumeID) bool { return v == o.Volume }); err != nil {
		return nil, err
	}
	f.letGo(o.Volume) // of a device that is gone
	d := f.newDevice(o)
	fd, err := d.serveNew(b)
	if err != nil {
		return nil, err
	}
	index, err := f.kernel.connect(connection{mark: d.mark, sizeBytes: o.SizeBytes, blockBytes: o.LogicalBlk, serverFlags: flagsOf(o), socket: fd})
	unix.Close(fd)
	if err != nil {
		d.srv.stop()
		f.drop(o.Volume)
		return nil, holdfast.WrapKind("connect", holdfast.Unavailable, err)
	}
	d.setIndex(index)
	if err := d.tune(); err != nil {
		_ = d.dismantle() // the first error counts
		return nil, err
	}
	return d, nil
}

func flagsOf(o device.Options) uint64 {
	flags := uint64(hasFlags | sendFlush | sendFUA | sendTrim | sendWriteZeroes)
	if o.ReadOnly {
		flags |= readOnly
	}
	return flags
}

func (f *FrontEnd) resume(ctx context.Context, o device.Options, b device.Backend) (device.Device, error) {
	d := f.newDevice(o)
	found := false
	for _, n := range marked() {
		if n.mark == d.mark {
			d.setIndex(n.index)
			found = true
		}
	}
	if !found {
		return nil, holdfast.E("", holdfast.NotFound, "there is no device of it")
	}
	if err := d.Ensure(); err != nil {
		return nil, holdfast.WrapKind("", holdfast.Unavailable, err)
	}
	if err := d.takeOver(ctx, b); err != nil {
		return nil, err
	}
	return d, nil
}

// markedDevice is an NBD device that a Holdfast daemon made.
type markedDevice struct {
	index int
	mark  string
}

// marked lists them. It asks /sys only.
func marked() []markedDevice {
	files, _ := filepath.Glob("/sys/block/nbd*/backend")
	var all []markedDevice
	for _, f := range files {
		name := filepath.Base(filepath.Dir(f))
		index, err := strconv.Atoi(strings.TrimPrefix(name, "nbd"))
		mark := blockdev.Node{Path: "/dev/" + name}.Text("backend")
		if err == nil && strings.HasPrefix(mark, blockdev.MarkPrefix) {
			all = append(all, markedDevice{index, mark})
		}
	}
	return all
}

// Adopt implements device.Successor: the devices are the predecessor's that has
// died, with the same root directory.
func (f *FrontEnd) Adopt(context.Context) ([]holdfast.VolumeID, error) {
	vols := f.left()
	f.open.Adopt(vols)
	for _, vol := range f.keptVolumes() {
		if !slices.Contains(vols, vol) {
			f.letGo(vol) // of a device that is gone
		}
	}
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
		d.(*Device).srv.stop()
	}
	for _, vol := range f.keptVolumes() {
		if k, ok := f.takeKept(vol); ok {
			k.close() // the keeper has its own
		}
	}
	return vols
}

// left lists the volumes whose devices are marked as ours and not served here.
func (f *FrontEnd) left() []holdfast.VolumeID {
	var vols []holdfast.VolumeID
	for _, n := range marked() {
		if vol, ours := f.root.VolumeOf(n.mark); ours && !f.open.Has(vol) {
			vols = append(vols, vol)
		}
	}
	slices.Sort(vols)
	return vols
}

// node is the volume's device in the kernel: NotFound if there is none.
func (f *FrontEnd) node(vol holdfast.VolumeID) (blockdev.Node, error) {
	for _, m := range marked() {
		if m.mark == f.root.Mark(vol) {
			n := blockdev.Node{Path: fmt.Sprintf("/dev/nbd%d", m.index)}
			return n, holdfast.WrapKind("look at "+n.Path, holdfast.Unavailable, n.Ensure())
		}
	}
	return blockdev.Node{}, holdfast.E("", holdfast.NotFound, "there is no device of it")
}

// remove removes what a predecessor left of a volume.
func (f *FrontEnd) remove(vol holdfast.VolumeID) error {
	_, err := f.clean(func(v holdfast.VolumeID) bool { return v == vol })
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
	cleaned, err := f.clean(func(v holdfast.VolumeID) bool { return !f.open.Has(v) })
	return cleaned, holdfast.Wrap(op, err)
}

// clean removes the devices of the volumes that orphan names. The lock on the
// root directory proves that no other process serves them.
func (f *FrontEnd) clean(orphan func(holdfast.VolumeID) bool) ([]holdfast.VolumeID, error) {
	cleaned := []holdfast.VolumeID{}
	var errs []error
	for _, n := range marked() {
		vol, ours := f.root.VolumeOf(n.mark)
		if !ours || !orphan(vol) {
			continue
		}
		cleaned = append(cleaned, vol)
		errs = append(errs, f.cleanDevice(vol, n.index))
	}
	slices.Sort(cleaned)
	return cleaned, errors.Join(errs...)
}

func (f *FrontEnd) cleanDevice(vol holdfast.VolumeID, index int) error {
	n := blockdev.Node{Path: fmt.Sprintf("/dev/nbd%d", index)}
	if err := n.Ensure(); err != nil {
		return holdfast.WrapKind("look at "+n.Path, holdfast.Other, err)
	}
	// First the connection: the kernel may wait for room in it, and then could not
	// be told anything. Next the device: unmounting would wait for I/O that nobody
	// answers.
	f.letGo(vol)
	if err := f.kernel.disconnect(index); err != nil {
		return holdfast.WrapKind("disconnect "+n.Path, holdfast.Other, err)
	}
	points, err := n.DetachMounts()
	if err != nil {
		return err
	}
	f.log.Warn("removed a device whose server is gone", "volume", vol, "device", n.Path, "mounts", points)
	return nil
}
