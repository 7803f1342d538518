package sim

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/replication"
)

// After a replica was away while random 4 KiB writes went on, a repair sends at most
// 1.1 times the distinct bytes written plus 1 MiB, and reads from the source's disk
// nothing that was not changed, and nothing twice.
func TestResyncReadsAndSendsWhatChanged(t *testing.T) {
	const blocks, writes = 16 << 10, 3000 // 64 MiB
	s := NewScript(Config{Seed: *seed, Hosts: 3, Replicas: 2, Blocks: blocks, HotBlocks: blocks, MinInSync: 1, Depth: 64, Heal: time.Minute})
	for _, h := range s.c.meta.hosts[:2] {
		for i := range h.disk.live { // a whole copy would show
			h.disk.live[i], h.disk.safe[i] = 1e12+value(i), 1e12+value(i)
		}
	}
	s.Attach("n0", false, nil)
	if !s.Until(10*time.Second, func() bool { return s.Serving("n0") }) {
		t.Fatal("not served")
	}
	s.Kill("n1", LoseNothing)
	s.Until(20*time.Second, func() bool { return len(s.Record().Primary.Node) > 0 && !s.c.inSync(s.c.host("n1")) })
	rng, written := rand.New(rand.NewPCG(*seed, 21)), map[int64]bool{}
	for range writes {
		b := rng.Int64N(blocks)
		written[b] = true
		io, err := s.Submit("n0", Access{Op: replication.OpWrite, First: b, Blocks: 1})
		if err != nil || !s.Until(time.Second, func() bool { return io.Done }) || io.Err != nil {
			t.Fatalf("write: %v %v", err, io.Err)
		}
	}
	source := s.c.host("n0").disk
	source.repairReads = map[int64]int{}
	s.Start("n1")
	if !s.Until(time.Minute, func() bool { return s.c.inSync(s.c.host("n1")) }) {
		t.Fatal("not repaired: " + s.c.stuck())
	}
	st, _ := s.Status("n0")
	distinct, sent := int64(len(written))*holdfast.BlockSize, int64(st.Counters.RepairBytes)
	t.Logf("%d bytes changed, %d sent (%.3f), %d blocks read", distinct, sent, float64(sent)/float64(distinct), len(source.repairReads))
	if sent < distinct || sent > distinct+distinct/10+1<<20 {
		t.Errorf("%d bytes were sent, while %d distinct ones were written", sent, distinct)
	}
	if len(source.repairReads) != len(written) {
		t.Errorf("%d blocks were read, %d changed", len(source.repairReads), len(written))
	}
	for b, n := range source.repairReads {
		if !written[b] || n > 1 {
			t.Errorf("block %d was read %d times; written: %v", b, n, written[b])
		}
	}
	if err := s.Equal(); err != nil {
		t.Error(err)
	}
}
