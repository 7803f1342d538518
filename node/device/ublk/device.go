package ublk

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/buf"
	"github.com/holdfast-storage/holdfast/node/device"
	"github.com/holdfast-storage/holdfast/node/device/blockdev"
)

// discardMax bounds one discard, in bytes.
const discardMax = 1 << 30

// Device is one volume as /dev/ublkbN.
type Device struct {
	blockdev.Node
	fe    *FrontEnd
	opts  device.Options
	devID uint32
	q     *queue

	abortOnce sync.Once
	aborted   chan struct{} // closed when Abort begins

	serial blockdev.Serial // Grow, Close and the end of Abort
	gone   bool            // removed; under serial
}

func (f *FrontEnd) newDevice(o device.Options, devID uint32) *Device {
	return &Device{fe: f, opts: o, devID: devID, Node: blockdev.Node{Path: fmt.Sprintf("/dev/ublkb%d", devID)},
		aborted: make(chan struct{}), serial: blockdev.NewSerial()}
}

// make makes a device that was not there.
func (f *FrontEnd) make(o device.Options, b device.Backend) (device.Device, error) {
	if _, err := f.clean(o.Volume); err != nil {
		return nil, err
	}
	// First the note: whatever dies after it leaves what a successor finds.
	if err := os.WriteFile(f.note(o.Volume), nil, 0o600); err != nil {
		return nil, holdfast.WrapKind("note the device", holdfast.Other, err)
	}
	want := info{queues: 1, depth: queueDepth, maxBytes: buf.Max, devID: ^uint32(0), tag: f.tag(o.Volume),
		flags: needed | f.features&(featUpdateSize|featSafeStop|featNoPartitions)}
	if _, err := control(cmdAdd, want.devID, 0, bytesOf(&want)); err != nil {
		return nil, errors.Join(holdfast.WrapKind("add a device", holdfast.Unavailable, err), f.forget(o.Volume))
	}
	d := f.newDevice(o, want.devID)
	if err := d.start(want, b); err != nil {
		return nil, errors.Join(err, d.dismantle())
	}
	return d, nil
}

// start gives the device its properties and a server, and shows it to all.
func (d *Device) start(got info, b device.Backend) error {
	if got.flags&needed != needed || got.depth != queueDepth || got.queues != 1 {
		return holdfast.E("add a device", holdfast.Unsupported, fmt.Sprintf("the driver gave flags %#x, depth %d, %d queues", got.flags, got.depth, got.queues))
	}
	p := d.params()
	if _, err := control(cmdSetParams, d.devID, 0, bytesOf(&p)[:paramsSize]); err != nil {
		return holdfast.WrapKind("set the device's properties", holdfast.Unavailable, err)
	}
	if err := d.serve(b); err != nil {
		return err
	}
	if _, err := control(cmdStart, d.devID, uint64(os.Getpid()), nil); err != nil {
		return holdfast.WrapKind("start the device", holdfast.Unavailable, err)
	}
	return d.tune()
}

func (d *Device) serve(b device.Backend) error {
	q, err := openQueue(d.devID, d.opts, b, d.fe.log.With("volume", d.opts.Volume))
	if err != nil {
		return holdfast.WrapKind("serve the device", holdfast.Unavailable, err)
	}
	d.q = q
	go q.run()
	return nil
}

func (d *Device) params() params {
	p := params{
		length: paramsSize, types: paramBasic | paramDiscard, attrs: attrCache | attrFUA,
		logicalShift: uint8(bits.TrailingZeros(uint(d.opts.LogicalBlk))), physicalShift: 12, optShift: 12, minShift: 12,
		maxSectors: buf.Max / 512, devSectors: uint64(d.opts.SizeBytes / 512),
		discardGranularity: holdfast.BlockSize, maxDiscardSectors: discardMax / 512, maxZeroesSectors: discardMax / 512, maxDiscardSegments: 1,
	}
	if d.opts.ReadOnly {
		p.attrs |= attrReadOnly
	}
	return p
}

// allBusyAfter is how often the driver looks whether the server has died with
// every request in its hands; before Linux 6.16 nothing else tells it then.
const allBusyAfter = time.Second

// tune checks that the kernel took the device as meant.
func (d *Device) tune() error {
	bad := func(what string, got any) error {
		return holdfast.E("check "+d.Node.Path, holdfast.Unsupported, fmt.Sprintf("%s is %v; this kernel's ublk driver does not fit", what, got))
	}
	if err := d.Ensure(); err != nil {
		return holdfast.WrapKind("look at "+d.Node.Path, holdfast.Unavailable, err)
	}
	if n, err := d.Number("queue/logical_block_size"); err != nil || n != int64(d.opts.LogicalBlk) {
		return bad("the logical block size", n)
	}
	if cache := d.Text("queue/write_cache"); cache != "write back" {
		return bad("the write cache (without it flushes would be dropped)", cache)
	}
	if n, err := d.Number("queue/max_sectors_kb"); err != nil || n > buf.Max>>10 {
		return bad("the largest request in KiB", n)
	}
	// These cost speed only, if they fail: of requests, and of a take-over.
	_ = d.SetText("queue/scheduler", "none")
	_ = d.Set("queue/max_sectors_kb", buf.Max>>10)
	_ = d.Set("queue/io_timeout", allBusyAfter.Milliseconds())
	return nil
}

// resume goes on with a device whose server has died.
func (f *FrontEnd) resume(ctx context.Context, o device.Options, b device.Backend) (device.Device, error) {
	i, err := f.find(o.Volume)
	if err != nil {
		return nil, err
	}
	if i.state == stateDead {
		return nil, holdfast.E("", holdfast.NotFound, "its predecessor died before it could be used")
	}
	d := f.newDevice(o, i.devID)
	if err := d.Ensure(); err != nil {
		return nil, holdfast.WrapKind("look at "+d.Node.Path, holdfast.Unavailable, err)
	}
	now, err := d.SizeBytes()
	if err != nil {
		return nil, holdfast.WrapKind("look at "+d.Node.Path, holdfast.Unavailable, err)
	}
	if now > o.SizeBytes {
		return nil, holdfast.E("", holdfast.Invalid, fmt.Sprintf("the device has %d bytes already; a device never shrinks", now))
	}
	if err := d.startRecovery(ctx); err != nil {
		return nil, err
	}
	if err := d.serve(b); err != nil {
		return nil, err
	}
	if _, err := control(cmdEndRecovery, d.devID, uint64(os.Getpid()), nil); err != nil {
		return nil, holdfast.WrapKind("end the recovery", holdfast.Unavailable, err)
	}
	if err := d.grow(o.SizeBytes); err != nil {
		// The device is served all the same; the caller may grow it again.
		f.log.Error("an adopted device did not grow", "volume", o.Volume, "error", err)
	}
	return d, nil
}

// startRecovery waits until the driver has noticed that the predecessor is gone.
func (d *Device) startRecovery(ctx context.Context) error {
	for {
		_, err := control(cmdStartRecovery, d.devID, 0, nil)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) {
			return holdfast.WrapKind("start the recovery", holdfast.Unavailable, err)
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return holdfast.WrapKind("the driver still has the predecessor", holdfast.Unavailable, ctx.Err())
		}
	}
}

// Path is /dev/ublkbN.
func (d *Device) Path() string { return d.Node.Path }

// Grow makes the device sizeBytes long. When ctx ends first, it goes on in the
// background. Unsupported where the kernel cannot.
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
	if now := d.q.size.Load(); sizeBytes < now {
		return holdfast.E("", holdfast.Invalid, fmt.Sprintf("it has %d bytes; a device never shrinks", now))
	}
	now, err := d.SizeBytes()
	if err == nil && now == sizeBytes {
		return nil
	}
	if !d.fe.CanGrow() {
		return holdfast.E("", holdfast.Unsupported, "this kernel's ublk driver cannot change a device's size (Linux 6.16 and later can): attach the volume anew, or use the front end fuseloop")
	}
	// First the server knows the size, so that no I/O to the new part is refused.
	d.q.size.Store(sizeBytes)
	if _, err := control(cmdUpdateSize, d.devID, uint64(sizeBytes/512), nil); err != nil {
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
	deadline := time.Now().Add(releaseWait)
	for !d.gone {
		used, err := d.inUse()
		if err != nil {
			return err
		}
		if !used {
			return d.dismantle()
		}
		if d.isAborted() || time.Now().After(deadline) {
			return holdfast.E("", holdfast.InUse, d.Users()+"; unmount or close it first")
		}
		<-time.After(10 * time.Millisecond)
	}
	return nil
}

// inUse says whether somebody uses the device. Where the driver can it stops
// the device if not, so that nobody can open it afterwards.
func (d *Device) inUse() (bool, error) {
	on, err := d.Mounts()
	if err != nil || len(on) > 0 {
		return true, err
	}
	if d.fe.features&featSafeStop != 0 {
		_, err := control(cmdTryStop, d.devID, 0, nil)
		if errors.Is(err, unix.EBUSY) {
			return true, nil
		}
		return false, holdfast.WrapKind("stop the device", holdfast.Unavailable, err)
	}
	fd, err := unix.Open(d.Node.Path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_EXCL, 0)
	if errors.Is(err, unix.EBUSY) { // a filesystem or a stacked device has it
		return true, nil
	}
	if err != nil {
		return false, holdfast.WrapKind("open", holdfast.Unavailable, err)
	}
	unix.Close(fd)
	return d.Opened(), nil
}

func (d *Device) isAborted() bool {
	select {
	case <-d.aborted:
		return true
	default:
		return false
	}
}

// abortWait bounds how long Abort waits for a Grow or Close that was in the
// kernel's hands: as all requests are answered, those end at once.
const abortWait = 5 * time.Second

// Abort removes the device whatever holds it. Filesystems on it are unmounted
// lazily: who still is in one gets errors, and so does who has the device node
// itself open.
func (d *Device) Abort() error {
	d.abortOnce.Do(func() { close(d.aborted) })
	// First the requests: from here on nothing waits for the backend, and no
	// later step can.
	d.q.inflight.Fail(unix.ENODEV)
	return holdfast.Wrap("abort "+d.Node.Path, d.serial.Within(abortWait, d.remove))
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

// dismantle takes away the kernel's device and the server. Under serial, or
// before anybody has d.
func (d *Device) dismantle() error {
	if err := stopDevice(d.devID); err != nil {
		return err
	}
	if d.q != nil {
		<-d.q.ended // the driver has taken back every tag
	}
	if err := deleteDevice(d.devID); err != nil {
		return err
	}
	d.gone = true
	d.fe.open.Leave(d.opts.Volume)
	return d.fe.forget(d.opts.Volume)
}
