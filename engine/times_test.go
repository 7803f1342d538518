package engine

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast/engine/disk"
	"github.com/holdfast-storage/holdfast/internal/buf"
)

// TestDirectWritesLeaveTimesAlone: XFS would begin a transaction for the first write
// after each tick of its clock, in which the write waits for the log.
func TestDirectWritesLeaveTimesAlone(t *testing.T) {
	x := newXFSDisk(t)
	d, err := disk.OpenDir(x.m.dir)
	if err != nil {
		t.Fatal(err)
	}
	const size = 64 << 10
	path := filepath.Join(x.m.dir, "f")
	past := time.Unix(1e9, 0)
	write := func(flags disk.Flag, value uint64, how func(f disk.File, p []byte) error) time.Time {
		t.Helper()
		f, err := d.Open("f", flags)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = f.Close() }()
		if err := os.Chtimes(path, past, past); err != nil {
			t.Fatal(err)
		}
		b := buf.Get(size)
		defer b.Release()
		if err := how(f, fill(b.B, value)); err != nil {
			t.Fatal(err)
		}
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(got, fill(make([]byte, size), value)) {
			t.Errorf("what was written is not there: %v", err)
		}
		return st.ModTime()
	}
	single := func(f disk.File, p []byte) error { _, err := f.WriteAt(p, 0, false); return err }
	durable := func(f disk.File, p []byte) error { _, err := f.WriteAt(p, 0, true); return err }
	batch := func(f disk.File, p []byte) error {
		ts := []disk.Transfer{{Write: true, P: p[:size/2]}, {Write: true, P: p[size/2:], Off: size / 2}}
		disk.TransferAll(f, ts)
		if ts[0].Err != nil {
			return ts[0].Err
		}
		return ts[1].Err
	}
	if got := write(disk.Create|disk.Exclusive, 1, single); got.Equal(past) {
		t.Error("this filesystem leaves times alone anyway: nothing is tested")
	}
	for name, how := range map[string]func(disk.File, []byte) error{"single": single, "durable": durable, "batch": batch} {
		if got := write(disk.Direct|disk.Late, 2, how); !got.Equal(past) {
			t.Errorf("%s: the time of the last change is %v", name, got)
		}
	}
}
