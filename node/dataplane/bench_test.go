package dataplane

import (
	"fmt"
	"sync"
	"testing"

	"github.com/holdfast-storage/holdfast/internal/buf"
	"github.com/holdfast-storage/holdfast/replication"
)

// BenchmarkWrite4k: three planes in one process, with replicas in memory (what
// the protocol, the runtime and loopback TCP cost) and on the engine.
func BenchmarkWrite4k(b *testing.B) { benchmarkOp(b, replication.OpWrite) }

// BenchmarkRead4k is its counterpart; reads are answered by the local replica.
func BenchmarkRead4k(b *testing.B) { benchmarkOp(b, replication.OpRead) }

func benchmarkOp(b *testing.B, op replication.Op) {
	for _, kind := range []string{"memory", "engine"} {
		for _, depth := range []int{1, 32} {
			b.Run(fmt.Sprintf("%s/depth%d", kind, depth), func(b *testing.B) {
				c := newCluster(b, 3)
				if kind == "engine" {
					c.onEngine()
				}
				h := c.start().open(c.nodes[0], OpenOptions{})
				b.SetBytes(4096)
				b.ReportAllocs()
				b.ResetTimer()
				runDepth(b, h, op, depth)
				b.StopTimer()
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "IOPS")
			})
		}
	}
}

// runDepth keeps depth requests in flight, as a device does: the next one is
// submitted by a goroutine of its own when one is done.
func runDepth(b *testing.B, h *Volume, op replication.Op, depth int) {
	var wg sync.WaitGroup
	free := make(chan *replication.Request, depth)
	for range depth {
		r := &replication.Request{Op: op, Length: 4096, Buf: buf.Get(4096)}
		r.Done = func(r *replication.Request, err error) {
			if err != nil {
				b.Error(err)
			}
			wg.Done()
			free <- r
		}
		free <- r
	}
	for i := range b.N {
		r := <-free
		r.Offset = int64(i*7919%int(testSize/4096)) * 4096
		wg.Add(1)
		h.Submit(r)
	}
	wg.Wait()
}
