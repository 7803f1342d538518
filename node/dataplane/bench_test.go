package dataplane

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"sync"
	"testing"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/buf"
	"github.com/holdfast-storage/holdfast/node/device"
	"github.com/holdfast-storage/holdfast/node/device/fuseloop"
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

// BenchmarkDevice is a volume with three replicas in memory as a block device:
// all but disks. An iteration is a second of fio.
func BenchmarkDevice(b *testing.B) {
	for _, rw := range []string{"randwrite", "randread"} {
		for _, depth := range []int{1, 32} {
			b.Run(fmt.Sprintf("%s/depth%d", rw, depth), func(b *testing.B) {
				c := newCluster(b, 3).start()
				h := c.open(c.nodes[0], OpenOptions{})
				fe, err := fuseloop.New(fuseloop.Config{Root: b.TempDir()})
				if err != nil {
					b.Fatal(err)
				}
				defer fe.Close()
				dev, err := fe.Open(b.Context(), device.Options{Volume: holdfast.NewVolumeID(), SizeBytes: testSize, LogicalBlk: 4096}, h)
				if err != nil {
					b.Fatal(err)
				}
				iops := 0.0
				for b.Loop() {
					iops += fioIOPS(b, dev.Path(), rw, depth)
				}
				b.ReportMetric(0, "ns/op")
				b.ReportMetric(iops/float64(b.N), "IOPS")
				if err := dev.Abort(); err != nil {
					b.Error(err)
				}
			})
		}
	}
}

func fioIOPS(b *testing.B, path, rw string, depth int) float64 {
	out, err := exec.Command("fio", "--name=x", "--filename="+path, "--rw="+rw, "--bs=4k", fmt.Sprintf("--iodepth=%d", depth),
		"--ioengine=libaio", "--direct=1", "--time_based", "--runtime=1", "--norandommap", "--output-format=json").Output()
	if err != nil {
		b.Fatal(err)
	}
	var r struct {
		Jobs []struct{ Read, Write struct{ IOPS float64 } }
	}
	if err := json.Unmarshal(out, &r); err != nil || len(r.Jobs) != 1 {
		b.Fatalf("fio's answer cannot be read: %v\n%s", err, out)
	}
	return r.Jobs[0].Read.IOPS + r.Jobs[0].Write.IOPS
}
