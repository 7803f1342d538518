package testcluster_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/api"
	"github.com/holdfast-storage/holdfast/controller/lifecycle"
	"github.com/holdfast-storage/holdfast/internal/testcluster"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

// scene is a volume on real pools with a model of its content: a byte per block.
type scene struct {
	t     *testing.T
	c     *testcluster.Cluster
	snaps holdfastv1.SnapshotServiceClient
	rnd   *rand.Rand
	vol   holdfast.VolumeID
	live  []byte
	taken []takenSnapshot // oldest first
}

type takenSnapshot struct {
	name, id string
	content  []byte
}

const sceneBytes = 96 << 20

// serveAPI serves the users' API of a cluster.
func serveAPI(t *testing.T, c *testcluster.Cluster) (*lifecycle.Service, *grpc.ClientConn) {
	t.Helper()
	life, err := lifecycle.New(lifecycle.Config{Store: c.DB, Nodes: clients{c}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(life.Close)
	s, err := api.New(api.Config{Self: "n1", Store: c.DB, Lifecycle: life, Snapshots: life, Admin: life, Nodes: clients{c}})
	if err != nil {
		t.Fatal(err)
	}
	sock := filepath.Join(t.TempDir(), "api.sock")
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.Serve(ctx, l) }()
	conn, err := grpc.NewClient("unix://"+sock, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return life, conn
}

// change writes and trims at random through the device.
func (s *scene) change(dev string, n int) {
	s.t.Helper()
	fd, err := unix.Open(dev, unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		s.t.Fatal(err)
	}
	p, err := unix.Mmap(-1, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		s.t.Fatal(err)
	}
	for range n {
		blocks := 1 + s.rnd.IntN(len(p)/holdfast.BlockSize)
		if s.rnd.IntN(3) > 0 {
			blocks = 1 + s.rnd.IntN(4)
		}
		at := s.rnd.IntN(len(s.live) - blocks)
		value, q := byte(s.rnd.IntN(255)+1), p[:blocks*holdfast.BlockSize]
		if s.rnd.IntN(4) == 0 {
			value = 0
			run(s.t, fmt.Sprintf("blkdiscard -o %d -l %d %s", at*holdfast.BlockSize, len(q), dev))
		} else {
			copy(q, bytes.Repeat([]byte{value}, len(q)))
			if _, err := unix.Pwrite(fd, q, int64(at)*holdfast.BlockSize); err != nil {
				s.t.Fatal(err)
			}
		}
		copy(s.live[at:], bytes.Repeat([]byte{value}, blocks))
	}
	if err := errors.Join(unix.Fsync(fd), unix.Munmap(p), unix.Close(fd)); err != nil {
		s.t.Fatal(err)
	}
}

// verify compares the device with the model.
func (s *scene) verify(dev string) {
	s.t.Helper()
	fd, err := unix.Open(dev, unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	p, err := unix.Mmap(-1, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(p) }()
	for off := 0; off < len(s.live); off += len(p) / holdfast.BlockSize {
		if n, err := unix.Pread(fd, p, int64(off)*holdfast.BlockSize); err != nil || n != len(p) {
			s.t.Fatalf("read %d bytes, %v", n, err)
		}
		for i := 0; i < len(p); i += holdfast.BlockSize {
			b := off + i/holdfast.BlockSize
			if p[i] != s.live[b] || p[i+holdfast.BlockSize-1] != s.live[b] {
				s.t.Fatalf("block %d holds %d, want %d", b, p[i], s.live[b])
			}
		}
	}
}

func (s *scene) take() {
	s.t.Helper()
	name := fmt.Sprintf("snap-%d", len(s.taken))
	x, err := s.snaps.CreateSnapshot(s.t.Context(), &holdfastv1.CreateSnapshotRequest{Volume: string(s.vol), Name: name})
	if err != nil {
		s.t.Fatal(err)
	}
	s.taken = append(s.taken, takenSnapshot{name, x.GetId(), bytes.Clone(s.live)})
}

// collect reads a listing to its end, and checks its order.
func collect(t *testing.T, what string, recv func() ([]*holdfastv1.ByteRange, error)) []holdfast.Extent {
	t.Helper()
	var out []holdfast.Extent
	for end := int64(0); ; {
		xs, err := recv()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		for _, x := range xs {
			if x.GetOffset() < end || x.GetLength() <= 0 {
				t.Fatalf("%s: %v comes after %d", what, x, end)
			}
			end = x.GetOffset() + x.GetLength()
			out = append(out, holdfast.Extent{Offset: x.GetOffset(), Length: x.GetLength()})
		}
	}
}

// covers fails unless every block that must be listed is, and says how many
// blocks are listed in all.
func (s *scene) covers(what string, xs []holdfast.Extent, must func(block int) bool) int {
	s.t.Helper()
	listed := make([]bool, len(s.live))
	n := 0
	for _, x := range xs {
		for b := x.Offset / holdfast.BlockSize; b < x.End()/holdfast.BlockSize; b++ {
			listed[b] = true
			n++
		}
	}
	for b := range listed {
		if must(b) && !listed[b] {
			s.t.Errorf("%s: block %d is not listed", what, b)
			return n
		}
	}
	return n
}

// check compares listings of all snapshots, and of all pairs, with the model:
// those of the API, and those of each replica.
func (s *scene) check() {
	s.t.Helper()
	rec := s.c.Record(s.vol)
	for j, x := range s.taken {
		for i := -1; i < j; i++ {
			base, must := "", func(b int) bool { return at(x.content, b) != 0 }
			if i >= 0 {
				old := s.taken[i].content
				base, must = s.taken[i].name, func(b int) bool { return at(x.content, b) != at(old, b) }
			}
			what := fmt.Sprintf("from %q to %s", base, x.name)
			stream, err := s.snaps.ListSnapshotRanges(s.t.Context(), &holdfastv1.ListSnapshotRangesRequest{Snapshot: x.name, Base: base, MaxRanges: 7})
			if err != nil {
				s.t.Fatal(err)
			}
			xs := collect(s.t, what, func() ([]*holdfastv1.ByteRange, error) { m, err := stream.Recv(); return m.GetRanges(), err })
			n := s.covers(what, xs, must)
			if n > len(s.live)*3/4 {
				s.t.Errorf("%s: %d of %d blocks are listed: that is no help", what, n, len(s.live))
			}
			for _, r := range rec.Replicas {
				s.covers(what+" on "+string(r.Node), s.listReplica(r, x.id, base), must)
			}
		}
	}
}

// at is a block of content, which is zero beyond its end.
func at(content []byte, b int) byte {
	if b < len(content) {
		return content[b]
	}
	return 0
}

func (s *scene) listReplica(r holdfast.Replica, id, base string) []holdfast.Extent {
	s.t.Helper()
	rec := s.c.Record(s.vol)
	ref, _ := lifecycle.ParseSnapshotRef(id)
	q := &holdfastv1.ListSnapshotRequest{PoolId: string(r.Pool), ReplicaId: string(r.ID), SnapshotId: string(ref.Snapshot), Cut: rec.Snapshot(ref.Snapshot).Cut}
	for _, y := range rec.Snapshots {
		if y.Name == base && base != "" {
			q.BaseId, q.BaseCut = string(y.ID), y.Cut
		}
	}
	for _, n := range s.c.Nodes {
		if n.ID != r.Node {
			continue
		}
		stream, err := n.Client().ListSnapshot(s.t.Context(), q)
		if err != nil {
			s.t.Fatal(err)
		}
		return collect(s.t, string(n.ID), func() ([]*holdfastv1.ByteRange, error) { m, err := stream.Recv(); return m.GetRanges(), err })
	}
	s.t.Fatalf("no node %s", r.Node)
	return nil
}

// TestRangesAndRestores: a volume is written, trimmed, grown, snapshotted, restored
// through the API, and repaired; whatever differs between any two of its
// snapshots is listed as changed, on every replica, and what a restored volume
// holds is the snapshot.
func TestRangesAndRestores(t *testing.T) {
	c := testcluster.Start(t, testcluster.Options{})
	life, conn := serveAPI(t, c)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	s := &scene{t: t, c: c, snaps: holdfastv1.NewSnapshotServiceClient(conn), rnd: rand.New(rand.NewPCG(seed, 0)), live: make([]byte, sceneBytes/holdfast.BlockSize)}
	rec, err := life.Create(t.Context(), "db", holdfast.Spec{SizeBytes: sceneBytes})
	if err != nil {
		t.Fatal(err)
	}
	s.vol = rec.ID
	s.round(c.Nodes[0], 60)
	s.round(c.Nodes[0], 10)
	c.Nodes[2].Kill() // misses a snapshot, and growing
	s.round(c.Nodes[0], 10)
	s.grow(life, c.Nodes[0])
	s.restore(c.Nodes[1], 0)
	s.round(c.Nodes[1], 10)
	c.Nodes[2].Begin()
	c.Eventually("all replicas are in sync", func() bool { r := c.Record(s.vol); return len(r.InSyncReplicas()) == 3 })
	s.round(c.Nodes[0], 10)
	s.check()
	if err := life.DeleteSnapshot(t.Context(), lifecycle.SnapshotRef{Volume: s.vol, Snapshot: c.Record(s.vol).Snapshots[1].ID}); err != nil {
		t.Fatal(err)
	}
	s.taken = append(s.taken[:1:1], s.taken[2:]...)
	s.check()
	s.restore(c.Nodes[0], 2)
	s.check()
	s.goOn()
	r, err := c.Nodes[0].Client().NodeVolumes(t.Context(), &holdfastv1.NodeVolumesRequest{})
	if err != nil || len(r.GetPools()) != 1 || r.GetPools()[0].GetSnapshotBytes() <= 0 || r.GetPools()[0].GetSnapshotBytes() > r.GetPools()[0].GetTotalBytes() {
		t.Errorf("the pools' usage is %v, %v", r.GetPools(), err)
	}
}

// round changes the volume, attached to a node, and takes a snapshot of it while
// it is attached.
func (s *scene) round(n *testcluster.Node, changes int) {
	s.t.Helper()
	dev := n.Attach(s.vol)
	s.change(dev, changes)
	s.take()
	s.change(dev, 3)
	s.verify(dev)
	n.Detach(s.vol)
}

// grow makes the volume larger while it is attached.
func (s *scene) grow(life *lifecycle.Service, n *testcluster.Node) {
	s.t.Helper()
	const more = 16 << 20
	n.Attach(s.vol)
	if _, err := life.Expand(s.t.Context(), string(s.vol), sceneBytes+more); err != nil {
		s.t.Fatal(err)
	}
	s.c.Eventually("the volume grows", func() bool { return s.c.Record(s.vol).SizeBytes == sceneBytes+more })
	n.Detach(s.vol)
	s.live = append(s.live, make([]byte, more/holdfast.BlockSize)...)
}

// restore makes the volume what it was, through the API, and looks.
func (s *scene) restore(n *testcluster.Node, i int) {
	s.t.Helper()
	v, err := s.snaps.RestoreSnapshot(s.t.Context(), &holdfastv1.RestoreSnapshotRequest{Snapshot: s.taken[i].name})
	if err != nil || v.GetRestoring() != "" {
		s.t.Fatalf("restored is %v, %v", v, err)
	}
	clear(s.live)
	copy(s.live, s.taken[i].content)
	dev := n.Attach(s.vol)
	s.verify(dev)
	n.Detach(s.vol)
}

// goOn lists on from the middle of what was listed.
func (s *scene) goOn() {
	s.t.Helper()
	q := &holdfastv1.ListSnapshotRangesRequest{Snapshot: s.taken[2].name, Base: s.taken[0].name}
	list := func() []holdfast.Extent {
		stream, err := s.snaps.ListSnapshotRanges(s.t.Context(), q)
		if err != nil {
			s.t.Fatal(err)
		}
		return collect(s.t, "go on", func() ([]*holdfastv1.ByteRange, error) { m, err := stream.Recv(); return m.GetRanges(), err })
	}
	all := list()
	half := len(all) / 2
	q.StartingOffset = all[half-1].End()
	if rest := list(); fmt.Sprint(rest) != fmt.Sprint(all[half:]) {
		s.t.Errorf("on from %d: %v, want %v", q.StartingOffset, rest, all[half:])
	}
}
