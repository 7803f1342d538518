package nbd

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/buf"
	"github.com/holdfast-storage/holdfast/node/device"
	"github.com/holdfast-storage/holdfast/node/device/blockdev"
)

// deadTimeoutSeconds is how long requests wait for a new server: for ever, as
// far as anybody is concerned. The kernel multiplies it by up to 1000.
const deadTimeoutSeconds = 10 * 365 * 24 * 3600

// retryAfter is how often the kernel looks at requests in flight, to send those
// of a dead connection again over a new one. No request ever fails because of
// it: without NBD_ATTR_TIMEOUT the kernel goes on waiting.
const retryAfter = time.Second

// Device is one volume as /dev/nbdN.
type Device struct {
	blockdev.Node
	fe    *FrontEnd
	opts  device.Options
	mark  string
	index int
	srv   *server

	abortOnce sync.Once
	aborted   chan struct{} // closed when Abort begins

	serial blockdev.Serial // Grow, Close and the end of Abort
	gone   bool            // removed; under serial
}

func (d *Device) setIndex(index int) {
	d.index = index
	d.Node.Path = fmt.Sprintf("/dev/nbd%d", index)
}

// Path is /dev/nbdN.
func (d *Device) Path() string { return d.Node.Path }

// ours says whether the kernel's device still is this one.
func (d *Device) ours() bool { return d.Text("backend") == d.mark }

// tune checks that the kernel took the device as meant, and sets what netlink
// cannot.
func (d *Device) tune() error {
	bad := func(what string, got any) error {
		return holdfast.E("check "+d.Node.Path, holdfast.Unsupported, fmt.Sprintf("%s is %v; this kernel's nbd driver does not fit", what, got))
	}
	if err := d.Ensure(); err != nil {
		return holdfast.WrapKind("look at "+d.Node.Path, holdfast.Unavailable, err)
	}
	if !d.ours() {
		return bad("the backend's identifier (Linux 5.14 and later have it)", d.Text("backend"))
	}
	if n, err := d.Number("queue/logical_block_size"); err != nil || n != int64(d.opts.LogicalBlk) {
		return bad("the logical block size", n)
	}
	if cache := d.Text("queue/write_cache"); cache != "write back" {
		return bad("the write cache (without it flushes would be dropped)", cache)
	}
	// Fewer, larger requests; failing to set it costs speed only.
	_ = d.Set("queue/max_sectors_kb", buf.Max>>10)
	if n, err := d.Number("queue/max_sectors_kb"); err != nil || n > buf.Max>>10 {
		return bad("the largest request in KiB", n) // it would be refused
	}
	if err := d.Set("queue/io_timeout", retryAfter.Milliseconds()); err != nil {
		return bad("the time between looks at requests in flight", err)
	}
	return nil
}

// serveNew starts a server on a new connection, and gives the descriptor for the
// kernel, which is the caller's to close.
func (d *Device) serveNew(b device.Backend) (int, error) {
	conn, fd, err := socketPair()
	if err != nil {
		return -1, holdfast.WrapKind("", holdfast.Unavailable, err)
	}
	p, file, err := newPage()
	if err != nil {
		unix.Close(fd)
		return -1, errors.Join(holdfast.WrapKind("", holdfast.Unavailable, err), conn.Close())
	}
	defer file.Close()
	d.put(conn, p, file)
	if d.srv, err = serve(conn, p, d.opts, b, d.fe.log.With("volume", d.opts.Volume)); err != nil {
		unix.Close(fd)
		d.fe.drop(d.opts.Volume)
		return -1, holdfast.WrapKind("", holdfast.Unavailable, err)
	}
	return fd, nil
}

// takeOver goes on with a device that a predecessor left: over its connection if
// the keeper has it, else over a new one.
func (d *Device) takeOver(ctx context.Context, b device.Backend) error {
	size, err := d.SizeBytes()
	if err == nil && size > d.opts.SizeBytes {
		err = holdfast.E("", holdfast.Invalid, fmt.Sprintf("the device has %d bytes already; a device never shrinks", size))
	}
	if err == nil && !d.goOn(b) {
		err = d.reconnect(ctx, b)
	}
	if err != nil {
		return holdfast.WrapKind("go on with "+d.Node.Path, holdfast.Unavailable, err)
	}
	return d.resize(d.opts.SizeBytes)
}

// reconnect gives the kernel a new socket in place of the dead one. While the
// predecessor's is not noticed to be dead the kernel drops ours silently.
func (d *Device) reconnect(ctx context.Context, b device.Backend) error {
	for {
		fd, err := d.serveNew(b)
		if err != nil {
			return err
		}
		err = d.fe.kernel.reconfigure(d.index, connection{mark: d.mark, socket: fd})
		unix.Close(fd)
		if err == nil && !d.srv.hungUp() {
			return nil
		}
		d.srv.stop()
		if err != nil {
			return holdfast.WrapKind("reconnect", holdfast.Unavailable, err)
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return holdfast.WrapKind("the kernel still has the predecessor's connection", holdfast.Unavailable, ctx.Err())
		}
	}
}

// Grow makes the device sizeBytes long, once what is in flight is answered. When ctx
// ends first, it goes on in the background.
func (d *Device) Grow(ctx context.Context, sizeBytes int64) error {
	op := fmt.Sprintf("grow %s to %d bytes", d.Node.Path, sizeBytes)
	if sizeBytes > holdfast.MaxVolumeBytes || sizeBytes%int64(d.opts.LogicalBlk) != 0 {
		return holdfast.E(op, holdfast.Invalid, fmt.Sprintf("the size must be a multiple of %d up to %d", d.opts.LogicalBlk, int64(holdfast.MaxVolumeBytes)))
	}
	return holdfast.Wrap(op, d.serial.Do(ctx, func() error { return d.grow(sizeBytes) }))
}

func (d *Device) grow(sizeBytes int64) error {
	if d.gone {
		return holdfast.E("", holdfast.NotFound, "the device is closed")
	}
	if now := d.srv.size.Load(); sizeBytes < now {
		return holdfast.E("", holdfast.Invalid, fmt.Sprintf("it has %d bytes; a device never shrinks", now))
	}
	// Newer kernels wait for the requests in flight, and let no process use generic
	// netlink meanwhile; if this one is killed then, and the connection with it, that
	// never ends. So the kernel is not asked while the volume hangs.
	if now, err := d.SizeBytes(); err != nil || now != sizeBytes {
		<-d.srv.inflight.Settled()
	}
	return d.resize(sizeBytes)
}

// resize has server and kernel know the size. Taking a device over does not wait for
// its requests: they may hang for long, and an attach would with them.
func (d *Device) resize(sizeBytes int64) error {
	// First the server, so that no I/O to the new part is refused.
	d.srv.size.Store(sizeBytes)
	now, err := d.SizeBytes()
	if err == nil && now == sizeBytes {
		return nil
	}
	if err := d.fe.kernel.reconfigure(d.index, connection{mark: d.mark, sizeBytes: sizeBytes, blockBytes: d.opts.LogicalBlk, socket: -1}); err != nil {
		return holdfast.WrapKind("resize", holdfast.Unavailable, err)
	}
	if now, err := d.SizeBytes(); err != nil || now != sizeBytes {
		return holdfast.E("", holdfast.Unavailable, fmt.Sprintf("the kernel shows %d bytes; try again", now))
	}
	return nil
}

// releaseWait is how long a Close waits for somebody to let go who only looks
// at the device (udev probes every new one), before it is refused.
const releaseWait = 2 * time.Second

// Close removes the device, and fails with InUse and who uses it while something
// is mounted from it or holds it open; it then works on. When ctx ends first, it
// goes on in the background. Closed already is fine.
func (d *Device) Close(ctx context.Context) error {
	return holdfast.Wrap("close "+d.Node.Path, d.serial.Do(ctx, d.close))
}

func (d *Device) close() error {
	if d.gone {
		return nil
	}
	on, err := d.Mounts()
	if err != nil {
		return err
	}
	if len(on) > 0 {
		return d.inUse()
	}
	deadline := time.Now().Add(releaseWait)
	for {
		if err := d.release(); err != nil {
			return err
		}
		if !d.ours() {
			return d.dismantle()
		}
		if d.isAborted() || time.Now().After(deadline) {
			return d.inUse()
		}
		<-time.After(10 * time.Millisecond)
	}
}

// release has the kernel remove the device if nobody has it open: it is set to
// vanish with its last user, and this is a user for a moment. If others stay,
// the setting is taken back; the last one may have left just then.
func (d *Device) release() error {
	fd, err := unix.Open(d.Node.Path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_EXCL, 0)
	switch {
	case errors.Is(err, unix.EBUSY): // a filesystem or a stacked device has it
		return nil
	case err != nil:
		return holdfast.WrapKind("open", holdfast.Unavailable, err)
	}
	err = d.fe.kernel.onClose(d.index, d.mark, true)
	unix.Close(fd)
	if err != nil {
		return holdfast.WrapKind("release", holdfast.Unavailable, err)
	}
	if !d.ours() {
		return nil
	}
	if err := d.fe.kernel.onClose(d.index, d.mark, false); err != nil && d.ours() {
		return holdfast.WrapKind("keep", holdfast.Unavailable, err)
	}
	return nil
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
	return holdfast.E("", holdfast.InUse, d.Users()+"; unmount or close it first")
}

// abortWait bounds how long Abort waits for a Grow or Close that was in the
// kernel's hands: as all requests are answered, those end at once.
const abortWait = 5 * time.Second

// Abort removes the device whatever holds it. Filesystems on it are unmounted
// lazily: who still is in one gets errors. While somebody has the device node
// itself open the kernel keeps it, failing all I/O, until that is closed.
func (d *Device) Abort() error {
	op := "abort " + d.Node.Path
	d.abortOnce.Do(func() { close(d.aborted) })
	// First the requests: from here on nothing waits for the backend, and no
	// later step can.
	d.srv.inflight.Fail(unix.ENODEV)
	return holdfast.Wrap(op, d.serial.Within(abortWait, d.remove))
}

func (d *Device) remove() error {
	if d.gone {
		return nil
	}
	points, umountErr := d.DetachMounts()
	if len(points) > 0 {
		d.fe.log.Warn("unmounted lazily from an aborted device", "device", d.Node.Path, "mounts", points)
	}
	return errors.Join(umountErr, d.dismantle())
}

// dismantle takes away the kernel's device and the server. Under serial, or before
// anybody has d.
func (d *Device) dismantle() error {
	if d.ours() {
		if err := d.fe.kernel.disconnect(d.index); err != nil {
			return holdfast.WrapKind("disconnect", holdfast.Other, err)
		}
	}
	d.srv.stop()
	d.fe.drop(d.opts.Volume)
	d.gone = true
	d.fe.open.Leave(d.opts.Volume)
	return nil
}
