package reconcile

import (
	"slices"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
)

func TestOrphansOfGroups(t *testing.T) {
	now := time.Unix(10000, 0)
	v := &View{Now: now, Limits: Limits{FinishAfter: time.Minute}}
	rec := holdfast.Record{ID: "vol", Phase: holdfast.PhaseReady}
	put := func(id holdfast.SnapshotID, group string, age time.Duration, state holdfast.SnapshotState) {
		rec.PutSnapshot(holdfast.Snapshot{ID: id, Created: now.Add(-age), State: state, Epoch: 1, Group: group})
	}
	put("member", "g", time.Hour, holdfast.SnapshotReady)
	put("earlier", "g", time.Hour, holdfast.SnapshotReady)
	put("young", "g", time.Second, holdfast.SnapshotReady)
	put("groupless", "gone", time.Hour, holdfast.SnapshotReady)
	put("going", "gone", time.Hour, holdfast.SnapshotDeleting)
	put("alone", "", time.Hour, holdfast.SnapshotReady)
	v.Volumes = []holdfast.Record{rec}
	groups := []holdfast.Group{{ID: "g", Members: []holdfast.GroupMember{{Volume: "vol", Snapshot: "member"}}}}
	var got []string
	for _, ref := range planOrphans(v, groups) {
		got = append(got, ref.String())
	}
	if want := []string{"vol.earlier", "vol.groupless"}; !slices.Equal(got, want) {
		t.Errorf("orphans are %v, want %v", got, want)
	}
}
