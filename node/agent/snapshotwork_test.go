package agent

import (
	"testing"

	"github.com/holdfast-storage/holdfast"
)

// A volume that nobody has attached gets a maintenance primary for its snapshots,
// but not for those that a group takes by command.
func TestMaintainerForSnapshots(t *testing.T) {
	alive := map[holdfast.NodeID]bool{"n1": true}
	plain := holdfast.Record{Version: 1, Phase: holdfast.PhaseReady, SizeBytes: 1 << 20, Epoch: 2, Spec: holdfast.Spec{SizeBytes: 1 << 20},
		Replicas: []holdfast.Replica{{ID: "r1", Node: "n1", State: holdfast.InSync, Since: 1}}}
	ready := holdfast.Snapshot{ID: "s", State: holdfast.SnapshotReady, SizeBytes: 1 << 20, Epoch: 1, Cut: "1-1"}
	deleting := ready
	deleting.State = holdfast.SnapshotDeleting
	for name, c := range map[string]struct {
		change func(r *holdfast.Record)
		want   holdfast.NodeID
	}{
		"nothing":  {func(*holdfast.Record) {}, ""},
		"ready":    {func(r *holdfast.Record) { r.PutSnapshot(ready) }, ""},
		"wanted":   {func(r *holdfast.Record) { r.PutSnapshot(holdfast.Snapshot{ID: "s", State: holdfast.SnapshotWanted}) }, "n1"},
		"deleting": {func(r *holdfast.Record) { r.PutSnapshot(deleting) }, "n1"},
		"a group's": {func(r *holdfast.Record) {
			r.PutSnapshot(holdfast.Snapshot{ID: "s", State: holdfast.SnapshotWanted, Group: "g"})
		}, ""},
		"restore": {func(r *holdfast.Record) {
			r.PutSnapshot(ready)
			r.SetRestore(&holdfast.Restore{ID: "x", Snapshot: "s"})
		}, "n1"},
	} {
		r := plain.Clone()
		c.change(&r)
		if got := Maintainer(r, alive); got != c.want || imperfect(r) != (c.want != "") {
			t.Errorf("%s: %q, imperfect %v", name, got, imperfect(r))
		}
	}
}
