package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/node/device"
)

// slot is one volume's place on this node. Its fields are changed with the turn
// held and under the agent's mutex; either is enough to read them.
type slot struct {
	id   holdfast.VolumeID
	turn *turn
	vol  Volume        // nil: no client primary here
	dev  device.Device // nil: no device (any more)
	size int64         // the device's, in bytes
	// cancel ends the attach or detach that has the turn, byForce only for one that
	// is forced; nil when none has. Guarded by the agent's mutex alone.
	cancel  context.CancelFunc
	byForce bool
	// grown is closed, and replaced, when size changes or the device goes.
	grown chan struct{}
}

// attachKey tells operations that are the same one from others.
type attachKey struct {
	id    holdfast.VolumeID
	force bool
}

type detachKey attachKey

// attachMode says under which condition a volume is attached.
type attachMode uint8

const (
	attachAsked  attachMode = iota
	attachForced            // also while another live node holds it
	attachAgain             // only while the record names this node: the predecessor's
)

// Attach makes the volume a block device on this node and returns its path; on
// return it serves. Again gives the same path. InUse, naming the holder, while
// another live node has it. A call whose ctx ends goes on; the next one joins it.
func (a *Agent) Attach(ctx context.Context, id holdfast.VolumeID) (string, error) {
	return a.attachJoined(ctx, id, false)
}

// ForceAttach is Attach that takes the volume from a live holder.
func (a *Agent) ForceAttach(ctx context.Context, id holdfast.VolumeID) (string, error) {
	return a.attachJoined(ctx, id, true)
}

func (a *Agent) attachJoined(ctx context.Context, id holdfast.VolumeID, force bool) (string, error) {
	op := fmt.Sprintf("attach volume %s to node %s", id, a.cfg.ID)
	mode := attachAsked
	if force {
		mode = attachForced
	}
	path, err := a.attach.Do(ctx, attachKey{id, force}, func(ctx context.Context) (string, error) {
		ctx, end, err := a.begin(ctx)
		if err != nil {
			return "", err
		}
		defer end()
		return a.attachNow(ctx, id, mode)
	})
	return path, holdfast.Wrap(op, err)
}

// begin is for an operation that goes on without its caller: its context ends
// when the agent closes, or after OpTimeout. Close waits for end.
func (a *Agent) begin(ctx context.Context) (_ context.Context, end func(), err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return nil, nil, holdfast.E("", holdfast.Unavailable, "this node's daemon is stopping")
	}
	a.work.Add(1)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), a.cfg.OpTimeout)
	stop := context.AfterFunc(a.ops, cancel)
	return ctx, func() { stop(); cancel(); a.work.Done() }, nil
}

// cancellable lets a detach end the operation that has the slot's turn: any detach
// an attach, and a forced one a detach, too.
func (a *Agent) cancellable(ctx context.Context, s *slot, byForce bool) (context.Context, func()) {
	ctx, cancel := context.WithCancel(ctx)
	a.mu.Lock()
	defer a.mu.Unlock()
	s.cancel, s.byForce = cancel, byForce
	return ctx, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		s.cancel = nil
		cancel()
	}
}

// cancelOther ends the operation under way on a volume that a detach need not wait
// for: what waits for replicas must not keep its volume from being detached.
func (a *Agent) cancelOther(id holdfast.VolumeID, force bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if s := a.volumes[id]; s != nil && s.cancel != nil && (force || !s.byForce) {
		s.cancel()
	}
}

func (a *Agent) attachNow(ctx context.Context, id holdfast.VolumeID, mode attachMode) (string, error) {
	op := a.begun(id, "attach")
	defer a.over(id, op)
	s, unlock, err := a.lock(ctx, id)
	if err != nil {
		return "", err
	}
	defer unlock()
	ctx, done := a.cancellable(ctx, s, false)
	defer done()
	a.now(op, "the metadata store")
	if s.vol != nil && isEnded(s.vol) {
		a.clearEnded(s, s.vol)
	}
	if s.dev != nil {
		return s.dev.Path(), nil
	}
	rec, err := a.deps.Store.Volume(ctx, string(id))
	if err != nil {
		return "", err
	}
	if mode == attachAgain && rec.AttachedTo() != a.cfg.ID {
		return "", holdfast.E("", holdfast.Fenced, "it is not attached to this node any more")
	}
	if s.vol != nil { // a release that did not finish; it takes no more I/O
		a.now(op, "the detach before it, which did not finish")
		if err := a.release(ctx, s); err != nil {
			return "", err
		}
	}
	if err := enoughFiles(filesKeptFromDevices); err != nil {
		return "", holdfast.WrapKind("", holdfast.Unavailable, err)
	}
	a.now(op, "its maintenance here to end")
	a.stopUpkeep(id)
	a.now(op, "the take-over")
	start := time.Now()
	vol, err := a.deps.Plane.Open(ctx, id, OpenOptions{Kind: holdfast.ClientPrimary, Force: mode == attachForced})
	if err != nil {
		return "", err
	}
	a.set(s, func() { s.vol = vol })
	a.note(id, fmt.Sprintf("serving after %v", time.Since(start).Round(time.Millisecond)))
	a.now(op, "its device")
	return a.openDevice(ctx, s, rec.Spec)
}

// openDevice gives the slot's volume its device. If that fails, the grant is
// given back.
func (a *Agent) openDevice(ctx context.Context, s *slot, spec holdfast.Spec) (string, error) {
	vol := s.vol
	resized := make(chan struct{}, 1)
	vol.OnResize(func(int64) { wake(resized) })
	size := vol.SizeBytes()
	dev, err := a.deps.FrontEnd.Open(ctx, device.Options{Volume: s.id, SizeBytes: size, LogicalBlk: spec.WithDefaults().LogicalBlk}, vol)
	if err != nil {
		return "", errors.Join(err, a.undo(ctx, s))
	}
	a.set(s, func() {
		s.dev, s.size = dev, size
		delete(a.adopted, s.id)
	})
	if !a.spawn(func() { a.tend(s, vol, dev, resized) }) {
		return "", errors.Join(holdfast.E("", holdfast.Unavailable, "this node's daemon is stopping"), a.closeDevice(ctx, s, true), a.undo(ctx, s))
	}
	a.note(s.id, fmt.Sprintf("attached as %s, %d bytes", dev.Path(), size))
	return dev.Path(), nil
}

// undo releases what an attach began, also when that was cancelled.
func (a *Agent) undo(ctx context.Context, s *slot) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTimeout)
	defer cancel()
	return a.release(ctx, s)
}

// set changes a slot; the turn is held.
func (a *Agent) set(s *slot, f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f()
	close(s.grown)
	s.grown = make(chan struct{})
}

// tend grows the device with its volume, and removes it when the volume has
// ended under it: fenced, or deleted. It ends with the volume.
func (a *Agent) tend(s *slot, vol Volume, dev device.Device, resized <-chan struct{}) {
	ctx, cancel := context.WithCancel(a.ops)
	defer cancel()
	var retry <-chan time.Time
	for {
		select {
		case <-resized:
		case <-retry:
		case <-vol.Ended():
			err := vol.Err()
			if err == nil || a.ops.Err() != nil { // Close removes it
				return
			}
			a.abandon(s, vol, dev, err)
			if errors.Is(err, holdfast.Corrupt) {
				// Nobody has taken it: it is still this node's to serve, as soon as its
				// replicas answer again. What used the device has to open the new one.
				a.attachUntilTaken(a.ops, s.id)
			}
			return
		}
		retry = nil
		if err := a.grow(ctx, s, vol, dev); err != nil && ctx.Err() == nil {
			a.log.Warn("a device cannot grow; the next attempt follows", "volume", string(s.id), "err", err)
			retry = time.After(time.Second)
		}
	}
}

// grow makes the device as long as its volume.
func (a *Agent) grow(ctx context.Context, s *slot, vol Volume, dev device.Device) error {
	size := vol.SizeBytes()
	a.mu.Lock()
	same := s.dev != dev || s.size >= size
	a.mu.Unlock()
	if same {
		return nil
	}
	if err := dev.Grow(ctx, size); err != nil {
		return err
	}
	a.set(s, func() {
		if s.dev == dev && s.size < size {
			s.size = size
		}
	})
	a.note(s.id, fmt.Sprintf("grown to %d bytes", size))
	return nil
}

// abandon removes a device at once whose volume serves no more, so that nothing
// hangs on it, and only then waits for its turn to tidy up.
func (a *Agent) abandon(s *slot, vol Volume, dev device.Device, why error) {
	if err := dev.Abort(); err != nil {
		a.log.Error("a device of a volume that has ended cannot be removed", "volume", string(s.id), "device", dev.Path(), "err", err)
	}
	a.note(s.id, "serves no more here, device removed: "+why.Error())
	held, unlock, err := a.lock(context.Background(), s.id) // every holder's time is bounded
	if err != nil {
		return
	}
	defer unlock()
	if held == s {
		a.clearEnded(s, vol)
	}
}

// clearEnded forgets a volume that has ended, with its device; the turn is held.
func (a *Agent) clearEnded(s *slot, vol Volume) {
	if s.vol != vol {
		return
	}
	if s.dev != nil {
		if err := s.dev.Abort(); err != nil {
			a.log.Error("a device of a volume that has ended cannot be removed", "volume", string(s.id), "err", err)
		}
	}
	a.set(s, func() { s.vol, s.dev, s.size = nil, nil, 0 })
}

func isEnded(v Volume) bool {
	select {
	case <-v.Ended():
		return true
	default:
		return false
	}
}
