package lifecycle_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/controller/internal/fakes"
	"github.com/holdfast-storage/holdfast/controller/lifecycle"
)

func cloneOf(x lifecycle.Source, bytes int64) lifecycle.CreateRequest {
	return lifecycle.CreateRequest{Name: "clone", Spec: holdfast.Spec{SizeBytes: bytes}, Source: &x}
}

// contents are what the replicas of a volume were made of.
func contents(c *fakes.Cluster, rec holdfast.Record) (all []string) {
	for _, x := range rec.Replicas {
		all = append(all, c.Node(x.Node).Replicas()[x.ID].Content)
	}
	return all
}

func TestAVolumeFromASnapshot(t *testing.T) {
	c, s := three(t)
	c.Add("n0", holdfast.Domain{}, 200*gib) // the emptiest, but the source is not there
	primaries(t, c)
	c.Node("n0").Kill()
	src := mustCreate(t, s, "db", holdfast.Spec{SizeBytes: gib, FSType: "ext4", LogicalBlk: 512})
	c.Node("n0").Start()
	ref := take(t, s, "db", "monday")
	q := cloneOf(lifecycle.Source{Snapshot: ref}, 2*gib)
	rec, err := s.CreateVolume(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	snap := string(ref.Snapshot)
	if got := contents(c, rec); !slices.Equal(got, []string{snap, snap, snap}) {
		t.Errorf("the replicas are made of %q", got)
	}
	if rec.SizeBytes != 2*gib || rec.Spec.FSType != "ext4" || rec.Spec.LogicalBlk != 512 || *rec.Origin != (holdfast.Origin{Volume: src.ID, Snapshot: ref.Snapshot}) {
		t.Errorf("made was %+v of %+v", rec.Spec, rec.Origin)
	}
	if err := s.DeleteSnapshot(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
	again, err := s.CreateVolume(t.Context(), q)
	if err != nil || again.ID != rec.ID {
		t.Errorf("again, without the snapshot: %v, %v", again.ID, err)
	}
	_, err = s.CreateVolume(t.Context(), cloneOf(lifecycle.Source{Volume: src.ID}, 2*gib))
	wantKind(t, err, holdfast.Exists, "no clone of volume")
	_, err = s.CreateVolume(t.Context(), lifecycle.CreateRequest{Name: "clone", Spec: rec.Spec})
	wantKind(t, err, holdfast.Exists, "clone")
	eventually(t, "the source can be deleted", func() bool { return s.Delete(t.Context(), "db") == nil })
	c.Check()
}

func TestAVolumeFromAVolume(t *testing.T) {
	c, s := three(t)
	primaries(t, c)
	src := mustCreate(t, s, "db", size(gib+1))
	rec, err := s.CreateVolume(t.Context(), cloneOf(lifecycle.Source{Volume: src.ID}, 0))
	if err != nil {
		t.Fatal(err)
	}
	if rec.Spec.SizeBytes != gib+1 || !rec.Origin.Temporary || len(rec.InSyncReplicas()) != 3 {
		t.Errorf("made was %+v", rec)
	}
	eventually(t, "nothing is left in the source", func() bool {
		r, err := s.Get(t.Context(), "db")
		return err == nil && len(r.Snapshots) == 0
	})
	again, err := s.CreateVolume(t.Context(), cloneOf(lifecycle.Source{Volume: src.ID}, gib+1))
	if err != nil || again.ID != rec.ID {
		t.Errorf("again: %v, %v", again.ID, err)
	}
	c.CheckClean()
}

func TestClonesThatCannotBe(t *testing.T) {
	c, s := three(t)
	primaries(t, c)
	src := mustCreate(t, s, "db", size(gib))
	ref := take(t, s, "db", "monday")
	snap := lifecycle.Source{Snapshot: ref}
	with := func(x lifecycle.Source, f func(*lifecycle.CreateRequest)) lifecycle.CreateRequest {
		q := cloneOf(x, gib)
		f(&q)
		return q
	}
	for what, x := range map[string]struct {
		q    lifecycle.CreateRequest
		kind holdfast.Kind
		says string
	}{
		"smaller":      {cloneOf(snap, gib-1<<20), holdfast.OutOfRange, "less than"},
		"smaller, too": {cloneOf(lifecycle.Source{Volume: src.ID}, gib/2), holdfast.OutOfRange, "less than"},
		"too large":    {with(snap, func(q *lifecycle.CreateRequest) { q.Spec.SizeBytes, q.MaxBytes = 0, gib/2 }), holdfast.OutOfRange, "limit"},
		"filesystem":   {with(snap, func(q *lifecycle.CreateRequest) { q.Spec.FSType = "ext4" }), holdfast.Invalid, "xfs"},
		"topology":     {with(snap, func(q *lifecycle.CreateRequest) { q.Spec.Requisite = []holdfast.Domain{{Host: "n9"}} }), holdfast.NoSpace, "volume db"},
		"no snapshot":  {cloneOf(lifecycle.Source{Snapshot: lifecycle.SnapshotRef{Volume: src.ID, Snapshot: "x"}}, gib), holdfast.NotFound, "snapshot"},
		"no volume":    {cloneOf(lifecycle.Source{Volume: "x"}, gib), holdfast.NotFound, "volume x"},
		"not an id":    {cloneOf(lifecycle.Source{Volume: "db"}, gib), holdfast.NotFound, "volume db"},
	} {
		_, err := s.CreateVolume(t.Context(), x.q)
		t.Log(what)
		wantKind(t, err, x.kind, x.says)
	}
	if _, err := s.Get(t.Context(), "clone"); holdfast.KindOf(err) != holdfast.NotFound {
		t.Errorf("something is left: %v", err)
	}
	for _, n := range []holdfast.NodeID{"n1", "n2", "n3"} {
		c.Node(n).Kill()
	}
	_, err := s.CreateVolume(t.Context(), cloneOf(snap, gib))
	wantKind(t, err, holdfast.Unavailable, "down")
}

// TestACloneBeginsWithTheReplicasThatCanBe: one of the source's is down, and one
// node fails; the others are added later.
func TestACloneBeginsWithTheReplicasThatCanBe(t *testing.T) {
	c, s := three(t)
	primaries(t, c)
	mustCreate(t, s, "db", size(gib))
	ref := take(t, s, "db", "monday")
	c.Node("n3").Kill()
	c.SetFault(func(n holdfast.NodeID, method string, after bool) error {
		if n == "n1" && method == "CreateReplica" && after {
			return holdfast.E("", holdfast.NoSpace, "full")
		}
		return nil
	})
	rec, err := s.CreateVolume(t.Context(), cloneOf(lifecycle.Source{Snapshot: ref}, 0))
	if err != nil {
		t.Fatal(err)
	}
	if len(rec.Replicas) != 1 || rec.Replicas[0].Node != "n2" || rec.Spec.Replicas != 3 {
		t.Errorf("made was %+v", rec)
	}
	// What is added then is made empty, and repaired.
	x := holdfast.Replica{ID: "later", Node: "n1", Pool: "pool-n1", State: holdfast.New}
	rec.Replicas = append(rec.Replicas, x)
	if rec, err = c.Store.SwapVolume(t.Context(), rec); err != nil {
		t.Fatal(err)
	}
	c.SetFault(nil)
	if err := s.MakeReplica(t.Context(), rec, x); err != nil {
		t.Fatal(err)
	}
	if got := c.Node("n1").Replicas()["later"].Content; got != "" {
		t.Errorf("the added replica is made of %q", got)
	}
}

// TestACloneOfAVolumeThatCannotBeSnapshotted leaves nothing in the volume.
func TestACloneOfAVolumeThatCannotBeSnapshotted(t *testing.T) {
	c, _ := three(t)
	s, err := lifecycle.New(lifecycle.Config{Store: c.Store, Nodes: c, Poll: time.Millisecond, OpTimeout: 30 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	src := mustCreate(t, s, "db", size(gib)) // there is no primary
	_, err = s.CreateVolume(context.WithoutCancel(t.Context()), cloneOf(lifecycle.Source{Volume: src.ID}, 0))
	wantKind(t, err, holdfast.Unavailable)
	if r, err := s.Get(t.Context(), "db"); err != nil || len(r.Snapshots) != 0 {
		t.Errorf("left is %+v, %v", r.Snapshots, err)
	}
}
