// Package fakes is a cluster for the controller's tests: the memory store and
// nodes that keep replicas as names only.
//
// It promises to behave towards the controller as real nodes do: replicas are made
// only when a record names them and removed only on tombstones, a device is
// granted by compare-and-swap, primaries drop and repair replicas when Settle is
// called. It stores no data. It owns no goroutines but those of the
// store's leases and of TakeSnapshots.
package fakes

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/grpcstatus"
	"github.com/holdfast-storage/holdfast/metadata"
	"github.com/holdfast-storage/holdfast/metadata/memory"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

// Fault is asked before and after each call to a node; an error that it gives
// becomes the answer.
type Fault func(node holdfast.NodeID, method string, after bool) error

// Cluster is the store and the nodes.
type Cluster struct {
	T     testing.TB
	Store *memory.Store // the nodes' own client: faults go on others, see memory.Store.Client

	mu      sync.Mutex
	nodes   map[holdfast.NodeID]*Node
	fault   Fault
	holds   map[holdfast.VolumeID]Hold
	cuts    map[holdfast.SnapshotID]Cut
	listing Listing
	frozen  map[holdfast.VolumeID]string // the freeze's token
	taken   map[holdfast.PoolID]int64    // by snapshots
}

// New makes a cluster without nodes.
func New(t testing.TB) *Cluster {
	c := &Cluster{T: t, Store: memory.New(), nodes: map[holdfast.NodeID]*Node{}, holds: map[holdfast.VolumeID]Hold{}, cuts: map[holdfast.SnapshotID]Cut{}, frozen: map[holdfast.VolumeID]string{}}
	t.Cleanup(func() { _ = c.Store.Close() })
	return c
}

// Node is one node; a NodeServiceClient.
type Node struct {
	ID       holdfast.NodeID
	c        *Cluster
	ops      sync.Mutex // making and removing replicas exclude each other
	lease    metadata.Lease
	down     bool
	replicas map[holdfast.ReplicaID]Stored
	devices  map[holdfast.VolumeID]bool
	mounted  map[holdfast.VolumeID]bool
}

// Stored is a replica on a node.
type Stored struct {
	Volume    holdfast.VolumeID
	Pool      holdfast.PoolID
	SizeBytes int64
	Content   string // of a clone: the snapshot that it was made of
}

// Add registers a node that is alive, with one pool of the given bytes (none: a
// storageless node).
func (c *Cluster) Add(id holdfast.NodeID, d holdfast.Domain, poolBytes int64) *Node {
	c.T.Helper()
	if d.Host == "" {
		d.Host = string(id)
	}
	reg := holdfast.Node{Version: holdfast.NodeVersion, ID: id, Domain: d}
	if poolBytes > 0 {
		reg.Pools = []holdfast.Pool{{ID: holdfast.PoolID("pool-" + id), State: holdfast.PoolOnline, TotalBytes: poolBytes, FreeBytes: poolBytes}}
	}
	if _, err := c.Store.PutNode(context.Background(), reg); err != nil {
		c.T.Fatal(err)
	}
	n := &Node{ID: id, c: c, replicas: map[holdfast.ReplicaID]Stored{}, devices: map[holdfast.VolumeID]bool{}, mounted: map[holdfast.VolumeID]bool{}}
	c.mu.Lock()
	c.nodes[id] = n
	c.mu.Unlock()
	n.Start()
	return n
}

// AddThree registers nodes n1, n2 and n3 with 100 GiB each.
func (c *Cluster) AddThree() {
	for _, id := range []holdfast.NodeID{"n1", "n2", "n3"} {
		c.Add(id, holdfast.Domain{}, 100<<30)
	}
}

// Node finds a node.
func (c *Cluster) Node(id holdfast.NodeID) *Node {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.nodes[id]
}

// SetFault puts faults on the nodes' calls; nil ends it.
func (c *Cluster) SetFault(f Fault) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fault = f
}

// Client finds a node's services.
func (c *Cluster) Client(ctx context.Context, id holdfast.NodeID) (holdfastv1.NodeServiceClient, error) {
	if _, err := c.Store.Node(ctx, id); err != nil {
		return nil, err
	}
	n := c.Node(id)
	if n == nil {
		return nil, holdfast.E("", holdfast.Unavailable, "nobody listens")
	}
	return n, nil
}

// Start gives the node a lease; its replicas are as they were.
func (n *Node) Start() {
	n.c.T.Helper()
	l, err := n.c.Store.Join(context.Background(), n.ID, string(holdfast.NewReplicaID()), time.Hour)
	if err != nil {
		n.c.T.Fatal(err)
	}
	n.c.mu.Lock()
	n.lease, n.down = l, false
	n.c.mu.Unlock()
	n.c.T.Cleanup(func() { _ = l.Close() })
}

// Kill cuts the node's power: no lease, no answers, no devices.
func (n *Node) Kill() {
	n.c.mu.Lock()
	l := n.lease
	n.down, n.devices, n.mounted = true, map[holdfast.VolumeID]bool{}, map[holdfast.VolumeID]bool{}
	n.c.mu.Unlock()
	_ = l.Close()
	n.c.Store.Expire(n.ID)
}

// Mount makes the volume's device busy, or free again.
func (n *Node) Mount(id holdfast.VolumeID, on bool) {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	n.mounted[id] = on
}

// Replicas are the replicas stored on the node.
func (n *Node) Replicas() map[holdfast.ReplicaID]Stored {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	out := map[holdfast.ReplicaID]Stored{}
	for id, s := range n.replicas {
		out[id] = s
	}
	return out
}

// serve runs one call: faults around it, and errors as they come over gRPC.
func (n *Node) serve(method string, f func() error) error {
	ask := func(after bool) error {
		n.c.mu.Lock()
		fault, down := n.c.fault, n.down
		n.c.mu.Unlock()
		if down {
			return holdfast.E("", holdfast.Unavailable, "connection refused")
		}
		if fault == nil {
			return nil
		}
		return fault(n.ID, method, after)
	}
	err := ask(false)
	if err == nil {
		if err = f(); err == nil {
			err = ask(true)
		}
	}
	return grpcstatus.To(err)
}

// CreateReplica implements the node's service.
func (n *Node) CreateReplica(ctx context.Context, in *holdfastv1.CreateReplicaRequest, _ ...grpc.CallOption) (*holdfastv1.CreateReplicaResponse, error) {
	err := n.serve("CreateReplica", func() error {
		n.ops.Lock()
		defer n.ops.Unlock()
		rec, err := n.c.Store.Volume(ctx, in.VolumeId)
		if err != nil {
			return err
		}
		x := rec.Replica(holdfast.ReplicaID(in.ReplicaId))
		if x == nil || x.Node != n.ID || string(x.Pool) != in.PoolId {
			return holdfast.E("", holdfast.NotFound, "the record names no such replica here")
		}
		n.c.mu.Lock()
		defer n.c.mu.Unlock()
		if o := in.OriginReplicaId; o != "" {
			if have, ok := n.replicas[holdfast.ReplicaID(o)]; !ok || have.Pool != x.Pool {
				return holdfast.E("", holdfast.NotFound, "there is no origin "+o)
			}
		}
		if _, ok := n.replicas[x.ID]; !ok {
			n.replicas[x.ID] = Stored{rec.ID, x.Pool, in.SizeBytes, in.OriginSnapshotId}
		}
		return nil
	})
	return &holdfastv1.CreateReplicaResponse{}, err
}

// PurgeTombstones implements the node's service.
func (n *Node) PurgeTombstones(ctx context.Context, _ *holdfastv1.PurgeTombstonesRequest, _ ...grpc.CallOption) (*holdfastv1.PurgeTombstonesResponse, error) {
	out := &holdfastv1.PurgeTombstonesResponse{}
	err := n.serve("PurgeTombstones", func() error {
		n.ops.Lock()
		defer n.ops.Unlock()
		ts, err := n.c.Store.Tombstones(ctx)
		if err != nil {
			return err
		}
		for _, t := range ts {
			if t.Node != n.ID {
				continue
			}
			rec, err := n.c.Store.Volume(ctx, string(t.Volume))
			if err == nil && rec.Replica(t.Replica) != nil {
				n.c.T.Errorf("a tombstone names replica %s, which the record of volume %s names too", t.Replica, rec.Name)
				continue
			}
			n.c.mu.Lock()
			delete(n.replicas, t.Replica)
			n.c.mu.Unlock()
			if err := n.c.Store.DropTombstone(ctx, t.Replica); err != nil {
				return err
			}
			out.Purged++
		}
		return nil
	})
	return out, err
}

// swap changes a record as a node does.
func (c *Cluster) swap(ctx context.Context, id string, f func(*holdfast.Record) (bool, error)) (holdfast.Record, error) {
	for {
		rec, err := c.Store.Volume(ctx, id)
		if err != nil {
			return rec, err
		}
		changed, err := f(&rec)
		if err != nil || !changed {
			return rec, err
		}
		rec, err = c.Store.SwapVolume(ctx, rec)
		if !errors.Is(err, holdfast.Busy) {
			return rec, err
		}
	}
}

// Attach implements the node's service: granted as replication does.
func (n *Node) Attach(ctx context.Context, in *holdfastv1.AttachRequest, _ ...grpc.CallOption) (*holdfastv1.AttachResponse, error) {
	out := &holdfastv1.AttachResponse{}
	err := n.serve("Attach", func() error {
		rec, err := n.c.swap(ctx, in.VolumeId, func(r *holdfast.Record) (bool, error) {
			if r.Phase != holdfast.PhaseReady {
				return false, holdfast.E("", holdfast.Unavailable, "the volume is not ready")
			}
			holder := r.AttachedTo()
			if holder == n.ID {
				return false, nil
			}
			if holder != "" && !in.Force {
				if alive, err := n.c.Store.Alive(ctx, holder); err != nil || alive {
					return false, holdfast.E("", holdfast.InUse, "it is attached to node "+string(holder))
				}
			}
			r.Epoch++
			r.Primary = &holdfast.Primary{Node: n.ID, Kind: holdfast.ClientPrimary, Grant: r.Epoch}
			return true, nil
		})
		if err != nil {
			return err
		}
		n.c.mu.Lock()
		n.devices[rec.ID] = true
		n.c.mu.Unlock()
		out.VolumeId, out.DevicePath = string(rec.ID), fmt.Sprintf("/dev/%s/%s", n.ID, rec.ID)
		return nil
	})
	return out, err
}

// Detach implements the node's service.
func (n *Node) Detach(ctx context.Context, in *holdfastv1.DetachRequest, _ ...grpc.CallOption) (*holdfastv1.DetachResponse, error) {
	err := n.serve("Detach", func() error {
		id := holdfast.VolumeID(in.VolumeId)
		n.c.mu.Lock()
		busy := n.mounted[id] && !in.Force
		n.c.mu.Unlock()
		if busy {
			return holdfast.E("", holdfast.InUse, "its device is mounted")
		}
		n.c.mu.Lock()
		delete(n.devices, id)
		n.c.mu.Unlock()
		_, err := n.c.swap(ctx, in.VolumeId, func(r *holdfast.Record) (bool, error) {
			if r.AttachedTo() != n.ID {
				return false, nil
			}
			r.Primary = nil
			return true, nil
		})
		if errors.Is(err, holdfast.NotFound) {
			err = nil
		}
		return err
	})
	return &holdfastv1.DetachResponse{}, err
}

// NodeVolumes implements the node's service.
func (n *Node) NodeVolumes(_ context.Context, in *holdfastv1.NodeVolumesRequest, _ ...grpc.CallOption) (*holdfastv1.NodeVolumesResponse, error) {
	out := &holdfastv1.NodeVolumesResponse{}
	err := n.serve("NodeVolumes", func() error {
		for id, s := range n.Replicas() {
			if in.VolumeId == "" || in.VolumeId == string(s.Volume) {
				out.Volumes = append(out.Volumes, &holdfastv1.NodeVolume{VolumeId: string(s.Volume),
					Replica: &holdfastv1.ReplicaStatus{ReplicaId: string(id), PoolId: string(s.Pool)}})
			}
		}
		out.Pools = n.poolUsage()
		return nil
	})
	return out, err
}

// CheckPool implements the node's service; the controller never calls it.
func (n *Node) CheckPool(context.Context, *holdfastv1.CheckPoolRequest, ...grpc.CallOption) (grpc.ServerStreamingClient[holdfastv1.CheckPoolResponse], error) {
	return nil, grpcstatus.To(holdfast.E("check pool", holdfast.Unsupported, "a fake node has no data to check"))
}
