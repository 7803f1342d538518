package metadatatest

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/metadata"
)

func testWatch(t *testing.T, h *Harness) {
	s, other := h.Open(t), h.Open(t)
	before := create(t, s, "before")
	w := watch(t, s)
	eventually(t, patience, "the watch is synced", w.isSynced)
	if !w.sees(before.ID, before.Epoch) {
		t.Fatal("synced was reported before a record that exists")
	}
	after := create(t, other, "after")
	eventually(t, patience, "a new record is seen", func() bool { return w.sees(after.ID, after.Epoch) })
	for range 20 { // a burst, of which the last must arrive
		after.Epoch++
		after = must[holdfast.Record](t)(other.SwapVolume(t.Context(), after))
	}
	eventually(t, patience, "the last change is seen", func() bool { return w.sees(after.ID, after.Epoch) })
	w.mu.Lock()
	same(t, w.records[after.ID], after)
	w.mu.Unlock()
	ok(t, other.DropVolume(t.Context(), before, nil))
	eventually(t, patience, "the deletion is seen", func() bool { return w.sawDeletion(before.ID) })

	reason := errors.New("enough")
	w.stop(reason)
	select {
	case err := <-w.err:
		if !errors.Is(err, reason) {
			t.Fatalf("the watch ended with %v", err)
		}
	case <-time.After(patience):
		t.Fatal("a watch did not end with its context")
	}
}

// broken are values that must not be understood, for a volume's key.
func broken(id holdfast.VolumeID) map[string]string {
	return map[string]string{
		"not JSON":        "\x00\x01",
		"empty":           "",
		"unknown version": `{"version":99,"id":"` + string(id) + `","sizeBytes":4096}`,
		"unknown member":  `{"version":1,"id":"` + string(id) + `","sizeBytes":4096,"flavour":"new"}`,
		"invalid":         `{"version":1,"id":"` + string(id) + `","sizeBytes":17}`,
		"another's id":    `{"version":1,"id":"other","sizeBytes":4096}`,
	}
}

func testCorrupt(t *testing.T, h *Harness) {
	s := h.Open(t)
	ctx := t.Context()
	good := create(t, s, "good")
	var keys []string
	for _, value := range broken("x") {
		r := create(t, s, string(holdfast.NewVolumeID()))
		key := "volumes/" + string(r.ID)
		keys = append(keys, key)
		h.Put(t, key, broken(r.ID)["not JSON"])
		h.Put(t, key, value)
		for _, by := range []string{string(r.ID), r.Name} {
			_, err := s.Volume(ctx, by)
			wantKind(t, err, holdfast.Corrupt)
		}
		_, err := s.SwapVolume(ctx, r)
		wantKind(t, err, holdfast.Corrupt)
		_, err = s.CreateVolume(ctx, r)
		wantKind(t, err, holdfast.Exists)
	}
	all := must[[]holdfast.Record](t)(s.Volumes(ctx))
	if len(all) != 1 || all[0].ID != good.ID {
		t.Fatalf("listed %v, want the one good record", all)
	}
	h.Put(t, "nodes/bad", `{"version":7}`)
	h.Put(t, "tombstones/bad", `{"version":1,"replica":"good"}`)
	keys = append(keys, "nodes/bad", "tombstones/bad")
	must[holdfast.Node](t)(s.PutNode(ctx, node("n1")))
	ok(t, s.AddTombstones(ctx, Tombstones(good)[:1]))
	if ns := must[[]holdfast.Node](t)(s.Nodes(ctx)); len(ns) != 1 {
		t.Fatalf("nodes %v", ns)
	}
	if ts := must[[]holdfast.Tombstone](t)(s.Tombstones(ctx)); len(ts) != 1 {
		t.Fatalf("tombstones %v", ts)
	}
	_, err := s.Node(ctx, "bad")
	wantKind(t, err, holdfast.Corrupt)
	for _, key := range keys {
		if !slices.Contains(h.Skipped(), key) {
			t.Errorf("%s was left out silently; reported were %v", key, h.Skipped())
		}
	}
	h.Put(t, "names/dangling", string(holdfast.NewVolumeID()))
	_, err = s.Volume(ctx, "dangling")
	if kind := holdfast.KindOf(err); kind != holdfast.Corrupt && kind != holdfast.NotFound {
		t.Fatalf("a name without a record gave %v", err)
	}
}

func testCorruptWatch(t *testing.T, h *Harness) {
	s := h.Open(t)
	spoilt, good := create(t, s, "spoilt"), create(t, s, "good")
	early := watch(t, s)
	eventually(t, patience, "the watch is synced", early.isSynced)
	h.Put(t, "volumes/"+string(spoilt.ID), broken(spoilt.ID)["unknown version"])
	late := watch(t, h.Open(t))
	eventually(t, patience, "a second watch is synced", late.isSynced)
	good.Epoch = 50
	must[holdfast.Record](t)(s.SwapVolume(t.Context(), good))
	for _, w := range []*watcher{early, late} {
		eventually(t, patience, "changes behind the spoilt record are seen", func() bool { return w.sees(good.ID, 50) })
		if w.sawDeletion(spoilt.ID) {
			t.Fatal("a record that cannot be read was reported as deleted")
		}
	}
	if !early.sees(spoilt.ID, spoilt.Epoch) || late.sees(spoilt.ID, spoilt.Epoch) {
		t.Fatal("the spoilt record was reported")
	}
}

func testOutage(t *testing.T, h *Harness) {
	s := h.Open(t)
	kept, r := create(t, s, "db-1"), create(t, s, "db-2")
	n := must[holdfast.Node](t)(s.PutNode(t.Context(), node("n1")))
	end := h.Outage(t)
	calls := map[string]func(ctx context.Context) error{
		"CreateVolume":   func(ctx context.Context) error { _, err := s.CreateVolume(ctx, Record("new")); return err },
		"Volume":         func(ctx context.Context) error { _, err := s.Volume(ctx, "db-1"); return err },
		"Volumes":        func(ctx context.Context) error { _, err := s.Volumes(ctx); return err },
		"SwapVolume":     func(ctx context.Context) error { _, err := s.SwapVolume(ctx, r); return err },
		"DropVolume":     func(ctx context.Context) error { return s.DropVolume(ctx, r, nil) },
		"RetireReplicas": func(ctx context.Context) error { _, err := s.RetireReplicas(ctx, r, nil); return err },
		"PutNode":        func(ctx context.Context) error { _, err := s.PutNode(ctx, n); return err },
		"Node":           func(ctx context.Context) error { _, err := s.Node(ctx, "n1"); return err },
		"Nodes":          func(ctx context.Context) error { _, err := s.Nodes(ctx); return err },
		"DropNode":       func(ctx context.Context) error { return s.DropNode(ctx, "n1") },
		"Join":           func(ctx context.Context) error { _, err := s.Join(ctx, "n2", "i", h.TTL); return err },
		"Alive":          func(ctx context.Context) error { _, err := s.Alive(ctx, "n1"); return err },
		"AddTombstones":  func(ctx context.Context) error { return s.AddTombstones(ctx, Tombstones(r)) },
		"Tombstones":     func(ctx context.Context) error { _, err := s.Tombstones(ctx); return err },
		"DropTombstone":  func(ctx context.Context) error { return s.DropTombstone(ctx, "x") },
		"Leader":         func(ctx context.Context) error { _, err := s.Leader(ctx); return err },
		"Cluster":        func(ctx context.Context) error { _, err := s.Cluster(ctx); return err },
	}
	// All at once: one after the other they would take a call's time each.
	var wg sync.WaitGroup
	for name, call := range calls {
		for _, deadline := range []time.Duration{time.Hour, 50 * time.Millisecond} {
			wg.Go(func() { outageCall(t, h, name, deadline, call) })
		}
	}
	wg.Wait()
	end()
	eventually(t, patience, "the store answers again", func() bool {
		_, err := s.Volume(t.Context(), "db-1")
		return err == nil
	})
	// What a leader has taken and could not give to a majority may be carried out
	// when there is one again: Unavailable says nothing about it. It is carried out
	// once and as a whole, or not at all, and nothing else is touched.
	if got := must[holdfast.Record](t)(s.Volume(t.Context(), "db-1")); got.Revision != kept.Revision {
		t.Errorf("a volume that nobody changed: %+v, want %+v", got, kept)
	}
	_, err := s.Volume(t.Context(), "db-2")
	stones := must[[]holdfast.Tombstone](t)(s.Tombstones(t.Context()))
	if err != nil && holdfast.KindOf(err) != holdfast.NotFound || len(stones) != 0 && len(stones) != len(Tombstones(r)) {
		t.Errorf("after the outage: %v, tombstones %v", err, stones)
	}
	if _, err := s.CreateVolume(t.Context(), Record("new")); err != nil && holdfast.KindOf(err) != holdfast.Exists {
		t.Errorf("repeating a creation: %v", err)
	}
}

// outageCall makes one call while nothing answers. It does not stop the test: it
// runs beside others.
func outageCall(t *testing.T, h *Harness, name string, deadline time.Duration, call func(ctx context.Context) error) {
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	began := time.Now()
	err := call(ctx)
	if holdfast.KindOf(err) != holdfast.Unavailable {
		t.Errorf("%s during an outage gave %v of kind %v, want kind Unavailable", name, err, holdfast.KindOf(err))
	}
	if took, bound := time.Since(began), min(deadline, h.CallTimeout)+patience/5; took > bound {
		t.Errorf("%s with a deadline of %v took %v, more than %v", name, deadline, took, bound)
	}
}

func testOutageWatch(t *testing.T, h *Harness) {
	s, other, third := h.Open(t), h.Open(t), h.Open(t)
	r, doomed := create(t, s, "db-1"), create(t, s, "doomed")
	w := watch(t, s)
	eventually(t, patience, "the watch is synced", w.isSynced)
	end := h.Outage(t)
	late := watch(t, third) // begins while nothing answers
	end()
	eventually(t, patience, "a change is stored after the outage", func() bool {
		next := r.Clone()
		next.Epoch = 77
		_, err := other.SwapVolume(t.Context(), next)
		return err == nil || holdfast.KindOf(err) == holdfast.Busy
	})
	eventually(t, patience, "a deletion is stored", func() bool {
		err := other.DropVolume(t.Context(), doomed, nil)
		return err == nil || holdfast.KindOf(err) == holdfast.NotFound
	})
	for _, w := range []*watcher{w, late} {
		eventually(t, patience, "the watch sees the change", func() bool { return w.sees(r.ID, 77) })
		eventually(t, patience, "the watch forgets what was deleted", func() bool {
			w.mu.Lock()
			defer w.mu.Unlock()
			_, there := w.records[doomed.ID]
			return !there && w.synced > 0
		})
	}
}

func testOutageLeases(t *testing.T, h *Harness) {
	s, other := h.Open(t), h.Open(t)
	l := join(t, s, "n1", "i1", h.TTL)
	led, _, err := s.Campaign(t.Context(), "a")
	ok(t, err)
	end := h.Outage(t)
	closedWithin(t, h.TTL+patience/3, "a lease that cannot be confirmed is lost", l.Lost())
	closedWithin(t, metadata.DefaultLeaseTTL+patience/3, "a leadership that cannot be confirmed ends", led.Done())
	if l.Held() {
		t.Fatal("a lost lease is held")
	}
	end()
	// The store may let it run out later than the holder believes, never sooner.
	eventually(t, 2*patience, "the node can join again", func() bool {
		again, err := other.Join(t.Context(), "n1", "i1", h.TTL)
		return err == nil && again.Held()
	})
	if l.Held() || !isClosed(l.Lost()) {
		t.Fatal("a lost lease came back")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	_, _, err = other.Campaign(ctx, "b")
	ok(t, err)
}

func testClosed(t *testing.T, h *Harness) {
	s, other := h.Open(t), h.Open(t)
	w := watch(t, s)
	eventually(t, patience, "the watch is synced", w.isSynced)
	_, _, err := other.Campaign(t.Context(), "a")
	ok(t, err)
	campaign := make(chan error, 1)
	go func() { _, _, err := s.Campaign(t.Context(), "b"); campaign <- err }()
	ok(t, s.Close())
	for _, c := range []chan error{w.err, campaign} {
		select {
		case err := <-c:
			wantKind(t, err, holdfast.Unavailable)
		case <-time.After(patience):
			t.Fatal("a call did not end with the store")
		}
	}
	_, err = s.Volumes(t.Context())
	wantKind(t, err, holdfast.Unavailable)
	ok(t, s.Close())
}

func testCompaction(t *testing.T, h *Harness) {
	s, other := h.Open(t), h.Open(t)
	r := create(t, s, "db-1")
	w := watch(t, s)
	eventually(t, patience, "the watch is synced", w.isSynced)
	syncs := w.syncs()
	// The watch stands still while the history that it needs next goes away.
	end := h.Outage(t)
	end()
	for range 5 {
		eventually(t, patience, "a change is stored", func() bool {
			next, err := other.Volume(t.Context(), "db-1")
			if err != nil {
				return false
			}
			next.Epoch++
			r, err = other.SwapVolume(t.Context(), next)
			return err == nil
		})
	}
	h.Compact(t)
	eventually(t, patience, "the watch sees the last change", func() bool { return w.sees(r.ID, r.Epoch) })
	r.Epoch++
	r = must[holdfast.Record](t)(other.SwapVolume(t.Context(), r))
	eventually(t, patience, "the watch goes on", func() bool { return w.sees(r.ID, r.Epoch) && w.syncs() >= syncs })
}

func testPutBack(t *testing.T, h *Harness) {
	s, other := h.Open(t), h.Open(t)
	kept, swapped := create(t, s, "kept"), create(t, s, "swapped")
	w := watch(t, s)
	eventually(t, patience, "the watch is synced", w.isSynced)
	back := h.Remember(t)
	next := swapped.Clone()
	eventually(t, patience, "changes are stored", func() bool { // other may have to connect again
		next.Epoch++
		got, err := other.SwapVolume(t.Context(), next)
		if err == nil || holdfast.KindOf(err) == holdfast.Busy {
			next = got
		}
		return err == nil && next.Epoch >= 40
	})
	newest := next.Epoch
	young := create(t, other, "young")
	eventually(t, patience, "the watch sees the newest", func() bool {
		return w.sees(young.ID, young.Epoch) && w.sees(swapped.ID, newest)
	})
	back()
	eventually(t, 2*patience, "the watch sees what is there again", func() bool {
		return w.sawDeletion(young.ID) && w.sees(swapped.ID, swapped.Epoch) && w.sees(kept.ID, kept.Epoch)
	})
	var later holdfast.Record
	eventually(t, patience, "a record is created", func() bool { // other has to connect again
		var err error
		later, err = other.CreateVolume(t.Context(), Record("later"))
		return err == nil || holdfast.KindOf(err) == holdfast.Exists
	})
	eventually(t, patience, "the watch goes on", func() bool { return w.sees(later.ID, later.Epoch) })
	_, err := other.Volume(t.Context(), "young")
	wantKind(t, err, holdfast.NotFound)
}
