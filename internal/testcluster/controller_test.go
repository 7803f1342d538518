package testcluster_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/controller/lifecycle"
	"github.com/holdfast-storage/holdfast/controller/reconcile"
	"github.com/holdfast-storage/holdfast/internal/testcluster"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

// clients finds the cluster's nodes.
type clients struct{ c *testcluster.Cluster }

func (f clients) Client(_ context.Context, id holdfast.NodeID) (holdfastv1.NodeServiceClient, error) {
	for _, n := range f.c.Nodes {
		if n.ID != id {
			continue
		}
		if n.Agent().Node().APIAddr == "" { // alive again, but it does not listen yet
			return nil, holdfast.E("find node", holdfast.Unavailable, string(id)+" has not said yet where it is")
		}
		return n.Client(), nil
	}
	return nil, holdfast.E("find node", holdfast.NotFound, string(id))
}

// run executes a program in its own process: this one serves the devices.
func run(t *testing.T, script string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "sh", "-ec", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return strings.TrimSpace(string(out))
}

// The controller with real nodes: a volume is created, written, moved off a
// draining node, repaired onto another when a node is lost, expanded, and
// deleted, and nothing is left.
func TestControllerWithRealNodes(t *testing.T) {
	c := testcluster.Start(t, testcluster.Options{Storage: 5})
	for _, n := range c.Nodes {
		n.WaitReady()
	}
	life, err := lifecycle.New(lifecycle.Config{Store: c.DB, Nodes: clients{c}})
	if err != nil {
		t.Fatal(err)
	}
	defer life.Close()
	rec, err := reconcile.New(reconcile.Config{Store: c.DB.Client(), Lifecycle: life, Nodes: clients{c}, Candidate: "test",
		Interval: 200 * time.Millisecond, MinInterval: 50 * time.Millisecond, VerifyEvery: time.Second, Limits: reconcile.Limits{ReplaceAfter: 4 * time.Second}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); rec.Run(ctx) }()
	defer func() { cancel(); <-done }()

	began := time.Now()
	mark := func(what string) { t.Logf("%6.2fs %s", time.Since(began).Seconds(), what) }
	vol, err := life.Create(ctx, "db", holdfast.Spec{SizeBytes: 64<<20 + 5})
	if err != nil {
		t.Fatal(err)
	}
	mark("created")
	byID := map[holdfast.NodeID]*testcluster.Node{}
	for _, n := range c.Nodes {
		byID[n.ID] = n
	}
	at, drained, lost := vol.Replicas[0].Node, vol.Replicas[1].Node, vol.Replicas[2].Node
	_, dev, err := life.Attach(ctx, "db", at, false)
	if err != nil {
		t.Fatal(err)
	}
	mark("attached")
	data := bytes.Repeat([]byte("holdfast"), 1<<20)
	file := t.TempDir() + "/data"
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, fmt.Sprintf("dd if=%s of=%s bs=1M seek=3 oflag=direct conv=fsync,notrunc status=none", file, dev))
	sum := func() string {
		return strings.Fields(run(t, fmt.Sprintf("dd if=%s bs=1M skip=3 count=8 iflag=direct status=none | sha256sum", dev)))[0]
	}
	want := fmt.Sprintf("%x", sha256.Sum256(data))

	if _, err := life.Drain(ctx, drained); err != nil {
		t.Fatal(err)
	}
	healthyWithout := func(n holdfast.NodeID) func() bool {
		return func() bool {
			r := c.Record(vol.ID)
			return r.On(n) == nil && len(r.Replicas) == 3 && r.Healthy()
		}
	}
	c.Eventually("the node is drained", healthyWithout(drained))
	mark("drained")
	c.Eventually("its data is gone", func() bool { return byID[drained].Volume(vol.ID).GetReplica() == nil })
	mark("purged")
	if sum() != want {
		t.Error("other data after draining")
	}
	byID[lost].Kill()
	if _, err := life.Undrain(ctx, drained); err != nil {
		t.Fatal(err)
	}
	c.Eventually("the lost replica is replaced", healthyWithout(lost))
	mark("replaced")
	if sum() != want {
		t.Error("other data after replacing")
	}
	if r, err := life.Expand(ctx, "db", 100<<20); err != nil || r.SizeBytes != 100<<20 {
		t.Errorf("expand: %+v, %v", r, err)
	}
	mark("expanded")
	if got := run(t, "blockdev --getsize64 "+dev); got != fmt.Sprint(100<<20) {
		t.Errorf("the device has %s bytes", got)
	}
	byID[lost].Start()
	byID[lost].WaitReady()
	c.Eventually("the returned node's old replica is removed", func() bool { return byID[lost].Volume(vol.ID).GetReplica() == nil })
	mark("old replica removed")
	if err := life.Delete(ctx, "db"); err == nil {
		t.Error("an attached volume was deleted")
	}
	if _, err := life.Detach(ctx, "db", false); err != nil {
		t.Fatal(err)
	}
	mark("detached")
	// Not attached: maintenance primaries do the work.
	vol2 := c.Record(vol.ID)
	if _, err := life.Drain(ctx, vol2.Replicas[0].Node); err != nil {
		t.Fatal(err)
	}
	c.Eventually("drained while detached", healthyWithout(vol2.Replicas[0].Node))
	mark("drained while detached")
	_, dev, err = life.Attach(ctx, "db", vol2.Replicas[0].Node, false)
	if err != nil {
		t.Fatal(err)
	}
	if sum() != want {
		t.Error("other data after draining while detached")
	}
	if _, err := life.Detach(ctx, "db", false); err != nil {
		t.Fatal(err)
	}
	if err := life.Delete(ctx, "db"); err != nil {
		t.Fatal(err)
	}
	c.Eventually("nothing is left", func() bool {
		for _, n := range c.Nodes {
			if n.Volume(vol.ID).GetReplica() != nil {
				return false
			}
		}
		ts, err := c.DB.Tombstones(ctx)
		return err == nil && len(ts) == 0
	})
	mark("deleted")
	if ps := rec.Problems(); len(ps) != 0 {
		t.Errorf("problems: %v", ps)
	}
}
