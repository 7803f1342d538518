package agent_test

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/metadata/memory"
	"github.com/holdfast-storage/holdfast/node/agent"
)

// rig is one agent over fakes.
type rig struct {
	t     *testing.T
	store *memory.Store
	plane *fakePlane
	front *fakeFrontEnd
	pools *fakePools
	pool  *fakePool
	cfg   agent.Config
	*agent.Agent
	end  context.CancelFunc
	over chan error
}

const testTTL = 400 * time.Millisecond

// newRig makes the parts of a node that shares db with others; start runs it.
func newRig(t *testing.T, db *memory.Store, id holdfast.NodeID) *rig {
	t.Helper()
	store := db.Client()
	t.Cleanup(func() { _ = store.Close() })
	plane := &fakePlane{node: id, store: store, replica: map[holdfast.ReplicaID]bool{}, open: map[holdfast.VolumeID]*fakeVolume{}}
	pool := &fakePool{plane: plane, data: map[holdfast.ReplicaID]agent.Stored{}, info: holdfast.Pool{
		ID: holdfast.PoolID("pool-of-" + id), Device: "/dev/a", State: holdfast.PoolOnline, TotalBytes: 1 << 40, FreeBytes: 1 << 39,
	}}
	cfg := agent.DefaultConfig()
	cfg.ID = id
	cfg.Pools = []agent.PoolConfig{{Path: "/dev/a"}}
	cfg.LeaseTTL, cfg.RefreshEvery, cfg.PurgeEvery = testTTL, 50*time.Millisecond, 50*time.Millisecond
	cfg.RetryPools, cfg.CheckEvery, cfg.OpTimeout = 50*time.Millisecond, 50*time.Millisecond, 20*time.Second
	return &rig{
		t: t, store: store, plane: plane, pool: pool, cfg: cfg,
		front: &fakeFrontEnd{plane: plane, open: map[holdfast.VolumeID]*fakeDevice{}},
		pools: &fakePools{pools: map[string]*fakePool{"/dev/a": pool}},
	}
}

// begin makes and starts the agent, without running it.
func (r *rig) begin() error {
	r.t.Helper()
	a, err := agent.New(r.cfg, agent.Deps{Store: r.store, Plane: r.plane, FrontEnd: r.front, Pools: r.pools, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	r.Agent = a
	return a.Start(r.t.Context())
}

func (r *rig) start() *rig {
	r.t.Helper()
	if err := r.begin(); err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r.end, r.over = cancel, make(chan error, 1)
	a, over := r.Agent, r.over
	go func() { over <- a.Run(ctx, agent.Addrs{Data: "127.0.0.1:1", API: "127.0.0.1:2"}) }()
	r.t.Cleanup(r.stop)
	eventually(r.t, "the node is registered", func() bool {
		n, err := r.store.Node(r.t.Context(), r.cfg.ID)
		return err == nil && n.APIAddr != "" || r.isDown()
	})
	return r
}

func (r *rig) isDown() bool { _, err := r.store.Volumes(context.Background()); return err != nil }

// stop ends the agent as a daemon that is told to.
func (r *rig) stop() {
	if r.end == nil {
		return
	}
	r.end()
	<-r.over
	r.end = nil
	if err := r.Close(context.Background(), func() error {
		r.plane.note("plane stopped")
		for _, v := range r.plane.open {
			v.end(holdfast.E("", holdfast.Unavailable, "stopped"))
		}
		return nil
	}); err != nil && !r.isDown() {
		r.t.Errorf("close: %v", err)
	}
}

// crash ends the agent as kill -9 would: nothing is given back, the lease runs
// out by itself.
func (r *rig) crash() {
	r.store.SetOutage(true)
	r.stop()
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("not within 15 s: %s", what)
		}
		<-time.After(5 * time.Millisecond)
	}
}

// volume stores a record with in-sync replicas on the nodes.
func volume(t *testing.T, db *memory.Store, name string, nodes ...holdfast.NodeID) holdfast.Record {
	t.Helper()
	rec := holdfast.Record{
		Version: holdfast.RecordVersion, ID: holdfast.NewVolumeID(), Name: name, Phase: holdfast.PhaseReady,
		SizeBytes: 1 << 30, Spec: holdfast.Spec{SizeBytes: 1 << 30, Replicas: len(nodes)}.WithDefaults(),
	}
	for _, n := range nodes {
		rec.Replicas = append(rec.Replicas, holdfast.Replica{ID: holdfast.NewReplicaID(), Node: n, Pool: holdfast.PoolID("pool-of-" + n), State: holdfast.InSync})
	}
	rec, err := db.CreateVolume(t.Context(), rec)
	if err != nil {
		t.Fatal(err)
	}
	return rec
}

func read(t *testing.T, db *memory.Store, id holdfast.VolumeID) *holdfast.Record {
	t.Helper()
	rec, err := db.Volume(t.Context(), string(id))
	if err != nil {
		t.Fatal(err)
	}
	return &rec
}

// change swaps a record until it takes.
func change(t *testing.T, db *memory.Store, id holdfast.VolumeID, f func(*holdfast.Record)) holdfast.Record {
	t.Helper()
	for {
		want := read(t, db, id)
		f(want)
		rec, err := db.SwapVolume(t.Context(), *want)
		if err == nil {
			return rec
		}
		if !errors.Is(err, holdfast.Busy) {
			t.Fatal(err)
		}
	}
}

func wantKind(t *testing.T, err error, kind holdfast.Kind) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Fatalf("got error %v (%v), want %v", err, holdfast.KindOf(err), kind)
	}
}
