package dataplane

import (
	"bytes"
	"context"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/buf"
	"github.com/holdfast-storage/holdfast/metadata/memory"
	"github.com/holdfast-storage/holdfast/replication"
)

func TestWritesReachEveryReplica(t *testing.T) {
	c := newCluster(t, 3).onEngine().start()
	h := c.open(c.nodes[0], OpenOptions{})
	m := newModel()
	m.load(t, h, 8, 200, nil)
	m.verify(t, h)
	if err := h.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	if rec := c.record(); rec.Primary != nil || len(rec.InSyncReplicas()) != 3 {
		t.Fatalf("after release: %+v", rec)
	}
	if err := h.Err(); err != nil {
		t.Errorf("after release: %v", err)
	}
	c.equal()
	if err := write(h, 0, make([]byte, 4096)); err == nil {
		t.Error("a write after the release was accepted")
	}
}

func TestLargeAndTrim(t *testing.T) {
	c := newCluster(t, 3).onEngine().start()
	h := c.open(c.nodes[1], OpenOptions{})
	data := bytes.Repeat([]byte("holdfast"), buf.Max/8)
	if err := write(h, buf.Max, data); err != nil {
		t.Fatal(err)
	}
	got, err := read(h, buf.Max, buf.Max)
	if err != nil || !bytes.Equal(got, data) {
		t.Fatalf("read back: %v", err)
	}
	if _, err := do(h, replication.Request{Op: replication.OpTrim, Offset: buf.Max, Length: 64 << 10}); err != nil {
		t.Fatal(err)
	}
	if err := flush(h); err != nil {
		t.Fatal(err)
	}
	got, err = read(h, buf.Max, 128<<10)
	if err != nil || !bytes.Equal(got[:64<<10], make([]byte, 64<<10)) || !bytes.Equal(got[64<<10:], data[64<<10:128<<10]) {
		t.Fatalf("after trim: %v", err)
	}
	if s := h.Status(); s.Counters.Writes == 0 || s.Counters.ReadBytes < buf.Max {
		t.Errorf("counters: %+v", s.Counters)
	}
	c.equal()
}

// TestKilledReplicaIsDroppedAndComesBack: I/O stalls for about two seconds, no
// operation fails, and the returning replica is repaired.
func TestKilledReplicaIsDroppedAndComesBack(t *testing.T) {
	c := newCluster(t, 3).onEngine().start()
	h := c.open(c.nodes[0], OpenOptions{})
	m := newModel()
	m.load(t, h, 4, 50, nil)
	stop := make(chan struct{})
	var worst time.Duration
	var wg sync.WaitGroup
	wg.Go(func() { worst = m.load(t, h, 4, 1<<30, stop) })
	c.nodes[2].stop()
	c.until("the killed replica is dropped", func() bool { return len(c.inSync()) == 2 })
	writes := h.Status().Counters.Writes
	c.until("writes go on", func() bool { return h.Status().Counters.Writes > writes+100 })
	c.nodes[2].start()
	c.until("the replica is in sync again", func() bool { return len(c.inSync()) == 3 })
	close(stop)
	wg.Wait()
	if worst > 5*time.Second {
		t.Errorf("an operation took %v", worst)
	}
	m.verify(t, h)
	if err := h.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.equal()
}

// TestSilentReplicaIsDropped: the connection stays, nothing comes over it.
func TestSilentReplicaIsDropped(t *testing.T) {
	c := newCluster(t, 2)
	c.freezable = true
	c.tune = func(cfg *Config) { cfg.Primary.SilentAfter = 500 * time.Millisecond }
	c.start()
	h := c.open(c.nodes[0], OpenOptions{})
	if err := write(h, 0, make([]byte, 4096)); err != nil {
		t.Fatal(err)
	}
	c.nodes[0].freeze()
	start := time.Now()
	if err := write(h, 4096, bytes.Repeat([]byte{7}, 4096)); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took > 4*time.Second {
		t.Errorf("the write took %v", took)
	}
	if in := c.inSync(); !slices.Equal(in, []holdfast.NodeID{"n0"}) {
		t.Errorf("in sync: %v", in)
	}
	c.nodes[0].thaw()
	c.until("it is in sync again", func() bool { return len(c.inSync()) == 2 })
	c.equal()
}

func TestTakeOverFromADeadNode(t *testing.T) {
	c := newCluster(t, 3).onEngine().start()
	h := c.open(c.nodes[0], OpenOptions{})
	m := newModel()
	m.load(t, h, 4, 100, nil)
	if _, err := c.nodes[1].plane.Open(t.Context(), c.vol, OpenOptions{}); err == nil || !strings.Contains(err.Error(), "n0") {
		t.Fatalf("open while n0 holds it: %v", err)
	} else {
		wantKind(t, err, holdfast.InUse)
	}
	c.nodes[0].stop()
	<-h.Ended()
	wantKind(t, h.Err(), holdfast.Unavailable)
	h2 := c.open(c.nodes[1], OpenOptions{})
	m.verify(t, h2)
	m.load(t, h2, 4, 50, nil)
	c.nodes[0].start()
	c.until("all are in sync", func() bool { return len(c.inSync()) == 3 })
	if err := h2.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.equal()
}

// TestForcedTakeOverFencesTheOldPrimary: the old one lives, and learns from its
// replicas or the record that it must stop.
func TestForcedTakeOverFencesTheOldPrimary(t *testing.T) {
	c := newCluster(t, 3).start()
	h := c.open(c.nodes[0], OpenOptions{})
	if err := write(h, 0, bytes.Repeat([]byte{1}, 4096)); err != nil {
		t.Fatal(err)
	}
	h2 := c.open(c.nodes[1], OpenOptions{Force: true})
	<-h.Ended()
	wantKind(t, h.Err(), holdfast.Fenced)
	wantKind(t, write(h, 0, make([]byte, 4096)), holdfast.Fenced)
	got, err := read(h2, 0, 4096)
	if err != nil || got[0] != 1 {
		t.Fatalf("the new primary reads %v, %v", got[:1], err)
	}
	if err := h.Release(t.Context()); err != nil {
		t.Errorf("releasing a fenced primary: %v", err)
	}
	if to := c.record(); to.AttachedTo() != "n1" {
		t.Errorf("the record names %q", to.AttachedTo())
	}
}

func TestConcurrentOpensJoin(t *testing.T) {
	c := newCluster(t, 2).start()
	c.nodes[0].store.Inject(func(memory.Op) memory.Fault { return memory.Fault{Delay: 20 * time.Millisecond} })
	var wg sync.WaitGroup
	hs := make([]*Volume, 8)
	for i := range hs {
		wg.Go(func() { hs[i] = c.open(c.nodes[0], OpenOptions{}) })
	}
	wg.Wait()
	for _, h := range hs {
		if h != hs[0] {
			t.Fatal("two opens gave two primaries")
		}
	}
	if e := c.record().Epoch; e != 2 {
		t.Errorf("epoch %d: the volume was granted more than once", e)
	}
}

func TestMaintenanceGivesWay(t *testing.T) {
	c := newCluster(t, 2).start()
	m := c.open(c.nodes[0], OpenOptions{Kind: holdfast.MaintenancePrimary})
	h := c.open(c.nodes[0], OpenOptions{})
	<-m.Ended()
	if err := m.Err(); err != nil {
		t.Errorf("the maintenance primary ended with %v", err)
	}
	_, err := c.nodes[0].plane.Open(t.Context(), c.vol, OpenOptions{Kind: holdfast.MaintenancePrimary})
	wantKind(t, err, holdfast.InUse)
	if err := h.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	m = c.open(c.nodes[1], OpenOptions{Kind: holdfast.MaintenancePrimary})
	c.open(c.nodes[0], OpenOptions{})
	<-m.Ended()
	wantKind(t, m.Err(), holdfast.Fenced)
}

// TestOpenGivesUp: with no replica to be reached the call ends with its context,
// says what it waits for, and does not keep the volume.
func TestOpenGivesUp(t *testing.T) {
	c := newCluster(t, 2)
	c.nodes[0].rep = "" // a node whose pool is gone
	c.nodes[0].start()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := c.nodes[0].plane.Open(ctx, c.vol, OpenOptions{})
	wantKind(t, err, holdfast.Unavailable)
	if !strings.Contains(err.Error(), "n1") {
		t.Errorf("the error does not say what is waited for: %v", err)
	}
	c.until("the grant is given back", func() bool { return c.record().Primary == nil })
	_, err = c.nodes[0].plane.Open(t.Context(), holdfast.NewVolumeID(), OpenOptions{})
	wantKind(t, err, holdfast.NotFound)
}

func TestOpenOutlivesAMetadataOutage(t *testing.T) {
	c := newCluster(t, 2).start()
	c.nodes[0].store.SetOutage(true)
	got := make(chan *Volume, 1)
	go func() { got <- c.open(c.nodes[0], OpenOptions{}) }()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := c.nodes[0].plane.Open(ctx, c.vol, OpenOptions{}) // joins, gives up alone
	wantKind(t, err, holdfast.Unavailable)
	c.nodes[0].store.SetOutage(false)
	h := <-got
	c.nodes[0].store.SetOutage(true) // while nothing fails, I/O needs none
	if err := write(h, 0, make([]byte, 4096)); err != nil {
		t.Fatal(err)
	}
	c.nodes[0].store.SetOutage(false)
}

func TestGrow(t *testing.T) {
	c := newCluster(t, 3).onEngine().start()
	h := c.open(c.nodes[0], OpenOptions{})
	sizes := make(chan int64, 8)
	h.OnResize(func(n int64) { sizes <- n })
	rec := c.record()
	rec.Spec.SizeBytes = 2 * testSize
	if _, err := c.store.SwapVolume(t.Context(), rec); err != nil {
		t.Fatal(err)
	}
	if n := <-sizes; n != 2*testSize {
		t.Errorf("told %d bytes", n)
	}
	if n := h.SizeBytes(); n != 2*testSize {
		t.Errorf("the volume has %d bytes", n)
	}
	if err := write(h, 2*testSize-4096, bytes.Repeat([]byte{9}, 4096)); err != nil {
		t.Fatal(err)
	}
	c.equal()
}

func TestDeletedVolumeEndsItsPrimary(t *testing.T) {
	c := newCluster(t, 2).start()
	h := c.open(c.nodes[0], OpenOptions{})
	if err := c.store.DropVolume(t.Context(), c.record(), nil); err != nil {
		t.Fatal(err)
	}
	<-h.Ended()
	wantKind(t, h.Err(), holdfast.Fenced)
}

// TestBrokenConnectionsComeBackWithoutMetadata: I/O goes on by the quick
// reconnect, and nobody is dropped.
func TestBrokenConnectionsComeBackWithoutMetadata(t *testing.T) {
	c := newCluster(t, 3).start()
	h := c.open(c.nodes[0], OpenOptions{})
	c.mu.Lock()
	c.lost = true
	c.mu.Unlock()
	c.nodes[0].store.SetOutage(true)
	m := newModel()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { m.load(t, h, 4, 1<<30, stop) })
	for range 10 {
		writes := h.Status().Counters.Writes
		c.nodes[0].plane.ageAddrs()
		for _, nd := range c.nodes[1:] {
			nd.plane.breakConns()
		}
		c.until("writes go on", func() bool { return h.Status().Counters.Writes > writes+20 })
	}
	close(stop)
	wg.Wait()
	c.nodes[0].store.SetOutage(false)
	m.verify(t, h)
	if rec := c.record(); rec.Epoch != 2 || len(rec.InSyncReplicas()) != 3 {
		t.Errorf("the membership changed: %+v", rec)
	}
	if err := h.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.equal()
}

// breakConns resets all connections of a plane.
func (p *Plane) breakConns() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for nc := range p.conns {
		if tcp, ok := nc.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
		_ = nc.Close()
	}
}

// TestDropWaitsForMetadata: nothing is acknowledged without a lost replica until
// the record says so (invariant 2), and I/O goes on by itself afterwards.
func TestDropWaitsForMetadata(t *testing.T) {
	c := newCluster(t, 2)
	c.tune = func(cfg *Config) { cfg.Primary.SilentAfter = 300 * time.Millisecond }
	c.start()
	h := c.open(c.nodes[0], OpenOptions{})
	c.nodes[0].store.SetOutage(true)
	c.nodes[1].stop()
	done := make(chan error, 1)
	go func() { done <- write(h, 0, bytes.Repeat([]byte{3}, 4096)) }()
	c.until("the status says what is waited for", func() bool {
		return strings.Contains(h.Status().WaitingFor, "metadata")
	})
	select {
	case err := <-done:
		t.Fatalf("the write ended (%v) before the membership was committed", err)
	default:
	}
	c.nodes[0].store.SetOutage(false)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if in := c.inSync(); !slices.Equal(in, []holdfast.NodeID{"n0"}) {
		t.Errorf("in sync: %v", in)
	}
}

// TestLostAnswers: swaps take effect and their answers are lost.
func TestLostAnswers(t *testing.T) {
	c := newCluster(t, 2)
	c.tune = func(cfg *Config) { cfg.Primary.SilentAfter = 300 * time.Millisecond }
	c.start()
	var mu sync.Mutex
	swaps := 0
	c.nodes[0].store.Inject(func(op memory.Op) memory.Fault {
		mu.Lock()
		defer mu.Unlock()
		if op.Name != "SwapVolume" {
			return memory.Fault{}
		}
		if swaps++; swaps%2 == 0 {
			return memory.Fault{}
		}
		return memory.Fault{Lose: memory.Lost()}
	})
	h := c.open(c.nodes[0], OpenOptions{})
	c.nodes[1].stop()
	if err := write(h, 0, bytes.Repeat([]byte{3}, 4096)); err != nil {
		t.Fatal(err)
	}
	if in := c.inSync(); !slices.Equal(in, []holdfast.NodeID{"n0"}) {
		t.Errorf("in sync: %v", in)
	}
	if err := h.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.until("the grant is given back", func() bool { return c.record().Primary == nil })
	if swaps < 3 {
		t.Errorf("%d swaps", swaps)
	}
}

// ageAddrs makes the plane ask for addresses again.
func (p *Plane) ageAddrs() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, a := range p.addrs {
		a.asked = time.Time{}
		p.addrs[id] = a
	}
}

// TestAsked: a plane counts what devices ask of its volumes, and what other nodes ask
// of its replicas, and not what they answer.
func TestAsked(t *testing.T) {
	c := newCluster(t, 3).start()
	h := c.open(c.nodes[0], OpenOptions{})
	c.until("all are in sync", func() bool { return len(c.inSync()) == 3 })
	other := c.nodes[1].plane
	here, there := h.Asked(), other.asked.Load()
	const n = 20
	for i := range int64(n) {
		if err := write(h, i*4096, make([]byte, 4096)); err != nil {
			t.Fatal(err)
		}
	}
	done := make(chan error, 2)
	r := func() *replication.Request {
		return &replication.Request{Op: replication.OpFlush, Done: func(_ *replication.Request, err error) { done <- err }}
	}
	h.SubmitAll([]*replication.Request{r(), r()})
	for range 2 {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	if got := h.Asked() - here; got != n+2 {
		t.Errorf("the primary's node was asked %d times; want %d", got, n+2)
	}
	if got := other.asked.Load() - there; got < n {
		t.Errorf("another node was asked %d times for %d writes", got, n)
	}
}
