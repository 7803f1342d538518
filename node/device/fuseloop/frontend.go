package fuseloop

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/node/device"
	"github.com/holdfast-storage/holdfast/node/device/blockdev"
	"github.com/holdfast-storage/holdfast/node/keeper"
)

// Config describes a front end.
type Config struct {
	// Root is a directory of the daemon's own, made if missing, where its FUSE
	// mounts stand: such as /run/holdfast/NODE/devices. It holds the owner mark
	// by which a successor knows its predecessor's devices, and a lock: two
	// daemons cannot share it.
	Root string
	// Keeper, if set, holds the devices' connections, so that they outlive this
	// process. See device.Successor.
	Keeper Keeper
	// Helper, if set, is the command that ends up in RunHelper, such as
	// /proc/self/exe HelperArg. Operations that wait
	// for what this process serves are then done by processes of their own. Without,
	// a process that is killed in one may not end before its successor starts.
	Helper []string
	// Log receives what happens off the data path. Nil drops it.
	Log *slog.Logger
}

// Keeper keeps descriptors for the next process: keeper.Client.
type Keeper interface {
	Put(key string, note []byte, fd int) error
	Drop(key string) error
	List() ([]keeper.Held, error)
}

// keptWait is for how long a killed predecessor may take to be gone before its
// connections are ended, though a keeper holds them: a thread of it may wait for
// an answer that only a successor could give.
const keptWait = 3 * time.Second

// FrontEnd is device.FrontEnd by FUSE and loop devices.
type FrontEnd struct {
	root   *blockdev.Root
	log    *slog.Logger
	keep   Keeper // nil: none
	helper helpers

	mu      sync.Mutex
	devices map[holdfast.VolumeID]*Device  // nil while being opened
	adopted map[holdfast.VolumeID]*adopted // not opened yet
	// Nothing is left of volumes other than these, once swept: that was seen by
	// CleanOrphans, and whatever was opened since is among them until it was seen
	// gone. To look for what is left takes time in proportion to all devices.
	swept    bool
	leftover map[holdfast.VolumeID]bool
}

var (
	_ device.FrontEnd  = (*FrontEnd)(nil)
	_ device.Successor = (*FrontEnd)(nil)
	_ device.Device    = (*Device)(nil)
)

// New takes the root directory. It fails with InUse while another process that
// lives has it.
func New(c Config) (*FrontEnd, error) {
	const op = "start the fuseloop front end"
	began := time.Now()
	root, err := blockdev.OpenRoot(c.Root, func(root string) {
		if c.Keeper == nil || time.Since(began) > keptWait {
			abortMounts(root)
		}
	})
	if err != nil {
		return nil, holdfast.Wrap(op, err)
	}
	f := &FrontEnd{root: root, log: c.Log, keep: c.Keeper,
		devices: map[holdfast.VolumeID]*Device{}, adopted: map[holdfast.VolumeID]*adopted{}, leftover: map[holdfast.VolumeID]bool{}}
	if f.log == nil {
		f.log = slog.New(slog.DiscardHandler)
	}
	f.helper = helpers{cmd: c.Helper, log: f.log}
	return f, nil
}

// Name is "fuseloop".
func (f *FrontEnd) Name() string { return "fuseloop" }

// Close gives the root directory back. It fails with InUse while devices are
// open.
func (f *FrontEnd) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := len(f.devices); n > 0 {
		return holdfast.E("stop the fuseloop front end", holdfast.InUse, fmt.Sprintf("%d devices are open; close them first", n))
	}
	for vol, a := range f.adopted { // never opened: the next start removes them
		_ = unix.Close(a.fd)
		delete(f.adopted, vol)
	}
	f.helper.close()
	return f.root.Close()
}

// dir is where the volume's filesystem is mounted.
func (f *FrontEnd) dir(vol holdfast.VolumeID) string { return filepath.Join(f.root.Dir(), string(vol)) }

func (f *FrontEnd) fileName(vol holdfast.VolumeID) string { return f.root.Mark(vol) }

// Open makes a device. A volume that is open already is refused with Exists;
// what a killed predecessor left of it is removed first.
func (f *FrontEnd) Open(ctx context.Context, o device.Options, b device.Backend) (device.Device, error) {
	op := "open a device for volume " + string(o.Volume)
	if err := blockdev.Validate(o, b); err != nil {
		return nil, holdfast.Wrap(op, err)
	}
	if err := f.reserve(o.Volume); err != nil {
		return nil, holdfast.Wrap(op, err)
	}
	d, err := f.open(ctx, o, b)
	f.mu.Lock()
	defer f.mu.Unlock()
	if err != nil {
		delete(f.devices, o.Volume)
		return nil, holdfast.Wrap(op, err)
	}
	f.devices[o.Volume] = d
	return d, nil
}

func (f *FrontEnd) reserve(vol holdfast.VolumeID) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.devices[vol]; ok {
		return holdfast.E("", holdfast.Exists, "it has a device already; close that first")
	}
	f.devices[vol] = nil
	return nil
}

func (f *FrontEnd) forget(vol holdfast.VolumeID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.devices, vol)
}

// maybeLeft says whether something of a device of the volume's may be there, though
// this front end has none.
func (f *FrontEnd) maybeLeft(vol holdfast.VolumeID) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return !f.swept || f.leftover[vol]
}

// mark says whether something of the volume's device may be there from now on.
func (f *FrontEnd) mark(vol holdfast.VolumeID, left bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if left {
		f.leftover[vol] = true
	} else {
		delete(f.leftover, vol)
	}
}

func (f *FrontEnd) open(ctx context.Context, o device.Options, b device.Backend) (*Device, error) {
	if a := f.takeAdopted(o.Volume); a != nil {
		return f.resume(ctx, a, o, b)
	}
	if f.maybeLeft(o.Volume) {
		if _, err := f.clean(func(v holdfast.VolumeID) bool { return v == o.Volume }); err != nil {
			return nil, err
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, holdfast.WrapKind("", holdfast.Unavailable, err)
	}
	d := &Device{fe: f, opts: o, dir: f.dir(o.Volume), busy: make(chan struct{}, 1), aborted: make(chan struct{})}
	f.mark(o.Volume, true)
	if err := d.start(ctx, b); err != nil {
		err = errors.Join(err, d.dismantle())
		// What a helper bound that was killed before it could say so.
		_, cleanErr := f.clean(func(v holdfast.VolumeID) bool { return v == o.Volume })
		f.mark(o.Volume, true) // it may still be about to
		return nil, errors.Join(err, cleanErr)
	}
	d.put()
	return d, nil
}
