package testcluster

import (
	"errors"
	"os"
	"strings"
	"time"

	"github.com/holdfast-storage/holdfast"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

// CreateVolume makes a volume with a replica on each of the nodes, the way the
// controller does: record, replicas by NodeService, record ready.
func (c *Cluster) CreateVolume(name string, sizeBytes int64, on ...*Node) holdfast.Record {
	t := c.t
	t.Helper()
	rec := holdfast.Record{
		Version: holdfast.RecordVersion, ID: holdfast.NewVolumeID(), Name: name, Created: time.Now().UTC(), Phase: holdfast.PhaseCreating,
		SizeBytes: holdfast.RoundUp(sizeBytes), Spec: holdfast.Spec{SizeBytes: sizeBytes, Replicas: len(on)}.WithDefaults(),
	}
	for _, n := range on {
		rec.Replicas = append(rec.Replicas, holdfast.Replica{ID: holdfast.NewReplicaID(), Node: n.ID, Pool: n.Pool(), State: holdfast.New})
	}
	rec, err := c.DB.CreateVolume(t.Context(), rec)
	if err != nil {
		t.Fatal(err)
	}
	for i, n := range on {
		_, err := n.Client().CreateReplica(t.Context(), &holdfastv1.CreateReplicaRequest{
			VolumeId: string(rec.ID), ReplicaId: string(rec.Replicas[i].ID), PoolId: string(rec.Replicas[i].Pool), SizeBytes: rec.SizeBytes,
		})
		if err != nil {
			t.Fatalf("create a replica on %s: %v", n.ID, err)
		}
	}
	return c.Change(rec.ID, func(r *holdfast.Record) {
		r.Phase, r.Epoch = holdfast.PhaseReady, 1
		for i := range r.Replicas {
			r.Replicas[i].State, r.Replicas[i].Since = holdfast.InSync, 1
		}
	})
}

// Pool is the id of the node's pool.
func (n *Node) Pool() holdfast.PoolID {
	t := n.cluster.t
	t.Helper()
	for _, p := range n.Agent().Node().Pools {
		if p.ID != "" {
			return p.ID
		}
	}
	t.Fatalf("node %s has no pool: %+v", n.ID, n.Agent().Node().Pools)
	return ""
}

// Record reads a volume's record.
func (c *Cluster) Record(id holdfast.VolumeID) holdfast.Record {
	c.t.Helper()
	rec, err := c.DB.Volume(c.t.Context(), string(id))
	if err != nil {
		c.t.Fatal(err)
	}
	return rec
}

// Change swaps a volume's record until it takes, and returns what is stored.
func (c *Cluster) Change(id holdfast.VolumeID, f func(*holdfast.Record)) holdfast.Record {
	c.t.Helper()
	for {
		want := c.Record(id)
		f(&want)
		rec, err := c.DB.SwapVolume(c.t.Context(), want)
		if err == nil {
			return rec
		}
		if !errors.Is(err, holdfast.Busy) {
			c.t.Fatal(err)
		}
	}
}

// Eventually waits until ok, or fails the test, saying what it waited for.
func (c *Cluster) Eventually(what string, ok func() bool) {
	c.t.Helper()
	for deadline := time.Now().Add(waitFor); !ok(); {
		if time.Now().After(deadline) {
			c.t.Fatalf("not within %v: %s", waitFor, what)
		}
		<-time.After(20 * time.Millisecond)
	}
}

// Attach attaches a volume to the node and gives the device's path.
func (n *Node) Attach(id holdfast.VolumeID) string {
	t := n.cluster.t
	t.Helper()
	r, err := n.Client().Attach(t.Context(), &holdfastv1.AttachRequest{VolumeId: string(id)})
	if err != nil {
		t.Fatalf("attach to %s: %v", n.ID, err)
	}
	return r.GetDevicePath()
}

// Detach detaches a volume from the node.
func (n *Node) Detach(id holdfast.VolumeID) {
	t := n.cluster.t
	t.Helper()
	if _, err := n.Client().Detach(t.Context(), &holdfastv1.DetachRequest{VolumeId: string(id)}); err != nil {
		t.Fatalf("detach from %s: %v", n.ID, err)
	}
}

// Volume is how the node sees a volume; nil if it does not.
func (n *Node) Volume(id holdfast.VolumeID) *holdfastv1.NodeVolume {
	t := n.cluster.t
	t.Helper()
	r, err := n.Client().NodeVolumes(t.Context(), &holdfastv1.NodeVolumesRequest{VolumeId: string(id)})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.GetVolumes()) == 0 {
		return nil
	}
	return r.GetVolumes()[0]
}

// mountsBelow lists the mount points below dir.
func mountsBelow(dir string) []string {
	raw, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return []string{err.Error()}
	}
	var below []string
	for line := range strings.Lines(string(raw)) {
		if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[1], dir+"/") {
			below = append(below, f[1])
		}
	}
	return below
}
