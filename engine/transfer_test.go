package engine

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/engine/disk"
)

// TestTransferAll: batches by several goroutines leave data, tail, intents and
// change maps as single writes do.
func TestTransferAll(t *testing.T) {
	eachKind(t, func(t *testing.T, p *Pool) {
		const size, workers = 64 << 20, 4
		r := created(t, p, size)
		r.idleFlushes = 1 // intents come and go all the time
		want := make([]byte, size)
		var mu sync.Mutex
		seq := uint64(0)
		batch := func(rnd *rand.Rand, w int64) (ts []Transfer) {
			mu.Lock()
			defer mu.Unlock()
			for _, i := range rnd.Perm(1000)[:1+rnd.IntN(40)] {
				x := Transfer{Write: rnd.IntN(3) > 0, P: make([]byte, 4096), Off: (w + workers*int64(i)) * 4096}
				if x.Write {
					seq++
					x.Entry = Entry{Epoch: holdfast.Epoch(1 + rnd.IntN(2)), Grant: 1, Seq: seq}
					copy(want[x.Off:], fill(x.P, seq))
				}
				ts = append(ts, x)
			}
			return ts
		}
		var wg sync.WaitGroup
		for w := range int64(workers) {
			wg.Go(func() {
				rnd := rand.New(rand.NewPCG(uint64(w), 1))
				for range 10 {
					ts := batch(rnd, w)
					r.TransferAll(ts)
					for _, x := range ts {
						if x.Err != nil || !bytes.Equal(x.P, want[x.Off:x.Off+4096]) {
							t.Errorf("at %d: %v, or not what was written", x.Off, x.Err)
						}
					}
					if err := r.Flush(); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		checkTransferred(t, r, want, int(seq))
	})
}

func checkTransferred(t *testing.T, r *Replica, want []byte, writes int) {
	t.Helper()
	if n := r.tail.inUse(); n != min(writes, tailSlots) {
		t.Errorf("%d writes in the tail, want %d", n, writes)
	}
	changed, err := r.Changed(1)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 4096)
	for off := int64(0); off < int64(len(want)); off += 4096 {
		if err := r.ReadAt(got, off); err != nil || !bytes.Equal(got, want[off:off+4096]) {
			t.Fatalf("at %d: %v, or not what was written", off, err)
		}
		if got[0] != 0 && !within(holdfast.Extent{Offset: off, Length: 4096}, changed) {
			t.Fatalf("the write at %d is in no change map", off)
		}
	}
}

// TestTransferAllAnswersEach: what is refused or fails is the business of that
// transfer, but for what fails the replica.
func TestTransferAllAnswersEach(t *testing.T) {
	var rules disk.Rules
	r := created(t, fsPool(t, disk.NewFaulty(disk.NewMem(1<<30), rules.Hook)), 16<<20)
	if err := r.SetPromise(5, 5, holdfast.Record{}); err != nil {
		t.Fatal(err)
	}
	write := func(grant holdfast.Epoch, seq uint64, off int64) Transfer {
		return Transfer{Write: true, Entry: Entry{Epoch: grant, Grant: grant, Seq: seq}, P: fill(make([]byte, 4096), seq), Off: off}
	}
	kinds := func(ts []Transfer, want ...holdfast.Kind) {
		t.Helper()
		r.TransferAll(ts)
		for i, x := range ts {
			if (x.Err == nil) != (want[i] == 0) || x.Err != nil && !errors.Is(x.Err, want[i]) {
				t.Errorf("transfer %d: %v, want kind %v", i, x.Err, want[i])
			}
		}
	}
	read := Transfer{P: make([]byte, 4096)}
	odd := Transfer{P: make([]byte, 100)}
	kinds([]Transfer{write(5, 1, 0), write(4, 1, 4096), write(5, 2, 16<<20), odd, write(5, 3, 8192)}, 0, holdfast.Fenced, holdfast.OutOfRange, holdfast.Invalid, 0)
	if n := r.tail.inUse(); n != 2 {
		t.Errorf("%d writes in the tail, want the 2 that were taken", n)
	}
	rules.Add(disk.Rule{Op: disk.OpWrite, Path: dataFile, Count: 1, Errno: syscall.ENOSPC})
	kinds([]Transfer{write(5, 4, 12288), write(5, 5, 16384)}, holdfast.NoSpace, 0)
	if n := r.tail.inUse(); n != 3 || r.Err() != nil {
		t.Errorf("%d writes in the tail (%v): the refused one is to be in none", n, r.Err())
	}
	rules.Add(disk.Rule{Op: disk.OpRead, Path: dataFile, Count: 1, Errno: syscall.EIO})
	kinds([]Transfer{read, write(5, 6, 20480)}, holdfast.Corrupt, 0)
	rules.Add(disk.Rule{Op: disk.OpWrite, Path: dataFile, Count: 1, Errno: syscall.EIO})
	kinds([]Transfer{write(5, 7, 24576), read}, holdfast.Corrupt, 0)
	kinds([]Transfer{write(5, 8, 28672), read}, holdfast.Corrupt, holdfast.Corrupt)
	for n := range r.intents.regions {
		if k := r.intents.regions[n].inflight.Load(); k != 0 {
			t.Errorf("region %d: %d writes are under way for ever", n, k)
		}
	}
}
