package fakes

import (
	"context"

	"github.com/holdfast-storage/holdfast"
)

// Settle does what primaries, client or maintenance, do in time: drop replicas
// that are dead or leaving, bring the others that exist up to date, grow.
func (c *Cluster) Settle() {
	c.T.Helper()
	ctx := context.Background()
	recs, err := c.Store.Volumes(ctx)
	if err != nil {
		c.T.Fatal(err)
	}
	for _, r := range recs {
		if _, err := c.swap(ctx, string(r.ID), c.settle); err != nil {
			c.T.Fatal(err)
		}
	}
}

func (c *Cluster) settle(r *holdfast.Record) (bool, error) {
	if r.Phase != holdfast.PhaseReady {
		return false, nil
	}
	changed := false
	alive := func(x holdfast.Replica) bool {
		ok, err := c.Store.Alive(context.Background(), x.Node)
		return err == nil && ok
	}
	stays := func() (n int) {
		for _, x := range r.Replicas {
			if x.State == holdfast.InSync && !x.Leaving && alive(x) {
				n++
			}
		}
		return n
	}
	if stays() == 0 {
		return false, nil // nobody to repair from: everything waits
	}
	for i := range r.Replicas {
		x := &r.Replicas[i]
		if x.State == holdfast.InSync && (x.Leaving || !alive(*x)) {
			r.Epoch++
			x.State, x.Since, changed = holdfast.Stale, r.Epoch-1, true
		}
	}
	for i := range r.Replicas {
		x := &r.Replicas[i]
		if x.State != holdfast.InSync && !x.Leaving && alive(*x) && c.stores(*x) {
			r.Epoch++
			x.State, x.Since, changed = holdfast.InSync, r.Epoch, true
		}
	}
	if want := holdfast.RoundUp(r.Spec.SizeBytes); r.Primary != nil && r.SizeBytes < want {
		r.SizeBytes, changed = want, true
	}
	return changed, nil
}

func (c *Cluster) stores(x holdfast.Replica) bool {
	n := c.Node(x.Node)
	if n == nil {
		return false
	}
	_, ok := n.Replicas()[x.ID]
	return ok
}

// Check fails the test for anything leaked or lost: a replica on a live node that
// neither a record nor a tombstone names, one that is in sync in a record and does
// not exist, or one that both a record and a tombstone name.
func (c *Cluster) Check() {
	c.T.Helper()
	ctx := context.Background()
	recs, err := c.Store.Volumes(ctx)
	if err != nil {
		c.T.Fatal(err)
	}
	ts, err := c.Store.Tombstones(ctx)
	if err != nil {
		c.T.Fatal(err)
	}
	named, buried := map[holdfast.ReplicaID]bool{}, map[holdfast.ReplicaID]bool{}
	for _, t := range ts {
		buried[t.Replica] = true
	}
	for _, r := range recs {
		for _, x := range r.Replicas {
			named[x.ID] = true
			if x.State == holdfast.InSync && !c.stores(x) {
				c.T.Errorf("volume %s: replica %s on %s is in sync in the record and does not exist", r.Name, x.ID, x.Node)
			}
			if buried[x.ID] {
				c.T.Errorf("volume %s: replica %s is in use and buried", r.Name, x.ID)
			}
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range c.nodes {
		for id, s := range n.replicas {
			if !named[id] && !buried[id] {
				c.T.Errorf("node %s leaks replica %s of volume %s", n.ID, id, s.Volume)
			}
		}
	}
}

// CheckClean is Check, and that tombstones are left for dead nodes only.
func (c *Cluster) CheckClean() {
	c.T.Helper()
	c.Check()
	ts, err := c.Store.Tombstones(context.Background())
	if err != nil {
		c.T.Fatal(err)
	}
	for _, t := range ts {
		if alive, _ := c.Store.Alive(context.Background(), t.Node); alive {
			c.T.Errorf("the tombstone of replica %s waits on live node %s", t.Replica, t.Node)
		}
	}
}
