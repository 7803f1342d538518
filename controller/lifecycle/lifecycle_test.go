package lifecycle_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/controller/internal/fakes"
	"github.com/holdfast-storage/holdfast/controller/lifecycle"
	"github.com/holdfast-storage/holdfast/metadata"
)

const gib = int64(1) << 30

func newService(t testing.TB, c *fakes.Cluster, store metadata.Store) *lifecycle.Service {
	t.Helper()
	s, err := lifecycle.New(lifecycle.Config{Store: store, Nodes: c, Poll: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// three is a cluster of three nodes and its service.
func three(t testing.TB) (*fakes.Cluster, *lifecycle.Service) {
	c := fakes.New(t)
	c.AddThree()
	return c, newService(t, c, c.Store)
}

func size(n int64) holdfast.Spec { return holdfast.Spec{SizeBytes: n} }

func mustCreate(t testing.TB, s *lifecycle.Service, name string, spec holdfast.Spec) holdfast.Record {
	t.Helper()
	rec, err := s.Create(t.Context(), name, spec)
	if err != nil {
		t.Fatal(err)
	}
	return rec
}

func wantKind(t testing.TB, err error, k holdfast.Kind, words ...string) {
	t.Helper()
	if !errors.Is(err, k) {
		t.Fatalf("got %v of kind %v, want %v", err, holdfast.KindOf(err), k)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q does not say %q", err, w)
		}
	}
}

// eventually polls until f is true; purging nodes goes on in the background.
func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	deadline := time.After(5 * time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !f() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s: not within 5 s", what)
		}
	}
}

func noReplicas(c *fakes.Cluster, ids ...holdfast.NodeID) func() bool {
	return func() bool {
		for _, id := range ids {
			if len(c.Node(id).Replicas()) > 0 {
				return false
			}
		}
		return true
	}
}

func TestCreateMakesAllReplicasAndIsIdempotent(t *testing.T) {
	c, s := three(t)
	rec := mustCreate(t, s, "db", size(gib+1))
	if rec.Phase != holdfast.PhaseReady || rec.Epoch != 1 || rec.Spec.SizeBytes != gib+1 || rec.SizeBytes != gib+4096 || len(rec.InSyncReplicas()) != 3 {
		t.Fatalf("got %+v", rec)
	}
	for _, x := range rec.Replicas {
		if x.Since != 1 {
			t.Errorf("replica %s is in sync since epoch %d", x.ID, x.Since)
		}
		if st := c.Node(x.Node).Replicas()[x.ID]; st.SizeBytes != gib+4096 {
			t.Errorf("node %s stores %+v", x.Node, st)
		}
	}
	if again := mustCreate(t, s, "db", size(gib+1)); again.ID != rec.ID || again.Revision != rec.Revision {
		t.Errorf("again made %+v", again)
	}
	c.CheckClean()
}

func TestCreateRefusesADifferentVolumeOfThatName(t *testing.T) {
	c, s := three(t)
	rec := mustCreate(t, s, "db", size(gib))
	for word, spec := range map[string]holdfast.Spec{
		"size":       size(2 * gib),
		"replicas":   {SizeBytes: gib, Replicas: 2},
		"minInSync":  {SizeBytes: gib, MinInSync: 2},
		"filesystem": {SizeBytes: gib, FSType: "ext4"},
		"block size": {SizeBytes: gib, LogicalBlk: 512},
		"locality":   {SizeBytes: gib, Locality: holdfast.LocalityNone},
		"racks":      {SizeBytes: gib, Racks: []string{"r"}},
		"zones":      {SizeBytes: gib, Zones: []string{"z"}},
	} {
		_, err := s.Create(t.Context(), "db", spec)
		wantKind(t, err, holdfast.Exists, word)
	}
	_, err := s.Create(t.Context(), string(rec.ID), size(gib))
	wantKind(t, err, holdfast.Exists, "is the id of volume")
	for _, m := range []int64{gib, 3 * gib} {
		if got, err := s.CreateVolume(t.Context(), lifecycle.CreateRequest{Name: "db", Spec: size(gib / 2), MaxBytes: m}); err != nil || got.ID != rec.ID {
			t.Errorf("a size between 0.5 GiB and %d: %v", m, err)
		}
	}
	c.CheckClean()
}

func TestCreateRefusesBadRequestsAndLeavesNothing(t *testing.T) {
	c, s := three(t)
	for name, q := range map[string]struct {
		name string
		spec holdfast.Spec
		kind holdfast.Kind
	}{
		"empty name":        {"", size(gib), holdfast.Invalid},
		"slash":             {"a/b", size(gib), holdfast.Invalid},
		"129 bytes":         {strings.Repeat("x", 129), size(gib), holdfast.Invalid},
		"zero size":         {"v", size(0), holdfast.OutOfRange},
		"huge size":         {"v", size(holdfast.MaxVolumeBytes + 1), holdfast.OutOfRange},
		"four on three":     {"v", holdfast.Spec{SizeBytes: gib, Replicas: 4}, holdfast.Invalid},
		"more than fits":    {"v", size(500 * gib), holdfast.NoSpace},
		"eight replicas":    {"v", holdfast.Spec{SizeBytes: gib, Replicas: 8}, holdfast.Invalid},
		"unknown locality":  {"v", holdfast.Spec{SizeBytes: gib, Locality: "near"}, holdfast.Invalid},
		"a zone that isn't": {"v", holdfast.Spec{SizeBytes: gib, Zones: []string{"z9"}}, holdfast.NoSpace},
	} {
		_, err := s.Create(t.Context(), q.name, q.spec)
		if !errors.Is(err, q.kind) {
			t.Errorf("%s: got %v of kind %v, want %v", name, err, holdfast.KindOf(err), q.kind)
		}
	}
	if recs, _ := s.List(t.Context()); len(recs) != 0 {
		t.Errorf("left %v", recs)
	}
	c.CheckClean()
}

func TestCreateChoosesAnotherNodeForOneThatFails(t *testing.T) {
	c, s := three(t)
	c.Add("n4", holdfast.Domain{}, 50*gib) // least room: chosen last
	c.SetFault(func(n holdfast.NodeID, method string, after bool) error {
		if n == "n2" && method == "CreateReplica" && after { // made, but nobody hears of it
			return holdfast.E("", holdfast.Unavailable, "connection reset")
		}
		return nil
	})
	rec := mustCreate(t, s, "db", size(gib))
	if rec.On("n2") != nil || rec.On("n4") == nil || len(rec.InSyncReplicas()) != 3 {
		t.Fatalf("replicas: %+v", rec.Replicas)
	}
	eventually(t, "the half-made replica is removed", noReplicas(c, "n2"))
	c.Check()
}

func TestCreateWithTooFewNodesLeftGivesUpAndLeavesNothing(t *testing.T) {
	for name, kind := range map[string]holdfast.Kind{"full": holdfast.NoSpace, "not answering": holdfast.Unavailable} {
		t.Run(name, func(t *testing.T) {
			c, s := three(t)
			c.SetFault(func(n holdfast.NodeID, method string, after bool) error {
				if n == "n2" && method == "CreateReplica" && !after {
					return holdfast.E("", kind, name)
				}
				return nil
			})
			_, err := s.Create(t.Context(), "db", size(gib))
			wantKind(t, err, kind, "n2", name)
			if recs, _ := s.List(t.Context()); len(recs) != 0 {
				t.Errorf("left %+v", recs)
			}
			eventually(t, "the made replicas are removed", noReplicas(c, "n1", "n2", "n3"))
			c.SetFault(nil)
			if rec := mustCreate(t, s, "db", size(gib)); !rec.Healthy() {
				t.Errorf("after the fault: %+v", rec)
			}
			c.Check()
		})
	}
}

func TestCreateGoesOnWhenItsCallerLeavesAndTheNextCallJoins(t *testing.T) {
	c, s := three(t)
	entered, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	c.SetFault(func(n holdfast.NodeID, method string, after bool) error {
		if method == "CreateReplica" && n == "n1" && !after {
			once.Do(func() { close(entered) })
			<-release
		}
		return nil
	})
	ctx, cancel := context.WithCancel(t.Context())
	first := make(chan error, 1)
	go func() {
		_, err := s.Create(ctx, "db", size(gib))
		first <- err
	}()
	<-entered
	cancel()
	wantKind(t, <-first, holdfast.Unavailable, "goes on")
	second := make(chan holdfast.Record, 1)
	go func() {
		rec, err := s.Create(context.WithoutCancel(ctx), "db", size(gib))
		if err != nil {
			t.Error(err)
		}
		second <- rec
	}()
	close(release)
	if rec := <-second; !rec.Healthy() {
		t.Errorf("got %+v", rec)
	}
	if recs, _ := s.List(t.Context()); len(recs) != 1 {
		t.Errorf("there are %d volumes", len(recs))
	}
	c.CheckClean()
}

func TestAVolumeDeletedWhileItIsCreatedStaysDeleted(t *testing.T) {
	c, s := three(t)
	entered, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	c.SetFault(func(n holdfast.NodeID, method string, after bool) error {
		if method == "CreateReplica" && n == "n1" && !after {
			once.Do(func() { close(entered) })
			<-release
		}
		return nil
	})
	created := make(chan error, 1)
	go func() {
		_, err := s.Create(t.Context(), "db", size(gib))
		created <- err
	}()
	<-entered
	if err := s.Delete(t.Context(), "db"); err != nil {
		t.Fatal(err)
	}
	close(release)
	wantKind(t, <-created, holdfast.Unavailable, "deleted")
	if recs, _ := s.List(t.Context()); len(recs) != 0 {
		t.Errorf("it came back: %+v", recs)
	}
	eventually(t, "replicas are removed", noReplicas(c, "n1", "n2", "n3"))
	c.Check()
}

func TestManyCallersAndTwoControllersMakeOneVolume(t *testing.T) {
	c, s := three(t)
	other := newService(t, c, c.Store.Client())
	var wg sync.WaitGroup
	ids := make([]holdfast.VolumeID, 20)
	for i := range ids {
		wg.Go(func() {
			svc := s
			if i%2 == 1 {
				svc = other
			}
			rec, err := svc.Create(t.Context(), "db", size(gib))
			if err != nil {
				t.Error(err)
			}
			ids[i] = rec.ID
		})
	}
	wg.Wait()
	for _, id := range ids {
		if id != ids[0] {
			t.Fatalf("several volumes: %v", ids)
		}
	}
	c.CheckClean()
}

func TestDelete(t *testing.T) {
	c, s := three(t)
	rec := mustCreate(t, s, "db", size(gib))
	for _, absent := range []string{"nothing", "no/name", string(holdfast.NewVolumeID())} {
		if err := s.Delete(t.Context(), absent); err != nil {
			t.Errorf("deleting %q: %v", absent, err)
		}
	}
	wantKind(t, s.Delete(t.Context(), ""), holdfast.Invalid)
	if _, _, err := s.Attach(t.Context(), "db", "n1", false); err != nil {
		t.Fatal(err)
	}
	wantKind(t, s.Delete(t.Context(), "db"), holdfast.InUse, "node n1", "detach")
	if _, err := s.Detach(t.Context(), "db", false); err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(t.Context(), string(rec.ID)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(t.Context(), "db"); !errors.Is(err, holdfast.NotFound) {
		t.Errorf("after deletion: %v", err)
	}
	eventually(t, "replicas are removed", noReplicas(c, "n1", "n2", "n3"))
	if again := mustCreate(t, s, "db", size(2*gib)); again.ID == rec.ID {
		t.Error("the id was used again")
	}
	c.Check()
}

func TestDeleteOfAVolumeAttachedToADeadNode(t *testing.T) {
	c, s := three(t)
	mustCreate(t, s, "db", size(gib))
	if _, _, err := s.Attach(t.Context(), "db", "n1", false); err != nil {
		t.Fatal(err)
	}
	c.Node("n1").Kill()
	if err := s.Delete(t.Context(), "db"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "live nodes' replicas are removed", noReplicas(c, "n2", "n3"))
	c.CheckClean()
	c.Node("n1").Start()
	if err := s.Purge(t.Context(), "n1"); err != nil {
		t.Fatal(err)
	}
	c.CheckClean()
	if !noReplicas(c, "n1")() {
		t.Error("the returned node kept its replica")
	}
}

func TestAttachAndDetach(t *testing.T) {
	c, s := three(t)
	mustCreate(t, s, "db", size(gib))
	ctx := t.Context()
	rec, path, err := s.Attach(ctx, "db", "n1", false)
	if err != nil || rec.AttachedTo() != "n1" || path == "" {
		t.Fatalf("got %v %q %v", rec.AttachedTo(), path, err)
	}
	if _, again, err := s.Attach(ctx, string(rec.ID), "n1", false); err != nil || again != path {
		t.Errorf("again: %q, %v", again, err)
	}
	_, _, err = s.Attach(ctx, "db", "n2", false)
	wantKind(t, err, holdfast.InUse, "node n1")
	_, _, err = s.Attach(ctx, "db", "n9", false)
	wantKind(t, err, holdfast.NotFound, "n9")
	_, _, err = s.Attach(ctx, "other", "n1", false)
	wantKind(t, err, holdfast.NotFound, "other")
	if rec, err := s.DetachFrom(ctx, "db", "n2", false); err != nil || rec.AttachedTo() != "n1" {
		t.Errorf("detaching from where it is not: %v, %v", rec.AttachedTo(), err)
	}
	c.Node("n1").Mount(rec.ID, true)
	_, err = s.Detach(ctx, "db", false)
	wantKind(t, err, holdfast.InUse, "mounted")
	if rec, _, err := s.Attach(ctx, "db", "n2", true); err != nil || rec.AttachedTo() != "n2" {
		t.Errorf("forced: %v, %v", rec.AttachedTo(), err)
	}
	for range 2 {
		if rec, err := s.Detach(ctx, "db", false); err != nil || rec.AttachedTo() != "" {
			t.Errorf("detach: %v, %v", rec.AttachedTo(), err)
		}
	}
	for _, what := range []string{"unknown", "no/name"} {
		if _, err := s.Detach(ctx, what, false); err != nil {
			t.Errorf("detach of %q: %v", what, err)
		}
	}
	if _, err := s.DetachFrom(ctx, "db", "n9", false); err != nil {
		t.Errorf("detach from an unknown node: %v", err)
	}
}

func TestAVolumeLeavesADeadNode(t *testing.T) {
	c, s := three(t)
	mustCreate(t, s, "db", size(gib))
	mustCreate(t, s, "web", size(gib))
	ctx := t.Context()
	for _, v := range []string{"db", "web"} {
		if _, _, err := s.Attach(ctx, v, "n1", false); err != nil {
			t.Fatal(err)
		}
	}
	c.Node("n1").Kill()
	_, _, err := s.Attach(ctx, "db", "n1", false)
	wantKind(t, err, holdfast.Unavailable, "n1 is down")
	if rec, _, err := s.Attach(ctx, "db", "n2", false); err != nil || rec.AttachedTo() != "n2" {
		t.Errorf("attach elsewhere: %v, %v", rec.AttachedTo(), err)
	}
	before, _ := s.Get(ctx, "web")
	rec, err := s.Detach(ctx, "web", false)
	if err != nil || rec.Primary != nil || rec.Epoch != before.Epoch {
		t.Errorf("detach from the dead node: %+v, %v", rec, err)
	}
	// What it does not hold any more is not taken from its new holder.
	if rec, err := s.DetachFrom(ctx, "db", "n1", false); err != nil || rec.AttachedTo() != "n2" {
		t.Errorf("late detach from the dead node: %v, %v", rec.AttachedTo(), err)
	}
}

func TestDetachFromALiveNodeThatDoesNotAnswerIsNotForced(t *testing.T) {
	c, s := three(t)
	mustCreate(t, s, "db", size(gib))
	if _, _, err := s.Attach(t.Context(), "db", "n1", false); err != nil {
		t.Fatal(err)
	}
	c.SetFault(func(n holdfast.NodeID, method string, after bool) error {
		return holdfast.E("", holdfast.Unavailable, "connection refused")
	})
	_, err := s.Detach(t.Context(), "db", false)
	wantKind(t, err, holdfast.Unavailable, "n1")
	if rec, _ := s.Get(t.Context(), "db"); rec.AttachedTo() != "n1" {
		t.Error("the grant of a live node was cleared")
	}
}

func TestExpand(t *testing.T) {
	c, s := three(t)
	ctx := t.Context()
	rec := mustCreate(t, s, "db", size(gib))
	got, err := s.Expand(ctx, "db", 2*gib+1)
	if err != nil || got.Spec.SizeBytes != 2*gib+1 || got.SizeBytes != gib {
		t.Fatalf("detached: %+v, %v", got, err)
	}
	for _, n := range []int64{gib, 2*gib + 1} {
		if again, err := s.Expand(ctx, string(rec.ID), n); err != nil || again.Spec.SizeBytes != 2*gib+1 {
			t.Errorf("to %d: %d, %v", n, again.Spec.SizeBytes, err)
		}
	}
	_, err = s.Expand(ctx, "db", 500*gib)
	wantKind(t, err, holdfast.NoSpace, "has room for")
	_, err = s.Expand(ctx, "db", holdfast.MaxVolumeBytes+1)
	wantKind(t, err, holdfast.OutOfRange)
	_, err = s.Expand(ctx, "web", gib)
	wantKind(t, err, holdfast.NotFound)

	if _, _, err := s.Attach(ctx, "db", "n1", false); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	_, err = s.Expand(short, "db", 3*gib)
	wantKind(t, err, holdfast.Unavailable, "node n1 has not grown it", "repeat")
	c.Settle()
	if got, err := s.Expand(ctx, "db", 3*gib); err != nil || got.SizeBytes != 3*gib {
		t.Errorf("attached: %+v, %v", got, err)
	}
	c.Node("n1").Kill()
	if got, err := s.Expand(ctx, "db", 4*gib); err != nil || got.Spec.SizeBytes != 4*gib {
		t.Errorf("attached to a dead node: %+v, %v", got, err)
	}
}

func TestLabels(t *testing.T) {
	_, s := three(t)
	mustCreate(t, s, "db", size(gib))
	if _, err := s.SetLabels(t.Context(), "db", map[string]string{"a": "1", "b": "2"}, nil); err != nil {
		t.Fatal(err)
	}
	rec, err := s.SetLabels(t.Context(), "db", map[string]string{"a": "3"}, []string{"b", "c"})
	if err != nil || fmt.Sprint(rec.Spec.Labels) != "map[a:3]" {
		t.Errorf("got %v, %v", rec.Spec.Labels, err)
	}
}

func TestNewChecksItsConfiguration(t *testing.T) {
	if _, err := lifecycle.New(lifecycle.Config{}); !errors.Is(err, holdfast.Invalid) {
		t.Errorf("got %v", err)
	}
}
