package agent

import (
	"context"
	"errors"
	"fmt"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/node/device"
)

// adoptDevices takes over what a predecessor left to the keeper. What cannot be
// taken over is left to CleanOrphans.
func (a *Agent) adoptDevices(ctx context.Context) {
	s, ok := a.deps.FrontEnd.(device.Successor)
	if !ok {
		return
	}
	adopted, err := s.Adopt(ctx)
	if err != nil {
		a.log.Error("devices of a predecessor could not be taken over: their I/O fails", "err", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, id := range adopted {
		a.adopted[id] = true
	}
}

// discardDevice removes an adopted device whose volume is not to be served here;
// none is fine. The volume's turn is held, or nobody knows it yet.
func (a *Agent) discardDevice(id holdfast.VolumeID, force bool, why string) error {
	a.mu.Lock()
	have := a.adopted[id]
	a.mu.Unlock()
	s, ok := a.deps.FrontEnd.(device.Successor)
	if !have || !ok {
		return nil
	}
	err := s.Discard(id, force)
	if err == nil {
		a.note(id, "removed the device that a predecessor of this daemon had left: "+why)
	}
	if err == nil || errors.Is(err, holdfast.NotFound) {
		a.mu.Lock()
		delete(a.adopted, id)
		a.mu.Unlock()
		return nil
	}
	return err
}

// discardUnwanted removes the adopted devices of volumes that are not attached to
// this node any more.
func (a *Agent) discardUnwanted() {
	a.mu.Lock()
	var unwanted []holdfast.VolumeID
	for id := range a.adopted {
		rec, ok := a.records[id]
		if s := a.volumes[id]; (!ok || rec.AttachedTo() != a.cfg.ID) && (s == nil || s.vol == nil) {
			unwanted = append(unwanted, id)
		}
	}
	a.mu.Unlock()
	for _, id := range unwanted {
		if err := a.discardDevice(id, true, "the volume is not attached here any more"); err != nil {
			a.log.Error("a device that a predecessor left cannot be removed", "volume", string(id), "err", err)
		}
	}
}

// HandOver ends the agent for a successor that follows at once: devices that the
// keeper holds stay, their I/O waits for it, and grants and lease stay with this
// node; the pools stay mounted. What the keeper does not hold ends as in Close.
// The process must end then.
func (a *Agent) HandOver(ctx context.Context, stopPlane func() error) error {
	s, ok := a.deps.FrontEnd.(device.Successor)
	if !ok {
		return a.Close(ctx, stopPlane)
	}
	if _, open := a.abdicate(); !open {
		return nil
	}
	// First no answer is given any more: what the plane fails when it stops is
	// then sent again to the successor.
	left := map[holdfast.VolumeID]bool{}
	for _, id := range s.Leave() {
		left[id] = true
	}
	errs := []error{a.closeVolumes(ctx, left), stopPlane()}
	a.stopAllUpkeep()
	a.work.Wait()
	a.log.Info("handed over", "devices", len(left))
	return holdfast.Wrap(fmt.Sprintf("hand over %d devices", len(left)), errors.Join(errs...))
}
