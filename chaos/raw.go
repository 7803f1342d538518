package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
)

// raw works on a block device and knows what each block may hold.
type raw struct {
	m    *model
	mu   sync.Mutex
	rng  *rand.Rand
	size int64 // that was promised
	open []*rawSession
}

func newRaw(bytes int64, rng *rand.Rand) *raw { return &raw{m: newModel(bytes), size: bytes, rng: rng} }

const (
	lanes     = 4  // each has its own part of the device
	maxBlocks = 16 // of one request
	lanePause = 4 * time.Millisecond
)

// openDevice opens a device. What is no device (any more) is refused.
func openDevice(path string) (*os.File, error) {
	const op = "open device"
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, holdfast.Wrap(op, err)
	}
	st, err := f.Stat()
	if err == nil && st.Mode()&os.ModeDevice == 0 {
		err = holdfast.E(op, holdfast.Unavailable, path+" is no device")
	}
	if err != nil {
		_ = f.Close()
		return nil, holdfast.Wrap(op, err)
	}
	return f, nil
}

// aligned is memory for direct I/O.
func aligned(n int) []byte {
	b := make([]byte, n+blockBytes)
	skip := blockBytes - int(uintptr(unsafe.Pointer(&b[0]))%blockBytes)
	return b[skip : skip+n]
}

// bytes is the size that the device has at least.
func (w *raw) bytes() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.size
}

// grown notes that the device has grown.
func (w *raw) grown(bytes int64) {
	w.m.grow(bytes)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.size = bytes
}

// blackout notes that nothing is acknowledged any more on any node, and that what
// was not flushed is about to be lost.
func (w *raw) blackout() {
	w.mu.Lock()
	open := slices.Clone(w.open)
	w.mu.Unlock()
	for _, s := range open {
		s.superseded()
	}
	w.m.blackout()
}

// verify reads every block.
func (w *raw) verify(ctx context.Context, at place) error {
	f, err := openDevice(at.path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	p := aligned(1 << 20)
	for off := int64(0); off < w.bytes(); off += int64(len(p)) {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if _, err := f.ReadAt(p, off); err != nil {
			return holdfast.Wrap("read device", err)
		}
		if err := w.m.seen(int(off/blockBytes), p); err != nil {
			return err
		}
	}
	return nil
}

// begin needs no check of its own: every read is one.
func (w *raw) begin(_ context.Context, at place) (session, error) {
	f, err := openDevice(at.path)
	if err != nil {
		return nil, err
	}
	s := &rawSession{w: w, f: f, ended: make(chan struct{})}
	var wg sync.WaitGroup
	w.mu.Lock()
	defer w.mu.Unlock()
	w.open = append(w.open, s)
	part := int(w.size/blockBytes) / lanes
	for i := range lanes {
		l := lane{s: s, first: i * part, blocks: part, rng: rand.New(rand.NewPCG(w.rng.Uint64(), w.rng.Uint64()))}
		wg.Go(l.run)
	}
	go func() {
		wg.Wait()
		_ = f.Close()
		w.mu.Lock()
		w.open = slices.DeleteFunc(w.open, func(o *rawSession) bool { return o == s })
		w.mu.Unlock()
		close(s.ended)
	}()
	return s, nil
}

type rawSession struct {
	w     *raw
	f     *os.File
	ended chan struct{} // when all lanes have ended

	stop atomic.Bool
	// mu is held while a request begins and while its outcome is noted.
	mu     sync.Mutex
	over   bool // the volume is served elsewhere
	broken error
}

func (s *rawSession) done() <-chan struct{} { return s.ended }

func (s *rawSession) err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.broken
}

func (s *rawSession) superseded() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
}

func (s *rawSession) end(limit time.Duration) bool {
	s.stop.Store(true)
	select {
	case <-s.ended:
		return true
	case <-time.After(limit):
		return false
	}
}

// fail notes why the session ends; what is corrupt is more important.
func (s *rawSession) fail(err error) {
	if s.broken == nil || errors.Is(err, holdfast.Corrupt) && !errors.Is(s.broken, holdfast.Corrupt) {
		s.broken = err
	}
	s.stop.Store(true)
}

// lane makes one request after the other on blocks that no other lane uses.
type lane struct {
	s             *rawSession
	first, blocks int
	rng           *rand.Rand
}

func (l lane) run() {
	p := aligned(maxBlocks * blockBytes)
	for !l.s.stop.Load() {
		l.one(p)
		time.Sleep(time.Duration(l.rng.Int64N(int64(2 * lanePause))))
	}
}

// one makes one request. Half of them go to a small part, so that writes meet.
func (l lane) one(p []byte) {
	n := 1 + l.rng.IntN(maxBlocks)
	if l.rng.IntN(3) > 0 {
		n = 1
	}
	within := l.blocks
	if l.rng.IntN(2) == 0 {
		within /= 16
	}
	first := l.first + l.rng.IntN(within-n+1)
	p = p[:n*blockBytes]
	switch dice := l.rng.IntN(100); {
	case dice < 60:
		l.write(first, n, false, func(v uint64) error {
			for i := range n {
				fillBlock(p[i*blockBytes:(i+1)*blockBytes], first+i, v)
			}
			_, err := l.s.f.WriteAt(p, int64(first)*blockBytes)
			return err
		})
	case dice < 65:
		l.write(first, n, true, func(uint64) error {
			r := [2]uint64{uint64(first) * blockBytes, uint64(n) * blockBytes}
			_, _, e := unix.Syscall(unix.SYS_IOCTL, l.s.f.Fd(), unix.BLKDISCARD, uintptr(unsafe.Pointer(&r)))
			if e != 0 {
				return e
			}
			return nil
		})
	case dice < 70:
		began := l.s.w.m.beginFlush()
		l.do("flush", l.s.f.Sync, func() error { l.s.w.m.flushed(began); return nil })
	default:
		l.do(fmt.Sprintf("read %d blocks from %d", n, first), func() error {
			_, err := l.s.f.ReadAt(p, int64(first)*blockBytes)
			return err
		}, func() error { return l.s.w.m.seen(first, p) })
	}
}

// write makes a write or a trim. One that begins on a node that was superseded
// must fail, and so is no possibility.
func (l lane) write(first, n int, trim bool, request func(v uint64) error) {
	l.s.mu.Lock()
	var v uint64
	if !l.s.over {
		v = l.s.w.m.beginWrite(first, n, trim)
	}
	l.s.mu.Unlock()
	what := "write"
	if trim {
		what = "trim"
	}
	l.do(fmt.Sprintf("%s %d blocks from %d, version %d", what, n, first, v), func() error { return request(v) },
		func() error { l.s.w.m.acknowledged(first, n, v); return nil })
}

// do makes a request and then notes its success. What begins when the volume is
// served elsewhere must not succeed; what began before and ends then may, and
// says nothing that the new node has not shown already.
func (l lane) do(what string, request, succeeded func() error) {
	l.s.mu.Lock()
	over := l.s.over
	l.s.mu.Unlock()
	begin := time.Now()
	err := request()
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	switch {
	case err != nil:
		l.s.fail(holdfast.WrapKind(what, holdfast.Unavailable, err))
	case over && what != "flush":
		l.s.fail(holdfast.E(what, holdfast.Corrupt, fmt.Sprintf("it succeeded within %v although it began when the volume was served elsewhere", time.Since(begin))))
	case l.s.over:
	default:
		if err := succeeded(); err != nil {
			l.s.fail(holdfast.Wrap(what, err))
		}
	}
}
