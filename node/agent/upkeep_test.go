package agent_test

import (
	"testing"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/metadata/memory"
	"github.com/holdfast-storage/holdfast/node/agent"
)

func TestMaintainer(t *testing.T) {
	all := map[holdfast.NodeID]bool{"a": true, "b": true, "c": true}
	without := func(n holdfast.NodeID) map[holdfast.NodeID]bool {
		m := map[holdfast.NodeID]bool{"a": true, "b": true, "c": true}
		delete(m, n)
		return m
	}
	for name, tc := range map[string]struct {
		change func(r *holdfast.Record)
		alive  map[holdfast.NodeID]bool
		want   holdfast.NodeID
	}{
		"all well":                     {func(*holdfast.Record) {}, all, ""},
		"a stale one":                  {func(r *holdfast.Record) { r.Replicas[2].State = holdfast.Stale }, all, "a"},
		"a new one":                    {func(r *holdfast.Record) { r.Replicas[0].State = holdfast.New }, all, "b"},
		"the stale one's node is away": {func(r *holdfast.Record) { r.Replicas[2].State = holdfast.Stale }, without("c"), ""},
		"the first in sync is away":    {func(r *holdfast.Record) { r.Replicas[2].State = holdfast.Rebuilding }, without("a"), "b"},
		"to be grown":                  {func(r *holdfast.Record) { r.Spec.SizeBytes++ }, all, "a"},
		"grown within its last block":  {func(r *holdfast.Record) { r.Spec.SizeBytes -= 100 }, all, ""},
		"one in sync leaves":           {func(r *holdfast.Record) { r.Replicas[0].Leaving = true }, all, "b"},
		"one that is stale leaves":     {func(r *holdfast.Record) { r.Replicas[0].State = holdfast.Stale; r.Replicas[0].Leaving = true }, all, ""},
		"the last in sync leaves, repair": {func(r *holdfast.Record) {
			r.Replicas[0].Leaving = true
			r.Replicas[1].State = holdfast.New
			r.Replicas[2].State = holdfast.New
		}, all, "a"},
		"attached": {func(r *holdfast.Record) {
			r.Replicas[2].State = holdfast.Stale
			r.Primary = &holdfast.Primary{Node: "b", Kind: holdfast.ClientPrimary}
		}, all, ""},
		"attached to a dead node": {func(r *holdfast.Record) {
			r.Replicas[2].State = holdfast.Stale
			r.Primary = &holdfast.Primary{Node: "d", Kind: holdfast.ClientPrimary}
		}, all, ""},
		"maintained already": {func(r *holdfast.Record) {
			r.Replicas[2].State = holdfast.Stale
			r.Primary = &holdfast.Primary{Node: "b", Kind: holdfast.MaintenancePrimary}
		}, all, "b"},
		"its maintainer died": {func(r *holdfast.Record) {
			r.Replicas[2].State = holdfast.Stale
			r.Primary = &holdfast.Primary{Node: "b", Kind: holdfast.MaintenancePrimary}
		}, without("b"), "a"},
		"being made": {func(r *holdfast.Record) { r.Phase = holdfast.PhaseCreating; r.Replicas[2].State = holdfast.New }, all, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := holdfast.Record{Phase: holdfast.PhaseReady, SizeBytes: 1 << 20, Spec: holdfast.Spec{SizeBytes: 1 << 20}}
			for _, n := range []holdfast.NodeID{"a", "b", "c"} {
				r.Replicas = append(r.Replicas, holdfast.Replica{ID: holdfast.ReplicaID(n), Node: n, State: holdfast.InSync})
			}
			tc.change(&r)
			if got := agent.Maintainer(r, tc.alive); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

func TestMaintenanceBeginsAndEndsWithTheNeed(t *testing.T) {
	db := memory.New()
	a, b := newRig(t, db, "a").start(), newRig(t, db, "b").start()
	rec, other := volume(t, db, "v", "a", "b"), volume(t, db, "w", "a", "b")
	for _, id := range []holdfast.VolumeID{rec.ID, other.ID} { // the other one stays as it is
		change(t, db, id, func(r *holdfast.Record) { r.Replicas[0].State = holdfast.Stale })
	}
	eventually(t, "b maintains it", func() bool {
		p := read(t, db, rec.ID).Primary
		return p != nil && p.Node == "b" && p.Kind == holdfast.MaintenancePrimary
	})
	if vs, err := b.NodeVolumes(rec.ID); err != nil || len(vs) != 1 || vs[0].GetPrimary().GetKind() != "maintenance" || len(vs[0].GetEvents()) == 0 {
		t.Errorf("status %v, %v", vs, err)
	}
	change(t, db, rec.ID, func(r *holdfast.Record) { r.Replicas[0].State = holdfast.InSync })
	eventually(t, "it gives the grant back", func() bool { return read(t, db, rec.ID).Primary == nil })
	if a.plane.opened() != 0 || b.plane.opened() != 2 {
		t.Errorf("opens: a %d, b %d", a.plane.opened(), b.plane.opened())
	}
}

func TestMaintenanceGivesWayToAClientHereAndThere(t *testing.T) {
	db := memory.New()
	a, b := newRig(t, db, "a").start(), newRig(t, db, "b").start()
	for name, client := range map[string]*rig{"here": a, "there": b} {
		rec := volume(t, db, name, "a", "b")
		change(t, db, rec.ID, func(r *holdfast.Record) { r.Replicas[1].State = holdfast.Stale })
		eventually(t, "a maintains it", func() bool { v := a.plane.volume(rec.ID); return v != nil })
		maintaining := a.plane.volume(rec.ID)
		if _, err := client.Attach(t.Context(), rec.ID); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if name == "there" {
			maintaining.end(holdfast.E("", holdfast.Fenced, "b has taken over"))
		}
		eventually(t, "no maintenance is left", maintaining.hasEnded)
		if got := read(t, db, rec.ID).AttachedTo(); got != client.cfg.ID {
			t.Errorf("%s: attached to %q", name, got)
		}
	}
}

func TestAnOpeningMaintenanceGivesWayToo(t *testing.T) {
	db := memory.New()
	r := newRig(t, db, "a")
	block := make(chan struct{})
	r.plane.block = block
	a := r.start()
	rec := volume(t, db, "v", "a", "b")
	newRig(t, db, "b").start()
	change(t, db, rec.ID, func(r *holdfast.Record) { r.Replicas[1].State = holdfast.Stale })
	eventually(t, "maintenance is being opened", func() bool { return a.plane.opened() == 1 })
	a.plane.mu.Lock()
	a.plane.block = nil // only the maintenance's open is stuck
	a.plane.mu.Unlock()
	if _, err := a.Attach(t.Context(), rec.ID); err != nil {
		t.Fatal(err)
	}
	if got := read(t, db, rec.ID).AttachedTo(); got != "a" {
		t.Errorf("attached to %q", got)
	}
}

func TestALeftoverMaintenanceGrantIsGivenBack(t *testing.T) {
	db := memory.New()
	rec := volume(t, db, "v", "a")
	change(t, db, rec.ID, func(r *holdfast.Record) {
		r.Epoch = 2
		r.Primary = &holdfast.Primary{Node: "a", Kind: holdfast.MaintenancePrimary, Grant: 2}
	})
	newRig(t, db, "a").start()
	eventually(t, "it is given back", func() bool { return read(t, db, rec.ID).Primary == nil })
}
