package dataplane

import (
	"crypto/sha256"
	"fmt"
	"sync"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/replication"
)

// memBacking is a replica in memory that survives its plane, as an engine
// replica survives the daemon: for tests of the plane alone.
type memBacking struct {
	mu      sync.Mutex
	data    []byte
	state   replication.StoreState
	tail    map[[2]uint64]holdfast.Extent // by grant and seq
	changes map[holdfast.Epoch][]holdfast.Extent
	hold    chan struct{} // if set, tasks wait until it is closed
	closed  bool
}

func newMemBacking(size int64) *memBacking {
	return &memBacking{data: make([]byte, size), tail: map[[2]uint64]holdfast.Extent{}, changes: map[holdfast.Epoch][]holdfast.Extent{},
		state: replication.StoreState{SizeBytes: size, Boot: "boot"}}
}

func (b *memBacking) State() replication.StoreState {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.state
	s.Tail = nil
	for _, e := range b.tail {
		s.Tail = append(s.Tail, e)
	}
	return s
}

func (b *memBacking) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	return nil
}

func (b *memBacking) DoAll(ts []*replication.Task) {
	for _, t := range ts {
		b.Do(t)
	}
}

func (b *memBacking) Do(t *replication.Task) {
	b.mu.Lock()
	hold := b.hold
	b.mu.Unlock()
	if hold != nil {
		<-hold
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		t.Err = holdfast.E("test store", holdfast.Unavailable, "a task after Close")
		return
	}
	b.commit(t)
	switch t.Kind {
	case replication.TaskRead:
		copy(t.Buf.B, b.data[t.Offset:])
	case replication.TaskWrite, replication.TaskTrim:
		b.write(t)
	case replication.TaskPromise:
		b.state.Promise, b.state.Record = t.Promise, *t.Record
	case replication.TaskMark:
		b.changes[t.Epoch] = append(b.changes[t.Epoch], t.Extents...)
	case replication.TaskChanged:
		for e, xs := range b.changes {
			if e >= t.Since {
				t.Extents = append(t.Extents, xs...)
			}
		}
	case replication.TaskAllocated:
		t.Extents = []holdfast.Extent{{Offset: t.Offset, Length: t.Length}}
	case replication.TaskHash:
		for at := t.Offset; at < t.Offset+t.Length; at += replication.HashBlock {
			h := sha256.Sum256(b.data[at:min(at+replication.HashBlock, t.Offset+t.Length)])
			t.Hashes = append(t.Hashes, replication.Hash(h[:16]))
		}
	case replication.TaskGrow:
		b.data = append(b.data, make([]byte, max(0, t.Length-int64(len(b.data))))...)
		b.state.SizeBytes = int64(len(b.data))
	case replication.TaskSettle:
		for k := range b.tail {
			if k[0] != uint64(t.Grant) {
				delete(b.tail, k)
			}
		}
	}
}

func (b *memBacking) commit(t *replication.Task) {
	for k := range b.tail {
		if k[0] == uint64(t.Grant) && k[1] <= t.Committed {
			delete(b.tail, k)
		}
	}
}

func (b *memBacking) write(t *replication.Task) {
	x := holdfast.Extent{Offset: t.Offset, Length: t.Length}
	b.tail[[2]uint64{uint64(t.Grant), t.Seq}] = x
	b.changes[t.Epoch] = append(b.changes[t.Epoch], x)
	if t.Kind == replication.TaskTrim {
		clear(b.data[x.Offset:x.End()])
	} else if copy(b.data[x.Offset:], t.Buf.B) != int(x.Length) {
		panic(fmt.Sprintf("a write of %d bytes at %d, past the end", x.Length, x.Offset))
	}
}
