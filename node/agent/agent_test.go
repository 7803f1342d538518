package agent_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/metadata/memory"
	"github.com/holdfast-storage/holdfast/node/agent"
)

func TestTheRegistrationSaysWhatTheNodeHasAndKeepsWhatOthersDecided(t *testing.T) {
	db := memory.New()
	r := newRig(t, db, "a")
	r.cfg.Domain = holdfast.Domain{Rack: "r1"}
	r.cfg.Pools = append(r.cfg.Pools, agent.PoolConfig{Path: "/dev/broken"})
	r.start()
	node := func() holdfast.Node {
		n, err := db.Node(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	n := node()
	if n.Domain != (holdfast.Domain{Host: "a", Rack: "r1"}) || n.DataAddr != "127.0.0.1:1" || !n.Alive {
		t.Errorf("registered as %+v", n)
	}
	if len(n.Pools) != 2 || n.Pools[0].State != holdfast.PoolOnline || n.Pools[1].State != holdfast.PoolFailed ||
		!strings.Contains(n.Pools[1].Message, "superblock") {
		t.Fatalf("pools %+v", n.Pools)
	}
	n.Cordoned = true
	if _, err := db.PutNode(t.Context(), n); err != nil && !errors.Is(err, holdfast.Busy) {
		t.Fatal(err)
	}
	r.pool.mu.Lock()
	r.pool.info.FreeBytes = 12345
	r.pool.mu.Unlock()
	r.pools.put("/dev/broken", &fakePool{plane: r.plane, info: holdfast.Pool{ID: "second", Device: "/dev/broken", State: holdfast.PoolOnline}})
	eventually(t, "free space is refreshed, the pool that came back is open", func() bool {
		n := node()
		return n.Pools[0].FreeBytes == 12345 && n.Pools[1].ID == "second" && n.Pools[1].State == holdfast.PoolOnline
	})
	if !node().Cordoned {
		t.Error("the refresh lost that the node is cordoned")
	}
}

func TestAFailedPoolKeepsTheIdentityItHadBefore(t *testing.T) {
	db := memory.New()
	newRig(t, db, "a").start().stop()
	r := newRig(t, db, "a")
	r.pools.pools = map[string]*fakePool{}
	r.start()
	eventually(t, "it is reported as failed under its id", func() bool {
		n, err := db.Node(t.Context(), "a")
		return err == nil && n.Pools[0].State == holdfast.PoolFailed && n.Pools[0].ID == "pool-of-a"
	})
	_, err := r.CheckPool(t.Context(), "pool-of-a", func(int64, int64) {})
	wantKind(t, err, holdfast.Unavailable)
	_, err = r.CheckPool(t.Context(), "nonsense", func(int64, int64) {})
	wantKind(t, err, holdfast.NotFound)
}

func TestAFailedReplicaIsRegisteredSinceItFailed(t *testing.T) {
	db := memory.New()
	r := newRig(t, db, "a").start()
	setFailed := func(fs ...holdfast.FailedReplica) {
		r.pool.mu.Lock()
		defer r.pool.mu.Unlock()
		r.pool.info.Failed = fs
	}
	failed := func() []holdfast.FailedReplica {
		n, err := db.Node(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		return n.Pools[0].Failed
	}
	before := time.Now()
	setFailed(holdfast.FailedReplica{ID: "x", Why: "input/output error"})
	eventually(t, "it is registered", func() bool { return len(failed()) == 1 })
	first := failed()[0]
	if first.Since.Before(before.Add(-time.Second)) || first.Since.After(time.Now()) || first.Why != "input/output error" {
		t.Errorf("registered as %+v", first)
	}
	r.stop()
	r2 := newRig(t, db, "a")
	r2.pool.info.Failed = []holdfast.FailedReplica{{ID: "w", Why: "other"}, {ID: "x", Why: "still"}}
	r2.start()
	eventually(t, "another one too", func() bool { return len(failed()) == 2 })
	if fs := failed(); !fs[1].Since.Equal(first.Since) || !fs[0].Since.After(first.Since) {
		t.Errorf("after a restart: %+v; x has failed since %v", fs, first.Since)
	}
	r2.pool.mu.Lock()
	r2.pool.info.Failed = nil
	r2.pool.mu.Unlock()
	eventually(t, "nothing failed any more", func() bool { return len(failed()) == 0 })
}

func TestAPoolThatFailedWhileOpenIsOpenedAnew(t *testing.T) {
	db := memory.New()
	r := newRig(t, db, "a").start()
	r.pool.mu.Lock()
	r.pool.info.State, r.pool.info.Message = holdfast.PoolFailed, "gone"
	r.pool.mu.Unlock()
	good := &fakePool{plane: r.plane, data: map[holdfast.ReplicaID]agent.Stored{"rep": {Volume: "v", Replica: "rep"}},
		info: holdfast.Pool{ID: "pool-of-a", Device: "/dev/a", State: holdfast.PoolOnline}}
	r.pools.put("/dev/a", good)
	eventually(t, "the new one's replica is served", func() bool {
		r.plane.mu.Lock()
		defer r.plane.mu.Unlock()
		return r.plane.replica["rep"]
	})
	if !slices.Contains(r.plane.history(), "pool closed") {
		t.Error("the old one was not closed")
	}
	eventually(t, "it is registered as online", func() bool {
		n, err := db.Node(t.Context(), "a")
		return err == nil && n.Pools[0].State == holdfast.PoolOnline && n.Pools[0].FailedSince.IsZero()
	})
}

// A disk that does not answer when a daemon starts holds up neither its other pools
// nor the node, and is taken when it answers.
func TestAPoolThatHangsWhileItIsOpenedIsTakenLater(t *testing.T) {
	db := memory.New()
	r := newRig(t, db, "n1")
	hung := make(chan struct{})
	r.pools.hangs = map[string]chan struct{}{"/dev/hung": hung}
	r.pools.put("/dev/hung", &fakePool{plane: r.plane, data: map[holdfast.ReplicaID]agent.Stored{}, info: holdfast.Pool{
		ID: "the-hung-one", Device: "/dev/hung", State: holdfast.PoolOnline, TotalBytes: 1 << 40, FreeBytes: 1 << 39}})
	r.cfg.Pools = []agent.PoolConfig{{Path: "/dev/hung"}, {Path: "/dev/a"}}
	r.cfg.OpenPatience = 20 * time.Millisecond
	r.start()
	states := func() string {
		out := ""
		for _, p := range r.Node().Pools {
			out += p.Device + " " + string(p.State) + "; "
		}
		return out
	}
	eventually(t, "the other pool is there", func() bool { return states() == "/dev/hung failed; /dev/a online; " })
	close(hung)
	eventually(t, "both are", func() bool { return states() == "/dev/hung online; /dev/a online; " })
}

func TestAReturningNodeIsNotGoneAnyMore(t *testing.T) {
	db := memory.New()
	r := newRig(t, db, "a").start()
	n, err := db.Node(t.Context(), "a")
	n.GoneSince = time.Now().UTC()
	if err == nil {
		_, err = db.PutNode(t.Context(), n)
	}
	if err != nil {
		t.Fatal(err)
	}
	_ = r
	eventually(t, "its registration says so", func() bool {
		n, err := db.Node(t.Context(), "a")
		return err == nil && n.GoneSince.IsZero()
	})
}

func TestPoolsThatCarryOurIdentityAreFoundAlsoLater(t *testing.T) {
	db := memory.New()
	r := newRig(t, db, "a")
	r.cfg.AutoPools = true
	r.start()
	rep := agent.Stored{Volume: "v", Replica: "rep"}
	r.pools.put("/dev/late", &fakePool{plane: r.plane, data: map[holdfast.ReplicaID]agent.Stored{rep.Replica: rep},
		info: holdfast.Pool{ID: "late", Device: "/dev/late", State: holdfast.PoolOnline}})
	r.pools.mu.Lock()
	r.pools.found = []string{"/dev/a", "/dev/late"}
	r.pools.mu.Unlock()
	eventually(t, "its replica is served", func() bool {
		r.plane.mu.Lock()
		defer r.plane.mu.Unlock()
		return r.plane.replica[rep.Replica]
	})
	eventually(t, "it is registered once", func() bool { return len(r.Node().Pools) == 2 })
}

func TestTwoProcessesCannotBeOneNode(t *testing.T) {
	db := memory.New()
	first := newRig(t, db, "a")
	first.cfg.LeaseTTL = time.Minute // kept also by a machine that is slow for a while
	first.start()
	second := newRig(t, db, "a")
	err := second.begin()
	wantKind(t, err, holdfast.InUse)
	if !strings.Contains(err.Error(), "another node id") {
		t.Errorf("the error does not say what to do: %v", err)
	}
}

func TestASuccessorWaitsForAKilledPredecessorsLease(t *testing.T) {
	db := memory.New()
	newRig(t, db, "a").start().crash()
	newRig(t, db, "a").start() // fails the test if it is refused
}

func TestALostLeaseIsTakenAgain(t *testing.T) {
	db := memory.New()
	r := newRig(t, db, "a").start()
	r.store.SetOutage(true)
	eventually(t, "the lease runs out", func() bool {
		alive, err := db.Alive(t.Context(), "a")
		return err == nil && !alive
	})
	r.store.SetOutage(false)
	eventually(t, "it is taken again", func() bool {
		alive, err := db.Alive(t.Context(), "a")
		return err == nil && alive
	})
}

func TestANodeWhoseIDWasTakenOverStops(t *testing.T) {
	db := memory.New()
	r := newRig(t, db, "a").start()
	r.store.SetOutage(true)
	usurper := newRig(t, db, "a").start()
	r.store.SetOutage(false)
	err := <-r.over
	r.over <- nil // for stop
	wantKind(t, err, holdfast.InUse)
	if usurper.Node().ID != "a" {
		t.Error("the new one is not registered")
	}
}

func TestCreateReplicaIsIdempotentAndNeedsARecord(t *testing.T) {
	db := memory.New()
	r := newRig(t, db, "a").start()
	rec := volume(t, db, "v", "a")
	s := agent.Stored{Volume: rec.ID, Replica: rec.Replicas[0].ID, SizeBytes: rec.SizeBytes}
	for range 2 {
		if err := r.CreateReplica(t.Context(), "pool-of-a", s); err != nil {
			t.Fatal(err)
		}
	}
	if !r.pool.holds(s.Replica) {
		t.Fatal("nothing was made")
	}
	full := volume(t, db, "w", "a")
	r.pool.mu.Lock()
	r.pool.info.State, r.pool.info.FreeBytes = holdfast.PoolFull, 0
	r.pool.mu.Unlock()
	if err := r.CreateReplica(t.Context(), "pool-of-a", s); err != nil {
		t.Errorf("the same again on a full pool: %v", err)
	}
	other := func(f func(*agent.Stored)) agent.Stored { x := s; f(&x); return x }
	for name, tc := range map[string]struct {
		pool holdfast.PoolID
		r    agent.Stored
		kind holdfast.Kind
	}{
		"full pool":       {"pool-of-a", agent.Stored{Volume: full.ID, Replica: full.Replicas[0].ID, SizeBytes: full.SizeBytes}, holdfast.NoSpace},
		"unknown pool":    {"p", s, holdfast.NotFound},
		"not in record":   {"pool-of-a", other(func(x *agent.Stored) { x.Replica = holdfast.NewReplicaID() }), holdfast.NotFound},
		"no such volume":  {"pool-of-a", other(func(x *agent.Stored) { x.Volume = holdfast.NewVolumeID() }), holdfast.NotFound},
		"zero size":       {"pool-of-a", other(func(x *agent.Stored) { x.SizeBytes = 0 }), holdfast.OutOfRange},
		"not whole block": {"pool-of-a", other(func(x *agent.Stored) { x.SizeBytes++ }), holdfast.OutOfRange},
		"no id":           {"pool-of-a", other(func(x *agent.Stored) { x.Replica = "" }), holdfast.Invalid},
	} {
		t.Run(name, func(t *testing.T) { wantKind(t, r.CreateReplica(t.Context(), tc.pool, tc.r), tc.kind) })
	}
}

// drbd9-tests recreate-node-day0: an empty replica must not pass for one that
// was written.
func TestAReplicaThatShouldHoldDataIsNotMadeAnew(t *testing.T) {
	db := memory.New()
	r := newRig(t, db, "a").start()
	rec := volume(t, db, "v", "a")
	s := agent.Stored{Volume: rec.ID, Replica: rec.Replicas[0].ID, SizeBytes: rec.SizeBytes}
	rec.Epoch += 2
	rec.Replicas[0].State, rec.Replicas[0].Since = holdfast.InSync, 1
	rec, err := db.SwapVolume(t.Context(), rec)
	if err != nil {
		t.Fatal(err)
	}
	wantKind(t, r.CreateReplica(t.Context(), "pool-of-a", s), holdfast.Corrupt)
	if r.pool.holds(s.Replica) {
		t.Fatal("an empty replica stands where data was")
	}
	rec.Replicas[0].State, rec.Replicas[0].Since = holdfast.New, 0
	if _, err := db.SwapVolume(t.Context(), rec); err != nil {
		t.Fatal(err)
	}
	if err := r.CreateReplica(t.Context(), "pool-of-a", s); err != nil {
		t.Fatalf("a new one: %v", err)
	}
}

// Invariant 8: nothing is deleted on absence.
func TestOnlyWhatATombstoneNamesIsRemoved(t *testing.T) {
	if err := removals(t); err != nil {
		t.Error(err)
	}
}

// removals removes one replica of several; an error says that others went too.
func removals(t *testing.T) (more error) {
	db := memory.New()
	r := newRig(t, db, "a")
	unknown := agent.Stored{Volume: holdfast.NewVolumeID(), Replica: holdfast.NewReplicaID()}
	r.pool.data[unknown.Replica] = unknown // no record names it, and no tombstone
	r.start()
	doomed, kept, elsewhere := volume(t, db, "doomed", "a"), volume(t, db, "kept", "a"), holdfast.NewReplicaID()
	for _, rec := range []holdfast.Record{doomed, kept} {
		if err := r.CreateReplica(t.Context(), "pool-of-a", agent.Stored{Volume: rec.ID, Replica: rec.Replicas[0].ID, SizeBytes: rec.SizeBytes}); err != nil {
			t.Fatal(err)
		}
	}
	tomb := func(rec holdfast.Record) holdfast.Tombstone {
		return holdfast.Tombstone{Replica: rec.Replicas[0].ID, Volume: rec.ID, Node: "a", Pool: "pool-of-a"}
	}
	if err := db.DropVolume(t.Context(), *read(t, db, doomed.ID), []holdfast.Tombstone{tomb(doomed)}); err != nil {
		t.Fatal(err)
	}
	// Wrong or not ours: a replica that its record still names, and one of a pool that is away.
	if err := db.AddTombstones(t.Context(), []holdfast.Tombstone{tomb(kept), {Replica: elsewhere, Volume: "x", Node: "a", Pool: "away"}}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the doomed replica is removed by itself", func() bool { return !r.pool.holds(doomed.Replicas[0].ID) })
	n, err := r.PurgeTombstones(t.Context())
	if err != nil {
		t.Errorf("purge: %v", err)
	}
	if n > 1 || !r.pool.holds(kept.Replicas[0].ID) || !r.pool.holds(unknown.Replica) {
		return errors.New("removed more than was named")
	}
	eventually(t, "its tombstone is dropped, the others stay", func() bool {
		ts, err := db.Tombstones(t.Context())
		return err == nil && len(ts) == 2
	})
	h := r.plane.history()
	if i, j := slices.Index(h, "plane lets go of "+string(doomed.Replicas[0].ID)), slices.Index(h, "pool removes "+string(doomed.Replicas[0].ID)); i < 0 || j < i {
		t.Errorf("order %v: the data plane has to let go first", h)
	}
	return nil
}

func TestTheLeaseIsGivenBackLast(t *testing.T) {
	db := memory.New()
	r := newRig(t, db, "a").start()
	r.stop()
	if h := r.plane.history(); !slices.Equal(h, []string{"plane stopped", "pool closed"}) {
		t.Errorf("order %v", h)
	}
	if alive, err := db.Alive(t.Context(), "a"); err != nil || alive {
		t.Errorf("alive %v, %v after a graceful stop", alive, err)
	}
}

func TestConfigurationsThatCannotWorkAreRefused(t *testing.T) {
	for name, spoil := range map[string]func(*agent.Config){
		"no id":         func(c *agent.Config) { c.ID = "" },
		"no lease":      func(c *agent.Config) { c.LeaseTTL = 0 },
		"relative pool": func(c *agent.Config) { c.Pools = []agent.PoolConfig{{Path: "sda"}} },
		"pool twice":    func(c *agent.Config) { c.Pools = []agent.PoolConfig{{Path: "/dev/a"}, {Path: "/dev/a"}} },
		"negative":      func(c *agent.Config) { c.Pools = []agent.PoolConfig{{Path: "/a", ImageBytes: -1}} },
		"no upkeep":     func(c *agent.Config) { c.MaxMaintenance = 0 },
	} {
		c := agent.DefaultConfig()
		c.ID = "a"
		if err := c.Validate(); err != nil {
			t.Fatal(err)
		}
		spoil(&c)
		t.Run(name, func(t *testing.T) { wantKind(t, c.Validate(), holdfast.Invalid) })
	}
}
