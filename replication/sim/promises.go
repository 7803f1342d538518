package sim

import (
	"fmt"
	"slices"
	"time"

	"github.com/holdfast-storage/holdfast"
)

// acknowledged verifies, when a write is answered, that every replica that the
// metadata store calls in sync has applied it: no acknowledgement comes before the
// commit that leaves others out (invariant 2). Where others write the same cells
// at the same time, nothing can be said.
func (c *cluster) acknowledged(d *device, o *op) {
	rec := &c.meta.rec
	if o.kind != opWrite && o.kind != opTrim || rec.Primary == nil || rec.Primary.Grant != d.p.Grant() || c.restoring || c.overlapped(d, o) {
		return
	}
	for _, rep := range rec.InSyncReplicas() {
		h := c.host(rep.Node)
		if !h.up || h.replicaID != rep.ID || len(h.disk.suspects) > 0 {
			continue // one that lost power is dropped for it
		}
		for i := range o.cells {
			want := value(0)
			if o.kind == opWrite {
				want = o.value + value(i)
			}
			if got := h.disk.live[o.first+i]; got != want {
				panic(violation{earlyAnswer, fmt.Sprintf("%v is answered, but %s, which is in sync, has %d in cell %d", o, h.id, got, o.first+i)})
			}
		}
	}
}

// overlapped says whether anything else may have changed what o wrote.
func (c *cluster) overlapped(d *device, o *op) bool {
	meets := func(x *op) bool {
		return x != o && (x.kind == opWrite || x.kind == opTrim) && x.first < o.first+o.cells && o.first < x.first+x.cells
	}
	if slices.ContainsFunc(d.ops, meets) {
		return true
	}
	for i := len(c.history) - 1; i >= c.bounded; i-- {
		if x := c.history[i]; meets(x) && (x.open || x.ret >= o.call) {
			return true
		}
	}
	return false
}

// oneWriter verifies that a write belongs to the grant that the replica has
// promised to serve.
func (d *disk) oneWriter(grant holdfast.Epoch) {
	if grant != d.promise.Grant {
		panic(violation{twoWriters, fmt.Sprintf("a write of grant %d is applied after the promise to serve only grant %d", grant, d.promise.Grant)})
	}
}

// drop is when a replica left the in-sync set, and the blocks of what was in any
// tail then: which may be answered, but not known to be everywhere.
type drop struct {
	at    time.Duration
	tails []int64
}

// noteDrops notes who left the in-sync set, for resync.
func (c *cluster) noteDrops(old, next holdfast.Record) {
	for _, x := range next.Replicas {
		if was := old.Replica(x.ID); was != nil && was.State == holdfast.InSync && x.State != holdfast.InSync {
			c.drops[x.ID] = drop{c.w.now, c.tails()}
		}
	}
}

func (c *cluster) tails() (blocks []int64) {
	for _, h := range c.meta.hosts {
		if h.disk == nil {
			continue
		}
		for _, e := range h.disk.tail {
			for b := e.ext.Offset / holdfast.BlockSize; b < e.ext.End()/holdfast.BlockSize; b++ {
				blocks = append(blocks, b)
			}
		}
	}
	return blocks
}

// resyncSlack is what a repair may touch besides a tenth more than was written: the
// volumes here are much smaller than the mebibyte that real ones are allowed.
const resyncSlack = 16 * holdfast.BlockSize

// resync verifies, when a repair begins to copy, that it does not touch more than
// what was changed while the replica was away and a little more. It can be said
// where all changes are known by maps: no power was lost, and the sources were in
// sync all the time.
func (c *cluster) resync(d *device, id holdfast.ReplicaID) {
	left, known := c.drops[id]
	rep := c.meta.rec.Replica(id)
	if !known || rep == nil || c.losses > 0 || c.restoring || c.damaged || c.cfg.Snapshots {
		return // with snapshots, pruned change maps are made up for by whole granules
	}
	for _, x := range c.meta.rec.InSyncReplicas() {
		if x.Since >= rep.Since {
			return
		}
	}
	at := left.at - (c.cfg.Protocol.SilentAfter + c.cfg.Protocol.IOTimeout + time.Second)
	written := map[int64]bool{}
	for _, b := range append(left.tails, c.tails()...) {
		written[b] = true
	}
	for _, o := range c.history {
		if (o.kind == opWrite || o.kind == opTrim) && (o.open && o.ret == 0 || o.ret >= at) {
			for b := o.first / blockCells; b <= (o.first+max(o.cells, 1)-1)/blockCells; b++ {
				written[b] = true
			}
		}
	}
	for _, p := range d.p.Status().Peers {
		bytes := int64(len(written)) * holdfast.BlockSize
		if p.Replica.ID == id && p.TotalBytes > bytes+bytes/10+resyncSlack {
			panic(violation{tooMuchCopied, fmt.Sprintf("the repair of %s copies %d bytes, while %d were written", id, p.TotalBytes, bytes)})
		}
	}
}
