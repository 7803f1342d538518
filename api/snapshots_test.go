package api_test

import (
	"testing"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/grpcstatus"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

// withSnapshots is a cluster with one volume that has two snapshots, and one that
// nobody is to see.
func withSnapshots(t *testing.T) (*cluster, holdfast.Record, holdfastv1.SnapshotServiceClient) {
	t.Helper()
	c := newCluster(t)
	v, err := c.vol.CreateVolume(t.Context(), &holdfastv1.CreateVolumeRequest{Name: "db", SizeBytes: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	rec, err := c.store.Volume(t.Context(), v.GetId())
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range []holdfast.Snapshot{
		{ID: "s1", Name: "one", State: holdfast.SnapshotReady}, {ID: "s2", Name: "two", State: holdfast.SnapshotReady, Labels: map[string]string{"a": "b"}},
		{ID: "s3", State: holdfast.SnapshotReady}, {ID: "s4", Name: "four", State: holdfast.SnapshotDeleting},
	} {
		x.Epoch, x.Cut, x.SizeBytes = 1, "1", 1<<30
		rec.PutSnapshot(x)
	}
	for name, id := range map[string]string{"one": "s1", "two": "s2"} {
		if _, err := c.store.SwapClaim(t.Context(), name, "", string(rec.ID)+"."+id); err != nil {
			t.Fatal(err)
		}
	}
	if rec, err = c.store.SwapVolume(t.Context(), rec); err != nil {
		t.Fatal(err)
	}
	conn, err := c.conns.Conn(c.unix)
	if err != nil {
		t.Fatal(err)
	}
	return c, rec, holdfastv1.NewSnapshotServiceClient(conn)
}

func TestSnapshotsAreListedAndShown(t *testing.T) {
	c, rec, cl := withSnapshots(t)
	for _, q := range []struct {
		q    *holdfastv1.ListSnapshotsRequest
		want int
	}{{&holdfastv1.ListSnapshotsRequest{}, 2}, {&holdfastv1.ListSnapshotsRequest{Volume: "db"}, 2}, {&holdfastv1.ListSnapshotsRequest{Labels: map[string]string{"a": "b"}}, 1}} {
		ls, err := cl.ListSnapshots(t.Context(), q.q)
		if err != nil || len(ls.GetSnapshots()) != q.want || ls.GetSnapshots()[0].GetAllocatedBytes() != -1 {
			t.Errorf("%v lists %v, %v", q.q, ls, err)
		}
	}
	for node, bytes := range map[holdfast.NodeID]int64{"n1": 64 << 10, "n2": 128 << 10} {
		c.nodes[node].volumes = []*holdfastv1.NodeVolume{{VolumeId: string(rec.ID), Replica: &holdfastv1.ReplicaStatus{
			ReplicaId: "x", Snapshots: []*holdfastv1.SnapshotUsage{{SnapshotId: "s1", HeldBytes: bytes, AllocatedBytes: bytes / 2}}}}}
	}
	x, err := cl.GetSnapshot(t.Context(), &holdfastv1.GetSnapshotRequest{Snapshot: "one"})
	if err != nil || x.GetId() != string(rec.ID)+".s1" || x.GetVolume() != "db" || x.GetExclusiveBytes() != 128<<10 || x.GetAllocatedBytes() != 64<<10 {
		t.Errorf("shown is %v, %v", x, err)
	}
	v, err := c.vol.GetVolume(t.Context(), &holdfastv1.GetVolumeRequest{Volume: "db"})
	if err != nil || v.GetSnapshots() != 2 {
		t.Errorf("the volume has %d snapshots, %v", v.GetSnapshots(), err)
	}
}

func TestSnapshotsAreDeletedByName(t *testing.T) {
	c, rec, cl := withSnapshots(t)
	for _, name := range []string{"one", "one", string(rec.ID) + ".s2", "nothing"} {
		if _, err := cl.DeleteSnapshot(t.Context(), &holdfastv1.DeleteSnapshotRequest{Snapshot: name}); err != nil {
			t.Errorf("delete %s: %v", name, err)
		}
	}
	if rec, _ = c.store.Volume(t.Context(), "db"); rec.Snapshot("s1").State != holdfast.SnapshotDeleting || rec.Snapshot("s2").State != holdfast.SnapshotDeleting {
		t.Errorf("left are %+v", rec.Snapshots)
	}
}

func TestClonesNeedOneSource(t *testing.T) {
	c, _, _ := withSnapshots(t)
	for _, x := range []struct {
		q    *holdfastv1.CreateVolumeRequest
		kind holdfast.Kind
	}{
		{&holdfastv1.CreateVolumeRequest{Name: "c", SourceVolume: "db", SourceSnapshot: "one"}, holdfast.Invalid},
		{&holdfastv1.CreateVolumeRequest{Name: "c", SourceVolume: "nothing"}, holdfast.NotFound},
		{&holdfastv1.CreateVolumeRequest{Name: "c", SourceSnapshot: "nothing"}, holdfast.NotFound},
		{&holdfastv1.CreateVolumeRequest{Name: "c", SourceSnapshot: "one", SizeBytes: 1 << 20}, holdfast.OutOfRange},
	} {
		_, err := c.vol.CreateVolume(t.Context(), x.q)
		if got := holdfast.KindOf(grpcstatus.From(err)); got != x.kind {
			t.Errorf("%v: %v, want kind %v", x.q, err, x.kind)
		}
	}
}
