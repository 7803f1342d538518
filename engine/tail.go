package engine

import (
	"cmp"
	"encoding/binary"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/engine/disk"
)

const (
	tailMagic    = "HFTAIL\x00\x00"
	tailVersion  = 1 // history: 1, the first
	tailSize     = 64 << 10
	tailSlotSize = 64
	tailSlots    = tailSize/tailSlotSize - 1
)

// Offsets in the header and in a slot, see the package comment.
const (
	tailOverflow = 24
	tailMixed    = 28
	tailGrant    = 32
	tailSeq      = 40
)

// tailEntry is one write that may be applied here and nowhere else.
type tailEntry struct {
	grant  holdfast.Epoch
	seq    uint64
	offset int64
	length int64
}

// overflow says that there were more such writes than slots: any region with an
// intent may have some. While it is set no intent is cleared.
type overflow struct {
	set   bool
	mixed bool           // writes of other grants than grant, too
	grant holdfast.Epoch // of the writes that found no slot
	seq   uint64         // the highest of them
}

func encodeTailHeader(p []byte) {
	copy(p, tailMagic)
	binary.LittleEndian.PutUint32(p[8:], tailVersion)
	binary.LittleEndian.PutUint32(p[12:], tailSlots)
	binary.LittleEndian.PutUint32(p[16:], checksum(p[:16]))
}

func slotChecksum(slot []byte) uint32 { return max(1, checksum(slot[8:40])) }

// decodeTail reads a tail of a replica of size bytes; kind Corrupt if any of it
// cannot be believed. entries has a member per slot, length 0 for a free one.
func decodeTail(p []byte, size int64) (entries []tailEntry, over overflow, err error) {
	const op = "decode tail"
	if len(p) != tailSize || string(p[:8]) != tailMagic || binary.LittleEndian.Uint32(p[16:]) != checksum(p[:16]) {
		return nil, over, errorf(op, holdfast.Corrupt, "its header is damaged")
	}
	if v := binary.LittleEndian.Uint32(p[8:]); v != tailVersion {
		return nil, over, errorf(op, holdfast.Corrupt, "it has version %d; this release reads version %d", v, tailVersion)
	}
	over = overflow{set: binary.LittleEndian.Uint32(p[tailOverflow:]) != 0,
		mixed: binary.LittleEndian.Uint32(p[tailMixed:]) != 0,
		grant: holdfast.Epoch(binary.LittleEndian.Uint64(p[tailGrant:])), seq: binary.LittleEndian.Uint64(p[tailSeq:])}
	entries = make([]tailEntry, tailSlots)
	for i := range entries {
		slot := p[(i+1)*tailSlotSize:][:tailSlotSize]
		valid := binary.LittleEndian.Uint32(slot)
		if valid == 0 {
			continue
		}
		e := tailEntry{grant: holdfast.Epoch(binary.LittleEndian.Uint64(slot[8:])), seq: binary.LittleEndian.Uint64(slot[16:]),
			offset: int64(binary.LittleEndian.Uint64(slot[24:])), length: int64(binary.LittleEndian.Uint64(slot[32:]))}
		if valid != slotChecksum(slot) || e.offset < 0 || e.length <= 0 || e.offset > size || e.length > size-e.offset {
			return nil, over, errorf(op, holdfast.Corrupt, "slot %d is damaged", i)
		}
		entries[i] = e
	}
	return entries, over, nil
}

// tail is the ring of an open replica. It lives in the replica's memory, so that
// it survives the process; its file has it while the replica is closed.
type tail struct {
	s   *shadow
	mem []byte

	mu      sync.Mutex
	entries []tailEntry // per slot; length 0: free
	free    []uint16
	// queue has the slots of grant in the order of their writes, from head on;
	// old has those of other grants, which only settle frees.
	queue     []uint16
	head      int
	old       []uint16
	grant     holdfast.Epoch
	committed uint64 // of grant
	over      overflow
}

// newTail puts a tail into memory: the content of a tail's file, or an empty one
// for nil. Its piece is begun anew. Kind Corrupt if the content cannot be believed.
func newTail(y memory, content []byte, size int64) (*tail, error) {
	s, err := y.create(tailFile, tailSize)
	if err != nil {
		return nil, err
	}
	if err := s.allocate(0, tailSize); err != nil {
		return nil, errors.Join(err, s.close())
	}
	if encodeTailHeader(s.mem); content != nil {
		copy(s.mem, content)
	}
	return loadTail(s, size)
}

// recallTail finds the tail of a killed process in memory. Kinds: NotFound; Corrupt.
func recallTail(y memory, size int64) (*tail, error) {
	s, err := y.open(tailFile, tailSize)
	if err != nil {
		return nil, err
	}
	if err := s.allocate(0, tailSize); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return loadTail(s, size)
}

func loadTail(s *shadow, size int64) (*tail, error) {
	t := &tail{s: s, mem: s.mem[:tailSize]}
	if err := t.load(size); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return t, nil
}

// save makes the tail the durable content of its file. No write is under way.
func (t *tail) save(f disk.File) error {
	_, err := f.WriteAt(t.mem, 0, false)
	return errors.Join(err, f.Sync())
}

func (t *tail) word32(at int) *atomic.Uint32 { return (*atomic.Uint32)(unsafe.Pointer(&t.mem[at])) }

// load takes over what a process before left.
func (t *tail) load(size int64) error {
	entries, over, err := decodeTail(t.mem, size)
	if err != nil {
		return err
	}
	t.entries, t.over = entries, over
	var used []uint16
	for i := len(entries) - 1; i >= 0; i-- {
		if entries[i].length == 0 {
			t.free = append(t.free, uint16(i))
		} else {
			used = append(used, uint16(i))
			t.grant = max(t.grant, entries[i].grant)
		}
	}
	if over.set {
		t.grant = max(t.grant, over.grant)
	}
	slices.SortFunc(used, func(a, b uint16) int {
		return cmp.Or(cmp.Compare(entries[a].grant, entries[b].grant), cmp.Compare(entries[a].seq, entries[b].seq))
	})
	for _, i := range used {
		if entries[i].grant == t.grant {
			t.queue = append(t.queue, i)
		} else {
			t.old = append(t.old, i)
		}
	}
	return nil
}

// add notes a write before it is applied, and returns what remove takes. What e
// says is committed is freed first.
func (t *tail) add(e Entry, off, n int64) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.commit(e.Grant, e.Committed)
	if len(t.free) == 0 {
		t.overflowed(e)
		return -1
	}
	i := t.free[len(t.free)-1]
	t.free = t.free[:len(t.free)-1]
	t.entries[i] = tailEntry{grant: e.Grant, seq: e.Seq, offset: off, length: n}
	slot := t.mem[(int(i)+1)*tailSlotSize:][:tailSlotSize]
	binary.LittleEndian.PutUint64(slot[8:], uint64(e.Grant))
	binary.LittleEndian.PutUint64(slot[16:], e.Seq)
	binary.LittleEndian.PutUint64(slot[24:], uint64(off))
	binary.LittleEndian.PutUint64(slot[32:], uint64(n))
	t.word32((int(i) + 1) * tailSlotSize).Store(slotChecksum(slot))
	if e.Grant == t.grant {
		t.queue = append(t.queue, i)
	} else {
		t.old = append(t.old, i)
	}
	return int(i)
}

// overflowed notes that a write found no slot. The order of the stores keeps a
// killed process on the safe side.
func (t *tail) overflowed(e Entry) {
	if t.over.set && t.over.grant != e.Grant {
		t.over.mixed = true
	}
	if !t.over.set || e.Grant > t.over.grant {
		t.over.grant, t.over.seq = e.Grant, 0
	}
	if e.Grant == t.over.grant {
		t.over.seq = max(t.over.seq, e.Seq)
	}
	t.over.set = true
	t.storeOverflow()
}

func (t *tail) storeOverflow() {
	flag := func(b bool) uint32 {
		if b {
			return 1
		}
		return 0
	}
	if t.over.mixed {
		t.word32(tailMixed).Store(1)
	}
	binary.LittleEndian.PutUint64(t.mem[tailGrant:], uint64(t.over.grant))
	binary.LittleEndian.PutUint64(t.mem[tailSeq:], t.over.seq)
	t.word32(tailOverflow).Store(flag(t.over.set))
	t.word32(tailMixed).Store(flag(t.over.mixed))
}

// remove takes back an entry whose write was not applied at all.
func (t *tail) remove(slot int) {
	if slot < 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	i := uint16(slot)
	drop := func(q []uint16) []uint16 { return slices.DeleteFunc(q, func(x uint16) bool { return x == i }) }
	// A commit may have freed it meanwhile, and another write have taken it.
	if k := slices.Index(t.queue[t.head:], i); k >= 0 {
		t.queue = slices.Delete(t.queue, t.head+k, t.head+k+1)
		t.release(i)
	} else if before := len(t.old); before > 0 {
		if t.old = drop(t.old); len(t.old) < before {
			t.release(i)
		}
	}
}

func (t *tail) release(i uint16) {
	t.word32((int(i) + 1) * tailSlotSize).Store(0)
	t.entries[i] = tailEntry{}
	t.free = append(t.free, i)
}

// trim frees what is committed.
func (t *tail) trim(grant holdfast.Epoch, committed uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.commit(grant, committed)
}

func (t *tail) commit(grant holdfast.Epoch, committed uint64) {
	switch {
	case grant < t.grant:
		return
	case grant > t.grant:
		t.old = append(t.old, t.queue[t.head:]...)
		t.queue, t.head = t.queue[:0], 0
		t.grant, t.committed = grant, 0
	}
	if committed <= t.committed {
		return
	}
	t.committed = committed
	for t.head < len(t.queue) && t.entries[t.queue[t.head]].seq <= committed {
		t.release(t.queue[t.head])
		t.head++
	}
	if t.head == len(t.queue) || t.head >= tailSlots {
		t.queue = append(t.queue[:0], t.queue[t.head:]...)
		t.head = 0
	}
	if t.over.set && !t.over.mixed && t.over.grant == grant && t.over.seq <= committed {
		t.over = overflow{}
		t.storeOverflow()
	}
}

// settle forgets the entries of all grants but one.
func (t *tail) settle(grant holdfast.Epoch) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if grant < t.grant {
		return // by a primary that has been superseded
	}
	t.commit(grant, 0)
	for _, i := range t.old {
		t.release(i)
	}
	t.old = t.old[:0]
	switch {
	case !t.over.set:
	case t.over.grant == grant:
		t.over.mixed = false
		if t.over.seq <= t.committed {
			t.over = overflow{}
		}
		t.storeOverflow()
	case t.over.grant < grant:
		t.over = overflow{}
		t.storeOverflow()
	}
}

// extents lists what the entries not known to be committed name; all says that
// every region with an intent belongs to it, too.
func (t *tail) extents() (xs []holdfast.Extent, all bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, e := range t.entries {
		if e.length > 0 && (e.grant != t.grant || e.seq > t.committed) {
			xs = append(xs, holdfast.Extent{Offset: e.offset, Length: e.length})
		}
	}
	return merge(xs), t.over.set
}

// regions gives the regions that entries are in; nil stands for all.
func (t *tail) regions() map[int64]bool {
	xs, all := t.extents()
	if all {
		return nil
	}
	held := map[int64]bool{}
	for _, x := range xs {
		first, last := regionsOf(x.Offset, x.Length)
		for r := first; r <= last; r++ {
			held[r] = true
		}
	}
	return held
}

// inUse counts the slots in use.
func (t *tail) inUse() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return tailSlots - len(t.free)
}

func (t *tail) close() error { return t.s.close() }
