package testcluster_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/controller/lifecycle"
	"github.com/holdfast-storage/holdfast/controller/reconcile"
	"github.com/holdfast-storage/holdfast/internal/testcluster"
)

// A volume gets more replicas and fewer, limits and none, while an application
// writes to it: that sees no error, and what it wrote is on every replica.
func TestAVolumeIsModifiedWhileItIsWritten(t *testing.T) {
	c := testcluster.Start(t, testcluster.Options{})
	for _, n := range c.Nodes {
		n.WaitReady()
	}
	life, err := lifecycle.New(lifecycle.Config{Store: c.DB, Nodes: clients{c}})
	if err != nil {
		t.Fatal(err)
	}
	defer life.Close()
	rec, err := reconcile.New(reconcile.Config{Store: c.DB.Client(), Lifecycle: life, Nodes: clients{c}, Candidate: "test",
		Interval: 200 * time.Millisecond, MinInterval: 50 * time.Millisecond, VerifyEvery: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); rec.Run(ctx) }()
	defer func() { cancel(); <-done }()

	vol, err := life.Create(t.Context(), "db", holdfast.Spec{SizeBytes: 16 << 20, Replicas: 1})
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(c.Nodes, func(n *testcluster.Node) bool { return n.ID == vol.Replicas[0].Node })
	written := rounds(t, []string{c.Nodes[i].Attach(vol.ID)}) // fails the test, by standing still, at the first error
	goesOn := func(what string) {
		t.Helper()
		n := written.Load()
		c.Eventually("writing goes on with "+what, func() bool { return written.Load() > n+5 })
	}
	num := func(n int) *int { return &n }
	big := func(n int64) *int64 { return &n }
	goesOn("one replica")
	for what, bad := range map[string]lifecycle.Changes{"4 replicas": {Replicas: num(4)}, "too few operations": {IOPS: big(1)}, "no replica": {Replicas: num(0)}} {
		if _, err := life.Modify(t.Context(), "db", bad); !errors.Is(err, holdfast.Invalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for _, step := range []struct {
		what string
		c    lifecycle.Changes
		want int
	}{
		{"three replicas and a limit", lifecycle.Changes{Replicas: num(3), IOPS: big(200)}, 3},
		{"two replicas and no limit", lifecycle.Changes{Replicas: num(2), IOPS: big(0)}, 2},
		{"three replicas again", lifecycle.Changes{Replicas: num(3)}, 3},
	} {
		for range 2 { // the second changes nothing
			if _, err := life.Modify(t.Context(), "db", step.c); err != nil {
				t.Fatalf("%s: %v", step.what, err)
			}
		}
		c.Eventually(step.what, func() bool {
			r := c.Record(vol.ID)
			return len(r.Replicas) == step.want && len(r.InSyncReplicas()) == step.want
		})
		goesOn(step.what)
	}
	if r := c.Record(vol.ID); r.Spec.Limits.Any() || r.AttachedTo() != c.Nodes[i].ID {
		t.Errorf("it ends as %+v", r)
	}
}
