package lifecycle_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/controller/internal/fakes"
	"github.com/holdfast-storage/holdfast/controller/lifecycle"
)

// operation is one that is killed at every step.
type operation struct {
	setup func(*testing.T, *fakes.Cluster, *lifecycle.Service)
	run   func(context.Context, *lifecycle.Service) error
	// check looks at the end state after a repeated call.
	check func(*testing.T, *fakes.Cluster, *lifecycle.Service)
}

func operations() map[string]operation {
	with := func(t *testing.T, c *fakes.Cluster, s *lifecycle.Service) { mustCreate(t, s, "db", size(gib)) }
	attached := func(t *testing.T, c *fakes.Cluster, s *lifecycle.Service) {
		with(t, c, s)
		if _, _, err := s.Attach(t.Context(), "db", "n1", false); err != nil {
			t.Fatal(err)
		}
	}
	dead := func(t *testing.T, c *fakes.Cluster, s *lifecycle.Service) { attached(t, c, s); c.Node("n1").Kill() }
	record := func(want func(holdfast.Record) bool) func(*testing.T, *fakes.Cluster, *lifecycle.Service) {
		return func(t *testing.T, c *fakes.Cluster, s *lifecycle.Service) {
			if rec, err := s.Get(t.Context(), "db"); err != nil || !want(rec) {
				t.Errorf("ends as %+v, %v", rec, err)
			}
		}
	}
	ops := cloneOperations()
	maps.Copy(ops, map[string]operation{
		"create": {
			setup: func(t *testing.T, c *fakes.Cluster, s *lifecycle.Service) { c.Add("n4", holdfast.Domain{}, 100*gib) },
			run: func(ctx context.Context, s *lifecycle.Service) error {
				_, err := s.Create(ctx, "db", size(gib))
				return err
			},
			check: record(func(r holdfast.Record) bool {
				return r.Phase == holdfast.PhaseReady && r.Epoch == 1 && len(r.InSyncReplicas()) == 3
			}),
		},
		"create with no node to spare": {
			run: func(ctx context.Context, s *lifecycle.Service) error {
				_, err := s.Create(ctx, "db", size(gib))
				return err
			},
			check: record(func(r holdfast.Record) bool {
				return r.Phase == holdfast.PhaseReady && r.Epoch == 1 && len(r.InSyncReplicas()) == 3
			}),
		},
		"delete": {setup: with,
			run: func(ctx context.Context, s *lifecycle.Service) error { return s.Delete(ctx, "db") },
			check: func(t *testing.T, c *fakes.Cluster, s *lifecycle.Service) {
				if _, err := s.Get(t.Context(), "db"); !errors.Is(err, holdfast.NotFound) {
					t.Errorf("still there: %v", err)
				}
			}},
		"attach": {setup: with,
			run: func(ctx context.Context, s *lifecycle.Service) error {
				_, _, err := s.Attach(ctx, "db", "n2", false)
				return err
			},
			check: record(func(r holdfast.Record) bool { return r.AttachedTo() == "n2" && r.Epoch == 2 })},
		"detach": {setup: attached,
			run: func(ctx context.Context, s *lifecycle.Service) error {
				_, err := s.Detach(ctx, "db", false)
				return err
			},
			check: record(func(r holdfast.Record) bool { return r.Primary == nil })},
		"detach from a dead node": {setup: dead,
			run: func(ctx context.Context, s *lifecycle.Service) error {
				_, err := s.Detach(ctx, "db", false)
				return err
			},
			check: record(func(r holdfast.Record) bool { return r.Primary == nil && r.Epoch == 2 })},
		"expand": {setup: with,
			run: func(ctx context.Context, s *lifecycle.Service) error {
				_, err := s.Expand(ctx, "db", 2*gib)
				return err
			},
			check: record(func(r holdfast.Record) bool { return r.Spec.SizeBytes == 2*gib })},
		"drain": {setup: with,
			run: func(ctx context.Context, s *lifecycle.Service) error { _, err := s.Drain(ctx, "n1"); return err },
			check: func(t *testing.T, c *fakes.Cluster, s *lifecycle.Service) {
				if n, err := c.Store.Node(t.Context(), "n1"); err != nil || !n.Draining {
					t.Errorf("ends as %+v, %v", n, err)
				}
			}},
		"forget": {setup: dead,
			run: func(ctx context.Context, s *lifecycle.Service) error {
				_, err := s.Forget(ctx, "n1")
				if errors.Is(err, holdfast.NotFound) {
					err = nil // it was done, and its answer lost
				}
				return err
			},
			check: record(func(r holdfast.Record) bool { return r.Primary == nil && r.On("n1").Leaving })},
	})
	return ops
}

// cloneOperations need primaries, which take the snapshots.
func cloneOperations() map[string]operation {
	var source lifecycle.Source
	clone := func(ctx context.Context, s *lifecycle.Service) error {
		_, err := s.CreateVolume(ctx, cloneOf(source, 2*gib))
		return err
	}
	made := func(t *testing.T, c *fakes.Cluster, s *lifecycle.Service) {
		rec, err := s.Get(t.Context(), "clone")
		if err != nil || rec.Phase != holdfast.PhaseReady || len(rec.Replicas) == 0 || rec.SizeBytes != 2*gib {
			t.Errorf("ends as %+v, %v", rec, err)
		}
	}
	return map[string]operation{
		"clone a snapshot": {run: clone, check: made, setup: func(t *testing.T, c *fakes.Cluster, s *lifecycle.Service) {
			primaries(t, c)
			mustCreate(t, s, "db", size(gib))
			source = lifecycle.Source{Snapshot: take(t, s, "db", "monday")}
		}},
		"clone a volume": {run: clone, check: made, setup: func(t *testing.T, c *fakes.Cluster, s *lifecycle.Service) {
			primaries(t, c)
			source = lifecycle.Source{Volume: mustCreate(t, s, "db", size(gib)).ID}
		}},
	}
}

// checkClones looks whether all in-sync replicas of a clone were made of what its
// record says.
func checkClones(t *testing.T, c *fakes.Cluster, recs []holdfast.Record) {
	for _, r := range recs {
		for _, x := range r.InSyncReplicas() {
			if r.Origin != nil && c.Node(x.Node).Replicas()[x.ID].Content != string(r.Origin.Snapshot) {
				t.Errorf("replica %s of the clone of %+v is made of %+v", x.ID, r.Origin, c.Node(x.Node).Replicas()[x.ID])
			}
		}
	}
}

// until ends the caller's waiting when its controller has died.
func until(t *testing.T, d *fakes.Death) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	if d.Once {
		t.Cleanup(cancel)
		return ctx
	}
	go func() {
		defer cancel()
		for ctx.Err() == nil && !d.Struck() {
			<-time.After(time.Millisecond)
		}
	}()
	return ctx
}

// Every operation is killed at every step, before the step and after it, or only
// that step fails; then it is repeated, or only finished by reconcile. It must end
// in the same place, with nothing leaked.
func TestOperationsKilledAtEveryStep(t *testing.T) {
	for name, op := range operations() {
		for _, mode := range []struct{ after, once bool }{{}, {after: true}, {once: true}, {once: true, after: true}} {
			for _, repeat := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s/after=%v/once=%v/repeat=%v", name, mode.after, mode.once, repeat), func(t *testing.T) {
					for at := 1; ; at++ {
						if at > 100 {
							t.Fatal("it never ends")
						}
						d := fakes.Death{At: at, After: mode.after, Once: mode.once}
						if !killAt(t, op, &d, repeat) {
							return
						}
					}
				})
			}
		}
	}
}

// killAt runs an operation with one death and says whether that was reached.
func killAt(t *testing.T, op operation, d *fakes.Death, repeat bool) bool {
	c, healthy := three(t)
	if op.setup != nil {
		op.setup(t, c, healthy)
	}
	store := c.Store.Client()
	doomed := newService(t, c, store)
	d.On(c, store)
	err := op.run(until(t, d), doomed)
	doomed.Close()
	reached := d.Struck()
	if !reached && err != nil {
		t.Fatalf("without a fault it fails: %v", err)
	}
	c.SetFault(nil)
	c.Check()
	if repeat {
		if err := op.run(t.Context(), healthy); err != nil {
			t.Fatalf("step %d: repeated after %v, it fails: %v", d.At, err, err)
		}
		op.check(t, c, healthy)
	} else {
		recs, _ := healthy.List(t.Context())
		for _, r := range recs {
			if err := healthy.Finish(t.Context(), r.ID); err != nil {
				t.Fatal(err)
			}
		}
		recs, _ = healthy.List(t.Context())
		for _, r := range recs {
			if r.Phase != holdfast.PhaseReady {
				t.Errorf("step %d: ends %s", d.At, r.Phase)
			}
		}
	}
	recs, err := healthy.List(t.Context())
	if err != nil {
		t.Error(err)
	}
	checkClones(t, c, recs)
	for _, n := range []holdfast.NodeID{"n1", "n2", "n3"} {
		_ = healthy.Purge(t.Context(), n) // fails for a dead one
	}
	if c.Node("n4") != nil {
		_ = healthy.Purge(t.Context(), "n4")
	}
	c.CheckClean()
	if t.Failed() {
		t.Fatalf("killed at step %d", d.At)
	}
	return reached
}
