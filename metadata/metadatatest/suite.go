// Package metadatatest is the contract of metadata.Store as a test suite. Every
// store runs it, in every way in which it can be set up.
//
// It promises to fail for a store that loses or hides a change, lets two
// writers win, trusts a lease that may have run out, or hangs. It does not test
// durability across restarts by itself; the harness of a store that is durable
// makes its outages restarts. It owns no goroutine that outlives a test.
package metadatatest

import (
	"context"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/metadata"
)

// Harness is one empty store and what can be done to it. Open, TTL, CallTimeout,
// Outage, Put and Skipped are needed.
type Harness struct {
	// Open gives another client of the same store; the harness closes it.
	Open func(t *testing.T) metadata.Store
	// TTL is the shortest time that a lease can have here.
	TTL time.Duration
	// CallTimeout is how long a call may take when nothing answers.
	CallTimeout time.Duration
	// Outage cuts all clients off until end is called; calling it again is fine.
	Outage func(t *testing.T) (end func())
	// Put writes a raw value under a key below the prefix.
	Put func(t *testing.T, key, value string)
	// Skipped lists the keys that clients reported as not understood.
	Skipped func() []string
	// Compact forgets all history; nil where there is none.
	Compact func(t *testing.T)
	// Remember keeps the state as it is; back puts it back. May be nil.
	Remember func(t *testing.T) (back func())
}

// Run runs the suite; each test gets a new harness.
func Run(t *testing.T, open func(t *testing.T) *Harness) {
	tests := []struct {
		name string
		f    func(t *testing.T, h *Harness)
	}{
		{"CreateAndRead", testCreateAndRead},
		{"CreateExists", testCreateExists},
		{"CreateRace", testCreateRace},
		{"Refused", testRefused},
		{"Swap", testSwap},
		{"SwapRace", testSwapRace},
		{"Drop", testDrop},
		{"Retire", testRetire},
		{"Tombstones", testTombstones},
		{"Claims", testClaims},
		{"ClaimRace", testClaimRace},
		{"Groups", testGroups},
		{"Schedules", testSchedules},
		{"Nodes", testNodes},
		{"Join", testJoin},
		{"JoinAgain", testJoinAgain},
		{"LeaseOfTheDead", testLeaseOfTheDead},
		{"Campaign", testCampaign},
		{"CampaignOfTheDead", testCampaignOfTheDead},
		{"Cluster", testCluster},
		{"Watch", testWatch},
		{"Corrupt", testCorrupt},
		{"CorruptWatch", testCorruptWatch},
		{"Outage", testOutage},
		{"OutageWatch", testOutageWatch},
		{"OutageLeases", testOutageLeases},
		{"Closed", testClosed},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) { test.f(t, open(t)) })
	}
	t.Run("Compaction", func(t *testing.T) {
		if h := open(t); h.Compact != nil {
			testCompaction(t, h)
		}
	})
	t.Run("PutBack", func(t *testing.T) {
		if h := open(t); h.Remember != nil {
			testPutBack(t, h)
		}
	})
}

// Record makes a record that can be stored.
func Record(name string) holdfast.Record {
	id := holdfast.NewVolumeID()
	return holdfast.Record{
		Version: holdfast.RecordVersion, ID: id, Name: name, Phase: holdfast.PhaseReady,
		Created: time.Date(2026, 3, 1, 12, 0, 0, 123456789, time.UTC),
		Spec: holdfast.Spec{SizeBytes: 1 << 30, Replicas: 2, Parameters: map[string]string{"a": "ü/b"},
			Requisite: []holdfast.Domain{{Rack: "r1"}}}.WithDefaults(),
		SizeBytes: 1 << 30, Epoch: 3,
		Primary: &holdfast.Primary{Node: "n1", Kind: holdfast.ClientPrimary, Grant: 2},
		Replicas: []holdfast.Replica{
			{ID: holdfast.NewReplicaID(), Node: "n1", Pool: "p1", State: holdfast.InSync, Since: 1},
			{ID: holdfast.NewReplicaID(), Node: "n2", Pool: "p2", State: holdfast.Stale, Since: 3},
		},
	}
}

// Tombstones makes one for each replica of a record.
func Tombstones(r holdfast.Record) []holdfast.Tombstone {
	var ts []holdfast.Tombstone
	for _, x := range r.Replicas {
		ts = append(ts, holdfast.Tombstone{Replica: x.ID, Volume: r.ID, Node: x.Node, Pool: x.Pool, Made: r.Created})
	}
	return ts
}

// patience bounds what should happen at once, on a slow and busy machine.
const patience = 30 * time.Second

func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantKind(t *testing.T, err error, want holdfast.Kind) {
	t.Helper()
	if err == nil || holdfast.KindOf(err) != want {
		t.Fatalf("got the error %v of kind %v, want kind %v", err, holdfast.KindOf(err), want)
	}
}

func create(t *testing.T, s metadata.Store, name string) holdfast.Record {
	t.Helper()
	return must[holdfast.Record](t)(s.CreateVolume(t.Context(), Record(name)))
}

func same(t *testing.T, got, want holdfast.Record) {
	t.Helper()
	g, w := got, want
	if !g.Created.Equal(w.Created) {
		t.Fatalf("created at %v, want %v", g.Created, w.Created)
	}
	g.Created, w.Created = time.Time{}, time.Time{}
	if !reflect.DeepEqual(g, w) {
		t.Fatalf("got  %+v\nwant %+v", g, w)
	}
}

// eventually waits until cond holds.
func eventually(t *testing.T, within time.Duration, what string, cond func() bool) {
	t.Helper()
	deadline := time.After(within)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-deadline:
			t.Fatalf("not within %v: %s", within, what)
		case <-tick.C:
		}
	}
}

// closedWithin waits for a channel to be closed.
func closedWithin(t *testing.T, within time.Duration, what string, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(within):
		t.Fatalf("not within %v: %s", within, what)
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// watcher follows a store's volumes.
type watcher struct {
	mu      sync.Mutex
	records map[holdfast.VolumeID]holdfast.Record
	deleted []holdfast.VolumeID
	synced  int
	stop    context.CancelCauseFunc
	err     chan error
}

func watch(t *testing.T, s metadata.Store) *watcher {
	t.Helper()
	ctx, stop := context.WithCancelCause(t.Context())
	w := &watcher{records: map[holdfast.VolumeID]holdfast.Record{}, stop: stop, err: make(chan error, 1)}
	go func() { w.err <- s.WatchVolumes(ctx, w.event) }()
	t.Cleanup(func() { stop(nil) })
	return w
}

func (w *watcher) event(e metadata.VolumeEvent) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case e.Synced:
		w.synced++
	case e.Deleted:
		delete(w.records, e.ID)
		w.deleted = append(w.deleted, e.ID)
	default:
		w.records[e.ID] = e.Record
	}
}

func (w *watcher) isSynced() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.synced > 0
}

func (w *watcher) syncs() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.synced
}

func (w *watcher) sees(id holdfast.VolumeID, epoch holdfast.Epoch) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.records[id].Epoch == epoch
}

func (w *watcher) sawDeletion(id holdfast.VolumeID) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Contains(w.deleted, id)
}
