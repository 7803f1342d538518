package holdfast_test

import (
	"errors"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
)

func plain() holdfast.Record {
	return holdfast.Record{Version: 1, ID: "v", Name: "v", Phase: holdfast.PhaseReady, SizeBytes: 1 << 20, Epoch: 9,
		Spec:     holdfast.Spec{SizeBytes: 1 << 20}.WithDefaults(),
		Replicas: []holdfast.Replica{{ID: "r", Node: "n", State: holdfast.InSync, Since: 1}}}
}

func taken(id holdfast.SnapshotID, epoch holdfast.Epoch) holdfast.Snapshot {
	return holdfast.Snapshot{ID: id, State: holdfast.SnapshotReady, SizeBytes: 1 << 20, Epoch: epoch, Cut: "c-" + string(id)}
}

// A record has the version that its content needs, and no later one: a release
// that knows no snapshots goes on reading volumes that have none.
func TestRecordVersions(t *testing.T) {
	r := plain()
	step := func(want int, what string) {
		t.Helper()
		if err := r.Validate(); err != nil || r.Version != want {
			t.Errorf("%s: version %d, want %d; %v", what, r.Version, want, err)
		}
	}
	step(1, "plain")
	r.PutSnapshot(holdfast.Snapshot{ID: "a", State: holdfast.SnapshotWanted, Created: time.Unix(1, 0)})
	step(3, "with a snapshot")
	r.SetScrub(holdfast.Scrub{ID: "s"})
	step(3, "with a snapshot and a scrub")
	r.RemoveSnapshot("a")
	step(2, "with a scrub")
	r.PutSnapshot(taken("a", 4))
	r.SetRestore(&holdfast.Restore{ID: "x", Snapshot: "a"})
	step(3, "with a restore")
	r.SetRestore(nil)
	r.RemoveSnapshot("a")
	step(2, "with neither")
	r.SetOrigin(holdfast.Origin{Volume: "w", Snapshot: "a"})
	step(3, "a clone")
	spec := r.Spec
	spec.IOTimeoutMillis = 30000
	r.SetSpec(spec)
	step(4, "with a limit for waiting I/O")
	r.SetScrub(holdfast.Scrub{ID: "t"})
	step(4, "and a scrub")
	r.Version = 3
	if r.Validate() == nil {
		t.Error("version 3 knows no limit for waiting I/O")
	}
	spec.IOTimeoutMillis = 0
	r.SetSpec(spec)
	step(3, "without a limit again")
	spec.SlowReplicas = holdfast.SlowDrop
	r.SetSpec(spec)
	step(4, "with a policy for slow replicas")
	spec.Limits.IOPS = 500
	r.SetSpec(spec)
	step(5, "with limits of I/O")
	r.Version = 4
	if r.Validate() == nil {
		t.Error("version 4 knows no limits of I/O")
	}
	spec.Limits = holdfast.Limits{}
	r.SetSpec(spec)
	step(4, "without limits again")
}

func TestSpecOfWaiting(t *testing.T) {
	good := holdfast.Spec{SizeBytes: 1 << 30}.WithDefaults()
	for what, change := range map[string]func(*holdfast.Spec){
		"a limit that a lost replica exceeds": func(s *holdfast.Spec) { s.IOTimeoutMillis = 1000 },
		"a negative limit":                    func(s *holdfast.Spec) { s.IOTimeoutMillis = -1 },
		"an endless limit":                    func(s *holdfast.Spec) { s.IOTimeoutMillis = 1 << 50 },
		"an unknown policy":                   func(s *holdfast.Spec) { s.SlowReplicas = "perhaps" },
		"too few operations":                  func(s *holdfast.Spec) { s.Limits.IOPS = 9 },
		"negative operations":                 func(s *holdfast.Spec) { s.Limits.IOPS = -1 },
		"too few bytes":                       func(s *holdfast.Spec) { s.Limits.Bandwidth = 1 << 19 },
		"a negative burst":                    func(s *holdfast.Spec) { s.Limits.BurstMillis = -1 },
		"an endless burst":                    func(s *holdfast.Spec) { s.Limits.BurstMillis = 1 << 50 },
	} {
		s := good
		if change(&s); !errors.Is(s.Validate(), holdfast.Invalid) {
			t.Errorf("%s: %v", what, s.Validate())
		}
	}
	good.IOTimeoutMillis, good.SlowReplicas, good.Limits = 30000, holdfast.SlowOff, holdfast.Limits{IOPS: 10, Bandwidth: 1 << 20, BurstMillis: 1}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
}

func TestPutSnapshotKeepsTheOrder(t *testing.T) {
	r := plain()
	for _, id := range []holdfast.SnapshotID{"a", "b", "c"} {
		r.PutSnapshot(holdfast.Snapshot{ID: id, State: holdfast.SnapshotWanted})
	}
	before := r.Clone()
	r.PutSnapshot(taken("c", 5))
	r.PutSnapshot(taken("a", 5))
	r.PutSnapshot(holdfast.Snapshot{ID: "d", State: holdfast.SnapshotWanted})
	s := taken("c", 5)
	s.State = holdfast.SnapshotDeleting
	r.PutSnapshot(s)
	got := ""
	for _, s := range r.Snapshots {
		got += string(s.ID)
	}
	if got != "cabd" || len(r.ReadySnapshots()) != 1 || r.Validate() != nil {
		t.Errorf("order %s, ready %v, %v", got, r.ReadySnapshots(), r.Validate())
	}
	for i, id := range []holdfast.SnapshotID{"a", "b", "c"} {
		if x := before.Snapshots[i]; x.ID != id || x.State != holdfast.SnapshotWanted {
			t.Errorf("a copy has changed: %+v", before.Snapshots)
		}
	}
}

func TestRecordRefusesImpossibleSnapshots(t *testing.T) {
	for name, change := range map[string]func(r *holdfast.Record){
		"version": func(r *holdfast.Record) { r.PutSnapshot(taken("a", 1)); r.Version = 2 },
		"no id":   func(r *holdfast.Record) { r.PutSnapshot(taken("", 1)) },
		"twice": func(r *holdfast.Record) {
			r.PutSnapshot(taken("a", 1))
			r.Snapshots = append(r.Snapshots, r.Snapshots[0])
		},
		"later epoch":          func(r *holdfast.Record) { r.PutSnapshot(taken("a", 10)) },
		"out of order":         func(r *holdfast.Record) { r.PutSnapshot(taken("a", 5)); r.PutSnapshot(taken("b", 4)) },
		"wanted and taken":     func(r *holdfast.Record) { s := taken("a", 5); s.State = holdfast.SnapshotWanted; r.PutSnapshot(s) },
		"ready and not taken":  func(r *holdfast.Record) { r.PutSnapshot(holdfast.Snapshot{ID: "a", State: holdfast.SnapshotReady}) },
		"no cut":               func(r *holdfast.Record) { s := taken("a", 5); s.Cut = ""; r.PutSnapshot(s) },
		"odd size":             func(r *holdfast.Record) { s := taken("a", 5); s.SizeBytes = 5; r.PutSnapshot(s) },
		"unknown state":        func(r *holdfast.Record) { s := taken("a", 5); s.State = "new"; r.PutSnapshot(s) },
		"restore of nothing":   func(r *holdfast.Record) { r.SetRestore(&holdfast.Restore{ID: "x", Snapshot: "a"}) },
		"restore without id":   func(r *holdfast.Record) { r.PutSnapshot(taken("a", 1)); r.SetRestore(&holdfast.Restore{Snapshot: "a"}) },
		"restore and attached": attachedRestore,
		"too many": func(r *holdfast.Record) {
			for range holdfast.MaxSnapshots + 1 {
				r.PutSnapshot(taken(holdfast.NewSnapshotID(), 5))
			}
		},
	} {
		r := plain()
		change(&r)
		if err := r.Validate(); !errors.Is(err, holdfast.Corrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func attachedRestore(r *holdfast.Record) {
	r.PutSnapshot(taken("a", 1))
	r.SetRestore(&holdfast.Restore{ID: "x", Snapshot: "a"})
	r.Primary = &holdfast.Primary{Node: "n", Kind: holdfast.ClientPrimary, Grant: 3}
}
