package agent

import (
	"context"

	"github.com/holdfast-storage/holdfast"
)

// turn is a lock that can be waited for with a context, with a count of who
// waits or holds, so that its owner can forget it when nobody does.
type turn struct {
	held chan struct{} // capacity 1
	refs int           // guarded by the agent's mutex
}

func newTurn() *turn { return &turn{held: make(chan struct{}, 1)} }

func (t *turn) take(ctx context.Context) error {
	select {
	case t.held <- struct{}{}:
		return nil
	case <-ctx.Done():
		return holdfast.WrapKind("wait for another operation on it", holdfast.Unavailable, ctx.Err())
	}
}

func (t *turn) give() { <-t.held }

// lock takes the turn of a volume. Call unlock when done with the slot.
func (a *Agent) lock(ctx context.Context, id holdfast.VolumeID) (s *slot, unlock func(), err error) {
	a.mu.Lock()
	s = a.volumes[id]
	if s == nil {
		s = &slot{id: id, turn: newTurn(), grown: make(chan struct{})}
		a.volumes[id] = s
	}
	s.turn.refs++
	a.mu.Unlock()
	leave := func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		s.turn.refs--
		if s.turn.refs == 0 && s.vol == nil && s.dev == nil {
			delete(a.volumes, id)
		}
	}
	if err := s.turn.take(ctx); err != nil {
		leave()
		return nil, nil, err
	}
	return s, func() { s.turn.give(); leave() }, nil
}

// lockReplica makes creating and purging one replica exclude each other.
func (a *Agent) lockReplica(ctx context.Context, id holdfast.ReplicaID) (unlock func(), err error) {
	a.mu.Lock()
	t := a.creations[id]
	if t == nil {
		t = newTurn()
		a.creations[id] = t
	}
	t.refs++
	a.mu.Unlock()
	leave := func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if t.refs--; t.refs == 0 {
			delete(a.creations, id)
		}
	}
	if err := t.take(ctx); err != nil {
		leave()
		return nil, err
	}
	return func() { t.give(); leave() }, nil
}
