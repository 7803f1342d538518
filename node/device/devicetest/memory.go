package devicetest

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/replication"
)

const block = holdfast.BlockSize

type page [block]byte

// Memory is a device.Backend in memory: sparse, with a volatile cache as disks
// have it, so that a test can ask what a power cut would leave. It answers from
// inside Submit unless it is told to delay, to fail or to hang.
type Memory struct {
	asked    atomic.Uint64
	mu       sync.Mutex
	size     int64
	live     map[int64]*page    // by block number; absent is zeros
	durable  map[int64]*page    // what a power cut leaves
	dirty    map[int64]struct{} // blocks that differ, or may
	delay    time.Duration
	fail     func(*replication.Request) error
	hanging  bool
	held     []*replication.Request // submitted while hanging
	inFlight int
	stats    Stats
	wrong    []string
}

// Stats counts what a Memory was asked to do.
type Stats struct {
	Reads, Writes, FUAs, Flushes, Trims int
	// MostInFlight is how many requests were unanswered at once.
	MostInFlight int
}

// NewMemory makes an empty backend of size bytes.
func NewMemory(size int64) *Memory {
	return &Memory{size: size, live: map[int64]*page{}, durable: map[int64]*page{}, dirty: map[int64]struct{}{}}
}

// Asked is device.Counter, of this device alone.
func (m *Memory) Asked() uint64 { return m.asked.Load() }

// Submit is device.Backend.
func (m *Memory) Submit(r *replication.Request) {
	m.asked.Add(1)
	m.mu.Lock()
	m.check(r)
	m.inFlight++
	m.stats.MostInFlight = max(m.stats.MostInFlight, m.inFlight)
	switch {
	case m.hanging:
		m.held = append(m.held, r)
		m.mu.Unlock()
	case m.delay > 0:
		d := m.delay
		m.mu.Unlock()
		time.AfterFunc(d, func() { m.answer(r) })
	default:
		m.mu.Unlock()
		m.answer(r)
	}
}

// answer applies the request and calls Done, under the lock as the real thing
// does it.
func (m *Memory) answer(r *replication.Request) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var err error
	if m.fail != nil {
		err = m.fail(r)
	}
	if err == nil {
		err = m.apply(r)
	}
	m.inFlight--
	r.Done(r, err)
}

func (m *Memory) apply(r *replication.Request) error {
	if r.Op != replication.OpFlush && r.Offset+r.Length > m.size {
		return holdfast.E("apply", holdfast.OutOfRange, fmt.Sprintf("%d+%d is beyond %d", r.Offset, r.Length, m.size))
	}
	switch r.Op {
	case replication.OpRead:
		m.stats.Reads++
		copyOut(m.live, r.Offset, r.Buf.B)
	case replication.OpWrite:
		m.stats.Writes++
		m.change(r.Offset, r.Length, func(p []byte, at int64) { copy(p, r.Buf.B[at:]) })
	case replication.OpTrim:
		m.stats.Trims++
		m.change(r.Offset, r.Length, func(p []byte, _ int64) { clear(p) })
	case replication.OpFlush:
		m.stats.Flushes++
		for n := range m.dirty {
			m.settle(n)
		}
	}
	if r.FUA {
		m.stats.FUAs++
		for n := r.Offset / block; n*block < r.Offset+r.Length; n++ {
			m.settle(n)
		}
	}
	return nil
}

// change gives f each block's part of the range and where that stands in it.
func (m *Memory) change(off, length int64, f func(p []byte, at int64)) {
	for at := int64(0); at < length; {
		n, in := (off+at)/block, (off+at)%block
		step := min(block-in, length-at)
		p := m.live[n]
		if p == nil {
			p = new(page)
			m.live[n] = p
		}
		f(p[in:in+step], at)
		m.dirty[n] = struct{}{}
		if *p == (page{}) {
			delete(m.live, n)
		}
		at += step
	}
}

func (m *Memory) settle(n int64) {
	delete(m.dirty, n)
	p := m.live[n]
	if p == nil {
		delete(m.durable, n)
		return
	}
	c := *p
	m.durable[n] = &c
}

func copyOut(from map[int64]*page, off int64, to []byte) {
	for at := 0; at < len(to); {
		n, in := (off+int64(at))/block, (off+int64(at))%block
		step := min(int(block-in), len(to)-at)
		if p := from[n]; p != nil {
			copy(to[at:at+step], p[in:])
		} else {
			clear(to[at : at+step])
		}
		at += step
	}
}

// check notes what a front end must never submit.
func (m *Memory) check(r *replication.Request) {
	bad := func(format string, a ...any) {
		if len(m.wrong) < 10 {
			m.wrong = append(m.wrong, fmt.Sprintf("op %d at %d+%d: ", r.Op, r.Offset, r.Length)+fmt.Sprintf(format, a...))
		}
	}
	if r.Done == nil {
		bad("no Done")
	}
	switch r.Op {
	case replication.OpRead, replication.OpWrite:
		switch {
		case r.Buf == nil || int64(len(r.Buf.B)) != r.Length || r.Length == 0:
			bad("the buffer does not have Length bytes")
		case uintptr(unsafe.Pointer(&r.Buf.B[0]))%block != 0:
			bad("the buffer is not aligned to %d", block)
		}
	case replication.OpTrim, replication.OpFlush:
		if r.Buf != nil {
			bad("it has a buffer")
		}
	default:
		bad("unknown operation")
	}
	if r.Offset < 0 || r.Length < 0 || r.Op != replication.OpFlush && r.Length == 0 {
		bad("not a range")
	}
}

// Wrong lists the first broken rules of device.Backend.
func (m *Memory) Wrong() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]string(nil), m.wrong...)
}

// Stats is what was done so far.
func (m *Memory) Stats() Stats {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.stats
}

// Grow makes the backend size bytes long.
func (m *Memory) Grow(size int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.size = size
}

// Copy is another backend with the same content, which answers everything.
func (m *Memory) Copy() *Memory {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := NewMemory(m.size)
	for n, p := range m.live {
		q := *p
		c.live[n] = &q
		c.dirty[n] = struct{}{}
	}
	for n, p := range m.durable {
		q := *p
		c.durable[n] = &q
	}
	return c
}

// SetDelay makes every request take d.
func (m *Memory) SetDelay(d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.delay = d
}

// SetFail has every request answered with f's error unless that is nil.
func (m *Memory) SetFail(f func(*replication.Request) error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fail = f
}

// Hang keeps every request unanswered until Resume.
func (m *Memory) Hang() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.hanging = true
}

// Held is how many requests wait for Resume.
func (m *Memory) Held() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.held)
}

// Resume answers what was held.
func (m *Memory) Resume() {
	m.mu.Lock()
	held := m.held
	m.held, m.hanging = nil, false
	m.mu.Unlock()
	for _, r := range held {
		m.answer(r)
	}
}

// Live is what the volume holds at off.
func (m *Memory) Live(off int64, n int) []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := make([]byte, n)
	copyOut(m.live, off, p)
	return p
}

// Durable is what a power cut now would leave at off.
func (m *Memory) Durable(off int64, n int) []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := make([]byte, n)
	copyOut(m.durable, off, p)
	return p
}

// Used is how many bytes are not holes.
func (m *Memory) Used() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return int64(len(m.live)) * block
}
