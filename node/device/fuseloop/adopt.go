package fuseloop

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/node/device"
	"github.com/holdfast-storage/holdfast/node/device/blockdev"
	"github.com/holdfast-storage/holdfast/node/keeper"
)

// A device outlives its process as follows. The kernel ends a FUSE connection
// when the last descriptor of it is closed; the keeper holds one more. Requests
// that nobody reads wait in the kernel. The next process reads from the kept
// descriptor, and has the kernel send again what the one before it had read and
// not answered (FUSE_NOTIFY_RESEND, Linux 6.9; include/uapi/linux/fuse.h): such a
// write may have been done already, wholly or in part, and is done again, which
// is what an application may expect of a write that was not acknowledged.

// keyPrefix begins the keeper's keys of this front end's devices.
const keyPrefix = "fuseloop/"

// note is what the keeper keeps beside a connection.
type note struct {
	SizeBytes  int64      `json:"sizeBytes"` // when it was opened: it may have grown since
	LogicalBlk int        `json:"logicalBlk"`
	ReadOnly   bool       `json:"readOnly,omitempty"`
	Loop       loopDevice `json:"loop"`
}

// adopted is a device of an earlier process that waits to be opened again.
type adopted struct {
	vol  holdfast.VolumeID
	fd   int
	note note
}

func (d *Device) key() string { return keyPrefix + string(d.opts.Volume) }

// put hands a copy of the connection to the keeper. A device that the keeper
// cannot take works as well, as long as this process lives.
func (d *Device) put() {
	if d.fe.keep == nil {
		return
	}
	raw, err := json.Marshal(note{SizeBytes: d.opts.SizeBytes, LogicalBlk: d.opts.LogicalBlk, ReadOnly: d.opts.ReadOnly, Loop: d.loop})
	if err == nil {
		err = d.fe.keep.Put(d.key(), raw, d.srv.fd)
	}
	d.kept = err == nil
	if err != nil {
		d.fe.log.Error("the device will end with this process: the keeper does not take it", "device", d.loop.Path, "err", err)
	}
}

// drop has the keeper forget a device that is gone.
func (d *Device) drop() {
	if !d.kept {
		return
	}
	if err := d.fe.keep.Drop(d.key()); err != nil {
		d.fe.log.Warn("the keeper still holds a device that is gone; the next start removes it", "volume", d.opts.Volume, "err", err)
	}
}

// Adopt implements device.Successor. What is held but does not exist any more is
// dropped.
func (f *FrontEnd) Adopt(context.Context) ([]holdfast.VolumeID, error) {
	const op = "take over the devices of a predecessor"
	if f.keep == nil {
		return nil, nil
	}
	mounted, err := blockdev.MountPoints(fsType) // once: with many devices it takes its time
	if err != nil {
		return nil, holdfast.Wrap(op, err)
	}
	held, err := f.keep.List()
	if err != nil {
		return nil, holdfast.Wrap(op, err)
	}
	var (
		vols []holdfast.VolumeID
		errs []error
	)
	for _, h := range held {
		vol, ours := strings.CutPrefix(h.Key, keyPrefix)
		if !ours {
			_ = unix.Close(h.FD)
			continue
		}
		a, err := f.adopt(holdfast.VolumeID(vol), h, mounted)
		if err != nil {
			_ = unix.Close(h.FD)
			errs = append(errs, fmt.Errorf("volume %s: %w", vol, err), f.keep.Drop(h.Key))
			continue
		}
		f.mu.Lock()
		f.adopted[a.vol], f.leftover[a.vol] = a, true
		f.mu.Unlock()
		vols = append(vols, a.vol)
	}
	slices.Sort(vols)
	return vols, holdfast.Wrap(op, errors.Join(errs...))
}

// adopt checks that what is held is a device that is still there.
func (f *FrontEnd) adopt(vol holdfast.VolumeID, h keeper.Held, mounted map[string]bool) (*adopted, error) {
	a := &adopted{vol: vol, fd: h.FD}
	if err := json.Unmarshal(h.Note, &a.note); err != nil {
		return nil, holdfast.E("read the keeper's note", holdfast.Invalid, err.Error())
	}
	if !blockdev.IsVolume(string(vol)) || !mounted[f.dir(vol)] || !a.note.Loop.bound() {
		return nil, holdfast.E("look for "+a.note.Loop.Path, holdfast.NotFound, "the device is gone")
	}
	return a, nil
}

// takeAdopted gives the volume's adopted device to the caller; nil if none.
func (f *FrontEnd) takeAdopted(vol holdfast.VolumeID) *adopted {
	f.mu.Lock()
	defer f.mu.Unlock()
	a := f.adopted[vol]
	delete(f.adopted, vol)
	return a
}

// resume serves an adopted device. It is given back to the kernel to be removed
// if it cannot be served as it is: it would hang.
func (f *FrontEnd) resume(ctx context.Context, a *adopted, o device.Options, b device.Backend) (*Device, error) {
	size := o.SizeBytes
	o.SizeBytes = min(size, a.note.SizeBytes)
	d := &Device{fe: f, opts: o, dir: f.dir(o.Volume), loop: a.note.Loop, kept: true, busy: make(chan struct{}, 1), aborted: make(chan struct{})}
	err := d.serveAgain(a, size, b)
	if err == nil && size > a.note.SizeBytes {
		err = d.Grow(ctx, size)
	}
	if err != nil {
		f.log.Error("a device that a predecessor left cannot be served and is removed", "volume", o.Volume, "device", d.loop.Path, "err", err)
		return nil, errors.Join(err, d.Abort())
	}
	d.put() // with its present size
	return d, nil
}

// serveAgain starts the server on the adopted connection.
func (d *Device) serveAgain(a *adopted, size int64, b device.Backend) error {
	if d.opts.LogicalBlk != a.note.LogicalBlk || d.opts.ReadOnly != a.note.ReadOnly || size < a.note.SizeBytes {
		err := holdfast.E("", holdfast.Invalid, fmt.Sprintf("the device was made for %+v", a.note))
		d.srv = &server{closed: true} // nobody reads: Abort has nothing to stop
		return errors.Join(err, unix.Close(a.fd))
	}
	file := os.NewFile(uintptr(a.fd), "/dev/fuse")
	var err error
	d.srv, err = serve(file, a.fd, serverConfig{Name: d.fe.fileName(d.opts.Volume), SizeBytes: size,
		ReadOnly: d.opts.ReadOnly, Backend: b, Log: d.fe.log.With("volume", d.opts.Volume)})
	if err != nil {
		d.srv = &server{closed: true}
		return errors.Join(holdfast.WrapKind("serve FUSE", holdfast.Other, err), file.Close())
	}
	if errno := d.srv.resend(); errno != 0 {
		return holdfast.WrapKind("have the kernel send again what was in flight (Linux 6.9 can)", holdfast.Unsupported, errno)
	}
	return nil
}

// notifyResend is FUSE_NOTIFY_RESEND.
const notifyResend = 7

// resend has the kernel queue again every request that was read and not answered.
func (s *server) resend() syscall.Errno {
	var out [outHeaderSize]byte
	order.PutUint32(out[0:], outHeaderSize)
	order.PutUint32(out[4:], notifyResend) // a notification has its code in place of an error
	_, _, errno := unix.Syscall(unix.SYS_WRITE, uintptr(s.fd), uintptr(unsafe.Pointer(&out[0])), uintptr(len(out)))
	return errno
}

// Discard implements device.Successor.
func (f *FrontEnd) Discard(vol holdfast.VolumeID, force bool) error {
	op := "remove the device of volume " + string(vol)
	a := f.takeAdopted(vol)
	if a == nil {
		return holdfast.E(op, holdfast.NotFound, "no predecessor left one")
	}
	on, err := a.note.Loop.Mounts()
	if !force && (err != nil || len(on) > 0) {
		f.mu.Lock()
		f.adopted[vol] = a
		f.mu.Unlock()
		return holdfast.Wrap(op, errors.Join(err, holdfast.E("", holdfast.InUse, fmt.Sprintf("%s is mounted at %d places; unmount it first", a.note.Loop.Path, len(on)))))
	}
	err = unix.Close(a.fd)
	_, cleanErr := f.clean(func(v holdfast.VolumeID) bool { return v == vol })
	return holdfast.Wrap(op, errors.Join(err, cleanErr, f.keep.Drop(keyPrefix+string(vol))))
}

// Leave implements device.Successor.
func (f *FrontEnd) Leave() []holdfast.VolumeID {
	f.mu.Lock()
	defer f.mu.Unlock()
	var left []holdfast.VolumeID
	for vol, d := range f.devices {
		if d == nil || !d.kept {
			continue
		}
		d.srv.ending.Store(true)
		d.srv.stop()
		delete(f.devices, vol)
		left = append(left, vol)
	}
	for vol, a := range f.adopted {
		_ = unix.Close(a.fd)
		delete(f.adopted, vol)
		left = append(left, vol)
	}
	slices.Sort(left)
	return left
}
