package dataplane

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/engine/disk"
	"github.com/holdfast-storage/holdfast/internal/buf"
	"github.com/holdfast-storage/holdfast/metadata/memory"
	"github.com/holdfast-storage/holdfast/replication"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	testCluster = holdfast.ClusterID("c0ffee")
	testSize    = int64(8 << 20)
)

// cluster is some nodes' data planes in one process, over real TCP.
type cluster struct {
	t     testing.TB
	store *memory.Store
	back  func(n *node, rep holdfast.ReplicaID) backing
	nodes []*node
	vol   holdfast.VolumeID
	size  int64
	wrap  func(id holdfast.NodeID, fs disk.FS) disk.FS // if set, around the pools
	tune  func(c *Config)
	// freezable connections can be made silent. They do not show their socket,
	// as TLS does not.
	freezable bool
	dir       string
	atEnd     func()
	closers   []io.Closer // at the very end

	mu    sync.Mutex
	addrs map[holdfast.NodeID]string
	alive map[holdfast.NodeID]bool
	notes []string
	lost  bool // addresses cannot be found: the metadata store is away
}

// node is one of them; its replica survives its plane.
type node struct {
	c      *cluster
	id     holdfast.NodeID
	rep    holdfast.ReplicaID
	store  *memory.Store
	plane  *Plane
	served chan struct{} // closed when the plane answers nobody any more
	back   backing

	quiet  grantNotes // outlives the plane
	mu     sync.Mutex
	frozen chan struct{} // if set, connections made here carry nothing until it is closed
}

// grantNotes is QuietGrants in memory.
type grantNotes struct{ m sync.Map }

func (q *grantNotes) Quiet(vol holdfast.VolumeID) holdfast.Epoch {
	e, _ := q.m.Load(vol)
	grant, _ := e.(holdfast.Epoch)
	return grant
}

func (q *grantNotes) SetQuiet(vol holdfast.VolumeID, grant holdfast.Epoch) { q.m.Store(vol, grant) }

// newCluster makes n nodes with a replica of one volume each, in memory.
func newCluster(t testing.TB, n int) *cluster { return newClusterOf(t, n, testSize) }

func newClusterOf(t testing.TB, n int, size int64) *cluster {
	// The directory is made first, so that it is removed last.
	c := &cluster{t: t, size: size, dir: t.TempDir(), store: memory.New(), vol: holdfast.NewVolumeID(),
		addrs: map[holdfast.NodeID]string{}, alive: map[holdfast.NodeID]bool{}}
	mem := map[holdfast.ReplicaID]*memBacking{}
	c.back = func(_ *node, rep holdfast.ReplicaID) backing {
		b := mem[rep]
		if b == nil {
			b = newMemBacking(size)
			mem[rep] = b
		}
		b.closed = false
		return b
	}
	rec := holdfast.Record{Version: holdfast.RecordVersion, ID: c.vol, Name: "db-1", Created: time.Now().UTC(),
		Spec:  holdfast.Spec{SizeBytes: size, Replicas: n}.WithDefaults(),
		Phase: holdfast.PhaseReady, SizeBytes: size, Epoch: 1}
	for i := range n {
		nd := &node{c: c, id: holdfast.NodeID(fmt.Sprintf("n%d", i)), rep: holdfast.NewReplicaID(), store: c.store.Client()}
		c.nodes = append(c.nodes, nd)
		rec.Replicas = append(rec.Replicas, holdfast.Replica{ID: nd.rep, Node: nd.id, Pool: "p", State: holdfast.InSync, Since: 1})
	}
	if _, err := c.store.CreateVolume(t.Context(), rec); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, nd := range c.nodes {
			nd.stop()
			_ = nd.store.Close()
		}
		_ = c.store.Close()
		if c.atEnd != nil {
			c.atEnd()
		}
		for _, x := range c.closers {
			if err := x.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	return c
}

func (c *cluster) start() *cluster {
	for _, nd := range c.nodes {
		nd.start()
	}
	return c
}

func logger() *slog.Logger {
	if os.Getenv("HOLDFAST_TEST_LOG") != "" {
		return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return slog.New(slog.NewTextHandler(io.Discard, nil))
}

func (c *cluster) addr(_ context.Context, id holdfast.NodeID) (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lost {
		return "", holdfast.E("find node "+string(id), holdfast.Unavailable, "the metadata store does not answer")
	}
	if a, ok := c.addrs[id]; ok {
		return a, nil
	}
	return "", holdfast.E("find node "+string(id), holdfast.NotFound, "it never registered")
}

func (c *cluster) isAlive(_ context.Context, id holdfast.NodeID) (bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.alive[id], nil
}

func (c *cluster) setAlive(id holdfast.NodeID, alive bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.alive[id] = alive
}

// start makes the node's plane, with its replica, on an address of its own.
func (nd *node) start() {
	t := nd.c.t
	t.Helper()
	cfg := Config{Cluster: testCluster, Self: nd.id, Volumes: nd.store, Alive: nd.c.isAlive, Addr: nd.c.addr,
		Others: nd.others, Dial: nd.dial, Quiet: &nd.quiet, Log: logger().With("node", string(nd.id)),
		Changed: func(_ holdfast.VolumeID, what string) {
			nd.c.mu.Lock()
			defer nd.c.mu.Unlock()
			nd.c.notes = append(nd.c.notes, string(nd.id)+": "+what)
		}}
	if nd.c.tune != nil {
		nd.c.tune(&cfg)
	}
	p, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		// One that is closed before it began to serve is refused.
		if err := p.Serve(l); err != nil && p.life.Err() == nil {
			t.Errorf("serve: %v", err)
		}
	}()
	nd.plane, nd.served = p, served
	if nd.rep != "" {
		nd.back = nd.c.back(nd, nd.rep)
		if err := p.addReplica(nd.c.vol, nd.rep, nd.back); err != nil {
			t.Fatal(err)
		}
	}
	nd.c.mu.Lock()
	nd.c.addrs[nd.id], nd.c.alive[nd.id] = l.Addr().String(), true
	nd.c.mu.Unlock()
}

// stop ends the node's plane at once, as a killed daemon: nothing is released.
func (nd *node) stop() {
	if nd.plane == nil {
		return
	}
	nd.c.setAlive(nd.id, false)
	nd.thaw()
	if err := nd.plane.Close(); err != nil {
		nd.c.t.Errorf("close: %v", err)
	}
	<-nd.served
	nd.plane = nil
}

// freeze makes the connections that this node dialled carry nothing any more,
// without breaking them, as when a peer's cable is pulled.
func (nd *node) freeze() {
	nd.mu.Lock()
	defer nd.mu.Unlock()
	nd.frozen = make(chan struct{})
}

func (nd *node) thaw() {
	nd.mu.Lock()
	defer nd.mu.Unlock()
	if nd.frozen != nil {
		close(nd.frozen)
		nd.frozen = nil
	}
}

func (nd *node) dial(ctx context.Context, addr string) (net.Conn, error) {
	var d net.Dialer
	nc, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	if !nd.c.freezable {
		return nc, nil
	}
	return &freezable{Conn: nc, nd: nd, gone: make(chan struct{})}, nil
}

// freezable holds back what arrives while its node is frozen.
type freezable struct {
	net.Conn
	nd   *node
	once sync.Once
	gone chan struct{}
}

func (f *freezable) Read(b []byte) (int, error) {
	n, err := f.Conn.Read(b)
	f.nd.mu.Lock()
	frozen := f.nd.frozen
	f.nd.mu.Unlock()
	if frozen != nil {
		select {
		case <-frozen:
		case <-f.gone:
		}
	}
	return n, err
}

func (f *freezable) SetReadDeadline(t time.Time) error {
	if t.Equal(past) {
		f.once.Do(func() { close(f.gone) })
	}
	return f.Conn.SetReadDeadline(t)
}

func (f *freezable) Close() error {
	f.once.Do(func() { close(f.gone) })
	return f.Conn.Close()
}

func (c *cluster) open(nd *node, o OpenOptions) *Volume {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 20*time.Second)
	defer cancel()
	h, err := nd.plane.Open(ctx, c.vol, o)
	if err != nil {
		c.t.Fatalf("open on %s: %v", nd.id, err)
	}
	return h
}

func (c *cluster) record() holdfast.Record {
	c.t.Helper()
	rec, err := c.store.Volume(context.Background(), string(c.vol))
	if err != nil {
		c.t.Fatal(err)
	}
	return rec
}

// until polls until f is true, or fails the test.
func (c *cluster) until(what string, f func() bool) {
	c.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !f() {
		if time.Now().After(deadline) {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.t.Fatalf("never happened: %s\nrecord: %+v\nevents: %q", what, c.record(), c.notes)
		}
		<-tick.C
	}
}

// inSync says which nodes' replicas are in sync.
func (c *cluster) inSync() (ids []holdfast.NodeID) {
	rec := c.record()
	for _, r := range rec.InSyncReplicas() {
		ids = append(ids, r.Node)
	}
	return ids
}

// do carries out one request and waits for it.
func do(h *Volume, r replication.Request) ([]byte, error) {
	done := make(chan error, 1)
	r.Done = func(_ *replication.Request, err error) { done <- err }
	h.Submit(&r)
	err := <-done
	var data []byte
	if r.Op == replication.OpRead {
		if err == nil {
			data = bytes.Clone(r.Buf.B)
		}
		r.Buf.Release() // which need not be the one that it began with
	}
	return data, err
}

func write(h *Volume, off int64, data []byte) error {
	b := buf.Get(len(data))
	defer b.Release()
	copy(b.B, data)
	_, err := do(h, replication.Request{Op: replication.OpWrite, Offset: off, Length: int64(len(data)), Buf: b})
	return err
}

func read(h *Volume, off, n int64) ([]byte, error) {
	return do(h, replication.Request{Op: replication.OpRead, Offset: off, Length: n, Buf: buf.Get(int(n))})
}

func flush(h *Volume) error {
	_, err := do(h, replication.Request{Op: replication.OpFlush})
	return err
}

// model is what the volume must hold. Each worker of load has blocks of its own.
type model struct {
	mu     sync.Mutex
	blocks map[int64][]byte // by offset; only acknowledged writes
	did    func()           // called after each operation, if set
}

func newModel() *model { return &model{blocks: map[int64][]byte{}} }

// load writes and reads random blocks from several workers until stop is closed
// or count operations are done, checking every read. It returns the longest time
// that one operation took.
func (m *model) load(t testing.TB, h *Volume, workers, count int, stop <-chan struct{}) (worst time.Duration) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	for w := range workers {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), uint64(count)))
			for i := 0; i < count; i++ {
				select {
				case <-stop:
					return
				default:
				}
				start := time.Now()
				off := (int64(r.IntN(int(testSize)/4096/workers))*int64(workers) + int64(w)) * 4096
				if err := m.one(h, r, off); err != nil {
					t.Errorf("operation %d of worker %d: %v", i, w, err)
					return
				}
				if m.did != nil {
					m.did()
				}
				mu.Lock()
				worst = max(worst, time.Since(start))
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return worst
}

func (m *model) one(h *Volume, r *rand.Rand, off int64) error {
	m.mu.Lock()
	want := m.blocks[off]
	m.mu.Unlock()
	switch r.IntN(10) {
	case 0:
		return flush(h)
	case 1, 2, 3:
		got, err := read(h, off, 4096)
		if err == nil && want != nil && !bytes.Equal(got, want) {
			return fmt.Errorf("block at %d has %x..., want %x...", off, got[:8], want[:8])
		}
		return err
	}
	data := make([]byte, 4096)
	for i := range data {
		data[i] = byte(r.Uint32())
	}
	if err := write(h, off, data); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.blocks[off] = data
	return nil
}

// verify reads everything that was acknowledged.
func (m *model) verify(t testing.TB, h *Volume) {
	t.Helper()
	for off, want := range m.blocks {
		got, err := read(h, off, 4096)
		if err != nil {
			t.Fatalf("read at %d: %v", off, err)
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("block at %d has %x..., want %x...", off, got[:8], want[:8])
		}
	}
}

// equal compares the in-sync replicas' contents, when nothing is in flight.
func (c *cluster) equal() {
	c.t.Helper()
	var first []byte
	var whose holdfast.NodeID
	in := map[holdfast.NodeID]bool{}
	for _, id := range c.inSync() {
		in[id] = true
	}
	for _, nd := range c.nodes {
		if !in[nd.id] {
			continue
		}
		got := contents(c.t, nd.back)
		if first == nil {
			first, whose = got, nd.id
		} else if !bytes.Equal(first, got) {
			c.t.Fatalf("the replicas on %s and %s differ", whose, nd.id)
		}
	}
}

// contents reads a whole replica past its machine.
func contents(t testing.TB, b backing) []byte {
	t.Helper()
	var out []byte
	size := b.State().SizeBytes
	for off := int64(0); off < size; off += buf.Max {
		n := min(buf.Max, size-off)
		task := &replication.Task{Kind: replication.TaskRead, Offset: off, Length: n, Buf: buf.Get(int(n))}
		b.Do(task)
		if task.Err != nil {
			t.Fatal(task.Err)
		}
		out = append(out, task.Buf.B...)
		task.Buf.Release()
	}
	return out
}

func wantKind(t testing.TB, err error, k holdfast.Kind) {
	t.Helper()
	if !errors.Is(err, k) {
		t.Fatalf("error %v (kind %v), want kind %v", err, holdfast.KindOf(err), k)
	}
}
