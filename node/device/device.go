// Package device is what every front end offers: a volume as a Linux block
// device. The front ends stand in the folders below (fuseloop, nbd, ublk) and
// all run the contract suite in devicetest.
//
// It promises nothing by itself; it holds the interfaces, and owns no goroutine.
package device

import (
	"context"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/replication"
)

// Backend takes a device's I/O. Submit does not block; the request's Done says
// when it is over, possibly before Submit returns.
type Backend interface {
	Submit(r *replication.Request)
}

// Batcher is a Backend that takes several requests at once for less.
type Batcher interface {
	// SubmitAll does what Submit does, with each in turn; rs is the caller's
	// again afterwards.
	SubmitAll(rs []*replication.Request)
}

// Counter is a Backend that knows what else its process is asked for.
type Counter interface {
	// Asked is how many requests the process has been given so far, by all devices
	// and by other nodes.
	Asked() uint64
}

// Options describe a device to open.
type Options struct {
	Volume     holdfast.VolumeID
	SizeBytes  int64
	LogicalBlk int // 512 or 4096
	ReadOnly   bool
}

// Device is an open block device.
type Device interface {
	// Path is the device node, such as /dev/loop7. Stable until Close.
	Path() string
	// Grow makes the device sizeBytes long, visible to the kernel on return. It
	// never shrinks, and growing to the present size is fine.
	Grow(ctx context.Context, sizeBytes int64) error
	// Close removes the device. It fails with InUse while something is mounted
	// from it or holds it open.
	Close(ctx context.Context) error
	// Abort removes the device whatever holds it: I/O in flight and later fails
	// with an error, nothing hangs. For a fenced primary and for hung devices.
	Abort() error
}

// FrontEnd makes devices.
type FrontEnd interface {
	// Name is how users choose it: "fuseloop".
	Name() string
	// Open makes a device whose I/O goes to b. On return it can be opened and
	// mounted.
	Open(ctx context.Context, o Options, b Backend) (Device, error)
	// CleanOrphans removes what a predecessor that was killed left behind: its
	// devices and mounts whose server is gone. It names the volumes it cleaned.
	CleanOrphans(ctx context.Context) ([]holdfast.VolumeID, error)
}

// Successor is a front end whose devices outlive the process: with the help of a
// keeper (fuseloop; nbd, to be fast) or of the kernel alone (nbd, ublk), the next
// process takes them over. Their I/O waits meanwhile, and what was in flight is
// done again.
type Successor interface {
	// Adopt takes over the devices that a predecessor left, and names their
	// volumes. Each waits, with its I/O, until Open is called for its volume,
	// which gives the same device again, or Discard. Called once, before
	// CleanOrphans, which leaves them alone.
	Adopt(ctx context.Context) ([]holdfast.VolumeID, error)
	// Discard removes an adopted device that was not opened; NotFound if there is
	// none. InUse while something is mounted from it, unless forced: then it is
	// like Abort.
	Discard(vol holdfast.VolumeID, force bool) error
	// Leave leaves all open devices to the next process, if something holds them,
	// and ends their service here: no answer is given from then on. It says which
	// devices are left; the others are as they were.
	Leave() []holdfast.VolumeID
}
