package agent_test

import (
	"context"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/metadata/memory"
	"github.com/holdfast-storage/holdfast/node/agent"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

func (v *fakeVolume) Hold(ctx context.Context, token string, _ time.Duration) error {
	v.mu.Lock()
	v.held = token
	block := v.block
	v.mu.Unlock()
	if block {
		<-ctx.Done()
		return holdfast.WrapKind("hold", holdfast.Unavailable, ctx.Err())
	}
	return nil
}

func (v *fakeVolume) Cut(_ context.Context, token string, _ holdfast.SnapshotID) error {
	if v.holds() != token {
		return holdfast.E("cut", holdfast.Unavailable, "the hold is over")
	}
	return nil
}

func (v *fakeVolume) Unhold(token string) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.held != token {
		return holdfast.E("unhold", holdfast.Unavailable, "the hold is over")
	}
	v.held = ""
	return nil
}

func (v *fakeVolume) holds() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.held
}

// A volume that nobody has attached gets a maintenance primary to be held, which
// stays while it is wanted and goes afterwards, beyond what a node may maintain
// otherwise.
func TestHoldOfUnattachedVolumes(t *testing.T) {
	db := memory.New()
	r := newRig(t, db, "a")
	r.cfg.MaxMaintenance = 1
	r.start()
	svc := agent.NewService(r.Agent)
	ctx := t.Context()
	var ids []holdfast.VolumeID
	for _, name := range []string{"v", "w", "x"} {
		id := volume(t, db, name, "a").ID
		ids = append(ids, id)
		if _, err := svc.Hold(ctx, &holdfastv1.HoldRequest{VolumeId: string(id), Token: "t", TtlMillis: 100}); err == nil {
			t.Fatal("held without a primary")
		} else {
			wantKind(t, err, holdfast.Unavailable)
		}
		keep := int64(60_000)
		if name == "v" {
			keep = 1
		}
		if _, err := svc.PrepareHold(ctx, &holdfastv1.PrepareHoldRequest{VolumeId: string(id), KeepMillis: keep}); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the one that is kept no longer is given back", func() bool { return read(t, db, ids[0]).Primary == nil })
	for _, id := range ids[1:] {
		if p := read(t, db, id).Primary; p == nil || p.Kind != holdfast.MaintenancePrimary {
			t.Fatalf("volume %s is not kept: %+v", id, p)
		}
		if _, err := svc.Hold(ctx, &holdfastv1.HoldRequest{VolumeId: string(id), Token: "t", TtlMillis: 100}); err != nil {
			t.Fatal(err)
		}
	}
	_, err := svc.Cut(ctx, &holdfastv1.CutRequest{VolumeId: string(ids[1]), Token: "other", SnapshotId: "s"})
	wantKind(t, err, holdfast.Unavailable)
	if _, err := svc.Cut(ctx, &holdfastv1.CutRequest{VolumeId: string(ids[1]), Token: "t", SnapshotId: "s"}); err != nil {
		t.Error(err)
	}
	if _, err := svc.Unhold(ctx, &holdfastv1.UnholdRequest{VolumeId: string(ids[1]), Token: "t"}); err != nil {
		t.Error(err)
	}
	_, err = svc.Unhold(ctx, &holdfastv1.UnholdRequest{VolumeId: string(ids[1]), Token: "t"})
	wantKind(t, err, holdfast.Unavailable)
}

// Whoever stops waiting for a hold leaves none behind.
func TestHoldOfACallerThatLeft(t *testing.T) {
	db := memory.New()
	r := newRig(t, db, "a").start()
	id := volume(t, db, "v", "a").ID
	if err := r.PrepareHold(t.Context(), id, time.Minute); err != nil {
		t.Fatal(err)
	}
	v := r.plane.volume(id)
	v.mu.Lock()
	v.block = true
	v.mu.Unlock()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Hold(ctx, id, "t", time.Second) }()
	eventually(t, "it is held", func() bool { return v.holds() == "t" })
	cancel()
	wantKind(t, <-done, holdfast.Unavailable)
	if v.holds() != "" {
		t.Error("it stays held")
	}
}

// Who attaches the volume gets it, held or not; another node that serves it is
// named.
func TestHoldGivesWayToAClient(t *testing.T) {
	db := memory.New()
	a, b := newRig(t, db, "a").start(), newRig(t, db, "b").start()
	id := volume(t, db, "v", "a", "b").ID
	if err := a.PrepareHold(t.Context(), id, time.Minute); err != nil {
		t.Fatal(err)
	}
	wantKind(t, b.PrepareHold(t.Context(), id, time.Minute), holdfast.Unavailable)
	if _, err := a.Attach(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if err := a.PrepareHold(t.Context(), id, time.Minute); err != nil {
		t.Errorf("attached here: %v", err)
	}
	if got := read(t, db, id).AttachedTo(); got != "a" {
		t.Errorf("attached to %q", got)
	}
	wantKind(t, a.PrepareHold(t.Context(), "0123", time.Minute), holdfast.NotFound)
}
