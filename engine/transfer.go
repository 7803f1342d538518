package engine

import (
	"runtime/debug"
	"sync"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/engine/disk"
)

// Transfer is a read or write of a batch: what ReadAt, or WriteAt without fua,
// is given and answers.
type Transfer struct {
	Write bool
	Entry Entry // of a write
	P     []byte
	Off   int64
	Err   error

	change change
	m      *changeMap
	slot   int
}

// TransferAll does reads and writes together: each by the rules of ReadAt and
// WriteAt, and answered as by these, but with one system call for the data of
// all, where that is possible. No two of them may overlap.
func (r *Replica) TransferAll(ts []Transfer) {
	if err := r.transferAll(ts); err != nil { // a fault, which has failed the replica
		for i := range ts {
			ts[i].Err = err
		}
	}
	for i := range ts {
		r.reclaim(ts[i].Err)
	}
}

// onDisk is a batch as the disk takes it, used again and again.
type onDisk struct {
	of []*Transfer
	ts []disk.Transfer
}

var batches = sync.Pool{New: func() any { return new(onDisk) }}

func (r *Replica) transferAll(ts []Transfer) (err error) {
	defer r.guard("write", &err, debug.SetPanicOnFault(true))
	r.mu.RLock()
	defer r.mu.RUnlock()
	d := batches.Get().(*onDisk)
	defer func() {
		for _, t := range d.of {
			t.leave(r)
		}
		clear(d.of)
		clear(d.ts)
		d.of, d.ts = d.of[:0], d.ts[:0]
		batches.Put(d)
	}()
	for i := range ts {
		r.begin(&ts[i], d)
	}
	disk.TransferAll(r.data, d.ts)
	for i, t := range d.of {
		if done := &d.ts[i]; t.Write {
			t.Err = r.applied(&t.change, t.m, t.slot, done.N, done.Err)
		} else {
			t.Err = r.readErr(done.Err)
		}
	}
	return nil
}

// begin takes a transfer as far as its data, which it adds to d; or it answers it.
func (r *Replica) begin(t *Transfer, d *onDisk) {
	n := int64(len(t.P))
	if !t.Write {
		t.Err = r.check("read", t.Off, n)
		if t.Err == nil && r.chain.base != nil {
			t.Err = r.readErr(r.chain.live(holdfast.Extent{Offset: t.Off, Length: n}, reader(t.P, t.Off)))
			return
		}
		if t.Err == nil {
			d.add(t)
		}
		return
	}
	t.change = change{p: t.P, off: t.Off, n: n}
	if t.m, t.Err = r.admit(t.Entry, &t.change); t.Err != nil {
		return
	}
	r.intents.enter(regionsOf(t.Off, n))
	if t.slot, t.Err = r.announce(t.Entry, &t.change); t.Err != nil {
		t.leave(r)
		return
	}
	d.add(t)
}

// leave ends what begin has entered.
func (t *Transfer) leave(r *Replica) {
	if t.Write {
		first, last := regionsOf(t.Off, int64(len(t.P)))
		r.intents.leave(first, last, &r.flusher.begun)
	}
}

func (d *onDisk) add(t *Transfer) {
	d.of = append(d.of, t)
	d.ts = append(d.ts, disk.Transfer{Write: t.Write, P: t.P, Off: t.Off})
}
