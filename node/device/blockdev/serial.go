package blockdev

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/node/device"
)

// Serial runs what may be in the kernel's hands for long, one at a time.
type Serial chan struct{}

// NewSerial is one that nobody uses.
func NewSerial() Serial { return make(Serial, 1) }

// Do runs fn. It returns when fn has ended, or with Unavailable when ctx has: fn
// then goes on in the background.
func (s Serial) Do(ctx context.Context, fn func() error) error {
	late := func() error {
		return holdfast.WrapKind("the kernel did not finish in time; it goes on", holdfast.Unavailable, ctx.Err())
	}
	select {
	case s <- struct{}{}:
	case <-ctx.Done():
		return late()
	}
	result := make(chan error, 1)
	go func() {
		err := fn()
		<-s
		result <- err
	}()
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
		return late()
	}
}

// Within runs fn here, unless what runs does not end in time: Busy.
func (s Serial) Within(d time.Duration, fn func() error) error {
	select {
	case s <- struct{}{}:
		defer func() { <-s }()
		return fn()
	case <-time.After(d):
		return holdfast.E("", holdfast.Busy, "the kernel is still at an earlier operation; its I/O fails already; try again")
	}
}

// Registry knows a front end's devices: those that are open, at most one of a
// volume, and those that a predecessor left, which wait to be opened. Its zero
// value is empty.
type Registry struct {
	mu      sync.Mutex
	open    map[holdfast.VolumeID]device.Device // nil while it is being opened
	adopted map[holdfast.VolumeID]bool
}

// Enter makes a volume's device with open and keeps it in mind until Leave;
// adopted says whether a predecessor left one. A volume that has one here is
// refused with Exists.
func (r *Registry) Enter(vol holdfast.VolumeID, open func(adopted bool) (device.Device, error)) (device.Device, error) {
	r.mu.Lock()
	if _, ok := r.open[vol]; ok {
		r.mu.Unlock()
		return nil, holdfast.E("", holdfast.Exists, "it has a device already; close that first")
	}
	if r.open == nil {
		r.open = map[holdfast.VolumeID]device.Device{}
	}
	r.open[vol] = nil
	adopted := r.adopted[vol]
	delete(r.adopted, vol)
	r.mu.Unlock()
	d, err := open(adopted)
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		delete(r.open, vol)
		return nil, err
	}
	r.open[vol] = d
	return d, nil
}

// Leave forgets a volume's device.
func (r *Registry) Leave(vol holdfast.VolumeID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.open, vol)
}

// Adopt notes volumes whose devices a predecessor left.
func (r *Registry) Adopt(vols []holdfast.VolumeID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.adopted == nil {
		r.adopted = map[holdfast.VolumeID]bool{}
	}
	for _, vol := range vols {
		r.adopted[vol] = true
	}
}

// Take forgets what a predecessor left of a volume, and says whether there was
// anything.
func (r *Registry) Take(vol holdfast.VolumeID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	was := r.adopted[vol]
	delete(r.adopted, vol)
	return was
}

// Has says whether the volume's device is open, being opened, or adopted.
func (r *Registry) Has(vol holdfast.VolumeID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, open := r.open[vol]
	return open || r.adopted[vol]
}

// Len is how many devices are open.
func (r *Registry) Len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.open)
}

// Empty forgets everything and gives what there was: the open devices, and the
// volumes of both.
func (r *Registry) Empty() ([]device.Device, []holdfast.VolumeID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var devices []device.Device
	var vols []holdfast.VolumeID
	for vol, d := range r.open {
		if d != nil {
			devices, vols = append(devices, d), append(vols, vol)
			delete(r.open, vol)
		}
	}
	for vol := range r.adopted {
		vols = append(vols, vol)
	}
	clear(r.adopted)
	slices.Sort(vols)
	return devices, vols
}
