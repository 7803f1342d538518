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
