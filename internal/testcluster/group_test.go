package testcluster_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/controller/lifecycle"
	"github.com/holdfast-storage/holdfast/internal/testcluster"
	"github.com/holdfast-storage/holdfast/metadata/memory"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

// chain writes a counter to one device after the other, each time only when the
// one before has acknowledged it. It runs in a process of its own, since this one
// serves the devices, and prints each round when it is written everywhere.
const chain = `
import os, mmap, sys
devices = [os.open(d, os.O_RDWR | os.O_DIRECT) for d in sys.argv[1:]]
page = mmap.mmap(-1, 4096)
n = 0
while True:
    n += 1
    page[0:8] = n.to_bytes(8, "little")
    for fd in devices:
        os.pwrite(fd, page, 4096 * (n % 64))
        os.pwrite(fd, page, 1 << 20)
    print(n, flush=True)
`

// rounds runs the chain until the test ends and counts what it prints.
func rounds(t *testing.T, devices []string) *atomic.Uint64 {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, "python3", append([]string{"-c", chain}, devices...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var n atomic.Uint64
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			var i uint64
			if _, err := fmt.Fscan(out, &i); err != nil {
				return
			}
			n.Store(i)
		}
	}()
	t.Cleanup(func() { cancel(); <-done; _ = cmd.Wait() })
	return &n
}

// counters makes clones of a group's members and reads the counter in each.
func counters(t *testing.T, c *testcluster.Cluster, life *lifecycle.Service, g lifecycle.GroupSnapshot) map[string]uint64 {
	t.Helper()
	out := map[string]uint64{}
	for _, m := range g.Members {
		name := strings.ReplaceAll(m.Snapshot.Name, "/", "-")
		clone, err := life.CreateVolume(t.Context(), lifecycle.CreateRequest{Name: name, Source: &lifecycle.Source{
			Snapshot: lifecycle.SnapshotRef{Volume: m.Record.ID, Snapshot: m.Snapshot.ID}}})
		if err != nil {
			t.Fatal(err)
		}
		dev := c.Nodes[0].Attach(clone.ID)
		raw := run(t, fmt.Sprintf("dd if=%s bs=4096 skip=256 count=1 iflag=direct status=none | head -c 8 | od -An -tu8", dev))
		var n uint64
		if _, err := fmt.Sscan(raw, &n); err != nil {
			t.Fatalf("%q: %v", raw, err)
		}
		out[m.Record.Name] = n
		c.Nodes[0].Detach(clone.ID)
		if err := life.Delete(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// group makes three volumes, each with one replica on a node of its own and one on
// the next, attached to the nodes in turn.
func group(t *testing.T, c *testcluster.Cluster) (names, devices []string) {
	t.Helper()
	return groupBeside(t, c, func(i int) *testcluster.Node { return c.Nodes[(i+1)%3] })
}

func groupBeside(t *testing.T, c *testcluster.Cluster, other func(i int) *testcluster.Node) (names, devices []string) {
	t.Helper()
	for i, n := range c.Nodes[:3] {
		name := fmt.Sprint("vol-", i)
		rec := c.CreateVolume(name, 16<<20, n, other(i))
		names = append(names, name)
		devices = append(devices, n.Attach(rec.ID))
	}
	return names, devices
}

// A group snapshot of volumes on different nodes is one point in time, also while
// an application writes to all of them in an order: what it wrote to a later volume
// is in the snapshot only if what it had written before to an earlier one is, too.
func TestAGroupIsOnePointInTime(t *testing.T) {
	c := testcluster.Start(t, testcluster.Options{})
	life, err := lifecycle.New(lifecycle.Config{Store: c.DB, Nodes: clients{c}})
	if err != nil {
		t.Fatal(err)
	}
	defer life.Close()
	names, devices := group(t, c)
	written := rounds(t, devices)
	c.Eventually("writing goes on", func() bool { return written.Load() > 20 })
	for i := range 5 {
		before := written.Load()
		began := time.Now()
		g, err := life.CreateGroupSnapshot(t.Context(), lifecycle.GroupRequest{Name: fmt.Sprint("g", i), Volumes: names})
		if err != nil {
			t.Fatal(err)
		}
		took := time.Since(began)
		after := written.Load()
		c.Eventually("writing goes on", func() bool { return written.Load() > after+5 })
		got := counters(t, c, life, g)
		a, b, z := got["vol-0"], got["vol-1"], got["vol-2"]
		t.Logf("group %d in %v: %d %d %d, between round %d and %d", i, took, a, b, z, before, after)
		if a < b || b < z || a > z+1 {
			t.Errorf("group %d is not one point in time: the volumes are at %d, %d and %d", i, a, b, z)
		}
		if z < before || a > after+1 {
			t.Errorf("group %d: %d to %d is not between %d and %d", i, z, a, before, after)
		}
	}
	for i := range 5 {
		if err := life.DeleteGroup(t.Context(), fmt.Sprint("g", i)); err != nil {
			t.Fatal(err)
		}
	}
	c.Eventually("all snapshots are gone", func() bool {
		recs, err := life.List(t.Context())
		for _, r := range recs {
			if len(r.Snapshots) > 0 {
				return false
			}
		}
		return err == nil
	})
}

// Volumes that nobody has attached are snapshotted together as well, and are not
// kept by their nodes afterwards.
func TestAGroupOfUnattachedVolumes(t *testing.T) {
	c := testcluster.Start(t, testcluster.Options{})
	life, err := lifecycle.New(lifecycle.Config{Store: c.DB, Nodes: clients{c}})
	if err != nil {
		t.Fatal(err)
	}
	defer life.Close()
	names, devices := group(t, c)
	for i, d := range devices {
		var page [4096]byte
		binary.LittleEndian.PutUint64(page[:], uint64(i+1))
		file := t.TempDir() + "/page"
		if err := os.WriteFile(file, page[:], 0o600); err != nil {
			t.Fatal(err)
		}
		run(t, fmt.Sprintf("dd if=%s of=%s bs=4096 seek=256 oflag=direct conv=fsync,notrunc status=none", file, d))
	}
	for i, n := range c.Nodes[:2] { // the last one stays attached
		rec, err := life.Get(t.Context(), names[i])
		if err != nil {
			t.Fatal(err)
		}
		n.Detach(rec.ID)
	}
	g, err := life.CreateGroupSnapshot(t.Context(), lifecycle.GroupRequest{Name: "g", Volumes: names})
	if err != nil {
		t.Fatal(err)
	}
	if got := counters(t, c, life, g); got["vol-0"] != 1 || got["vol-1"] != 2 || got["vol-2"] != 3 {
		t.Errorf("the snapshots hold %v", got)
	}
	c.Eventually("nobody serves what nobody has attached", func() bool {
		recs, err := life.List(t.Context())
		for _, r := range recs {
			if r.Primary != nil && r.AttachedTo() == "" {
				return false
			}
		}
		return err == nil
	})
}

// A node with replicas of all members dies while they are held: the group is taken
// without it or fails, and in either case what is called ready is one point in time.
func TestAGroupWhileAReplicasNodeDies(t *testing.T) {
	c := testcluster.Start(t, testcluster.Options{Storage: 4})
	names, devices := groupBeside(t, c, func(int) *testcluster.Node { return c.Nodes[3] })
	written := rounds(t, devices)
	c.Eventually("writing goes on", func() bool { return written.Load() > 20 })
	var once sync.Once
	life, err := lifecycle.New(lifecycle.Config{Store: c.DB, Nodes: faultyClients{clients{c}, "", func(_ context.Context, did string) error {
		if did == "cut" {
			once.Do(c.Nodes[3].Kill)
		}
		return nil
	}}})
	if err != nil {
		t.Fatal(err)
	}
	defer life.Close()
	var g lifecycle.GroupSnapshot
	tries := 0
	c.Eventually("the group is taken", func() bool {
		tries++
		g, err = life.CreateGroupSnapshot(t.Context(), lifecycle.GroupRequest{Name: "g", Volumes: names})
		return err == nil
	})
	got := counters(t, c, life, g)
	a, b, z := got["vol-0"], got["vol-1"], got["vol-2"]
	t.Logf("taken at attempt %d, writes held for %d ms: %d %d %d of %d", tries, g.Group.HeldMillis, a, b, z, written.Load())
	if a < b || b < z || a > z+1 {
		t.Errorf("the volumes are at %d, %d and %d", a, b, z)
	}
	n := written.Load()
	c.Eventually("writing goes on", func() bool { return written.Load() > n+20 })
}

// faulty is a node one of whose commands does not go well.
type faulty struct {
	holdfastv1.NodeServiceClient
	fault func(ctx context.Context, command string) error
}

func (f faulty) Hold(ctx context.Context, q *holdfastv1.HoldRequest, o ...grpc.CallOption) (*holdfastv1.HoldResponse, error) {
	if err := f.fault(ctx, "hold"); err != nil {
		return nil, err
	}
	return f.NodeServiceClient.Hold(ctx, q, o...)
}

func (f faulty) Cut(ctx context.Context, q *holdfastv1.CutRequest, o ...grpc.CallOption) (*holdfastv1.CutResponse, error) {
	if err := f.fault(ctx, "cut"); err != nil {
		return nil, err
	}
	return f.NodeServiceClient.Cut(ctx, q, o...)
}

func (f faulty) Unhold(ctx context.Context, q *holdfastv1.UnholdRequest, o ...grpc.CallOption) (*holdfastv1.UnholdResponse, error) {
	if err := f.fault(ctx, "unhold"); err != nil {
		return nil, err
	}
	return f.NodeServiceClient.Unhold(ctx, q, o...)
}

// faultyClients puts a fault on one node's commands.
type faultyClients struct {
	clients
	node  holdfast.NodeID
	fault func(ctx context.Context, command string) error
}

func (f faultyClients) Client(ctx context.Context, id holdfast.NodeID) (holdfastv1.NodeServiceClient, error) {
	cl, err := f.clients.Client(ctx, id)
	if err == nil && (id == f.node || f.node == "") {
		cl = faulty{cl, f.fault}
	}
	return cl, err
}

// When a member's node does not answer, or the controller dies between two
// commands, writing goes on, nothing stays, and the repeated call takes the group.
func TestAGroupThatFails(t *testing.T) {
	c := testcluster.Start(t, testcluster.Options{})
	names, devices := group(t, c)
	written := rounds(t, devices)
	goesOn := func() {
		t.Helper()
		n := written.Load()
		c.Eventually("writing goes on", func() bool { return written.Load() > n+20 })
	}
	goesOn()
	request := lifecycle.GroupRequest{Name: "g", Volumes: names}
	process := func(store *memory.Store, nodes lifecycle.NodeClients) *lifecycle.Service {
		life, err := lifecycle.New(lifecycle.Config{Store: store, Nodes: nodes, Self: c.Nodes[0].ID})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(life.Close)
		return life
	}
	healthy := process(c.DB, clients{c})
	empty := func() bool {
		recs, err := healthy.List(t.Context())
		for _, r := range recs {
			if len(r.Snapshots) > 0 {
				return false
			}
		}
		gs, gerr := healthy.Groups(t.Context())
		return err == nil && gerr == nil && len(gs) == 0
	}
	for _, command := range []string{"hold", "cut"} {
		life := process(c.DB, faultyClients{clients{c}, c.Nodes[2].ID, func(ctx context.Context, did string) error {
			if did == command {
				<-ctx.Done()
				return holdfast.WrapKind(did, holdfast.Unavailable, ctx.Err())
			}
			return nil
		}})
		if _, err := life.CreateGroupSnapshot(t.Context(), request); !errors.Is(err, holdfast.Unavailable) {
			t.Fatalf("a node hangs at %s: %v", command, err)
		}
		goesOn()
		c.Eventually("nothing is left after a hang at "+command, empty)
	}
	for _, command := range []string{"hold", "cut", "unhold"} {
		store := c.DB.Client()
		ctx, cancel := context.WithCancel(t.Context())
		var dead atomic.Bool
		life := process(store, faultyClients{clients{c}, "", func(ctx context.Context, did string) error {
			if did == command && dead.CompareAndSwap(false, true) {
				store.SetOutage(true)
				cancel()
			}
			if dead.Load() {
				return holdfast.E(did, holdfast.Unavailable, "the controller is dead")
			}
			return nil
		}})
		if _, err := life.CreateGroupSnapshot(ctx, request); err == nil {
			t.Fatalf("a group was taken by a controller that died at %s", command)
		}
		life.Close()
		goesOn()
		g, err := healthy.CreateGroupSnapshot(t.Context(), request)
		if err != nil {
			t.Fatalf("repeated after a death at %s: %v", command, err)
		}
		got := counters(t, c, healthy, g)
		if a, b, z := got["vol-0"], got["vol-1"], got["vol-2"]; a < b || b < z || a > z+1 {
			t.Errorf("after a death at %s the group is at %d, %d and %d", command, a, b, z)
		}
		if err := healthy.DeleteGroup(t.Context(), "g"); err != nil {
			t.Fatal(err)
		}
		c.Eventually("nothing is left after a death at "+command, empty)
	}
}
