package fuseloop

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/node/device"
	"github.com/holdfast-storage/holdfast/node/device/devicetest"
)

func testHelpers() *helpers {
	return &helpers{cmd: []string{"/proc/self/exe", HelperArg}, log: slog.New(slog.DiscardHandler)}
}

// process is the helper that runs; nil if none.
func (h *helpers) process() *os.Process {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.now == nil {
		return nil
	}
	return h.now.proc
}

func wantRefused(t *testing.T, h *helpers) {
	t.Helper()
	if _, err := h.do(t.Context(), task{Do: "nothing"}); holdfast.KindOf(err) != holdfast.Invalid {
		t.Fatalf("an operation that there is not: %v", err)
	}
}

// TestOneHelperDoesAll: and another one follows when it is killed.
func TestOneHelperDoesAll(t *testing.T) {
	h := testHelpers()
	defer h.close()
	wantRefused(t, h)
	first := h.process()
	wantRefused(t, h)
	if again := h.process(); again.Pid != first.Pid {
		t.Errorf("the second operation had process %d, the first %d", again.Pid, first.Pid)
	}
	if err := first.Kill(); err != nil {
		t.Fatal(err)
	}
	for h.process() == first { // until its end is seen
		if _, err := h.do(t.Context(), task{Do: "nothing"}); err == nil {
			t.Fatal("nothing was done, and that is no error")
		}
	}
	wantRefused(t, h)
}

// TestAnOperationThatHangsHoldsUpNoOther: nor is it cut short when the helper is to
// end.
func TestAnOperationThatHangsHoldsUpNoOther(t *testing.T) {
	h := testHelpers()
	defer h.close()
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	hangs := task{Do: taskBind, File: fifo, ReadOnly: true, Blk: 4096} // until somebody writes
	ended := make(chan error, 1)
	go func() {
		_, err := h.do(context.Background(), hangs)
		ended <- err
	}()
	short, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := h.do(short, hangs); holdfast.KindOf(err) != holdfast.Unavailable || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("who waits no longer is told %v", err)
	}
	wantRefused(t, h)
	h.close()
	select {
	case err := <-ended:
		t.Fatalf("it ended before it could: %v", err)
	default:
	}
	w, err := os.OpenFile(fifo, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if err := <-ended; err == nil || errors.Is(err, context.Canceled) {
		t.Errorf("a pipe was bound: %v", err)
	}
}

// TestWhatMayBeLeftIsKnown: nothing is looked for where nothing can be.
func TestWhatMayBeLeftIsKnown(t *testing.T) {
	f, err := New(Config{Root: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	vol := holdfast.NewVolumeID()
	want := func(when string, left bool) {
		t.Helper()
		if got := f.maybeLeft(vol); got != left {
			t.Errorf("%s: something may be left: %v", when, got)
		}
	}
	want("before it was looked", true)
	if _, err := f.CleanOrphans(t.Context()); err != nil {
		t.Fatal(err)
	}
	want("after it was looked", false)
	open := func() device.Device {
		t.Helper()
		d, err := f.Open(t.Context(), device.Options{Volume: vol, SizeBytes: 1 << 20, LogicalBlk: 4096}, devicetest.NewMemory(1<<20))
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	d := open()
	want("while it is open", true)
	if err := d.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	want("after it was closed", false)
	d = open()
	held, err := os.Open(d.Path())
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Abort(); err != nil {
		t.Fatal(err)
	}
	want("while an aborted one is held open", true)
	if err := held.Close(); err != nil {
		t.Fatal(err)
	}
	if err := open().Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	want("after it was opened and closed again", false)
}
