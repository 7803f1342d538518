package dataplane

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/engine/disk"
	"github.com/holdfast-storage/holdfast/replication"
)

// bystander is a volume whose replicas are on the same nodes as the cluster's own
// one, in other pools, with an application that never rests.
type bystander struct {
	h    *Volume
	m    *model
	done atomic.Int64 // requests
	stop func()
	gone chan struct{}
}

// addBystander makes the volume with a replica on each node, served by the first
// one, and begins to use it.
func (c *cluster) addBystander() *bystander {
	t := c.t
	t.Helper()
	rec := c.record().Clone()
	rec.ID, rec.Name, rec.Revision, rec.Primary, rec.Epoch = holdfast.NewVolumeID(), "bystander", 0, nil, 1
	for i := range rec.Replicas {
		rec.Replicas[i].ID = holdfast.NewReplicaID()
	}
	if _, err := c.store.CreateVolume(t.Context(), rec); err != nil {
		t.Fatal(err)
	}
	for i, nd := range c.nodes {
		id := rec.Replicas[i].ID
		dir := filepath.Join(c.dir, "bystander-"+string(nd.id))
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		p := openPool(t, dir, nd.id, true, nil)
		c.closers = append(c.closers, p)
		if err := p.Create(context.Background(), rec.ID, id, c.size); err != nil {
			t.Fatal(err)
		}
		r, err := p.Open(id)
		if err != nil {
			t.Fatal(err)
		}
		if err := nd.plane.addReplica(rec.ID, id, engineBacking{r}); err != nil {
			t.Fatal(err)
		}
	}
	h, err := c.nodes[0].plane.Open(t.Context(), rec.ID, OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	b := &bystander{h: h, m: newModel(), gone: make(chan struct{})}
	stop := make(chan struct{})
	b.stop = sync.OnceFunc(func() { close(stop) })
	b.m.did = func() { b.done.Add(1) }
	go func() {
		defer close(b.gone)
		b.m.load(t, h, 4, 1<<30, stop)
	}()
	t.Cleanup(func() { b.stop(); <-b.gone })
	return b
}

// goesOn waits until the application has done some hundred requests more.
func (b *bystander) goesOn(c *cluster, when string) {
	c.t.Helper()
	from := b.done.Load()
	c.until("the other volume goes on "+when, func() bool { return b.done.Load() > from+200 })
}

// end stops the application: none of its requests has failed, and nobody has left
// its volume.
func (b *bystander) end(t *testing.T) {
	t.Helper()
	b.stop()
	<-b.gone
	b.m.verify(t, b.h)
	s := b.h.Status()
	if n := len(s.Record.InSyncReplicas()); n != 3 || s.Err != nil {
		t.Errorf("%d replicas of the other volume are in sync: %+v", n, s)
	}
}

// TestAPoolThatFailsDisturbsNobodyElse: EIO on the pool of one replica. Its volume
// goes on with the others; a volume with replicas on other pools of the same nodes
// does not notice.
func TestAPoolThatFailsDisturbsNobodyElse(t *testing.T) {
	for name, rule := range map[string]disk.Rule{
		"writes":                {Op: disk.OpWrite, Path: "/data", Errno: syscall.EIO},
		"flushes":               {Op: disk.OpSync, Path: "/data", Errno: syscall.EIO},
		"everything":            {Errno: syscall.EIO},
		"the rest, some pass":   {Skip: 50, Errno: syscall.EIO},
		"at the primary: all":   {Errno: syscall.EIO},
		"at the primary: reads": {Op: disk.OpRead, Path: "/data", Errno: syscall.EIO},
	} {
		t.Run(name, func(t *testing.T) {
			bad := holdfast.NodeID("n1")
			if strings.HasPrefix(name, "at the primary") {
				bad = "n0"
			}
			rules := &disk.Rules{}
			c := newCluster(t, 3).onEngine()
			c.wrap = func(id holdfast.NodeID, fs disk.FS) disk.FS {
				if id != bad {
					return fs
				}
				return disk.NewFaulty(fs, rules.Hook)
			}
			t.Cleanup(rules.Clear)
			c.start()
			h := c.open(c.nodes[0], OpenOptions{})
			m := newModel()
			m.load(t, h, 4, 30, nil)
			b := c.addBystander()
			b.goesOn(c, "before")
			rules.Add(rule)
			m.load(t, h, 4, 60, nil) // each of its requests is answered well
			c.waitInSync(2)
			b.goesOn(c, "while a pool fails")
			m.load(t, h, 4, 60, nil)
			m.verify(t, h)
			b.end(t)
			rules.Clear()
		})
	}
}

// TestAFullPoolDisturbsNobodyElse: ENOSPC on the pool of one replica. Its volume's
// writes wait, and say so; reads of it and other volumes go on; with space the
// writes do.
func TestAFullPoolDisturbsNobodyElse(t *testing.T) {
	rules := &disk.Rules{}
	c := newCluster(t, 3).onEngine()
	c.wrap = func(id holdfast.NodeID, fs disk.FS) disk.FS {
		if id != "n1" {
			return fs
		}
		return disk.NewFaulty(fs, rules.Hook)
	}
	c.start()
	h := c.open(c.nodes[0], OpenOptions{})
	first := bytes.Repeat([]byte{1}, 4096)
	if err := write(h, 0, first); err != nil {
		t.Fatal(err)
	}
	b := c.addBystander()
	rules.Add(disk.Rule{Op: disk.OpWrite, Path: "/data", Errno: syscall.ENOSPC})
	written := make(chan error, 1)
	go func() { written <- write(h, 1<<20, bytes.Repeat([]byte{2}, 4096)) }()
	c.until("the volume shows for what it waits", func() bool {
		return strings.Contains(h.Status().WaitingFor, "space in the pool of node n1")
	})
	b.goesOn(c, "while a pool is full")
	if got, err := read(h, 0, 4096); err != nil || !bytes.Equal(got, first) {
		t.Errorf("a read of the volume that waits: %v", err)
	}
	b.goesOn(c, "while a pool is still full")
	select {
	case err := <-written:
		t.Errorf("the write did not wait for space: %v", err)
	default:
	}
	if n := len(c.inSync()); n != 3 {
		t.Errorf("%d replicas are in sync: one whose pool is full has lost nothing", n)
	}
	rules.Clear()
	if err := <-written; err != nil {
		t.Errorf("with space: %v", err)
	}
	b.end(t)
	if _, err := do(h, replication.Request{Op: replication.OpFlush}); err != nil {
		t.Error(err)
	}
	c.equal()
}
