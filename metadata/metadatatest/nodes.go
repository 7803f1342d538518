package metadatatest

import (
	"context"
	"errors"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/metadata"
)

func node(id holdfast.NodeID) holdfast.Node {
	return holdfast.Node{Version: holdfast.NodeVersion, ID: id, DataAddr: "10.0.0.1:7100", APIAddr: "10.0.0.1:7101",
		Domain:  holdfast.Domain{Host: string(id), Rack: "r1"},
		Pools:   []holdfast.Pool{{ID: "p1", Device: "/dev/sdb", State: holdfast.PoolOnline, TotalBytes: 1 << 40}},
		Started: time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC), Release: "v0"}
}

func testNodes(t *testing.T, h *Harness) {
	s, other := h.Open(t), h.Open(t)
	ctx := t.Context()
	b := must[holdfast.Node](t)(s.PutNode(ctx, node("b.example-1")))
	a := must[holdfast.Node](t)(s.PutNode(ctx, node("a")))
	if a.Revision == 0 || a.Alive || !reflect.DeepEqual(a.Pools, node("a").Pools) {
		t.Fatalf("stored %+v", a)
	}
	now, err := other.PutNode(ctx, node("a")) // at revision 0: none yet
	wantKind(t, err, holdfast.Busy)
	if now.Revision != a.Revision {
		t.Fatalf("on Busy it gave revision %d, want %d", now.Revision, a.Revision)
	}
	old := a
	a.Cordoned = true
	a = must[holdfast.Node](t)(s.PutNode(ctx, a))
	_, err = other.PutNode(ctx, old)
	wantKind(t, err, holdfast.Busy)
	if got := must[holdfast.Node](t)(other.Node(ctx, "a")); !got.Cordoned || got.Revision != a.Revision {
		t.Fatalf("read %+v", got)
	}
	_, err = s.Node(ctx, "c")
	wantKind(t, err, holdfast.NotFound)
	_, err = s.PutNode(ctx, node("a/b"))
	wantKind(t, err, holdfast.Invalid)
	_, err = s.PutNode(ctx, holdfast.Node{Version: 99, ID: "v"})
	wantKind(t, err, holdfast.Invalid)

	l := join(t, s, b.ID, "i1", h.TTL)
	all := must[[]holdfast.Node](t)(other.Nodes(ctx))
	if len(all) != 2 || all[0].ID != "a" || all[0].Alive || !all[1].Alive {
		t.Fatalf("nodes %+v", all)
	}
	if got := must[holdfast.Node](t)(other.Node(ctx, b.ID)); !got.Alive {
		t.Fatal("a node that joined is not alive")
	}
	wantKind(t, other.DropNode(ctx, b.ID), holdfast.InUse)
	ok(t, l.Close())
	ok(t, other.DropNode(ctx, b.ID))
	wantKind(t, other.DropNode(ctx, b.ID), holdfast.NotFound)
	if all = must[[]holdfast.Node](t)(s.Nodes(ctx)); len(all) != 1 {
		t.Fatalf("nodes %+v", all)
	}
}

func join(t *testing.T, s metadata.Store, id holdfast.NodeID, instance string, ttl time.Duration) metadata.Lease {
	t.Helper()
	l := must[metadata.Lease](t)(s.Join(t.Context(), id, instance, ttl))
	if isClosed(l.Lost()) || !l.Held() {
		t.Fatal("a lease was lost at once")
	}
	return l
}

func testJoin(t *testing.T, h *Harness) {
	s, other := h.Open(t), h.Open(t)
	short, cancel := context.WithCancel(t.Context())
	l := must[metadata.Lease](t)(s.Join(short, "n1", "i1", h.TTL))
	cancel() // the lease outlives the call's context
	_, err := other.Join(t.Context(), "n1", "i2", h.TTL)
	wantKind(t, err, holdfast.InUse)
	if !strings.Contains(err.Error(), "i1") {
		t.Fatalf("the error does not name the holder: %v", err)
	}
	join(t, other, "n2", "i2", h.TTL) // nodes do not hinder each other

	// It stays alive for longer than its time to live, never missing in between.
	deadline := time.After(h.TTL * 2)
	tick := time.NewTicker(h.TTL / 20)
	defer tick.Stop()
	for over := false; !over; {
		select {
		case <-deadline:
			over = true
		case <-tick.C:
		}
		if !must[bool](t)(other.Alive(t.Context(), "n1")) || !l.Held() || isClosed(l.Lost()) {
			t.Fatal("a lease that is refreshed was lost")
		}
	}
	ok(t, l.Close())
	if must[bool](t)(other.Alive(t.Context(), "n1")) || l.Held() || !isClosed(l.Lost()) {
		t.Fatal("a lease was there after Close")
	}
	ok(t, l.Close())
	join(t, other, "n1", "i2", h.TTL)
	if must[bool](t)(s.Alive(t.Context(), "nobody")) {
		t.Fatal("a node that nobody knows is alive")
	}
	for _, bad := range []struct {
		id       holdfast.NodeID
		instance string
		ttl      time.Duration
	}{{"", "i", h.TTL}, {"a/b", "i", h.TTL}, {"n", "", h.TTL}, {"n", "i", 0}} {
		_, err = s.Join(t.Context(), bad.id, bad.instance, bad.ttl)
		wantKind(t, err, holdfast.Invalid)
	}
}

func testJoinAgain(t *testing.T, h *Harness) {
	s, other := h.Open(t), h.Open(t)
	old := join(t, s, "n1", "i1", h.TTL)
	l := join(t, other, "n1", "i1", h.TTL)
	closedWithin(t, h.TTL+patience, "the older lease of the same instance is lost", old.Lost())
	ok(t, old.Close()) // and giving it back does not take the new one away
	if !must[bool](t)(s.Alive(t.Context(), "n1")) || !l.Held() {
		t.Fatal("the new lease went with the old one")
	}
	_, err := s.Join(t.Context(), "n1", "i2", h.TTL)
	wantKind(t, err, holdfast.InUse)
}

func testLeaseOfTheDead(t *testing.T, h *Harness) {
	s, other := h.Open(t), h.Open(t)
	l := join(t, s, "n1", "i1", h.TTL)
	died := time.Now()
	ok(t, s.Close()) // as when the process is killed: nothing is given back
	closedWithin(t, patience, "a closed store's lease is lost", l.Lost())
	_, err := other.Join(t.Context(), "n1", "i2", h.TTL)
	if time.Since(died) < h.TTL/2 {
		wantKind(t, err, holdfast.InUse)
	}
	eventually(t, h.TTL+patience, "a dead node is not alive", func() bool {
		return !must[bool](t)(other.Alive(t.Context(), "n1"))
	})
	join(t, other, "n1", "i2", h.TTL)
}

func testCampaign(t *testing.T, h *Harness) {
	s, other := h.Open(t), h.Open(t)
	ctx := t.Context()
	if name := must[string](t)(s.Leader(ctx)); name != "" {
		t.Fatalf("%q leads before anybody campaigned", name)
	}
	led, resign, err := s.Campaign(ctx, "a")
	ok(t, err)
	if name := must[string](t)(other.Leader(ctx)); name != "a" || led.Err() != nil {
		t.Fatalf("%q leads, want a; %v", name, led.Err())
	}
	// A candidate that gives up, also one of the leader's name.
	short, cancel := context.WithCancelCause(ctx)
	reason := errors.New("enough")
	waiting := make(chan error, 2)
	for _, name := range []string{"a", "c"} {
		go func() { _, _, err := other.Campaign(short, name); waiting <- err }()
	}
	select {
	case err := <-waiting:
		t.Fatalf("a second leader, or an error: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	cancel(reason)
	for range 2 {
		if err := <-waiting; !errors.Is(err, reason) || holdfast.KindOf(err) != holdfast.Unavailable {
			t.Fatalf("the error is %v, want kind Unavailable and the context's cause", err)
		}
	}
	type answer struct {
		led    context.Context
		resign func()
		err    error
	}
	next := make(chan answer, 1)
	go func() { l, r, err := other.Campaign(ctx, "b"); next <- answer{l, r, err} }()
	resign()
	closedWithin(t, patience, "the leadership ends with resign", led.Done())
	resign()
	select {
	case b := <-next:
		ok(t, b.err)
		if name := must[string](t)(s.Leader(ctx)); name != "b" || b.led.Err() != nil {
			t.Fatalf("%q leads, want b", name)
		}
		b.resign()
	case <-time.After(patience):
		t.Fatal("nobody followed the leader that resigned")
	}
	_, _, err = s.Campaign(ctx, "")
	wantKind(t, err, holdfast.Invalid)
}

func testCampaignOfTheDead(t *testing.T, h *Harness) {
	s, other := h.Open(t), h.Open(t)
	led, _, err := s.Campaign(t.Context(), "a")
	ok(t, err)
	ok(t, s.Close())
	closedWithin(t, patience, "the leadership ends with the store", led.Done())
	ctx, cancel := context.WithTimeout(t.Context(), metadata.DefaultLeaseTTL+patience)
	defer cancel()
	led, _, err = other.Campaign(ctx, "b")
	ok(t, err)
	cancel()
	closedWithin(t, patience, "the leadership ends with the campaign's context", led.Done())
}

func testCluster(t *testing.T, h *Harness) {
	ids := make([]holdfast.ClusterID, 6)
	errs := make([]error, len(ids))
	var wg sync.WaitGroup
	for i := range ids {
		s := h.Open(t)
		wg.Go(func() { ids[i], errs[i] = s.Cluster(t.Context()) })
	}
	wg.Wait()
	for i := range ids {
		if errs[i] != nil || ids[i] == "" || ids[i] != ids[0] {
			t.Fatalf("identities %v, errors %v", ids, errs)
		}
	}
	h.Put(t, "cluster", `{"version":2,"id":"x"}`)
	_, err := h.Open(t).Cluster(t.Context())
	wantKind(t, err, holdfast.Corrupt)
}
