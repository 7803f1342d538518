package disk

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast/engine/disk/aio"
)

// TestTransferAll: batches of all sizes, aligned or not, do what single reads and
// writes do; also where the kernel has no io_uring.
func TestTransferAll(t *testing.T) {
	each(t, func(t *testing.T, fs FS) { transferRandomly(t, fs) })
	t.Run("without io_uring", func(t *testing.T) {
		d, err := OpenDir(t.TempDir())
		must(t, err)
		d.rings.none.Store(true) // so all are single ones
		transferRandomly(t, d)
		d.contexts = aio.NewPool(0)
		transferRandomly(t, d)
	})
}

func transferRandomly(t *testing.T, fs FS) {
	const pages = 64
	f := open(t, fs, "f", Create|Direct|Late)
	defer func() { must(t, f.Close()) }()
	want := make([]byte, pages*PageSize)
	_, err := f.WriteAt(want, 0, false)
	must(t, err)
	rnd := rand.New(rand.NewPCG(3, 4))
	mem := make([]byte, (pages+1)*PageSize)
	for round := range 200 {
		var ts []Transfer
		for i, page := range rnd.Perm(pages)[:rnd.IntN(pages)] { // more than a ring takes
			skew := rnd.IntN(2) * 8
			x := Transfer{Write: rnd.IntN(2) == 0, P: mem[i*PageSize+skew:][:PageSize], Off: int64(page) * PageSize}
			if x.Write {
				copy(x.P, pageOf(byte(rnd.Uint32())))
				copy(want[x.Off:], x.P)
			}
			ts = append(ts, x)
			if skew > 0 {
				x.P = slices.Clone(x.P) // the next one's memory begins in this one's
				ts[len(ts)-1] = x
			}
		}
		TransferAll(f, ts)
		for i, x := range ts {
			if x.Err != nil || x.N != PageSize {
				t.Fatalf("round %d, transfer %d: %d bytes, %v", round, i, x.N, x.Err)
			}
			if !bytes.Equal(x.P, want[x.Off:x.Off+PageSize]) {
				t.Fatalf("round %d, transfer %d: not what was written at %d", round, i, x.Off)
			}
		}
	}
	got := make([]byte, len(want))
	_, err = f.ReadAt(got, 0)
	must(t, err)
	if !bytes.Equal(got, want) {
		t.Error("the file is not what was written")
	}
}

// TestPace: goroutines keep their processors while they wait for a fast disk only; one
// that is slow once is fast, and one that has become fast is soon seen to be.
func TestPace(t *testing.T) {
	var p pace
	took := func(n int, d time.Duration) {
		for range n {
			p.took(d)
		}
	}
	const fast, slow = holdBelow / 3, 20 * time.Millisecond
	if !p.fast() {
		t.Fatal("a disk of which nothing is known is slow")
	}
	took(100, fast)
	if took(1, 4*holdBelow/3); !p.fast() {
		t.Error("one that took longer once is slow")
	}
	if took(10, slow); p.fast() {
		t.Error("a slow disk is fast")
	}
	took(100, fast)
	if !p.fast() {
		t.Error("a disk that is fast again is slow")
	}
}

// TestPoll: a goroutine looks for the end of its write only where writes come one at a
// time, and to a disk that is fast enough for it.
func TestPoll(t *testing.T) {
	var p pace
	singles := func(n int) (poll time.Duration) {
		for range n {
			poll = p.poll(1)
		}
		return poll
	}
	if singles(pollAfter) != 0 {
		t.Error("it looks after few")
	}
	if singles(1) != pollMost {
		t.Error("it does not look after many")
	}
	for range 100 {
		p.took(2 * pollBelow)
	}
	if singles(1) != 0 {
		t.Error("it looks at a slow disk")
	}
	for range 100 {
		p.took(pollBelow / 2)
	}
	if singles(1) != pollMost {
		t.Error("it does not look at a disk that is fast again")
	}
	if p.poll(2) != 0 || singles(pollAfter) != 0 {
		t.Error("it looks after two came together")
	}
}

// TestWaited: threads that wait for disks are counted: in short writes and in batches,
// and in reads and syncs where the kernel has no asynchronous I/O.
func TestWaited(t *testing.T) {
	d := mustDir(t)
	d.contexts = aio.NewPool(0)
	f := open(t, d, "f", Create|Late)
	for what, do := range map[string]func(){
		"write": func() { _, _ = f.WriteAt(pageOf(1), 0, false) },
		"read":  func() { _, _ = f.ReadAt(make([]byte, PageSize), 0) },
		"sync":  func() { must(t, f.Sync()) },
		"together": func() {
			TransferAll(f, []Transfer{{P: pageOf(1), Write: true}, {P: pageOf(2), Off: PageSize, Write: true}})
		},
	} {
		before := Waited()
		for range 100 {
			do()
		}
		if Waited() == before {
			t.Errorf("%s is not counted", what)
		}
	}
	must(t, f.Close())
}

// TestTransferAllFails: each transfer has its own answer, and a read beyond the
// end gives what is there.
func TestTransferAllFails(t *testing.T) {
	var rules Rules
	inner := NewMem(64 << 20)
	for name, fs := range map[string]FS{"faulty": NewFaulty(inner, rules.Hook), "dir": mustDir(t)} {
		t.Run(name, func(t *testing.T) {
			f := open(t, fs, "f", Create|Late)
			_, err := f.WriteAt(pageOf(1), 0, false)
			must(t, err)
			ts := []Transfer{{P: make([]byte, PageSize)}, {P: make([]byte, PageSize), Off: PageSize}, {P: make([]byte, PageSize)}}
			TransferAll(f, ts)
			if ts[0].Err != nil || ts[1].Err == nil || ts[1].N != 0 || ts[2].Err != nil {
				t.Errorf("answers %v, %v, %v", ts[0].Err, ts[1].Err, ts[2].Err)
			}
			if !bytes.Equal(ts[2].P, pageOf(1)) {
				t.Error("the good read has no data")
			}
			must(t, f.Close())
		})
	}
	f := open(t, NewFaulty(inner, rules.Hook), "f", 0)
	rules.Add(Rule{Op: OpWrite, Path: "f", Count: 1, Errno: syscall.EIO})
	ts := []Transfer{{Write: true, P: pageOf(2)}, {Write: true, P: pageOf(3), Off: PageSize}}
	TransferAll(f, ts)
	if ts[0].Err == nil || ts[0].N != 0 || ts[1].Err != nil || ts[1].N != PageSize {
		t.Errorf("answers %d %v, %d %v; the first write fails only", ts[0].N, ts[0].Err, ts[1].N, ts[1].Err)
	}
	must(t, f.Close())
}

func mustDir(t *testing.T) *Dir {
	t.Helper()
	d, err := OpenDir(t.TempDir())
	must(t, err)
	return d
}
