package engine

import (
	"bytes"
	"fmt"
	"syscall"
	"testing"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/engine/disk"
)

// TestFailures: a failed sync or write is final; a failed read is not.
func TestFailures(t *testing.T) {
	for _, c := range []struct {
		op    disk.Op
		path  string
		do    func(r *Replica) error
		final bool
	}{
		{disk.OpSync, dataFile, func(r *Replica) error { return r.Flush() }, true},
		{disk.OpWrite, dataFile, func(r *Replica) error {
			return r.WriteAt(Entry{Epoch: 1, Grant: 1, Seq: 2}, make([]byte, 4096), 0, false)
		}, true},
		{disk.OpWrite, intentFile, func(r *Replica) error {
			return r.WriteAt(Entry{Epoch: 1, Grant: 1, Seq: 2}, make([]byte, 4096), 8<<20, false)
		}, true},
		{disk.OpPunch, dataFile, func(r *Replica) error { return r.Trim(Entry{Epoch: 1, Grant: 1, Seq: 2}, 0, 4096, false) }, true},
		{disk.OpSync, changesDir + "/" + mapName(1), func(r *Replica) error { return r.Mark(1, []holdfast.Extent{{Offset: 0, Length: 4096}}) }, true},
		{disk.OpSync, promiseFile + ".tmp", func(r *Replica) error { return r.SetPromise(9, 9, holdfast.Record{}) }, true},
		{disk.OpRead, dataFile, func(r *Replica) error { return r.ReadAt(make([]byte, 4096), 0) }, false},
	} {
		t.Run(fmt.Sprint(c.op, " ", c.path), func(t *testing.T) {
			var rules disk.Rules
			p := fsPool(t, disk.NewFaulty(disk.NewMem(1<<30), rules.Hook))
			r := created(t, p, 16<<20)
			if err := r.WriteAt(Entry{Epoch: 1, Grant: 1, Seq: 1}, make([]byte, 4096), 0, false); err != nil {
				t.Fatal(err)
			}
			rules.Add(disk.Rule{Op: c.op, Path: c.path, Count: 1, Errno: syscall.EIO})
			wantKind(t, "failing", c.do(r), holdfast.Corrupt)
			if !c.final {
				if err := c.do(r); err != nil {
					t.Fatalf("again: %v", err)
				}
				return
			}
			wantKind(t, "flush", r.Flush(), holdfast.Corrupt)
			wantKind(t, "read", r.ReadAt(make([]byte, 4096), 0), holdfast.Corrupt)
			wantKind(t, "write", r.WriteAt(Entry{Epoch: 1, Grant: 1, Seq: 3}, make([]byte, 4096), 0, false), holdfast.Corrupt)
			wantKind(t, "promise", r.SetPromise(10, 10, holdfast.Record{}), holdfast.Corrupt)
			if r.Err() == nil || p.Info().Message == "" {
				t.Fatal("the failure is not shown")
			}
			// What it knew is known after opening it again.
			if err := r.Close(); err != nil {
				t.Fatal(err)
			}
			r, err := p.Open(testReplica)
			if err != nil {
				t.Fatal(err)
			}
			if st := r.State(); !within(holdfast.Extent{Offset: 0, Length: 4096}, st.Tail) {
				t.Fatalf("after opening again: %+v", st)
			}
		})
	}
}

// TestFull: a full pool refuses new space ahead of the wall, changes nothing,
// takes overwrites, metadata and trims, and goes on when there is room.
func TestFull(t *testing.T) {
	eachKind(t, func(t *testing.T, p *Pool) {
		r := created(t, p, 4<<30)
		b := fill(make([]byte, 1<<20), 3)
		e := Entry{Epoch: 1, Grant: 1}
		off := int64(0)
		var err error
		if m, ok := p.fs.(*disk.Mem); ok {
			m.SetCapacity(600 << 20)
			p.space.forget()
		}
		for ; err == nil; off += 1 << 20 {
			e.Seq++
			e.Committed = e.Seq - 1
			err = r.WriteAt(e, b, off, false)
		}
		wantKind(t, "write to a full pool", err, holdfast.NoSpace)
		off -= 1 << 20
		if r.Err() != nil {
			t.Fatalf("the replica has failed: %v", r.Err())
		}
		if st := r.State(); within(holdfast.Extent{Offset: off, Length: 1 << 20}, st.Tail) {
			t.Fatalf("the refused write is in the tail: %v", st.Tail)
		}
		got := make([]byte, 1<<20)
		if err := r.ReadAt(got, off); err != nil || !bytes.Equal(got, make([]byte, 1<<20)) {
			t.Fatalf("the refused write changed something: %v", err)
		}
		if info := p.Info(); info.State != holdfast.PoolFull {
			t.Fatalf("info: %+v", info)
		}
		if u, err := p.fs.Usage(); err != nil || u.FreeBytes < p.space.reserve-(1<<20) {
			t.Fatalf("the reserve of %d is touched: %+v, %v", p.space.reserve, u, err)
		}
		e.Seq++
		for what, err := range map[string]error{"overwrite": r.WriteAt(e, b, 0, true), "flush": r.Flush(),
			"promise": r.SetPromise(2, 1, holdfast.Record{}), "mark": r.Mark(5, []holdfast.Extent{{Offset: 0, Length: 4 << 30}}),
			"settle": r.Settle(1, 0), "grow": r.Grow(8 << 30), "trim": r.Trim(e, 0, 16<<20, false)} {
			if err != nil {
				t.Fatalf("%s on a full pool: %v", what, err)
			}
		}
		e.Seq++
		if err := r.WriteAt(e, b, off, false); err != nil {
			t.Fatalf("write after a trim: %v", err)
		}
	})
}
