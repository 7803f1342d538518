package metadatatest

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/holdfast-storage/holdfast"
)

func testCreateAndRead(t *testing.T, h *Harness) {
	s, other := h.Open(t), h.Open(t)
	ctx := t.Context()
	if all := must[[]holdfast.Record](t)(s.Volumes(ctx)); len(all) != 0 {
		t.Fatalf("a new store has %v", all)
	}
	// "%2F" is a name of its own, not a slash; names differ in a trailing space.
	names := []string{"db-1", "Größe 数据 🚀", "a b%2Fc?#", "pvc-1 ", "pvc-1", "..b", "x..", "%"}
	var first holdfast.Record
	for i, name := range names {
		if name == "..b" {
			name = "b.." // a leading dot is refused, see testRefused
		}
		want := Record(name)
		got := must[holdfast.Record](t)(s.CreateVolume(ctx, want))
		if got.Revision <= 0 {
			t.Fatalf("revision %d", got.Revision)
		}
		want.Revision = got.Revision
		same(t, got, want)
		same(t, must[holdfast.Record](t)(other.Volume(ctx, string(want.ID))), want)
		same(t, must[holdfast.Record](t)(other.Volume(ctx, name)), want)
		if i == 0 {
			first = got
		}
	}
	all := must[[]holdfast.Record](t)(other.Volumes(ctx))
	if len(all) != len(names) {
		t.Fatalf("%d volumes are listed, want %d", len(all), len(names))
	}
	for i := 1; i < len(all); i++ {
		if all[i-1].ID >= all[i].ID {
			t.Fatalf("not ordered by id: %s before %s", all[i-1].ID, all[i].ID)
		}
	}
	// A volume may have another one's id as its name; the id goes first.
	create(t, s, string(first.ID))
	same(t, must[holdfast.Record](t)(s.Volume(ctx, string(first.ID))), first)
	for _, absent := range []string{"no such", string(holdfast.NewVolumeID()), "db-1/", "db%2D1", "../db-1"} {
		_, err := s.Volume(ctx, absent)
		wantKind(t, err, holdfast.NotFound)
	}
	_, err := s.Volume(ctx, "")
	wantKind(t, err, holdfast.Invalid)
}

func testCreateExists(t *testing.T, h *Harness) {
	s := h.Open(t)
	have := create(t, s, "db-1")
	sameName := Record("db-1")
	got, err := s.CreateVolume(t.Context(), sameName)
	wantKind(t, err, holdfast.Exists)
	same(t, got, have)
	_, err = s.Volume(t.Context(), string(sameName.ID))
	wantKind(t, err, holdfast.NotFound)

	sameID := Record("db-2")
	sameID.ID = have.ID
	got, err = s.CreateVolume(t.Context(), sameID)
	wantKind(t, err, holdfast.Exists)
	same(t, got, have)
	_, err = s.Volume(t.Context(), "db-2") // the refused creation took no name
	wantKind(t, err, holdfast.NotFound)
	create(t, s, "db-2")
}

func testCreateRace(t *testing.T, h *Harness) {
	clients := []interface {
		CreateVolume(context.Context, holdfast.Record) (holdfast.Record, error)
	}{h.Open(t), h.Open(t)}
	errs := make([]error, 8)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() { _, errs[i] = clients[i%2].CreateVolume(t.Context(), Record("contested")) })
	}
	wg.Wait()
	won := 0
	for _, err := range errs {
		if err == nil {
			won++
		} else {
			wantKind(t, err, holdfast.Exists)
		}
	}
	if all := must[[]holdfast.Record](t)(h.Open(t).Volumes(t.Context())); won != 1 || len(all) != 1 {
		t.Fatalf("%d creations succeeded, %d volumes are stored, want 1", won, len(all))
	}
}

func testRefused(t *testing.T, h *Harness) {
	s := h.Open(t)
	spoil := map[string]func(r *holdfast.Record){
		"no name":       func(r *holdfast.Record) { r.Name = "" },
		"slash":         func(r *holdfast.Record) { r.Name = "a/b" },
		"leading dot":   func(r *holdfast.Record) { r.Name = "..b" },
		"not UTF-8":     func(r *holdfast.Record) { r.Name = "a\xff" },
		"no id":         func(r *holdfast.Record) { r.ID = "" },
		"version":       func(r *holdfast.Record) { r.Version = 99 },
		"size":          func(r *holdfast.Record) { r.SizeBytes = 17 },
		"node twice":    func(r *holdfast.Record) { r.Replicas[0].Node = r.Replicas[1].Node },
		"later primary": func(r *holdfast.Record) { r.Primary.Grant = r.Epoch + 1 },
	}
	have := create(t, s, "good")
	for name, f := range spoil {
		t.Run(name, func(t *testing.T) {
			r := Record("bad")
			f(&r)
			_, err := s.CreateVolume(t.Context(), r)
			wantKind(t, err, holdfast.Invalid)
			c := have.Clone()
			f(&c)
			_, err = s.SwapVolume(t.Context(), c)
			wantKind(t, err, holdfast.Invalid)
		})
	}
	if all := must[[]holdfast.Record](t)(s.Volumes(t.Context())); len(all) != 1 {
		t.Fatalf("stored: %v", all)
	}
	same(t, must[holdfast.Record](t)(s.Volume(t.Context(), "good")), have)
}

func testSwap(t *testing.T, h *Harness) {
	s, other := h.Open(t), h.Open(t)
	ctx := t.Context()
	old := create(t, s, "db-1")
	next := old.Clone()
	next.Epoch, next.Primary = 4, nil
	stored := must[holdfast.Record](t)(s.SwapVolume(ctx, next))
	if stored.Revision <= old.Revision {
		t.Fatalf("revision %d after %d", stored.Revision, old.Revision)
	}
	next.Revision = stored.Revision
	same(t, stored, next)
	same(t, must[holdfast.Record](t)(other.Volume(ctx, "db-1")), next)

	stale := old.Clone()
	stale.Epoch = 9
	got, err := other.SwapVolume(ctx, stale)
	wantKind(t, err, holdfast.Busy)
	same(t, got, next)
	same(t, must[holdfast.Record](t)(s.Volume(ctx, "db-1")), next)

	for _, never := range []int64{0, -1, stored.Revision + 1} {
		r := stored.Clone()
		r.Revision = never
		got, err = s.SwapVolume(ctx, r)
		wantKind(t, err, holdfast.Busy)
		same(t, got, next)
	}
	renamed := stored.Clone()
	renamed.Name = "db-2"
	_, err = s.SwapVolume(ctx, renamed)
	wantKind(t, err, holdfast.Invalid)
	absent := Record("absent")
	for _, revision := range []int64{0, 1} {
		absent.Revision = revision
		_, err = s.SwapVolume(ctx, absent)
		wantKind(t, err, holdfast.NotFound)
	}
	_, err = s.Volume(ctx, "absent")
	wantKind(t, err, holdfast.NotFound)
}

// testSwapRace counts: with a lost or a doubled swap the sum is wrong.
func testSwapRace(t *testing.T, h *Harness) {
	const writers, each = 4, 8
	r := create(t, h.Open(t), "counter")
	var wg sync.WaitGroup
	errs := make(chan error, writers)
	for range writers {
		s := h.Open(t)
		wg.Go(func() {
			have := r
			for done := 0; done < each; {
				next := have.Clone()
				next.Epoch++
				got, err := s.SwapVolume(t.Context(), next)
				switch {
				case err == nil:
					done++
				case holdfast.KindOf(err) != holdfast.Busy:
					errs <- err
					return
				}
				have = got
			}
		})
	}
	wg.Wait()
	select {
	case err := <-errs:
		t.Fatal(err)
	default:
	}
	got := must[holdfast.Record](t)(h.Open(t).Volume(t.Context(), "counter"))
	if want := r.Epoch + writers*each; got.Epoch != want {
		t.Fatalf("epoch %d, want %d", got.Epoch, want)
	}
}

func testDrop(t *testing.T, h *Harness) {
	s := h.Open(t)
	ctx := t.Context()
	r := create(t, s, "db-1")
	stale := r
	r = must[holdfast.Record](t)(s.SwapVolume(ctx, r))
	wantKind(t, s.DropVolume(ctx, stale, Tombstones(r)), holdfast.Busy)
	if ts := must[[]holdfast.Tombstone](t)(s.Tombstones(ctx)); len(ts) != 0 {
		t.Fatalf("a refused deletion left tombstones: %v", ts)
	}
	same(t, must[holdfast.Record](t)(s.Volume(ctx, "db-1")), r)

	ok(t, s.DropVolume(ctx, r, Tombstones(r)))
	for _, key := range []string{"db-1", string(r.ID)} {
		_, err := s.Volume(ctx, key)
		wantKind(t, err, holdfast.NotFound)
	}
	if ts := must[[]holdfast.Tombstone](t)(s.Tombstones(ctx)); len(ts) != len(r.Replicas) {
		t.Fatalf("tombstones %v", ts)
	}
	wantKind(t, s.DropVolume(ctx, r, nil), holdfast.NotFound)
	again := create(t, s, "db-1") // the name is free
	wantKind(t, s.DropVolume(ctx, r, nil), holdfast.NotFound)
	same(t, must[holdfast.Record](t)(s.Volume(ctx, "db-1")), again)
}

func testRetire(t *testing.T, h *Harness) {
	s := h.Open(t)
	ctx := t.Context()
	r := create(t, s, "db-1")
	all := Tombstones(r)
	_, err := s.RetireReplicas(ctx, r, all[:1])
	wantKind(t, err, holdfast.Invalid) // it still names the replica

	next := r.Clone()
	next.Replicas = next.Replicas[1:]
	got := must[holdfast.Record](t)(s.RetireReplicas(ctx, next, all[:1]))
	next.Revision = got.Revision
	same(t, got, next)
	same(t, must[holdfast.Record](t)(s.Volume(ctx, "db-1")), next)

	last := r.Clone() // at the old revision
	last.Replicas = nil
	now, err := s.RetireReplicas(ctx, last, all)
	wantKind(t, err, holdfast.Busy)
	same(t, now, next)
	ts := must[[]holdfast.Tombstone](t)(s.Tombstones(ctx))
	if len(ts) != 1 || ts[0].Replica != r.Replicas[0].ID {
		t.Fatalf("tombstones %v, want the one of replica %s", ts, r.Replicas[0].ID)
	}
}

func testTombstones(t *testing.T, h *Harness) {
	s := h.Open(t)
	ctx := t.Context()
	r := Record("gone")
	ts := Tombstones(r)
	// More than one transaction of etcd takes, and some of them twice.
	for i := range 150 {
		extra := ts[0]
		extra.Replica = holdfast.NewReplicaID()
		extra.Node = holdfast.NodeID(fmt.Sprintf("n%d", i))
		ts = append(ts, extra)
	}
	ts = append(ts, ts[:10]...)
	ok(t, s.AddTombstones(ctx, ts))
	ok(t, s.AddTombstones(ctx, ts[:1]))
	ok(t, s.AddTombstones(ctx, nil))
	got := must[[]holdfast.Tombstone](t)(s.Tombstones(ctx))
	if len(got) != 152 {
		t.Fatalf("%d tombstones, want 152", len(got))
	}
	for _, g := range got {
		if g.Replica == ts[1].Replica && g != ts[1] {
			t.Fatalf("got %+v, want %+v", g, ts[1])
		}
	}
	ok(t, s.DropTombstone(ctx, ts[0].Replica))
	ok(t, s.DropTombstone(ctx, ts[0].Replica))
	if got = must[[]holdfast.Tombstone](t)(s.Tombstones(ctx)); len(got) != 151 {
		t.Fatalf("%d tombstones, want 151", len(got))
	}
	wantKind(t, s.AddTombstones(ctx, []holdfast.Tombstone{{Volume: r.ID, Node: "n1"}}), holdfast.Invalid)
}
