package engine

import (
	"encoding/binary"
	"errors"
	"io"
	"math/bits"
	"sync"
	"sync/atomic"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/engine/disk"
	"github.com/holdfast-storage/holdfast/internal/buf"
)

const (
	intentMagic   = "HFINTENT"
	intentVersion = 1 // history: 1, the first
	intentWords   = 511
	maxInstance   = 1024
)

// encodeIntentHeader fills a page with the header for an instance.
func encodeIntentHeader(p []byte, instance string) {
	clear(p)
	copy(p, intentMagic)
	binary.LittleEndian.PutUint32(p[8:], intentVersion)
	binary.LittleEndian.PutUint16(p[12:], uint16(len(instance)))
	copy(p[14:], instance)
	sealPage(p)
}

// decodeIntentHeader gives the instance; kind Corrupt if the page is damaged.
func decodeIntentHeader(p []byte) (string, error) {
	const op = "decode intent log"
	if len(p) != disk.PageSize || !pageSound(p) || string(p[:8]) != intentMagic {
		return "", errorf(op, holdfast.Corrupt, "its header is damaged")
	}
	if v := binary.LittleEndian.Uint32(p[8:]); v != intentVersion {
		return "", errorf(op, holdfast.Corrupt, "it has version %d; this release reads version %d", v, intentVersion)
	}
	n := int(binary.LittleEndian.Uint16(p[12:]))
	if n > maxInstance {
		return "", errorf(op, holdfast.Corrupt, "its instance has %d bytes", n)
	}
	return string(p[14 : 14+n]), nil
}

func sealPage(p []byte) {
	binary.LittleEndian.PutUint32(p[disk.PageSize-4:], checksum(p[:disk.PageSize-4]))
}

func pageSound(p []byte) bool {
	return binary.LittleEndian.Uint32(p[disk.PageSize-4:]) == checksum(p[:disk.PageSize-4])
}

// decodeIntentPage adds a page's words; all bits are set when it is damaged,
// which is the safe side.
func decodeIntentPage(p []byte, words []uint64) (sound bool) {
	sound = pageSound(p)
	for i := range words {
		words[i] = ^uint64(0)
		if sound {
			words[i] = binary.LittleEndian.Uint64(p[8*i:])
		}
	}
	return sound
}

func regionWords(size int64) int {
	regions := (size + regionSize - 1) / regionSize
	return int((regions + 63) / 64)
}

func intentFileSize(size int64) int64 {
	pages := 1 + (regionWords(size)+intentWords-1)/intentWords
	return int64(pages) * disk.PageSize
}

// readIntents reads a whole intent file of a replica of size bytes. Damaged or
// missing pages read as all regions; damaged counts them.
func readIntents(f disk.File, size int64) (instance string, words []uint64, damaged int, err error) {
	b := buf.Get(disk.PageSize)
	defer b.Release()
	if err := readPage(f, b.B, 0); err != nil {
		return "", nil, 0, err
	}
	instance, err = decodeIntentHeader(b.B)
	if err != nil {
		damaged++ // an instance that is nobody's: all intents become suspects
	}
	words = make([]uint64, regionWords(size))
	for at := 0; at < len(words); at += intentWords {
		if err := readPage(f, b.B, int64(1+at/intentWords)*disk.PageSize); err != nil {
			return "", nil, 0, err
		}
		if !decodeIntentPage(b.B, words[at:min(at+intentWords, len(words))]) {
			damaged++
		}
	}
	return instance, words, damaged, nil
}

// readPage reads one page; what is missing at the end reads as zeros, which no
// checksum accepts.
func readPage(f disk.File, p []byte, off int64) error {
	n, err := f.ReadAt(p, off)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	clear(p[n:])
	return nil
}

// writeIntents writes a whole intent file without any intent, durably: pages
// first, so that the header names the instance only when they are there.
func writeIntents(f disk.File, instance string, size int64) error {
	b := buf.Get(disk.PageSize)
	defer b.Release()
	clear(b.B)
	sealPage(b.B)
	for off := int64(disk.PageSize); off < intentFileSize(size); off += disk.PageSize {
		if _, err := f.WriteAt(b.B, off, false); err != nil {
			return err
		}
	}
	if err := f.Sync(); err != nil {
		return err
	}
	encodeIntentHeader(b.B, instance)
	if _, err := f.WriteAt(b.B, 0, false); err != nil {
		return err
	}
	return f.Sync()
}

// region is what is known of one region since the replica was opened.
type region struct {
	inflight atomic.Int32  // writes under way
	gen      atomic.Uint64 // number of flushes begun when its last write was complete
}

// intents is the intent log of an open replica. The owner's lock keeps grow away
// from all other methods.
type intents struct {
	f       disk.File
	regions []region
	// durable has the regions whose intent is on disk and may be relied upon.
	durable []atomic.Uint64

	mu      sync.Mutex
	cond    sync.Cond
	want    []uint64     // what the next write of a page says; equal to durable or more
	dirty   []bool       // per page: want differs from what is on disk
	count   atomic.Int64 // bits in want
	writing bool
	err     error // final
}

func newIntents(f disk.File, words []uint64) *intents {
	l := &intents{f: f}
	l.cond.L = &l.mu
	l.grown(len(words))
	for i, w := range words {
		l.want[i] = w
		l.durable[i].Store(w)
		l.count.Add(int64(bits.OnesCount64(w)))
	}
	return l
}

// grown makes room for so many words.
func (l *intents) grown(words int) {
	durable := make([]atomic.Uint64, words)
	regions := make([]region, words*64)
	want := make([]uint64, words)
	copy(want, l.want)
	for i := range l.durable {
		durable[i].Store(l.durable[i].Load())
	}
	for i := range l.regions {
		regions[i].gen.Store(l.regions[i].gen.Load())
	}
	dirty := make([]bool, (words+intentWords-1)/intentWords)
	copy(dirty, l.dirty)
	l.durable, l.regions, l.want, l.dirty = durable, regions, want, dirty
}

// grow extends the log for a replica of size bytes, durably. No write is under
// way; the lock is not held over the I/O, as extents must not wait for the disk.
func (l *intents) grow(size int64) error {
	words := regionWords(size)
	if words <= len(l.want) {
		return nil
	}
	b := buf.Get(disk.PageSize)
	defer b.Release()
	clear(b.B)
	sealPage(b.B)
	for off := int64(1+len(l.dirty)) * disk.PageSize; off < intentFileSize(size); off += disk.PageSize {
		if _, err := l.f.WriteAt(b.B, off, false); err != nil {
			return err
		}
	}
	if err := l.f.Sync(); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.grown(words)
	return nil
}

// enter announces a write to the regions, before it asks for their intents.
func (l *intents) enter(first, last int64) {
	for r := first; r <= last; r++ {
		l.regions[r].inflight.Add(1)
	}
}

// leave ends a write; gen is the number of flushes begun by now.
func (l *intents) leave(first, last int64, gen *atomic.Uint64) {
	for r := first; r <= last; r++ {
		g := &l.regions[r]
		for now := gen.Load(); ; {
			old := g.gen.Load()
			if old >= now || g.gen.CompareAndSwap(old, now) {
				break
			}
		}
		g.inflight.Add(-1)
	}
}

func (l *intents) has(first, last int64) bool {
	for r := first; r <= last; r++ {
		if l.durable[r/64].Load()&(1<<(r%64)) == 0 {
			return false
		}
	}
	return true
}

// ensure returns when the regions' intents are durable. The caller has entered.
// Of several that wait, one writes for all.
func (l *intents) ensure(first, last int64) error {
	if l.has(first, last) {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		if l.err != nil {
			return l.err
		}
		if l.has(first, last) {
			return nil
		}
		for r := first; r <= last; r++ {
			l.wanted(r)
		}
		if l.writing {
			l.cond.Wait()
		} else {
			l.write()
		}
	}
}

func (l *intents) wanted(r int64) {
	w, bit := r/64, uint64(1)<<(r%64)
	if l.want[w]&bit == 0 {
		l.want[w] |= bit
		l.dirty[w/intentWords] = true
		l.count.Add(1)
	}
}

// write makes want durable. It is called with the lock held, and gives it away
// while it writes.
func (l *intents) write() {
	l.writing = true
	for page := range l.dirty {
		if !l.dirty[page] || l.err != nil {
			continue
		}
		l.dirty[page] = false
		from := page * intentWords
		to := min(from+intentWords, len(l.want))
		b := buf.Get(disk.PageSize)
		clear(b.B)
		for i, w := range l.want[from:to] {
			binary.LittleEndian.PutUint64(b.B[8*i:], w)
		}
		sealPage(b.B)
		l.mu.Unlock()
		_, err := l.f.WriteAt(b.B, int64(1+page)*disk.PageSize, true)
		l.mu.Lock()
		if err != nil {
			l.err = err
		}
		for i := from; i < to && err == nil; i++ {
			l.durable[i].Store(l.durable[i].Load() | binary.LittleEndian.Uint64(b.B[8*(i-from):]))
		}
		b.Release()
	}
	l.writing = false
	l.cond.Broadcast()
}

// save writes what is cleared but not yet on disk.
func (l *intents) save() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.writing {
		l.cond.Wait()
	}
	if l.err == nil {
		l.write()
	}
	return l.err
}

// idle says whether a region's writes were all complete when flush number n
// began, and idle more flushes before it.
func (l *intents) idle(r int64, n, idle uint64) bool {
	g := &l.regions[r]
	return g.inflight.Load() == 0 && g.gen.Load()+idle < n
}

// clearable counts the regions that clear might clear.
func (l *intents) clearable(n, idle uint64) int {
	found := 0
	l.each(func(r int64) {
		if l.idle(r, n, idle) {
			found++
		}
	})
	return found
}

func (l *intents) each(f func(r int64)) {
	for i := range l.durable {
		for w, b := l.durable[i].Load(), int64(0); w != 0; w, b = w>>1, b+1 {
			if w&1 != 0 {
				f(int64(i)*64 + b)
			}
		}
	}
}

// clear takes away the intents of regions that have been idle since before flush
// n, which has succeeded, as have syncs of all change maps begun after it began;
// held says which regions the tail still needs. The disk follows later.
func (l *intents) clear(n, idle uint64, held func() map[int64]bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.writing {
		l.cond.Wait()
	}
	// Take the bits away first and look afterwards: a writer that enters now
	// either does not find its bit, and waits for the lock, or is seen below.
	var taken []int64
	l.each(func(r int64) {
		if l.idle(r, n, idle) {
			taken = append(taken, r)
			l.durable[r/64].And(^(uint64(1) << (r % 64)))
		}
	})
	if len(taken) == 0 {
		return
	}
	needed := held()
	for _, r := range taken {
		w, bit := r/64, uint64(1)<<(r%64)
		if !l.idle(r, n, idle) || needed == nil || needed[r] {
			l.durable[w].Or(bit)
			continue
		}
		l.want[w] &^= bit
		l.dirty[w/intentWords] = true
		l.count.Add(-1)
	}
}

// extents lists the regions with an intent, cut at size.
func (l *intents) extents(size int64) []holdfast.Extent {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bitExtents(nil, func(i int) uint64 { return l.want[i] }, len(l.want), regionSize, size)
}

func (l *intents) total() int64 { return l.count.Load() }
