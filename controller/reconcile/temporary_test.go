package reconcile

import (
	"slices"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/controller/lifecycle"
)

func TestSnapshotsForClonesAreDroppedWhenTheCloneIsReadyOrNobodyMakesIt(t *testing.T) {
	now := time.Unix(10000, 0)
	v := &View{Now: now, Limits: Limits{FinishAfter: time.Minute}}
	src := holdfast.Record{ID: "src", Phase: holdfast.PhaseReady}
	put := func(id holdfast.SnapshotID, age time.Duration, change func(*holdfast.Snapshot)) {
		x := holdfast.Snapshot{ID: id, Created: now.Add(-age), State: holdfast.SnapshotReady, Epoch: 1, Labels: map[string]string{lifecycle.CloneLabel: "c"}}
		change(&x)
		src.PutSnapshot(x)
	}
	same := func(*holdfast.Snapshot) {}
	put("creating", time.Hour, same)
	put("ready", time.Second, same)
	put("young", time.Second, same)
	put("orphan", time.Hour, same)
	put("wanted", time.Hour, func(x *holdfast.Snapshot) { x.State, x.Epoch = holdfast.SnapshotWanted, 0 })
	put("deleting", time.Hour, func(x *holdfast.Snapshot) { x.State = holdfast.SnapshotDeleting })
	put("users", time.Hour, func(x *holdfast.Snapshot) { x.Labels = nil })
	put("named", time.Hour, func(x *holdfast.Snapshot) { x.Name = "mine" })
	v.Volumes = []holdfast.Record{src}
	for id, phase := range map[holdfast.SnapshotID]holdfast.Phase{"creating": holdfast.PhaseCreating, "ready": holdfast.PhaseReady} {
		c := holdfast.Record{ID: holdfast.VolumeID("clone-" + id), Phase: phase}
		c.SetOrigin(holdfast.Origin{Volume: "src", Snapshot: id, Temporary: true})
		v.Volumes = append(v.Volumes, c)
	}
	var got []string
	for _, ref := range planTemporary(v) {
		got = append(got, ref.String())
	}
	if want := []string{"src.ready", "src.orphan", "src.wanted"}; !slices.Equal(got, want) {
		t.Errorf("dropped are %v, want %v", got, want)
	}
}
