package lifecycle_test

import (
	"testing"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/controller/lifecycle"
)

// A snapshot is refused beforehand, leaving nothing, when snapshots take more than
// their share of a pool; what exists is answered still.
func TestSnapshotsHaveAShareOfThePool(t *testing.T) {
	c, s := three(t)
	primaries(t, c)
	mustCreate(t, s, "db", size(gib))
	other := mustCreate(t, s, "other", size(gib))
	c.SnapshotsTake("pool-n2", 50*gib)
	take(t, s, "db", "monday")
	c.SnapshotsTake("pool-n2", 50*gib+1)
	take(t, s, "db", "monday")
	_, _, err := s.CreateSnapshot(t.Context(), lifecycle.SnapshotRequest{Volume: "db", Name: "tuesday"})
	wantKind(t, err, holdfast.NoSpace, "pool-n2", "node n2", "50 %", "snapshotPercent", "snapshot list")
	rec, err := s.Get(t.Context(), "db")
	if err != nil || len(rec.Snapshots) != 1 {
		t.Errorf("the volume has %+v, %v", rec.Snapshots, err)
	}
	if owner, err := c.Store.Claim(t.Context(), "tuesday"); err != nil || owner != "" {
		t.Errorf("the name is claimed by %q, %v", owner, err)
	}
	_, err = s.CreateGroupSnapshot(t.Context(), lifecycle.GroupRequest{Name: "both", Volumes: []string{"db", "other"}})
	wantKind(t, err, holdfast.NoSpace, "pool-n2")
	if rec, err = s.Get(t.Context(), string(other.ID)); err != nil || len(rec.Snapshots) != 0 {
		t.Errorf("the other volume has %+v, %v", rec.Snapshots, err)
	}
	// A node that is away, or whose replica is not in sync, has no say.
	c.Node("n2").Kill()
	take(t, s, "db", "wednesday")
	c.Node("n2").Start()
	c.SnapshotsTake("pool-n2", 0)
	take(t, s, "db", "thursday")
}
