package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/buf"
)

const (
	verifiedBytes   = 64 << 20
	verifiedThreads = 16
	readEvery       = 4   // of the operations one is a read, which is checked
	syncEvery       = 256 // and one an fsync
	// Operations that took longer are remembered one by one.
	noticeable = 5 * time.Millisecond
)

// verified is a load on a file: direct I/O of 4 KiB at random places, in which
// every block that is read must hold what was written to it last. It knows of
// every operation when it began and ended: fio tells a maximum of a whole run.
type verified struct {
	file    *os.File
	began   time.Time
	threads [verifiedThreads]verifier
	stop    chan struct{}
	work    sync.WaitGroup

	mu   sync.Mutex
	slow []span
	err  error
}

// span is the time of one operation.
type span struct{ from, to time.Time }

// verifier is one thread of a load, to which every 16th block belongs.
type verifier struct {
	written [verifiedBytes / blockBytes / verifiedThreads]uint32 // how often each block was
	since   atomic.Int64                                         // when the operation under way began: nanoseconds after the load
	rng     *rand.Rand
}

// startVerified makes a file in dir and begins. The load goes on until end is
// called, or an operation fails.
func startVerified(dir string) (*verified, error) {
	path := filepath.Join(dir, "verified")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_DIRECT|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, holdfast.Wrap("start a load", err)
	}
	v := &verified{file: f, began: time.Now(), stop: make(chan struct{})}
	filled := make(chan struct{}, verifiedThreads)
	for i := range v.threads {
		t := &v.threads[i]
		t.rng = rand.New(rand.NewPCG(uint64(i), uint64(v.began.UnixNano())))
		v.work.Go(func() {
			p := buf.Get(blockBytes)
			defer p.Release()
			err := v.all(t, p.B, v.writeBlock)
			filled <- struct{}{}
			if err == nil {
				err = v.loop(t, p.B)
			}
			v.fail(err)
		})
	}
	for range v.threads {
		<-filled
	}
	return v, v.failed()
}

func (v *verified) fail(err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.err == nil {
		v.err = holdfast.Wrap("the verifying load", err)
	}
}

func (v *verified) failed() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.err
}

// all does something to each of a thread's blocks.
func (v *verified) all(t *verifier, p []byte, do func(t *verifier, n int, p []byte) error) error {
	for n := range t.written {
		if err := do(t, n, p); err != nil {
			return err
		}
	}
	return nil
}

func (v *verified) loop(t *verifier, p []byte) error {
	for {
		select {
		case <-v.stop:
			return v.all(t, p, v.checkBlock)
		default:
		}
		from := time.Now()
		t.since.Store(int64(from.Sub(v.began)))
		var err error
		switch n := t.rng.IntN(len(t.written)); {
		case t.rng.IntN(syncEvery) == 0:
			err = unix.Fsync(int(v.file.Fd()))
		case t.rng.IntN(readEvery) == 0:
			err = v.checkBlock(t, n, p)
		default:
			err = v.writeBlock(t, n, p)
		}
		if err != nil {
			return err
		}
		if to := time.Now(); to.Sub(from) > noticeable {
			v.mu.Lock()
			v.slow = append(v.slow, span{from, to})
			v.mu.Unlock()
		}
	}
}

// place is the number in the file of a thread's block.
func (v *verified) place(t *verifier, n int) int64 {
	for i := range v.threads {
		if t == &v.threads[i] {
			return int64(n*verifiedThreads + i)
		}
	}
	return 0
}

func (v *verified) writeBlock(t *verifier, n int, p []byte) error {
	t.written[n]++
	at := v.place(t, n)
	contents(p, at, t.written[n])
	return holdfast.Wrap(fmt.Sprintf("write block %d", at), whole(unix.Pwrite(int(v.file.Fd()), p, at*blockBytes)))
}

func (v *verified) checkBlock(t *verifier, n int, p []byte) error {
	at := v.place(t, n)
	if err := whole(unix.Pread(int(v.file.Fd()), p, at*blockBytes)); err != nil {
		return holdfast.Wrap(fmt.Sprintf("read block %d", at), err)
	}
	want := make([]byte, blockBytes)
	contents(want, at, t.written[n])
	if string(p) != string(want) {
		return holdfast.E(fmt.Sprintf("read block %d", at), holdfast.Corrupt,
			fmt.Sprintf("it is block %d as written %d times, and it was written %d times", binary.LittleEndian.Uint64(p), binary.LittleEndian.Uint32(p[8:]), t.written[n]))
	}
	return nil
}

func whole(n int, err error) error {
	if err == nil && n != blockBytes {
		return unix.EIO
	}
	return err
}

// contents is what a block holds when it was written for the so manieth time: both
// numbers, and what follows from them.
func contents(p []byte, block int64, times uint32) {
	binary.LittleEndian.PutUint64(p, uint64(block))
	binary.LittleEndian.PutUint64(p[8:], uint64(times))
	x := uint64(block)<<32 | uint64(times)
	for i := 16; i < len(p); i += 8 {
		x = x*6364136223846793005 + 1442695040888963407 // Knuth's MMIX
		binary.LittleEndian.PutUint64(p[i:], x)
	}
}

// passed waits until every thread has begun an operation after t: what was under
// way before has ended.
func (v *verified) passed(ctx context.Context, t time.Time) error {
	return until(ctx, time.Minute, "wait for I/O that was under way", func(context.Context) (bool, error) {
		for i := range v.threads {
			if v.threads[i].since.Load() <= int64(t.Sub(v.began)) {
				return false, v.failed()
			}
		}
		return true, nil
	})
}

// longest is that of the operations which ended between two times; of each counts
// what was after the first one. It is noticeable when all were shorter.
func (v *verified) longest(from, to time.Time) time.Duration {
	v.mu.Lock()
	defer v.mu.Unlock()
	most := noticeable
	for _, s := range v.slow {
		if s.to.Before(from) || s.to.After(to) {
			continue
		}
		if s.from.Before(from) {
			s.from = from
		}
		most = max(most, s.to.Sub(s.from))
	}
	return most
}

// end stops the load, reads all of it once more, and says whether anything was
// wrong. It does not wait for ever: I/O that hangs ends when its device is removed.
func (v *verified) end() error {
	close(v.stop)
	ended := make(chan struct{})
	go func() {
		v.work.Wait()
		close(ended)
	}()
	select {
	case <-ended:
		return errors.Join(v.failed(), v.file.Close())
	case <-time.After(time.Minute):
		return errors.Join(v.failed(), holdfast.E("end the verifying load", holdfast.Unavailable, "an operation does not end"))
	}
}
