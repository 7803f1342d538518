package testcluster_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/controller/lifecycle"
	"github.com/holdfast-storage/holdfast/internal/testcluster"
)

// A clone on real pools has the snapshot's content on every node, whatever is
// written to its source, also when the snapshot is deleted at once; that goes
// when no replica of the clone reads from it any more.
func TestACloneOutlivesItsSnapshot(t *testing.T) {
	c := testcluster.Start(t, testcluster.Options{})
	life, err := lifecycle.New(lifecycle.Config{Store: c.DB, Nodes: clients{c}})
	if err != nil {
		t.Fatal(err)
	}
	defer life.Close()
	ctx := t.Context()
	src, err := life.Create(ctx, "db", holdfast.Spec{SizeBytes: 64 << 20})
	if err != nil {
		t.Fatal(err)
	}
	sum := func(dev string) string {
		return strings.Fields(run(t, fmt.Sprintf("dd if=%s bs=1M count=16 iflag=direct status=none | sha256sum", dev)))[0]
	}
	fill := func(dev string) {
		run(t, fmt.Sprintf("dd if=/dev/urandom of=%s bs=1M count=16 oflag=direct conv=fsync,notrunc status=none", dev))
	}
	dev := c.Nodes[0].Attach(src.ID)
	fill(dev)
	want := sum(dev)
	rec, snap, err := life.CreateSnapshot(ctx, lifecycle.SnapshotRequest{Volume: "db", Name: "monday"})
	if err != nil {
		t.Fatal(err)
	}
	ref := lifecycle.SnapshotRef{Volume: rec.ID, Snapshot: snap.ID}
	fill(dev)
	clone, err := life.CreateVolume(ctx, lifecycle.CreateRequest{Name: "clone", Source: &lifecycle.Source{Snapshot: ref}})
	if err != nil {
		t.Fatal(err)
	}
	if len(clone.InSyncReplicas()) != 3 {
		t.Errorf("the clone has replicas %+v", clone.Replicas)
	}
	if err := life.DeleteSnapshot(ctx, ref); err != nil {
		t.Fatal(err)
	}
	fill(dev)
	c.Eventually("the snapshot goes", func() bool { r := c.Record(src.ID); return len(r.Snapshots) == 0 })
	c.Nodes[0].Detach(src.ID)
	for _, n := range c.Nodes[1:] {
		if got := sum(n.Attach(clone.ID)); got != want {
			t.Errorf("on %s the clone is not what the snapshot was", n.ID)
		}
		n.Detach(clone.ID)
	}
}
