package dataplane

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/buf"
	"github.com/holdfast-storage/holdfast/replication"
)

// change edits the record as the controller does.
func (c *cluster) change(f func(r *holdfast.Record)) {
	c.t.Helper()
	for {
		rec := c.record()
		f(&rec)
		_, err := c.store.SwapVolume(c.t.Context(), rec)
		if err == nil {
			return
		}
		if !errors.Is(err, holdfast.Busy) {
			c.t.Fatal(err)
		}
	}
}

// take wants a snapshot and waits until it is ready.
func (c *cluster) take(id holdfast.SnapshotID) {
	c.t.Helper()
	c.change(func(r *holdfast.Record) { r.PutSnapshot(holdfast.Snapshot{ID: id, State: holdfast.SnapshotWanted}) })
	c.until("snapshot "+string(id)+" is ready", func() bool {
		rec := c.record()
		s := rec.Snapshot(id)
		return s != nil && s.State == holdfast.SnapshotReady
	})
}

// snapshotContent reads a snapshot of a replica past its machine; nil if it is
// not there.
func snapshotContent(t testing.TB, b backing, id holdfast.SnapshotID) []byte {
	t.Helper()
	var out []byte
	for off := int64(0); off < testSize; off += buf.Max {
		n := min(buf.Max, testSize-off)
		task := &replication.Task{Kind: replication.TaskRead, Offset: off, Length: n, Buf: buf.Get(int(n)), Snapshot: replication.SnapshotArg{ID: id}}
		b.Do(task)
		if errors.Is(task.Err, holdfast.NotFound) {
			task.Buf.Release()
			return nil
		}
		if task.Err != nil {
			t.Fatal(task.Err)
		}
		out = append(out, task.Buf.B...)
		task.Buf.Release()
	}
	return out
}

// sameSnapshots verifies that all replicas have the same content for a snapshot.
func (c *cluster) sameSnapshots(id holdfast.SnapshotID) []byte {
	c.t.Helper()
	first := snapshotContent(c.t, c.nodes[0].back, id)
	for _, nd := range c.nodes {
		got := snapshotContent(c.t, nd.back, id)
		if got == nil || !bytes.Equal(first, got) {
			c.t.Fatalf("snapshot %s is not there, or another one, on %s", id, nd.id)
		}
	}
	return first
}

// Snapshots are taken while several writers are at work: each is the same on all
// replicas, also on one that was away, and holds what was acknowledged before.
func TestSnapshotsUnderLoadAreTheSameOnEveryReplica(t *testing.T) {
	c := newCluster(t, 3).onEngine().start()
	h := c.open(c.nodes[0], OpenOptions{})
	m := newModel()
	m.load(t, h, 4, 150, nil)
	before := map[int64][]byte{}
	for off, data := range m.blocks {
		before[off] = data
	}
	c.take("still")
	stop := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		m.load(t, h, 4, 1<<20, stop)
	}()
	c.take("busy1")
	c.nodes[2].stop()
	c.until("a replica is dropped", func() bool { return len(c.inSync()) == 2 })
	c.take("missed1")
	c.take("missed2")
	c.change(func(r *holdfast.Record) {
		s := *r.Snapshot("busy1")
		s.State = holdfast.SnapshotDeleting
		r.PutSnapshot(s)
	})
	c.until("a snapshot is gone", func() bool { rec := c.record(); return rec.Snapshot("busy1") == nil })
	c.nodes[2].start()
	c.until("all are in sync", func() bool { return len(c.inSync()) == 3 })
	c.take("late")
	close(stop)
	<-ended
	for _, id := range []holdfast.SnapshotID{"missed1", "missed2", "late"} {
		c.sameSnapshots(id)
	}
	still := c.sameSnapshots("still")
	for off, want := range before {
		if !bytes.Equal(still[off:off+4096], want) {
			t.Fatalf("the snapshot lacks what was written at %d before it", off)
		}
	}
	for _, nd := range c.nodes {
		if snapshotContent(t, nd.back, "busy1") != nil {
			t.Errorf("a deleted snapshot is still on %s", nd.id)
		}
	}
	c.equal()
	through := make([]byte, 8192)
	if err := h.ReadSnapshot(t.Context(), "still", through, 4096); err != nil || !bytes.Equal(through, still[4096:4096+8192]) {
		t.Errorf("read through the primary: %v", err)
	}
	if err := h.ReadSnapshot(t.Context(), "busy1", through, 0); !errors.Is(err, holdfast.NotFound) {
		t.Errorf("a deleted snapshot is read: %v", err)
	}
	if x, err := h.ListSnapshot(t.Context(), "late", "still", 0, testSize); err != nil || len(x) == 0 {
		t.Errorf("what has changed: %v, %v", x, err)
	}
}

// A restore is done by a maintenance primary; nobody is granted the volume before
// it is whole.
func TestARestoreIsWholeBeforeTheVolumeIsGranted(t *testing.T) {
	c := newCluster(t, 3).onEngine().start()
	h := c.open(c.nodes[0], OpenOptions{})
	m := newModel()
	m.load(t, h, 4, 100, nil)
	c.take("s")
	newModel().load(t, h, 4, 200, nil)
	if err := h.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.change(func(r *holdfast.Record) { r.SetRestore(&holdfast.Restore{ID: "x", Snapshot: "s"}) })
	_, err := c.nodes[1].plane.Open(t.Context(), c.vol, OpenOptions{})
	wantKind(t, err, holdfast.Busy)
	up := c.open(c.nodes[1], OpenOptions{Kind: holdfast.MaintenancePrimary})
	c.until("it is restored", func() bool { return c.record().Restore == nil })
	if err := up.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	h = c.open(c.nodes[0], OpenOptions{})
	m.verify(t, h)
	c.equal()
}

// A group's commands: writes wait between hold and release, and the snapshot is
// of that time.
func TestAGroupHoldsItsMembersWrites(t *testing.T) {
	c := newCluster(t, 3).onEngine().start()
	h := c.open(c.nodes[0], OpenOptions{})
	old := bytes.Repeat([]byte{1}, 4096)
	if err := write(h, 0, old); err != nil {
		t.Fatal(err)
	}
	if err := h.Hold(t.Context(), "g", time.Minute); err != nil {
		t.Fatal(err)
	}
	late := make(chan error, 1)
	go func() { late <- write(h, 0, bytes.Repeat([]byte{2}, 4096)) }()
	c.change(func(r *holdfast.Record) {
		r.PutSnapshot(holdfast.Snapshot{ID: "s", State: holdfast.SnapshotWanted, Group: "g"})
	})
	if err := h.Cut(t.Context(), "g", "s"); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-late:
		t.Fatalf("a write was not held: %v", err)
	default:
	}
	if err := h.Unhold("g"); err != nil {
		t.Fatal(err)
	}
	if err := <-late; err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(c.sameSnapshots("s")[:4096], old) {
		t.Error("the snapshot shows a write that was held")
	}
	wantKind(t, h.Unhold("g"), holdfast.Unavailable)
}
