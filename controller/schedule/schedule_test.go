package schedule_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/controller/lifecycle"
	"github.com/holdfast-storage/holdfast/controller/schedule"
	"github.com/holdfast-storage/holdfast/metadata/memory"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

// rig is a store with volumes, a clock, and leaders that carry schedules out.
type rig struct {
	t     *testing.T
	store *memory.Store
	now   time.Time
}

func newRig(t *testing.T) *rig {
	r := &rig{t: t, store: memory.New(), now: time.Date(2026, 11, 22, 12, 0, 30, 0, time.UTC)}
	t.Cleanup(func() { _ = r.store.Close() })
	return r
}

type noNodes struct{}

func (noNodes) Client(context.Context, holdfast.NodeID) (holdfastv1.NodeServiceClient, error) {
	return nil, holdfast.E("", holdfast.Unavailable, "nobody listens")
}

// leader is a process with a connection of its own.
func (r *rig) leader() (*schedule.Service, *memory.Store) {
	r.t.Helper()
	store := r.store.Client()
	clock := func() time.Time { return r.now }
	life, err := lifecycle.New(lifecycle.Config{Store: store, Nodes: noNodes{}, Now: clock})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { life.Close(); _ = store.Close() })
	s, err := schedule.New(schedule.Config{Store: store, Snapshots: life, Now: clock})
	if err != nil {
		r.t.Fatal(err)
	}
	return s, store
}

func (r *rig) volume(name string, labels map[string]string) holdfast.VolumeID {
	r.t.Helper()
	rec, err := r.store.CreateVolume(r.t.Context(), holdfast.Record{Version: holdfast.RecordVersion, ID: holdfast.NewVolumeID(), Name: name, Created: r.now,
		Phase: holdfast.PhaseReady, SizeBytes: 1 << 30, Epoch: 1, Spec: holdfast.Spec{SizeBytes: 1 << 30, Labels: labels}.WithDefaults(),
		Replicas: []holdfast.Replica{{ID: holdfast.NewReplicaID(), Node: "n1", Pool: "p", State: holdfast.InSync, Since: 1}}})
	if err != nil {
		r.t.Fatal(err)
	}
	return rec.ID
}

func (r *rig) change(vol holdfast.VolumeID, f func(*holdfast.Record)) {
	r.t.Helper()
	rec, err := r.store.Volume(r.t.Context(), string(vol))
	if err == nil {
		f(&rec)
		_, err = r.store.SwapVolume(r.t.Context(), rec)
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

// settle does what primaries do: takes what is wanted, drops what is deleted.
func (r *rig) settle() {
	r.t.Helper()
	recs, err := r.store.Volumes(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	for _, rec := range recs {
		r.change(rec.ID, func(rec *holdfast.Record) {
			for _, x := range slices.Clone(rec.Snapshots) {
				switch x.State {
				case holdfast.SnapshotWanted:
					x.State, x.Epoch, x.Cut, x.SizeBytes = holdfast.SnapshotReady, rec.Epoch, "1", rec.SizeBytes
					rec.PutSnapshot(x)
				case holdfast.SnapshotDeleting:
					rec.RemoveSnapshot(x.ID)
				}
			}
		})
	}
}

// pass is one pass of a leader, after which primaries do their part.
func (r *rig) pass(s *schedule.Service) []schedule.Problem {
	r.t.Helper()
	ps, err := s.Pass(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	r.settle()
	return ps
}

// names are those of a volume's snapshots, oldest first.
func (r *rig) names(vol holdfast.VolumeID) []string {
	r.t.Helper()
	rec, err := r.store.Volume(r.t.Context(), string(vol))
	if err != nil {
		r.t.Fatal(err)
	}
	var out []string
	for _, x := range rec.Snapshots {
		out = append(out, strings.Replace(x.Name, "-"+string(vol[:12]), "", 1))
	}
	return out
}

func (r *rig) want(vol holdfast.VolumeID, names ...string) {
	r.t.Helper()
	if got := r.names(vol); !slices.Equal(got, names) {
		r.t.Errorf("at %s the volume has %q; want %q", r.now.Format(time.RFC3339), got, names)
	}
}

func (r *rig) create(s *schedule.Service, x holdfast.Schedule) holdfast.Schedule {
	r.t.Helper()
	got, err := s.Create(r.t.Context(), x)
	if err != nil {
		r.t.Fatal(err)
	}
	return got
}

func TestARunMakesOneSnapshot(t *testing.T) {
	r := newRig(t)
	s, _ := r.leader()
	db, web := r.volume("db", map[string]string{"tier": "gold"}), r.volume("web", nil)
	r.create(s, holdfast.Schedule{Name: "hourly", Cron: "@hourly", Labels: map[string]string{"tier": "gold"}, KeepLast: 9})
	r.pass(s)
	r.want(db)
	r.now = r.now.Add(time.Hour) // 13:00:30
	for range 3 {
		r.pass(s)
	}
	r.want(db, "hourly-20261122t130000z")
	r.want(web)
	// As many runs as were missed make one, and a label that came late counts then.
	r.change(web, func(rec *holdfast.Record) { rec.Spec.Labels = map[string]string{"tier": "gold", "x": "y"} })
	r.now = r.now.Add(50*time.Hour + 10*time.Minute)
	other, _ := r.leader()
	r.pass(other)
	r.pass(s)
	r.want(db, "hourly-20261122t130000z", "hourly-20261124t150000z")
	r.want(web, "hourly-20261124t150000z")
	x, err := s.Get(t.Context(), "hourly")
	if err != nil || !x.LastRun.Equal(time.Date(2026, 11, 24, 15, 0, 0, 0, time.UTC)) || x.Problem != "" {
		t.Errorf("it says %+v, %v", x, err)
	}
	if next := schedule.Next(x, r.now); !next.Equal(x.LastRun.Add(time.Hour)) {
		t.Errorf("it is due next at %v", next)
	}
}

// A leader that dies at any call, and another one that goes on, make one snapshot
// of each volume for each run; so do two that both believe that they lead.
func TestLeadersComeAndGo(t *testing.T) {
	for kill := range 40 {
		for _, lose := range []bool{false, true} {
			r := newRig(t)
			a, store := r.leader()
			b, _ := r.leader()
			vols := []holdfast.VolumeID{r.volume("one", nil), r.volume("two", nil)}
			for _, v := range vols {
				r.change(v, func(rec *holdfast.Record) { rec.Spec.Labels = map[string]string{"a": "b"} })
			}
			r.create(b, holdfast.Schedule{Name: "s", Cron: "0 * * * *", Labels: map[string]string{"a": "b"}, KeepLast: 2})
			for range 4 {
				calls := 0
				dead := holdfast.E("", holdfast.Unavailable, "the process is dead")
				store.Inject(func(memory.Op) memory.Fault {
					calls++
					switch {
					case calls == kill && lose:
						return memory.Fault{Lose: dead}
					case calls >= kill:
						return memory.Fault{Refuse: dead}
					}
					return memory.Fault{}
				})
				r.now = r.now.Add(time.Hour)
				_, _ = a.Pass(t.Context())
				store.Inject(nil)
				r.pass(b)
				r.pass(a)
			}
			for _, v := range vols {
				if got := r.names(v); !slices.Equal(got, []string{"s-20261122t150000z", "s-20261122t160000z"}) {
					t.Fatalf("killed at call %d (lost %v): %q", kill, lose, got)
				}
			}
		}
	}
}

func TestWhatIsKept(t *testing.T) {
	r := newRig(t)
	s, _ := r.leader()
	db := r.volume("db", nil)
	r.create(s, holdfast.Schedule{Name: "s", Cron: "0 * * * *", Volume: db, KeepLast: 2, KeepSeconds: 3 * 3600})
	// What others made stays, also if it says that a schedule did.
	theirs := func(name string, labels map[string]string) {
		r.change(db, func(rec *holdfast.Record) {
			rec.PutSnapshot(holdfast.Snapshot{ID: holdfast.NewSnapshotID(), Name: name, Created: r.now, State: holdfast.SnapshotReady, Epoch: 1, Cut: "1", SizeBytes: 1 << 30, Labels: labels})
		})
	}
	theirs("mine", nil)
	theirs("forged", map[string]string{schedule.Label: "s", schedule.DueLabel: r.now.Format(time.RFC3339)})
	for range 6 {
		r.now = r.now.Add(time.Hour)
		r.pass(s)
	}
	r.want(db, "mine", "forged", "s-20261122t160000z", "s-20261122t170000z", "s-20261122t180000z")
	// Nothing is left out by age alone while it is one of the last two.
	r.now = r.now.Add(30 * time.Minute)
	if _, err := s.Pause(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	r.now = r.now.Add(24 * time.Hour)
	r.pass(s)
	if got := len(r.names(db)); got != 5 {
		t.Errorf("paused, it left %d", got)
	}
	for range 2 {
		if _, err := s.Resume(t.Context(), "s"); err != nil {
			t.Fatal(err)
		}
	}
	r.pass(s) // what was due while it was paused is not done
	r.want(db, "mine", "forged", "s-20261122t170000z", "s-20261122t180000z")
	// A schedule that is made anew does not know the older one's.
	if err := errors.Join(s.Delete(t.Context(), "s"), s.Delete(t.Context(), "s")); err != nil {
		t.Fatal(err)
	}
	r.create(s, holdfast.Schedule{Name: "s", Cron: "0 * * * *", Volume: "db", KeepSeconds: 1})
	for range 2 {
		r.now = r.now.Add(time.Hour)
		r.pass(s)
	}
	r.pass(s) // the older one goes when the newer one is ready
	r.want(db, "mine", "forged", "s-20261122t170000z", "s-20261122t180000z", "s-20261123t200000z")
}

// The newest snapshot stays, however old it is, and also of a volume that the
// schedule is not for any more.
func TestTheNewestIsKept(t *testing.T) {
	r := newRig(t)
	s, _ := r.leader()
	db := r.volume("db", map[string]string{"a": "b"})
	r.create(s, holdfast.Schedule{Name: "s", Cron: "0 * * * *", Labels: map[string]string{"a": "b"}, KeepSeconds: 7200})
	for range 3 {
		r.now = r.now.Add(time.Hour)
		r.pass(s)
	}
	r.change(db, func(rec *holdfast.Record) { rec.Spec.Labels = nil })
	r.now = r.now.Add(1000 * time.Hour)
	for range 2 {
		r.pass(s)
	}
	r.want(db, "s-20261122t150000z")
}

// A snapshot that cannot be taken yet is waited for; no second one is put down.
func TestAVolumeThatWaitsGetsOne(t *testing.T) {
	r := newRig(t)
	s, _ := r.leader()
	db := r.volume("db", nil)
	r.create(s, holdfast.Schedule{Name: "s", Cron: "0 * * * *", Volume: db, KeepLast: 2})
	for range 3 {
		r.now = r.now.Add(time.Hour)
		if _, err := s.Pass(t.Context()); err != nil { // and nobody takes it
			t.Fatal(err)
		}
	}
	r.want(db, "s-20261122t130000z")
	r.settle()
	r.now = r.now.Add(time.Hour)
	r.pass(s)
	r.want(db, "s-20261122t130000z", "s-20261122t160000z")
}

func TestWhatFailsIsShownAndTriedAgain(t *testing.T) {
	r := newRig(t)
	s, _ := r.leader()
	db, web := r.volume("db", map[string]string{"a": "b"}), r.volume("web", map[string]string{"a": "b"})
	r.change(db, func(rec *holdfast.Record) {
		for i := range holdfast.DefaultSnapshots {
			rec.PutSnapshot(holdfast.Snapshot{ID: holdfast.SnapshotID(fmt.Sprint(i)), Name: fmt.Sprint(i), Created: r.now, State: holdfast.SnapshotReady, Epoch: 1, Cut: "1", SizeBytes: 1 << 30})
		}
	})
	r.create(s, holdfast.Schedule{Name: "s", Cron: "0 * * * *", Labels: map[string]string{"a": "b"}, KeepLast: 2})
	r.now = r.now.Add(time.Hour)
	for range 2 {
		ps := r.pass(s)
		if len(ps) != 1 || ps[0].Volume != "db" || !strings.Contains(ps[0].Text, "256 snapshots") {
			t.Errorf("problems are %+v", ps)
		}
	}
	r.want(web, "s-20261122t130000z")
	x, err := s.Get(t.Context(), "s")
	if err != nil || !strings.Contains(x.Problem, "256 snapshots") || !x.LastRun.IsZero() {
		t.Errorf("it says %+v, %v", x, err)
	}
	r.change(db, func(rec *holdfast.Record) { rec.RemoveSnapshot("7") })
	if ps := r.pass(s); len(ps) > 0 {
		t.Errorf("problems are %+v", ps)
	}
	if x, err = s.Get(t.Context(), "s"); err != nil || x.Problem != "" || x.LastRun.IsZero() {
		t.Errorf("it says %+v, %v", x, err)
	}
	if got := r.names(db); got[len(got)-1] != "s-20261122t130000z" || len(got) != holdfast.DefaultSnapshots {
		t.Errorf("the volume has %d snapshots, the last is %s", len(got), got[len(got)-1])
	}
	// A clock that was wrong does not silence it for ever.
	x.Since = r.now.Add(1000 * time.Hour)
	if _, err := r.store.PutSchedule(t.Context(), x); err != nil {
		t.Fatal(err)
	}
	r.pass(s)
	r.now = r.now.Add(time.Hour)
	r.pass(s)
	r.want(web, "s-20261122t130000z", "s-20261122t140000z")
}

func TestZones(t *testing.T) {
	r := newRig(t)
	s, _ := r.leader()
	db := r.volume("db", nil)
	r.now = time.Date(2026, 3, 28, 0, 0, 0, 0, time.UTC)
	r.create(s, holdfast.Schedule{Name: "s", Cron: "0 3 * * *", Zone: "Europe/Berlin", Volume: db, KeepLast: 9})
	for range 2 { // the night of the second is an hour shorter
		r.now = r.now.Add(24 * time.Hour)
		r.pass(s)
	}
	r.want(db, "s-20260328t020000z", "s-20260329t010000z")
}

func TestSchedulesRefuse(t *testing.T) {
	r := newRig(t)
	s, _ := r.leader()
	db := r.volume("db", nil)
	good := holdfast.Schedule{Name: "good", Cron: "*/5 * * * 1-5", Volume: db, KeepLast: 1}
	first := r.create(s, good)
	r.now = r.now.Add(time.Minute)
	if again := r.create(s, good); !again.Created.Equal(first.Created) {
		t.Errorf("again made %+v", again)
	}
	for what, x := range map[string]struct {
		change func(*holdfast.Schedule)
		kind   holdfast.Kind
		words  string
	}{
		"another one":   {func(x *holdfast.Schedule) { x.KeepLast = 2 }, holdfast.Exists, "another schedule"},
		"no name":       {func(x *holdfast.Schedule) { x.Name = "" }, holdfast.Invalid, "name"},
		"long name":     {func(x *holdfast.Schedule) { x.Name = strings.Repeat("n", 65) }, holdfast.Invalid, "64"},
		"no volume":     {func(x *holdfast.Schedule) { x.Volume = "" }, holdfast.Invalid, "name a volume"},
		"unknown":       {func(x *holdfast.Schedule) { x.Volume = "nothing" }, holdfast.NotFound, "nothing"},
		"both":          {func(x *holdfast.Schedule) { x.Labels = map[string]string{"a": "b"} }, holdfast.Invalid, "not both"},
		"keeps nothing": {func(x *holdfast.Schedule) { x.KeepLast = 0 }, holdfast.Invalid, "how many"},
		"too many":      {func(x *holdfast.Schedule) { x.KeepLast = 250 }, holdfast.Invalid, "240"},
		"below":         {func(x *holdfast.Schedule) { x.KeepSeconds = -1 }, holdfast.Invalid, "not possible"},
		"no times":      {func(x *holdfast.Schedule) { x.Cron = "" }, holdfast.Invalid, "0 3 * * *"},
		"nonsense":      {func(x *holdfast.Schedule) { x.Cron = "now and then" }, holdfast.Invalid, "minute, hour"},
		"seconds":       {func(x *holdfast.Schedule) { x.Cron = "1 2 3 4 5 6" }, holdfast.Invalid, "minute, hour"},
		"61 minutes":    {func(x *holdfast.Schedule) { x.Cron = "61 * * * *" }, holdfast.Invalid, "minute, hour"},
		"every":         {func(x *holdfast.Schedule) { x.Cron = "@every 1h" }, holdfast.Invalid, "@hourly"},
		"never":         {func(x *holdfast.Schedule) { x.Cron = "0 0 31 2 *" }, holdfast.Invalid, "never"},
		"zone within":   {func(x *holdfast.Schedule) { x.Cron = "TZ=UTC 0 0 * * *" }, holdfast.Invalid, "by itself"},
		"zone":          {func(x *holdfast.Schedule) { x.Zone = "Atlantis" }, holdfast.Invalid, "Europe/Berlin"},
		"local":         {func(x *holdfast.Schedule) { x.Zone = "Local" }, holdfast.Invalid, "Europe/Berlin"},
	} {
		y := good
		x.change(&y)
		if _, err := s.Create(t.Context(), y); !errors.Is(err, x.kind) || !strings.Contains(err.Error(), x.words) {
			t.Errorf("%s: %v of kind %v; want %v that says %q", what, err, holdfast.KindOf(err), x.kind, x.words)
		}
	}
	for what, f := range map[string]func(context.Context, string) (holdfast.Schedule, error){"get": s.Get, "pause": s.Pause, "resume": s.Resume} {
		if _, err := f(t.Context(), "nothing"); !errors.Is(err, holdfast.NotFound) {
			t.Errorf("%s of none: %v", what, err)
		}
	}
}
