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
func (d *Device) start(ctx context.Context, b device.Backend) error {
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
	return d.bind(ctx)
}

// file is the path of the volume's file.
func (d *Device) file() string { return filepath.Join(d.dir, d.fe.fileName(d.opts.Volume)) }

func (d *Device) bind(ctx context.Context) error {
	var err error
	d.loop, err = d.fe.helper.do(ctx, task{Do: taskBind, File: d.file(), ReadOnly: d.opts.ReadOnly, Blk: d.opts.LogicalBlk})
	return err
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
	if _, err := d.fe.helper.do(context.Background(), task{Do: taskGrow, File: d.file(), Loop: d.loop, SizeBytes: sizeBytes}); err != nil {
		return err
	}
	if now, err := d.loop.SizeBytes(); err != nil || now != sizeBytes {
		return holdfast.E("", holdfast.Unavailable, fmt.Sprintf("the kernel shows %d bytes; try again", now))
	}
	return nil
}

// releaseWait is how long a Close waits for somebody to let go who only looks
// at the device (udev probes every new one), before it is refused.
const releaseWait = 2 * time.Second

// releasePause is how long a Close waits before it tries again.
const releasePause = 20 * time.Millisecond

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
		_, err := d.fe.helper.do(context.Background(), task{Do: taskClear, Loop: d.loop, Flags: unix.O_EXCL})
		if err == nil && !d.loop.bound() {
			break
		}
		if err != nil && !errors.Is(err, unix.EBUSY) {
			return holdfast.WrapKind("unbind", holdfast.Unavailable, err)
		}
		if d.isAborted() || time.Now().After(deadline) {
			if _, err := d.fe.helper.do(context.Background(), task{Do: taskKeep, Loop: d.loop}); errors.Is(err, os.ErrNotExist) {
				break // let go just now
			} else if err != nil {
				d.fe.log.Warn("the device will vanish when its last user closes it", "device", d.loop.Path, "error", err)
			}
			return d.inUse()
		}
		<-time.After(releasePause)
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
	clearErr := d.loop.clear(0, task{}.always) // in this process: with the connection gone it waits for nobody
	if clearErr == nil && d.loop.bound() {
		d.fe.log.Info("an aborted device vanishes when it is closed", "device", d.loop.Path, "users", d.loop.Users())
	}
	if err := errors.Join(err, umountErr, clearErr); err != nil {
		return holdfast.WrapKind(op, holdfast.Other, err)
	}
	return holdfast.Wrap(op, d.dismantle())
}

// dismantle takes away the server, the mount and its directory; the loop device
// too if it still is there. Under busy, or before anybody has d.
func (d *Device) dismantle() error {
	if d.srv != nil {
		d.srv.ending.Store(true)
	}
	// First the connection, so that no step after it waits for an answer.
	if err := abortMount(d.dir); err != nil {
		return err
	}
	if d.srv != nil {
		d.srv.stop()
	}
	if d.loop.Path != "" {
		if err := d.loop.clear(0, task{}.always); err != nil {
			return holdfast.WrapKind("unbind "+d.loop.Path, holdfast.Other, err)
		}
	}
	if err := os.Remove(d.dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return holdfast.WrapKind("remove the mount point", holdfast.Other, err)
	}
	d.drop()
	d.gone = true
	if d.loop.Path != "" && !d.loop.bound() {
		d.fe.mark(d.opts.Volume, false)
	}
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
