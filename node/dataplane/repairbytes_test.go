package dataplane

import (
	"bytes"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/engine/disk"
	"github.com/holdfast-storage/holdfast/replication"
)

// ioCount is what was read from and written to one node's replicas' data.
type ioCount struct{ read, written atomic.Int64 }

// counting counts the bytes that go to and from the data files of each node.
func (c *cluster) counting() map[holdfast.NodeID]*ioCount {
	counts := map[holdfast.NodeID]*ioCount{}
	for _, nd := range c.nodes {
		counts[nd.id] = &ioCount{}
	}
	c.wrap = func(id holdfast.NodeID, fs disk.FS) disk.FS {
		n := counts[id]
		return disk.NewFaulty(fs, func(x *disk.Call) error {
			switch {
			case !strings.HasSuffix(x.Path, "/data"):
			case x.Op == disk.OpRead:
				n.read.Add(x.Length)
			case x.Op == disk.OpWrite:
				n.written.Add(x.Length)
			}
			return nil
		})
	}
	return counts
}

// reset forgets what was counted.
func (n *ioCount) reset() {
	n.read.Store(0)
	n.written.Store(0)
}

func (c *cluster) waitInSync(n int) {
	c.t.Helper()
	deadline := time.Now().Add(3 * time.Minute) // only so that a hung repair ends the test
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for len(c.inSync()) != n {
		if time.Now().After(deadline) {
			c.t.Fatalf("%v are in sync, never %d replicas", c.inSync(), n)
		}
		<-tick.C
	}
}

// fillAll writes the whole volume.
func fillAll(t testing.TB, h *Volume, size int64) {
	t.Helper()
	data := bytes.Repeat([]byte{0xa5}, 1<<20)
	for off := int64(0); off < size; off += int64(len(data)) {
		if err := write(h, off, data); err != nil {
			t.Fatal(err)
		}
	}
}

// scatter writes random blocks from several workers and says how many different
// bytes that were.
func scatter(t testing.TB, h *Volume, size int64, count int) int64 {
	var wg sync.WaitGroup
	var seen sync.Map
	var distinct atomic.Int64
	for w := range 8 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), 3))
			for range count / 8 {
				off := r.Int64N(size/holdfast.BlockSize) * holdfast.BlockSize
				if err := write(h, off, bytes.Repeat([]byte{byte(1 + w)}, holdfast.BlockSize)); err != nil {
					t.Error(err)
					return
				}
				if _, old := seen.LoadOrStore(off, true); !old {
					distinct.Add(holdfast.BlockSize)
				}
			}
		})
	}
	wg.Wait()
	return distinct.Load()
}

// TestRepairCopiesWhatWasWritten: a replica that was away while random blocks
// were written gets these and little else, and little else is read for it.
func TestRepairCopiesWhatWasWritten(t *testing.T) {
	const size = 64 << 20
	c := newClusterOf(t, 2, size).onEngine()
	counts := c.counting()
	c.start()
	h := c.open(c.nodes[0], OpenOptions{})
	fillAll(t, h, size)
	c.nodes[1].stop()
	distinct := scatter(t, h, size, 2000)
	c.waitInSync(1)
	for _, n := range counts {
		n.reset()
	}
	before := h.Status().Counters.RepairBytes
	c.nodes[1].start()
	c.waitInSync(2)
	sent := int64(h.Status().Counters.RepairBytes - before)
	most := distinct + distinct/10 + 1<<20
	source, target := counts["n0"], counts["n1"]
	t.Logf("%d bytes written, %d sent, %d read at the source, %d read and %d written at the target",
		distinct, sent, source.read.Load(), target.read.Load(), target.written.Load())
	for what, n := range map[string]int64{"sent": sent, "read at the source": source.read.Load(),
		"read at the target": target.read.Load(), "written at the target": target.written.Load()} {
		if n > most {
			t.Errorf("%d bytes were %s for %d written; at most %d are allowed", n, what, distinct, most)
		}
	}
	if sent < distinct {
		t.Errorf("only %d bytes were sent of %d", sent, distinct)
	}
	c.equal()
}

// allocatedOn lists where a node's replica has data.
func allocatedOn(t testing.TB, nd *node) (out []holdfast.Extent, total int64) {
	t.Helper()
	task := &replication.Task{Kind: replication.TaskAllocated, Length: nd.back.State().SizeBytes}
	if nd.back.Do(task); task.Err != nil {
		t.Fatal(task.Err)
	}
	for _, x := range task.Extents {
		total += x.Length
	}
	return task.Extents, total
}

// TestRepairSkipsHoles: of a mostly empty volume a new replica gets what there is;
// nothing is read, sent or allocated for holes, and what was trimmed while a
// replica was away becomes a hole there too.
func TestRepairSkipsHoles(t *testing.T) {
	const size, piece = 128 << 20, 128 << 10
	c := newClusterOf(t, 2, size).onEngine()
	counts := c.counting()
	rec := c.record()
	rec.Replicas[1].State, rec.Replicas[1].Since = holdfast.Rebuilding, 0 // made just now
	if _, err := c.store.SwapVolume(t.Context(), rec); err != nil {
		t.Fatal(err)
	}
	c.nodes[0].start()
	h := c.open(c.nodes[0], OpenOptions{})
	for _, at := range []int64{0, 33 << 20, 64<<20 - piece, 100 << 20} {
		if err := write(h, at, bytes.Repeat([]byte{7}, piece)); err != nil {
			t.Fatal(err)
		}
	}
	_, held := allocatedOn(t, c.nodes[0])
	counts["n0"].reset()
	c.nodes[1].start()
	c.waitInSync(2)
	sent := int64(h.Status().Counters.RepairBytes)
	_, got := allocatedOn(t, c.nodes[1])
	t.Logf("%d bytes allocated; %d sent, %d read, %d allocated at the target", held, sent, counts["n0"].read.Load(), got)
	for what, n := range map[string]int64{"sent": sent, "read": counts["n0"].read.Load(), "allocated at the target": got} {
		if n != held {
			t.Errorf("%d bytes were %s for %d of data", n, what, held)
		}
	}
	c.nodes[1].stop()
	if _, err := do(h, replication.Request{Op: replication.OpTrim, Offset: 33 << 20, Length: piece}); err != nil {
		t.Fatal(err)
	}
	c.waitInSync(1)
	counts["n0"].reset()
	before := h.Status().Counters.RepairBytes
	c.nodes[1].start()
	c.waitInSync(2)
	if n := h.Status().Counters.RepairBytes - before; n != 0 {
		t.Errorf("%d bytes were sent for what was trimmed", n)
	}
	if n := counts["n0"].read.Load(); n > piece { // what changed is looked at: a hole by now
		t.Errorf("%d bytes were read for what was trimmed", n)
	}
	if _, n := allocatedOn(t, c.nodes[1]); n != held-piece {
		t.Errorf("%d bytes are allocated after the trim, want %d", n, held-piece)
	}
	c.equal()
}
