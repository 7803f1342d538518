package engine

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"

	"github.com/holdfast-storage/holdfast"
)

// compare checks what was found after a crash against the model, and takes it
// over.
func (w *world) compare(cut bool) {
	st := w.rep.State()
	if st.SizeBytes < w.size {
		w.fatalf("size %d, was %d", st.SizeBytes, w.size)
	}
	w.grown(st.SizeBytes) // a grow under way may have come through
	if st.Promise.Epoch < w.promise.Epoch || st.Promise.Grant < w.promise.Grant {
		w.fatalf("promise went back from %v to %v", w.promise, st.Promise)
	}
	w.promise, w.mapSince = st.Promise, st.MapSince
	named := merge(append(append([]holdfast.Extent{}, st.Tail...), st.Suspects...))
	var applied holdfast.Extent
	p := make([]byte, blockSize)
	for b := range w.blocks {
		m := &w.blocks[b]
		off := int64(b) * blockSize
		if err := w.rep.ReadAt(p, off); err != nil {
			w.fatalf("read: %v", err)
		}
		v := binary.LittleEndian.Uint64(p)
		if !bytes.Equal(p[8:], p[:blockSize-8]) {
			w.fatalf("block %d is torn", b)
		}
		if v != m.value {
			ok := false
			for _, u := range m.unsure {
				ok = ok || u == v
			}
			if !ok {
				w.fatalf("block %d is %d, must be %d or one of %d", b, v, m.value, m.unsure)
			}
			if !within(holdfast.Extent{Offset: off, Length: blockSize}, named) {
				w.fatalf("block %d is %d instead of %d, and is neither in the tail nor suspect: %v", b, v, m.value, named)
			}
			applied = holdfast.Extent{Offset: off, Length: blockSize}
			m.suspect, m.changed = cut, max(m.changed, 1)
		}
		if v != m.value {
			m.since = append(m.since, m.value)
		}
		m.value, m.unsure = v, nil
	}
	if cut {
		w.flushed() // what was left by a power loss is durable
	}
	// The last write may have been stopped before it changed anything; then
	// nobody need remember it.
	if x, ok := w.tail[w.seq]; ok && !applied.Overlaps(x) {
		delete(w.tail, w.seq)
	}
	w.tailAndSuspects(st)
	w.check()
}

func (w *world) tailAndSuspects(st State) {
	named := merge(append(append([]holdfast.Extent{}, st.Tail...), st.Suspects...))
	for seq, x := range w.tail {
		if !within(x, named) {
			w.fatalf("write %d at %d+%d is not named by tail or suspects", seq, x.Offset/blockSize, x.Length/blockSize)
		}
	}
	for _, x := range w.oldTail {
		if !within(x, named) {
			w.fatalf("a write of an older grant at %d+%d is not named by tail or suspects", x.Offset/blockSize, x.Length/blockSize)
		}
	}
	for b := range w.blocks {
		x := holdfast.Extent{Offset: int64(b) * blockSize, Length: blockSize}
		if w.blocks[b].suspect && !within(x, named) {
			w.fatalf("block %d lost a write and is suspect no more", b)
		}
	}
}

// check compares the change maps and the data with the model, and runs Check.
func (w *world) check() {
	st := w.rep.State()
	if w.fuse.left >= 0 {
		return
	}
	w.tailAndSuspects(st)
	for _, since := range []holdfast.Epoch{w.mapSince, w.epoch} {
		got, err := w.rep.Changed(since)
		if err != nil {
			w.fatalf("changed since %d: %v", since, err)
		}
		for b := range w.blocks {
			x := holdfast.Extent{Offset: int64(b) * blockSize, Length: blockSize}
			if c := w.blocks[b].changed; c > 0 && c >= since && !within(x, got) {
				w.fatalf("block %d was written in epoch %d and is not among what changed since %d", b, c, since)
			}
		}
	}
	if w.mapSince > 0 {
		if _, err := w.rep.Changed(w.mapSince - 1); !errors.Is(err, holdfast.NotFound) {
			w.fatalf("changed since %d, before the oldest map: %v", w.mapSince-1, err)
		}
	}
	problems, err := w.pool.Check(context.Background(), nil)
	if err != nil || len(problems) > 0 {
		w.fatalf("check: %v %v", problems, err)
	}
}
