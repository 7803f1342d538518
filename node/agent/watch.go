package agent

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/metadata"
)

// watchPause is the pause before a watch that broke is begun again, and between
// attempts to attach a predecessor's volume again.
const watchPause = time.Second

// watchPauseMax is the longest pause between attempts, which add to the epoch.
const watchPauseMax = 15 * time.Second

// watch keeps the records that drive maintenance, and attaches again what the
// predecessor of this daemon had attached.
func (a *Agent) watch(ctx context.Context) {
	for {
		err := a.deps.Store.WatchVolumes(ctx, func(ev metadata.VolumeEvent) { a.onRecord(ctx, ev) })
		if ctx.Err() != nil {
			return
		}
		a.log.Warn("the watch for volumes broke; beginning again", "err", err)
		pause(ctx, watchPause)
	}
}

func (a *Agent) onRecord(ctx context.Context, ev metadata.VolumeEvent) {
	switch {
	case ev.Synced:
		a.attachOld(ctx)
	case ev.Deleted:
		a.mu.Lock()
		delete(a.records, ev.ID)
		delete(a.lacking, ev.ID)
		a.mu.Unlock()
		a.events.forget(ev.ID)
		wake(a.purgeSoon)
	default:
		if !a.keepRecord(ev.Record) {
			return
		}
	}
	wake(a.checkSoon)
}

// keepRecord says whether maintenance is to look at the change: most are about
// volumes that need none, and to look at all takes its time.
func (a *Agent) keepRecord(rec holdfast.Record) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.records[rec.ID] = rec
	did := a.lacking[rec.ID] || a.upkeep[rec.ID] != nil
	p := rec.Primary
	if maintainable(rec) && imperfect(rec) || p != nil && p.Node == a.cfg.ID && p.Kind == holdfast.MaintenancePrimary {
		a.lacking[rec.ID] = true
		return true
	}
	delete(a.lacking, rec.ID)
	return did
}

// attachOld attaches, in the background and once in this process's life, the
// volumes whose record names this node though this process never attached them.
func (a *Agent) attachOld(ctx context.Context) {
	a.mu.Lock()
	done := a.reattached
	a.reattached = true
	var old []holdfast.VolumeID
	for id, rec := range a.records {
		if s := a.volumes[id]; rec.AttachedTo() == a.cfg.ID && (s == nil || s.vol == nil) {
			old = append(old, id)
		}
	}
	a.mu.Unlock()
	if done {
		return
	}
	a.discardUnwanted()
	for _, id := range old {
		a.note(id, "attached here before this daemon started; attaching it again")
	}
	a.spawn(func() { a.attachSome(ctx, old) })
}

// Volumes are attached again some at a time, so that with a thousand the first ones
// serve soon. One that takes long, as a replica is missing, does not count any more.
const (
	againAtOnce = 32
	againLong   = time.Second
)

// attachSome attaches all these volumes until they are taken; it returns when the last
// one has begun.
func (a *Agent) attachSome(ctx context.Context, ids []holdfast.VolumeID) {
	begun := make(chan struct{}, againAtOnce)
	for _, id := range ids {
		select {
		case begun <- struct{}{}:
		case <-ctx.Done():
			return
		}
		next := sync.OnceFunc(func() { <-begun })
		long := time.AfterFunc(againLong, next)
		a.spawn(func() {
			a.attachUntilTaken(ctx, id)
			long.Stop()
			next()
		})
	}
}

// attachUntilTaken tries until the volume is attached, deleted, detached or
// attached elsewhere.
func (a *Agent) attachUntilTaken(ctx context.Context, id holdfast.VolumeID) {
	for wait := watchPause; ctx.Err() == nil; wait = min(2*wait, watchPauseMax) {
		opCtx, end, err := a.begin(ctx)
		if err != nil {
			return
		}
		_, err = a.attachNow(opCtx, id, attachAgain)
		end()
		switch {
		case err == nil:
			return
		case errors.Is(err, holdfast.Fenced), errors.Is(err, holdfast.NotFound), errors.Is(err, holdfast.InUse):
			a.note(id, "not attached again: "+err.Error())
			a.discardUnwanted()
			return
		}
		a.log.Warn("a volume cannot be attached again yet", "volume", string(id), "err", err)
		pause(ctx, wait)
	}
}

// Lookup reads a volume's record by id or by name.
func (a *Agent) Lookup(ctx context.Context, idOrName string) (holdfast.Record, error) {
	return a.deps.Store.Volume(ctx, idOrName)
}

// Attached is the device path of a volume that is attached here.
func (a *Agent) Attached(id holdfast.VolumeID) (string, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.volumes[id]
	if s == nil || s.dev == nil || s.vol == nil || isEnded(s.vol) {
		return "", false
	}
	return s.dev.Path(), true
}

// WaitSize waits until the volume's device here is at least so many bytes long,
// rounded up to whole blocks. NotFound when it is not attached here.
func (a *Agent) WaitSize(ctx context.Context, id holdfast.VolumeID, bytes int64) error {
	op := "wait until volume " + string(id) + " has grown"
	for {
		a.mu.Lock()
		s := a.volumes[id]
		if s == nil || s.dev == nil {
			a.mu.Unlock()
			return holdfast.E(op, holdfast.NotFound, "it is not attached to node "+string(a.cfg.ID))
		}
		size, grown := s.size, s.grown
		a.mu.Unlock()
		if size >= holdfast.RoundUp(bytes) {
			return nil
		}
		select {
		case <-grown:
		case <-ctx.Done():
			return holdfast.WrapKind(op, holdfast.Unavailable, ctx.Err())
		}
	}
}
