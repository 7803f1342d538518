package engine

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/engine/disk"
	"github.com/holdfast-storage/holdfast/internal/buf"
)

const (
	benchDepth = 32
	benchSlice = 300 * time.Millisecond
)

// benchReplica is a replica under load.
type benchReplica struct {
	b   testing.TB
	r   *Replica
	seq atomic.Uint64
	// hold is locked while a snapshot is taken, as the primary does.
	hold sync.RWMutex
}

func benchPool(b testing.TB, bytes int64) *Pool {
	path, root := image(b, bytes)
	if _, err := Format(context.Background(), formatOptions(path, root)); err != nil {
		b.Fatal(err)
	}
	p := mustOpenPool(b, path, root)
	b.Cleanup(func() {
		if err := p.Close(); err != nil {
			b.Error(err)
		}
	})
	return p
}

// filled makes a replica with data everywhere.
func filled(b testing.TB, p *Pool, id string, bytes int64) *benchReplica {
	if err := p.Create(context.Background(), testVolume, holdfast.ReplicaID(id), bytes); err != nil {
		b.Fatal(err)
	}
	r, err := p.Open(holdfast.ReplicaID(id))
	if err != nil {
		b.Fatal(err)
	}
	x := &benchReplica{b: b, r: r}
	all := buf.Get(1 << 20)
	defer all.Release()
	for off := int64(0); off < bytes; off += 1 << 20 {
		x.write(all.B, off)
	}
	if err := r.Flush(); err != nil {
		b.Fatal(err)
	}
	return x
}

func (x *benchReplica) write(p []byte, off int64) time.Duration {
	n := x.seq.Add(1)
	begin := time.Now()
	x.hold.RLock()
	err := x.r.WriteAt(Entry{Epoch: 1, Grant: 1, Seq: n, Committed: n - min(n, 64)}, p, off, false)
	x.hold.RUnlock()
	if err != nil {
		x.b.Error(err)
	}
	return time.Since(begin)
}

func (x *benchReplica) take(n int) {
	x.hold.Lock()
	defer x.hold.Unlock()
	if err := x.r.TakeSnapshot(holdfast.SnapshotID(fmt.Sprint("s", n)), "c"); err != nil {
		x.b.Fatal(err)
	}
}

// load runs op from many goroutines until time is up or there is no work left,
// and gives operations per second and the longest.
func load(limit time.Duration, op func(p []byte, rng *rand.Rand) (time.Duration, bool)) (rate float64, longest time.Duration) {
	var wg sync.WaitGroup
	var done atomic.Int64
	var most atomic.Int64
	begin := time.Now()
	for i := range benchDepth {
		wg.Go(func() {
			p := buf.Get(4096)
			defer p.Release()
			rng := rand.New(rand.NewPCG(uint64(i), uint64(begin.UnixNano())))
			for time.Since(begin) < limit {
				d, ok := op(p.B, rng)
				if !ok {
					return
				}
				done.Add(1)
				for m := most.Load(); int64(d) > m && !most.CompareAndSwap(m, int64(d)); m = most.Load() {
				}
			}
		})
	}
	wg.Wait()
	return float64(done.Load()) / time.Since(begin).Seconds(), time.Duration(most.Load())
}

func (x *benchReplica) anywhere(bytes int64) func([]byte, *rand.Rand) (time.Duration, bool) {
	return func(p []byte, rng *rand.Rand) (time.Duration, bool) {
		return x.write(p, rng.Int64N(bytes/blockSize)*blockSize), true
	}
}

func (x *benchReplica) readAnywhere(bytes int64) func([]byte, *rand.Rand) (time.Duration, bool) {
	return func(p []byte, rng *rand.Rand) (time.Duration, bool) {
		begin := time.Now()
		if err := x.r.ReadAt(p, rng.Int64N(bytes/blockSize)*blockSize); err != nil {
			x.b.Error(err)
		}
		return time.Since(begin), true
	}
}

// BenchmarkSnapshotsPresent compares live reads and writes of a volume with 200
// snapshots, after the first touch, with those of one that has none. Slices of
// both take turns.
func BenchmarkSnapshotsPresent(b *testing.B) {
	const bytes = 128 << 20
	p := benchPool(b, 4<<30)
	without, with := filled(b, p, "without", bytes), filled(b, p, "with", bytes)
	for i := range 200 {
		with.take(i)
		with.write(make([]byte, 4096), int64(i)*granuleSize)
	}
	all := make([]byte, 1<<20)
	for off := int64(0); off < bytes; off += 1 << 20 {
		with.write(all, off)
		without.write(all, off)
	}
	var w, r [2]float64
	n := 0
	for b.Loop() {
		for i, x := range []*benchReplica{without, with} {
			rate, _ := load(benchSlice, x.anywhere(bytes))
			w[i] += rate
			rate, _ = load(benchSlice, x.readAnywhere(bytes))
			r[i] += rate
		}
		n++
	}
	b.ReportMetric(w[0]/float64(n), "writes/s-without")
	b.ReportMetric(w[1]/w[0], "writes-with/without")
	b.ReportMetric(r[1]/r[0], "reads-with/without")
}

// BenchmarkFirstTouch compares random 4 KiB writes right after a snapshot, each
// of which is the first to its granule, with those before it.
func BenchmarkFirstTouch(b *testing.B) {
	const bytes = 512 << 20
	p := benchPool(b, 6<<30)
	x := filled(b, p, "a", bytes)
	var steady, first, cpuSteady, cpuFirst float64
	n := 0
	for b.Loop() {
		used := cpuTime()
		rate, _ := load(benchSlice, x.anywhere(bytes))
		steady += rate
		cpuSteady += float64((cpuTime() - used).Microseconds()) / (rate * benchSlice.Seconds())
		x.take(n)
		order := rand.Perm(int(bytes / granuleSize))
		var next atomic.Int64
		used = cpuTime()
		rate, _ = load(time.Minute, func(p []byte, rng *rand.Rand) (time.Duration, bool) {
			i := next.Add(1) - 1
			if i >= int64(len(order)) {
				return 0, false
			}
			return x.write(p, int64(order[i])*granuleSize+rng.Int64N(16)*blockSize), true
		})
		first += rate
		cpuFirst += float64((cpuTime() - used).Microseconds()) / float64(len(order))
		if n > 0 {
			x.drop(n - 1)
		}
		n++
		// The pages that are still shared, so that steady is steady again.
		for off := int64(0); off < bytes; off += 1 << 20 {
			x.write(make([]byte, 1<<20), off)
		}
	}
	b.ReportMetric(steady/float64(n), "steady-writes/s")
	b.ReportMetric(first/steady, "first-touch/steady")
	// What this process uses, which other load does not disturb as much.
	b.ReportMetric(cpuSteady/float64(n), "us-cpu-steady")
	b.ReportMetric(cpuFirst/float64(n), "us-cpu-first-touch")
}

func cpuTime() time.Duration {
	var ru unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &ru)
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

func (x *benchReplica) drop(n int) {
	for more := true; more; {
		var err error
		if more, err = x.r.DropSnapshot(context.Background(), holdfast.SnapshotID(fmt.Sprint("s", n)), "c", 256); err != nil {
			x.b.Fatal(err)
		}
	}
}

// BenchmarkTakeSnapshot is the longest write under random load while a snapshot
// is taken of a volume whose file has many extents, held as the primary holds it.
func BenchmarkTakeSnapshot(b *testing.B) {
	const extents = 500_000
	const bytes = extents * 2 * blockSize
	p := benchPool(b, 8<<30)
	if err := p.Create(context.Background(), testVolume, testReplica, bytes); err != nil {
		b.Fatal(err)
	}
	r, err := p.Open(testReplica)
	if err != nil {
		b.Fatal(err)
	}
	x := &benchReplica{b: b, r: r}
	var next atomic.Int64
	load(10*time.Minute, func(p []byte, _ *rand.Rand) (time.Duration, bool) {
		i := next.Add(1) - 1
		return x.write(p, min(i, extents-1)*2*blockSize), i < extents
	})
	if err := r.Flush(); err != nil {
		b.Fatal(err)
	}
	// The load is on places that have been written to, each every other block.
	op := func(p []byte, rng *rand.Rand) (time.Duration, bool) {
		return x.write(p, rng.Int64N(extents)*2*blockSize), true
	}
	var worst, usual, held time.Duration
	n := 0
	for b.Loop() {
		_, u := load(benchSlice, op)
		usual = max(usual, u)
		var wg sync.WaitGroup
		wg.Go(func() {
			_, l := load(2*benchSlice, op)
			worst = max(worst, l)
		})
		<-time.After(benchSlice)
		begin := time.Now()
		x.take(n)
		held = max(held, time.Since(begin))
		wg.Wait()
		n++
	}
	b.ReportMetric(float64(worst.Microseconds())/1000, "ms-longest-write")
	b.ReportMetric(float64(usual.Microseconds())/1000, "ms-longest-write-before")
	b.ReportMetric(float64(held.Microseconds())/1000, "ms-to-take")
}

// BenchmarkTouchMemory is the cost of looking whether a granule was touched: the
// disk is memory.
func BenchmarkTouchMemory(b *testing.B) {
	r := created(b, fsPool(b, disk.NewMem(2<<30)), benchBytes)
	if err := r.TakeSnapshot("s", "c"); err != nil {
		b.Fatal(err)
	}
	var seq atomic.Uint64
	write4K(b, func(p []byte, off int64) error {
		n := seq.Add(1)
		return r.WriteAt(Entry{Epoch: 1, Grant: 1, Seq: n, Committed: n - min(n, 64)}, p, off, false)
	}, 0)
}
