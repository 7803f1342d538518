package memory

import (
	"context"
	"maps"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/metadata/internal/layout"
)

// Op is a call as a fault sees it: the method's name ("SwapVolume", also
// "Refresh" and "Release" for leases) and what it is about: a volume's id or
// name, a node's id, a lease's key; "" for lists.
type Op struct {
	Name    string
	Subject string
}

// Fault is what happens to one call. The zero value is no fault.
type Fault struct {
	Delay  time.Duration // passes before the store sees the call
	Refuse error         // the store does nothing and this is the answer
	Lose   error         // the store does what was asked, but this is the answer
	Late   time.Duration // passes before the answer arrives
}

// Lost is the error of an answer that did not arrive: for Fault.Lose.
func Lost() error {
	return holdfast.E("", holdfast.Unavailable, "the metadata store did not answer; the change may or may not have happened")
}

// Inject asks f about every call of this client; nil ends it. f runs on the
// caller's goroutine and must not call the store.
func (s *Store) Inject(f func(Op) Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.inject = f
}

// SetOutage cuts this client off, or connects it again: its calls are refused
// with kind Unavailable, its leases run out, its watches stand still.
func (s *Store) SetOutage(down bool) {
	s.mu.Lock()
	s.down = down
	s.mu.Unlock()
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	s.db.notify()
}

// Expire lets a node's lease run out now, as if the node had died long enough
// ago.
func (s *Store) Expire(id holdfast.NodeID) {
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	delete(s.db.leases, layout.AliveKey(id))
	s.db.notify()
}

// Put writes a raw value under a key below the prefix ("volumes/<id>"), to see
// what becomes of one that cannot be understood.
func (s *Store) Put(key string, data []byte) {
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	s.db.put(key, data)
}

// Snapshot is the content of a store at one moment.
type Snapshot struct {
	revision int64
	values   map[string]value
}

// Snapshot remembers everything but the leases.
func (s *Store) Snapshot() Snapshot {
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	return Snapshot{s.db.revision, maps.Clone(s.db.values)}
}

// Restore puts the store back, revisions included, as restoring an older backup
// of etcd does. All leases are gone; watches read everything again.
func (s *Store) Restore(snap Snapshot) {
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	s.db.revision, s.db.values = snap.revision, maps.Clone(snap.values)
	clear(s.db.leases)
	s.db.restored++
	s.db.notify()
}

func (s *Store) isDown() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.down
}

// do carries out one call on the shared state, with this client's faults.
func (s *Store) do(ctx context.Context, op Op, f func(d *db) error) error {
	s.mu.Lock()
	inject := s.inject
	s.mu.Unlock()
	var fault Fault
	if inject != nil {
		fault = inject(op)
	}
	name := op.Name
	if op.Subject != "" {
		name += " " + op.Subject
	}
	if err := s.wait(ctx, fault.Delay); err != nil {
		return holdfast.WrapKind(name, holdfast.Unavailable, err)
	}
	if s.isDown() {
		return holdfast.E(name, holdfast.Unavailable, "the metadata store does not answer")
	}
	if fault.Refuse != nil {
		return holdfast.Wrap(name, fault.Refuse)
	}
	s.db.mu.Lock()
	err := f(s.db)
	s.db.mu.Unlock()
	if late := s.wait(ctx, fault.Late); late != nil {
		return holdfast.WrapKind(name, holdfast.Unavailable, late)
	}
	if fault.Lose != nil {
		return holdfast.Wrap(name, fault.Lose)
	}
	return holdfast.Wrap(name, err)
}

// wait passes time, unless ctx or this client ends; then it says why. It also
// looks at ctx when there is no time to pass.
func (s *Store) wait(ctx context.Context, d time.Duration) error {
	if d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-ctx.Done():
		case <-s.life.Done():
		case <-t.C:
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if s.life.Err() != nil {
		return holdfast.E("", holdfast.Unavailable, "this client of the metadata store is closed")
	}
	return nil
}
