package main

import (
	"encoding/binary"
	"fmt"
	"slices"
	"sync"

	"github.com/holdfast-storage/holdfast"
)

// blockBytes is what the model counts in.
const blockBytes = 4096

// model knows of every block of a device what may be read there. A block's
// content is made from its number and the version that was written; version 0 is
// zeros. A write that was acknowledged leaves one version possible; one that was
// not leaves the new and the old ones, until a read on a later node has shown
// which of them it is. When all machines lose their power, each block may go back
// to what it was at the last flush, or to anything since.
type model struct {
	mu   sync.Mutex
	next uint64
	may  [][]uint64 // versions possible, by block
	// unflushed are the versions that a blackout could bring back, by block, each
	// with the number of the event that ruled it out.
	unflushed map[int][]ruledOut
	events    uint64
	// writes and reads that were acknowledged.
	writes, reads int
}

// ruledOut is a version that is possible no more while nobody loses power.
type ruledOut struct{ version, event uint64 }

func newModel(bytes int64) *model {
	m := &model{next: 1, unflushed: map[int][]ruledOut{}, may: make([][]uint64, bytes/blockBytes)}
	for i := range m.may {
		m.may[i] = []uint64{0}
	}
	return m
}

// grow makes the device longer; what is new are zeros.
func (m *model) grow(bytes int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for int64(len(m.may)) < bytes/blockBytes {
		m.may = append(m.may, []uint64{0})
	}
}

// beginWrite notes that blocks are about to be written, and gives the version.
func (m *model) beginWrite(first, n int, trim bool) uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	v := uint64(0)
	if !trim {
		v = m.next
		m.next++
	}
	for b := first; b < first+n; b++ {
		if !slices.Contains(m.may[b], v) {
			m.may[b] = append(m.may[b], v)
		}
	}
	return v
}

// acknowledged notes that a write is done.
func (m *model) acknowledged(first, n int, v uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.writes++
	for b := first; b < first+n; b++ {
		m.settle(b, v)
	}
}

// settle notes that a block has one version now; m.mu is held.
func (m *model) settle(b int, v uint64) {
	m.events++
	for _, u := range m.may[b] {
		if u != v {
			m.unflushed[b] = append(m.unflushed[b], ruledOut{u, m.events})
		}
	}
	m.may[b] = []uint64{v}
}

// beginFlush gives what flushed needs when the flush is done.
func (m *model) beginFlush() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.events
}

// flushed notes that a flush is done: what was settled when it began is for good.
func (m *model) flushed(began uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for b, us := range m.unflushed {
		us = slices.DeleteFunc(us, func(u ruledOut) bool { return u.event <= began })
		if m.unflushed[b] = us; len(us) == 0 {
			delete(m.unflushed, b)
		}
	}
}

// blackout notes that all machines have lost their power. What it brought back
// stays possible with the next one, until a flush.
func (m *model) blackout() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for b, us := range m.unflushed {
		for _, u := range us {
			if !slices.Contains(m.may[b], u.version) {
				m.may[b] = append(m.may[b], u.version)
			}
		}
	}
	clear(m.unflushed)
}

// seen checks what was read; nobody else uses the blocks meanwhile. Errors:
// Corrupt, saying what was expected.
func (m *model) seen(first int, p []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reads++
	for i := 0; i*blockBytes < len(p); i++ {
		b := first + i
		v, err := versionOf(b, p[i*blockBytes:(i+1)*blockBytes])
		if err == nil && !slices.Contains(m.may[b], v) {
			err = fmt.Errorf("it has version %d", v)
		}
		if err != nil {
			return holdfast.E(fmt.Sprintf("read block %d, 4 KiB at %d", b, b*blockBytes), holdfast.Corrupt, fmt.Sprintf("%v; possible are %v of %d", err, m.may[b], m.next))
		}
		m.settle(b, v)
	}
	return nil
}

// progress is how many requests were acknowledged.
func (m *model) progress() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.writes + m.reads
}

// fillBlock makes the content of a version of a block.
func fillBlock(p []byte, block int, v uint64) {
	if v == 0 {
		clear(p)
		return
	}
	x := v*0x9e3779b97f4a7c15 + uint64(block)*0xd1342543de82ef95 + 1
	binary.LittleEndian.PutUint64(p, uint64(block))
	binary.LittleEndian.PutUint64(p[8:], v)
	for i := 16; i < len(p); i += 8 {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		binary.LittleEndian.PutUint64(p[i:], x)
	}
}

// versionOf finds out which version a block has, and checks all of it.
func versionOf(block int, p []byte) (uint64, error) {
	v := binary.LittleEndian.Uint64(p[8:])
	want := make([]byte, len(p))
	fillBlock(want, block, v)
	if v == 0 {
		clear(want)
	}
	for i := range p {
		if p[i] != want[i] {
			return 0, fmt.Errorf("it is no whole version of it: its head says block %d, version %d, and byte %d is %#x", binary.LittleEndian.Uint64(p), v, i, p[i])
		}
	}
	return v, nil
}
