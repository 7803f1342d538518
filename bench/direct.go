package main

import (
	"cmp"
	"context"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/buf"
)

const (
	blockBytes   = 4 << 10
	granuleBytes = 64 << 10 // in which snapshots keep old content
	directDepth  = 32
)

// direct is direct I/O of 4 KiB on a device from 32 threads or so: what fio cannot do,
// such as each granule once in random order, and the longest of all operations.
type direct struct {
	write bool
	// next gives the offset of operation number n; false: there are no more.
	next func(n int64, rng *rand.Rand) (off int64, ok bool)
	// limit ends it; 0: when there are no more.
	limit time.Duration
	// threads; 0: 32.
	threads int
}

// directResult is what came of it.
type directResult struct {
	rate    float64 // operations a second
	ops     float64
	longest time.Duration
}

// run does the I/O until there is no more, time is up, or ctx ends.
func (d direct) run(ctx context.Context, path string) (directResult, error) {
	flags := os.O_RDONLY
	if d.write {
		flags = os.O_WRONLY
	}
	f, err := os.OpenFile(path, flags|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return directResult{}, holdfast.Wrap("open "+path, err)
	}
	defer f.Close()
	if d.limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, d.limit)
		defer cancel()
	}
	began := time.Now()
	var wg sync.WaitGroup
	var number, done, longest atomic.Int64
	errs := make([]error, cmp.Or(d.threads, directDepth))
	for i := range errs {
		wg.Go(func() {
			p := buf.Get(blockBytes)
			defer p.Release()
			rng := rand.New(rand.NewPCG(uint64(i), uint64(began.UnixNano())))
			fill(p.B, rng)
			for ctx.Err() == nil && errs[i] == nil {
				off, ok := d.next(number.Add(1)-1, rng)
				if !ok {
					return
				}
				at := time.Now()
				errs[i] = d.one(int(f.Fd()), p.B, off)
				raise(&longest, int64(time.Since(at)))
				done.Add(1)
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return directResult{}, holdfast.Wrap("I/O on "+path, err)
		}
	}
	return directResult{float64(done.Load()) / time.Since(began).Seconds(), float64(done.Load()), time.Duration(longest.Load())}, nil
}

func (d direct) one(fd int, p []byte, off int64) (err error) {
	n := 0
	if d.write {
		n, err = unix.Pwrite(fd, p, off)
	} else {
		n, err = unix.Pread(fd, p, off)
	}
	if err == nil && n != len(p) {
		err = unix.EIO
	}
	return err
}

func fill(p []byte, rng *rand.Rand) {
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
}

func raise(most *atomic.Int64, v int64) {
	for m := most.Load(); v > m && !most.CompareAndSwap(m, v); m = most.Load() {
	}
}

// anywhere is any block of the first size bytes.
func anywhere(size int64) func(int64, *rand.Rand) (int64, bool) {
	return func(_ int64, rng *rand.Rand) (int64, bool) {
		return rng.Int64N(size/blockBytes) * blockBytes, true
	}
}

// onceEach is one block in each granule of the first size bytes, in random order.
func onceEach(size int64) func(int64, *rand.Rand) (int64, bool) {
	order := rand.Perm(int(size / granuleBytes))
	return func(n int64, rng *rand.Rand) (int64, bool) {
		if n >= int64(len(order)) {
			return 0, false
		}
		return int64(order[n])*granuleBytes + rng.Int64N(granuleBytes/blockBytes)*blockBytes, true
	}
}

// everyOther are the first blocks of so many pairs of blocks, one after the other
// or, when again is set, any of them for ever.
func everyOther(count int64, again bool) func(int64, *rand.Rand) (int64, bool) {
	return func(n int64, rng *rand.Rand) (int64, bool) {
		if again {
			n = rng.Int64N(count)
		}
		return n * 2 * blockBytes, n < count
	}
}
