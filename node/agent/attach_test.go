package agent_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/metadata/memory"
	"github.com/holdfast-storage/holdfast/node/agent"
)

func TestAttachAgainIsTheSameDeviceAndDetachGivesBack(t *testing.T) {
	db := memory.New()
	a := newRig(t, db, "a").start()
	rec := volume(t, db, "v", "a")
	path, err := a.Attach(t.Context(), rec.ID)
	if err != nil {
		t.Fatal(err)
	}
	again, err := a.Attach(t.Context(), rec.ID)
	if err != nil || again != path {
		t.Fatalf("again: %q, %v; want %q", again, err, path)
	}
	if got := read(t, db, rec.ID).AttachedTo(); got != "a" {
		t.Errorf("the record says attached to %q", got)
	}
	if p, ok := a.Attached(rec.ID); !ok || p != path {
		t.Errorf("Attached: %q, %v", p, ok)
	}
	for range 2 { // the second is the repeated call
		if err := a.Detach(t.Context(), rec.ID); err != nil {
			t.Fatal(err)
		}
	}
	if got := read(t, db, rec.ID).AttachedTo(); got != "" {
		t.Errorf("after detaching the record says attached to %q", got)
	}
	want := []string{"closed device of " + string(rec.ID), "released " + string(rec.ID)}
	if got := a.plane.history(); !slices.Equal(got, want) {
		t.Errorf("order %v, want the device first, then the grant", got)
	}
	if err := a.Detach(t.Context(), holdfast.NewVolumeID()); err != nil {
		t.Errorf("detaching what does not exist: %v", err)
	}
	_, err = a.Attach(t.Context(), holdfast.NewVolumeID())
	wantKind(t, err, holdfast.NotFound)
}

func TestManyAttachesAreOneOpen(t *testing.T) {
	db := memory.New()
	a := newRig(t, db, "a").start()
	rec := volume(t, db, "v", "a")
	a.plane.block = make(chan struct{})
	impatient, cancel := context.WithCancel(t.Context())
	first := make(chan error, 1)
	go func() { _, err := a.Attach(impatient, rec.ID); first <- err }()
	eventually(t, "the open began", func() bool { return a.plane.opened() == 1 })
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Fatalf("a caller that gave up got %v", err)
	}
	var wg sync.WaitGroup
	paths := make([]string, 8)
	for i := range paths {
		wg.Go(func() { paths[i], _ = a.Attach(t.Context(), rec.ID) })
	}
	close(a.plane.block)
	wg.Wait()
	if got := slices.Compact(paths); len(got) != 1 || got[0] == "" || a.plane.opened() != 1 {
		t.Errorf("paths %q, %d opens; want one of each", got, a.plane.opened())
	}
}

func TestAttachIsRefusedWhileALiveNodeHoldsItAndGrantedOnceItIsDead(t *testing.T) {
	db := memory.New()
	a, b := newRig(t, db, "a").start(), newRig(t, db, "b").start()
	rec := volume(t, db, "v", "a", "b")
	if _, err := a.Attach(t.Context(), rec.ID); err != nil {
		t.Fatal(err)
	}
	_, err := b.Attach(t.Context(), rec.ID)
	wantKind(t, err, holdfast.InUse)
	if !strings.Contains(err.Error(), "node a") {
		t.Errorf("the error does not name the holder: %v", err)
	}
	a.crash()
	eventually(t, "b gets it when a's lease has run out", func() bool {
		_, err := b.Attach(t.Context(), rec.ID)
		return err == nil
	})
}

func TestForceTakesItAndTheFencedHolderRemovesItsDevice(t *testing.T) {
	db := memory.New()
	a, b := newRig(t, db, "a").start(), newRig(t, db, "b").start()
	rec := volume(t, db, "v", "a", "b")
	if _, err := a.Attach(t.Context(), rec.ID); err != nil {
		t.Fatal(err)
	}
	dev := a.front.device(rec.ID)
	dev.mount(true)
	if _, err := b.ForceAttach(t.Context(), rec.ID); err != nil {
		t.Fatal(err)
	}
	a.plane.volume(rec.ID).end(holdfast.E("", holdfast.Fenced, "b has taken over"))
	eventually(t, "a's device is aborted and forgotten", func() bool {
		_, ok := a.Attached(rec.ID)
		return dev.isAborted() && !ok
	})
	if err := a.Detach(t.Context(), rec.ID); err != nil {
		t.Errorf("detaching what was fenced: %v", err)
	}
	if got := read(t, db, rec.ID).AttachedTo(); got != "b" {
		t.Errorf("a's detach touched b's grant: attached to %q", got)
	}
	if ev := a.Events(rec.ID); len(ev) == 0 || !strings.Contains(ev[len(ev)-1].What, "b has taken over") {
		t.Errorf("events %v do not say why", ev)
	}
}

func TestDetachIsRefusedWhileMountedUnlessForced(t *testing.T) {
	db := memory.New()
	a := newRig(t, db, "a").start()
	rec := volume(t, db, "v", "a")
	if _, err := a.Attach(t.Context(), rec.ID); err != nil {
		t.Fatal(err)
	}
	a.front.device(rec.ID).mount(true)
	wantKind(t, a.Detach(t.Context(), rec.ID), holdfast.InUse)
	if got := read(t, db, rec.ID).AttachedTo(); got != "a" {
		t.Fatalf("a refused detach gave the grant back")
	}
	if err := a.ForceDetach(t.Context(), rec.ID); err != nil {
		t.Fatal(err)
	}
	if !a.front.device(rec.ID).isAborted() || read(t, db, rec.ID).AttachedTo() != "" {
		t.Error("forced detach left the device or the grant")
	}
}

func TestADetachThatCouldNotGiveBackIsFinishedByTheNext(t *testing.T) {
	db := memory.New()
	a := newRig(t, db, "a").start()
	rec := volume(t, db, "v", "a")
	if _, err := a.Attach(t.Context(), rec.ID); err != nil {
		t.Fatal(err)
	}
	v := a.plane.volume(rec.ID)
	v.setStuck(holdfast.E("release", holdfast.Unavailable, "no metadata store"))
	wantKind(t, a.Detach(t.Context(), rec.ID), holdfast.Unavailable)
	if _, ok := a.Attached(rec.ID); ok {
		t.Error("the device is still there")
	}
	v.setStuck(nil)
	if err := a.Detach(t.Context(), rec.ID); err != nil {
		t.Fatal(err)
	}
	if got := read(t, db, rec.ID).AttachedTo(); got != "" {
		t.Errorf("still attached to %q", got)
	}
}

func TestADeviceThatCannotBeMadeGivesTheGrantBack(t *testing.T) {
	db := memory.New()
	a := newRig(t, db, "a").start()
	rec := volume(t, db, "v", "a")
	a.front.fail = holdfast.E("open device", holdfast.Unavailable, "no loop device")
	_, err := a.Attach(t.Context(), rec.ID)
	wantKind(t, err, holdfast.Unavailable)
	if got := read(t, db, rec.ID).AttachedTo(); got != "" {
		t.Errorf("attached to %q after a failed attach", got)
	}
}

func TestADeviceGrowsWithItsVolume(t *testing.T) {
	db := memory.New()
	a := newRig(t, db, "a").start()
	rec := volume(t, db, "v", "a")
	wantKind(t, a.WaitSize(t.Context(), rec.ID, 1), holdfast.NotFound)
	if _, err := a.Attach(t.Context(), rec.ID); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	wantKind(t, a.WaitSize(short, rec.ID, 2<<30), holdfast.Unavailable)
	waited := make(chan error, 1)
	go func() { waited <- a.WaitSize(t.Context(), rec.ID, 2<<30-1) }()
	a.plane.volume(rec.ID).grow(2 << 30)
	if err := <-waited; err != nil {
		t.Fatal(err)
	}
	d := a.front.device(rec.ID)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.size != 2<<30 {
		t.Errorf("the device has %d bytes", d.size)
	}
}

func TestARestartedDaemonAttachesAgainWhatItsPredecessorHad(t *testing.T) {
	db := memory.New()
	a := newRig(t, db, "a").start()
	kept, detached := volume(t, db, "kept", "a"), volume(t, db, "detached", "a")
	for _, id := range []holdfast.VolumeID{kept.ID, detached.ID} {
		if _, err := a.Attach(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	a.front.device(kept.ID).mount(true)
	dev := a.front.device(kept.ID)
	a.stop()
	if got := read(t, db, kept.ID).AttachedTo(); got != "a" {
		t.Fatalf("a graceful stop gave back a mounted volume: attached to %q", got)
	}
	if !dev.isAborted() {
		t.Error("the mounted device was left without its server")
	}
	if got := read(t, db, detached.ID).AttachedTo(); got != "" {
		t.Errorf("a graceful stop kept an unmounted volume: attached to %q", got)
	}
	next := newRig(t, db, "a").start()
	eventually(t, "the successor attaches it again", func() bool { _, ok := next.Attached(kept.ID); return ok })
	if _, ok := next.Attached(detached.ID); ok {
		t.Error("the successor attached what was detached")
	}
}

func TestARestartedDaemonGivesUpWhatSomebodyElseHas(t *testing.T) {
	db := memory.New()
	a := newRig(t, db, "a").start()
	rec := volume(t, db, "v", "a", "b")
	if _, err := a.Attach(t.Context(), rec.ID); err != nil {
		t.Fatal(err)
	}
	a.crash()
	b := newRig(t, db, "b").start()
	eventually(t, "b gets it", func() bool { _, err := b.Attach(t.Context(), rec.ID); return err == nil })
	next := newRig(t, db, "a").start()
	_, err := next.Attach(t.Context(), rec.ID)
	wantKind(t, err, holdfast.InUse)
	if got := read(t, db, rec.ID).AttachedTo(); got != "b" {
		t.Errorf("attached to %q", got)
	}
}

func TestDetachGivesBackAPredecessorsGrantAndEndsAttachingAgain(t *testing.T) {
	db := memory.New()
	rec := volume(t, db, "v", "a")
	change(t, db, rec.ID, func(r *holdfast.Record) {
		r.Epoch = 4
		r.Primary = &holdfast.Primary{Node: "a", Kind: holdfast.ClientPrimary, Grant: 4}
	})
	a := newRig(t, db, "a")
	a.plane.refuse(holdfast.E("open", holdfast.Unavailable, "its replicas do not answer"))
	a.start()
	eventually(t, "attaching again began", func() bool { return a.plane.opened() > 0 })
	if err := a.Detach(t.Context(), rec.ID); err != nil {
		t.Fatal(err)
	}
	if got := read(t, db, rec.ID).AttachedTo(); got != "" {
		t.Fatalf("attached to %q", got)
	}
	a.plane.refuse(nil)
	eventually(t, "attaching again is given up", func() bool {
		ev := a.Events(rec.ID)
		return strings.Contains(ev[len(ev)-1].What, "not attached again")
	})
	if got := read(t, db, rec.ID).AttachedTo(); got != "" {
		t.Errorf("attached to %q after it was detached", got)
	}
}

func TestAnAttachAfterAHalfDoneDetachBeginsAnew(t *testing.T) {
	db := memory.New()
	a := newRig(t, db, "a").start()
	rec := volume(t, db, "v", "a")
	if _, err := a.Attach(t.Context(), rec.ID); err != nil {
		t.Fatal(err)
	}
	v := a.plane.volume(rec.ID)
	v.setStuck(holdfast.E("release", holdfast.Unavailable, "no metadata store"))
	wantKind(t, a.Detach(t.Context(), rec.ID), holdfast.Unavailable)
	_, err := a.Attach(t.Context(), rec.ID)
	wantKind(t, err, holdfast.Unavailable)
	v.setStuck(nil)
	if _, err := a.Attach(t.Context(), rec.ID); err != nil {
		t.Fatal(err)
	}
	if a.plane.volume(rec.ID) == v {
		t.Error("the device is served by a primary that takes no more I/O")
	}
}

func TestADetachEndsAnAttachThatWaits(t *testing.T) {
	db := memory.New()
	a := newRig(t, db, "a").start()
	rec := volume(t, db, "v", "a")
	a.plane.block = make(chan struct{}) // the replicas never answer
	attached := make(chan error, 1)
	go func() { _, err := a.Attach(t.Context(), rec.ID); attached <- err }()
	eventually(t, "the attach waits", func() bool { return a.plane.opened() == 1 })
	if err := a.Detach(t.Context(), rec.ID); err != nil {
		t.Fatal(err)
	}
	wantKind(t, <-attached, holdfast.Unavailable)
	if got := read(t, db, rec.ID).AttachedTo(); got != "" {
		t.Errorf("attached to %q", got)
	}
}

func TestAForcedDetachDoesNotWaitForIOThatCannotGoOn(t *testing.T) {
	db := memory.New()
	a := newRig(t, db, "a").start()
	rec := volume(t, db, "v", "a")
	if _, err := a.Attach(t.Context(), rec.ID); err != nil {
		t.Fatal(err)
	}
	a.plane.volume(rec.ID).setStuck(holdfast.E("release", holdfast.Unavailable, "I/O waits for space in a pool"))
	wantKind(t, a.Detach(t.Context(), rec.ID), holdfast.Unavailable)
	if err := a.ForceDetach(t.Context(), rec.ID); err != nil {
		t.Fatal(err)
	}
	if got := read(t, db, rec.ID).AttachedTo(); got != "" {
		t.Errorf("attached to %q", got)
	}
	if !slices.Contains(a.plane.history(), "aborted "+string(rec.ID)) {
		t.Errorf("what was done: %v", a.plane.history())
	}
	if _, err := a.Attach(t.Context(), rec.ID); err != nil { // and again
		t.Fatal(err)
	}
}

// TestAVolumeWhoseDiskFailedIsAttachedAgain: the device ends when the last good
// disk fails; nobody else can have the volume then, and it is served again as soon
// as that is possible.
func TestAVolumeWhoseDiskFailedIsAttachedAgain(t *testing.T) {
	db := memory.New()
	a := newRig(t, db, "a").start()
	rec := volume(t, db, "v", "a")
	if _, err := a.Attach(t.Context(), rec.ID); err != nil {
		t.Fatal(err)
	}
	a.plane.refuse(holdfast.E("open", holdfast.Unavailable, "its replica does not answer"))
	a.plane.volume(rec.ID).end(holdfast.E("serve", holdfast.Corrupt, "the last in-sync replica cannot be relied on: its disk has failed"))
	eventually(t, "the device is gone", func() bool { _, ok := a.Attached(rec.ID); return !ok })
	eventually(t, "it is tried again", func() bool { return a.plane.opened() >= 2 })
	a.plane.refuse(nil)
	eventually(t, "it is attached again", func() bool { _, ok := a.Attached(rec.ID); return ok })
	if err := a.Detach(t.Context(), rec.ID); err != nil {
		t.Fatal(err)
	}
}

func TestAnAttachSaysForWhatItWaits(t *testing.T) {
	db := memory.New()
	a := newRig(t, db, "a").start()
	rec := volume(t, db, "v", "a")
	block := make(chan struct{})
	a.plane.block = block
	attached := make(chan error, 1)
	go func() { _, err := a.Attach(t.Context(), rec.ID); attached <- err }()
	waits := func() []agent.Wait { return a.Waits(rec.ID)[rec.ID] }
	eventually(t, "it says so", func() bool {
		ws := waits()
		return len(ws) == 1 && ws[0].What == "attach" && ws[0].For == "the take-over" && ws[0].Long > 0
	})
	close(block)
	if err := <-attached; err != nil {
		t.Fatal(err)
	}
	if ws := waits(); len(ws) != 0 {
		t.Errorf("it waits still: %v", ws)
	}
}
