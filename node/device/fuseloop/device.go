package fuseloop

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/node/device"
)

// Device is one volume as /dev/loopN.
type Device struct {
	fe   *FrontEnd
	opts device.Options
	dir  string // where the filesystem is mounted
	loop loopDevice
	srv  *server
	kept bool // the keeper holds the connection; set before anybody has d

	abortOnce sync.Once
	aborted   chan struct{} // closed when Abort begins

	busy chan struct{} // holds one token while Grow, Close or the end of Abort works
	gone bool          // removed; under busy
}

// start mounts the filesystem, serves it, and binds a loop device.
func (d *Device) start(b device.Backend) error {
	if err := os.MkdirAll(d.dir, 0o700); err != nil {
		return holdfast.WrapKind("make the mount point", holdfast.Other, err)
	}
	conn, fd, err := connect(d.dir, sourcePrefix+string(d.opts.Volume))
	if err != nil {
		return err
	}
	d.srv, err = serve(conn, fd, serverConfig{Name: d.fe.fileName(d.opts.Volume), SizeBytes: d.opts.SizeBytes,
		ReadOnly: d.opts.ReadOnly, Backend: b, Log: d.fe.log.With("volume", d.opts.Volume)})
	if err != nil {
		conn.Close()
		return holdfast.WrapKind("serve FUSE", holdfast.Other, err)
	}
	return d.bind()
}

// bind opens the file and gives it to a loop device. It does not keep the file
// open: see the package comment.
func (d *Device) bind() error {
	flags := unix.O_RDWR
	if d.opts.ReadOnly {
		flags = unix.O_RDONLY
	}
	path := filepath.Join(d.dir, d.fe.fileName(d.opts.Volume))
	// Not by os.OpenFile: that has the runtime's epoll instance ask the file
	// whether it can be polled, which holds up the reader that would answer.
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return holdfast.WrapKind("open the volume's file", holdfast.Unavailable, err)
	}
	defer unix.Close(fd)
	// Asked by poll(2), which holds up nobody, the server answers ENOSYS: the
	// kernel then never asks again, whoever opens the file in whatever way.
	if err := pollOnce(fd); err != nil {
		return holdfast.WrapKind("poll the volume's file", holdfast.Unavailable, err)
	}
	if d.loop, err = attachLoop(fd, path, d.opts.LogicalBlk); err != nil {
		return err
	}
	return d.loop.tune(d.opts.LogicalBlk, d.opts.ReadOnly)
}

// Path is /dev/loopN.
func (d *Device) Path() string { return d.loop.Path }

// Grow makes the device sizeBytes long. When ctx ends first, it goes on in the
// background.
func (d *Device) Grow(ctx context.Context, sizeBytes int64) error {
	op := fmt.Sprintf("grow %s to %d bytes", d.loop.Path, sizeBytes)
	if sizeBytes > holdfast.MaxVolumeBytes || sizeBytes%int64(d.opts.LogicalBlk) != 0 {
		return holdfast.E(op, holdfast.Invalid, fmt.Sprintf("the size must be a multiple of %d up to %d", d.opts.LogicalBlk, int64(holdfast.MaxVolumeBytes)))
	}
	return holdfast.Wrap(op, d.work(ctx, func() error { return d.grow(sizeBytes) }))
}

func (d *Device) grow(sizeBytes int64) error {
	if d.gone {
		return holdfast.E("", holdfast.NotFound, "the device is closed")
	}
	switch now := d.srv.size.Load(); {
	case sizeBytes < now:
		return holdfast.E("", holdfast.Invalid, fmt.Sprintf("it has %d bytes; a device never shrinks", now))
	case sizeBytes > now:
		// First the server knows the size, so that no I/O to the new part is
		// refused, then the file's inode, then the loop device.
		d.srv.size.Store(sizeBytes)
	}
	if err := d.truncate(sizeBytes); err != nil {
		return err
	}
	if err := d.loop.resize(); err != nil {
		return holdfast.WrapKind("resize "+d.loop.Path, holdfast.Unavailable, err)
	}
	if now, err := d.loop.SizeBytes(); err != nil || now != sizeBytes {
		return holdfast.E("", holdfast.Unavailable, fmt.Sprintf("the kernel shows %d bytes; try again", now))
	}
	return nil
}

// truncate tells the kernel the file's new size. Asking for the attributes again
// would not do: the kernel drops the answer when a write ends meanwhile.
func (d *Device) truncate(sizeBytes int64) error {
	path := filepath.Join(d.dir, d.fe.fileName(d.opts.Volume))
	return holdfast.WrapKind("resize the volume's file", holdfast.Unavailable, unix.Truncate(path, sizeBytes))
}

// releaseWait is how long a Close waits for somebody to let go who only looks
// at the device (udev probes every new one), before it is refused.
const releaseWait = 2 * time.Second

// Close removes the device, and fails with InUse and who uses it while something
// is mounted from it or holds it open; it then works on. When ctx ends first, it
// goes on in the background. Closed already is fine.
func (d *Device) Close(ctx context.Context) error {
	return holdfast.Wrap("close "+d.loop.Path, d.work(ctx, d.close))
}

func (d *Device) close() error {
	if d.gone {
		return nil
	}
	on, err := d.loop.Mounts()
	if err != nil {
		return err
	}
	if len(on) > 0 {
		return d.inUse()
	}
	deadline := time.Now().Add(releaseWait)
	for {
		// O_EXCL fails while a filesystem or a stacked device holds it.
		err := d.loop.clear(unix.O_EXCL)
		if err == nil && !d.loop.bound() {
			break
		}
		if err != nil && !errors.Is(err, unix.EBUSY) {
			return holdfast.WrapKind("unbind", holdfast.Unavailable, err)
		}
		if d.isAborted() || time.Now().After(deadline) {
			if err := d.loop.keep(); errors.Is(err, os.ErrNotExist) {
				break // let go just now
			} else if err != nil {
				d.fe.log.Warn("the device will vanish when its last user closes it", "device", d.loop.Path, "error", err)
			}
			return d.inUse()
		}
		<-time.After(10 * time.Millisecond)
	}
	return d.dismantle()
}

func (d *Device) isAborted() bool {
	select {
	case <-d.aborted:
		return true
	default:
		return false
	}
}

func (d *Device) inUse() error {
	return holdfast.E("", holdfast.InUse, d.loop.Users()+"; unmount or close it first")
}

// abortWait bounds how long Abort waits for a Grow or Close that was in the
// kernel's hands: with the connection gone those end at once.
const abortWait = 5 * time.Second

// Abort removes the device whatever holds it. Filesystems on it are unmounted
// lazily: who still is in one gets errors. While somebody has the device node
// itself open the kernel keeps it, failing all I/O, until that is closed.
func (d *Device) Abort() error {
	op := "abort " + d.loop.Path
	d.abortOnce.Do(func() { close(d.aborted) })
	// First the connection: from here on nothing waits for the backend.
	d.srv.ending.Store(true)
	err := abortMount(d.dir)
	d.srv.stop()
	select {
	case d.busy <- struct{}{}:
		defer func() { <-d.busy }()
	case <-time.After(abortWait):
		return holdfast.E(op, holdfast.Busy, "the kernel is still at an earlier operation; its I/O fails already; try again")
	}
	if d.gone {
		return nil
	}
	points, umountErr := d.loop.DetachMounts()
	if len(points) > 0 {
		d.fe.log.Warn("unmounted lazily from an aborted device", "device", d.loop.Path, "mounts", points)
	}
	clearErr := d.loop.clear(0)
	if clearErr == nil && d.loop.bound() {
		d.fe.log.Info("an aborted device vanishes when it is closed", "device", d.loop.Path, "users", d.loop.Users())
	}
	if err := errors.Join(err, umountErr, clearErr); err != nil {
		return holdfast.WrapKind(op, holdfast.Other, err)
	}
	return holdfast.Wrap(op, d.dismantle())
}

// dismantle takes away the server, the mount and its directory; the loop device
// too when start failed half-way. Under busy, or before anybody has d.
func (d *Device) dismantle() error {
	if d.loop.Path != "" {
		if err := d.loop.clear(0); err != nil {
			return holdfast.WrapKind("unbind "+d.loop.Path, holdfast.Other, err)
		}
	}
	if d.srv != nil {
		d.srv.ending.Store(true)
	}
	if err := abortMount(d.dir); err != nil {
		return err
	}
	if d.srv != nil {
		d.srv.stop()
	}
	if err := os.Remove(d.dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return holdfast.WrapKind("remove the mount point", holdfast.Other, err)
	}
	d.drop()
	d.gone = true
	d.fe.forget(d.opts.Volume)
	return nil
}

// work runs fn, which may be in the kernel's hands for long, one at a time. It
// returns when fn has ended or ctx has.
func (d *Device) work(ctx context.Context, fn func() error) error {
	late := func() error {
		return holdfast.WrapKind("the kernel did not finish in time; it goes on", holdfast.Unavailable, ctx.Err())
	}
	select {
	case d.busy <- struct{}{}:
	case <-ctx.Done():
		return late()
	}
	result := make(chan error, 1)
	go func() {
		err := fn()
		<-d.busy
		result <- err
	}()
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
		return late()
	}
}
