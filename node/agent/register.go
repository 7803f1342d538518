package agent

import (
	"context"
	"errors"
	"reflect"
	"time"

	"github.com/holdfast-storage/holdfast"
)

// registerPause is the least pause between two registrations: each creation asks for
// one, as it takes space, and all nodes and the controller read what is written.
const registerPause = 300 * time.Millisecond

// keepRegistered writes the registration at the start, and whenever something in
// it has changed.
func (a *Agent) keepRegistered(ctx context.Context) {
	every(ctx, a.cfg.RefreshEvery, a.refreshSoon, func() {
		err := a.register(ctx)
		if err != nil && ctx.Err() == nil {
			a.log.Warn("this node's registration could not be written; the next attempt follows", "err", err)
		}
		pause(ctx, registerPause)
	})
}

// register writes the registration if it differs from what is stored. What
// others decide about the node (cordoned, draining) stays.
func (a *Agent) register(ctx context.Context) error {
	const op = "register node"
	for {
		cur, err := a.deps.Store.Node(ctx, a.cfg.ID)
		if err != nil && !errors.Is(err, holdfast.NotFound) {
			return holdfast.Wrap(op, err)
		}
		next := cur
		a.mu.Lock()
		next.DataAddr, next.APIAddr = a.node.DataAddr, a.node.APIAddr
		a.mu.Unlock()
		next.Version, next.ID, next.Domain = holdfast.NodeVersion, a.cfg.ID, a.cfg.Domain
		next.Release, next.Started = a.cfg.Release, a.started
		next.GoneSince = time.Time{}
		next.Pools = a.poolInfos(cur.Pools)
		if err != nil || !sameNode(cur, next) {
			next, err = a.deps.Store.PutNode(ctx, next)
			if errors.Is(err, holdfast.Busy) {
				continue // somebody cordoned it just now
			}
			if err != nil {
				return holdfast.Wrap(op, err)
			}
		}
		a.tellFailed(cur.Pools, next.Pools)
		a.mu.Lock()
		a.node = next
		a.mu.Unlock()
		a.registeredOnce.Do(func() { close(a.registered) })
		return nil
	}
}

// tellFailed logs the replicas that have failed since the last registration.
func (a *Agent) tellFailed(before, now []holdfast.Pool) {
	known := map[holdfast.ReplicaID]bool{}
	for _, p := range before {
		for _, f := range p.Failed {
			known[f.ID] = true
		}
	}
	for _, p := range now {
		for _, f := range p.Failed {
			if !known[f.ID] {
				a.log.Error("a replica failed: it is served no more, and made again elsewhere unless a start of the daemon brings it back",
					"replica", string(f.ID), "pool", string(p.ID), "device", p.Device, "err", f.Why)
			}
		}
	}
}

// sameNode compares what is stored of two registrations.
func sameNode(x, y holdfast.Node) bool {
	for _, n := range []*holdfast.Node{&x, &y} {
		n.Alive, n.Revision, n.Started = false, 0, n.Started.UTC().Round(0)
	}
	return reflect.DeepEqual(x, y)
}

// Node is this node as it was last registered.
func (a *Agent) Node() holdfast.Node {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.node
}

// Registered is closed when the registration has been written for the first time.
func (a *Agent) Registered() <-chan struct{} { return a.registered }
