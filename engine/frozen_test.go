package engine

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
)

// frozenFor is when a frozen filesystem is thawed whatever happens to the test:
// by another process, as this one may hang.
const frozenFor = 90 * time.Second

// freeze makes whatever writes to the pool mounted below root wait, as a disk does
// that answers no more, until thaw is called.
func freeze(t *testing.T, root string) (thaw func()) {
	t.Helper()
	mounts, _ := filepath.Glob(filepath.Join(root, "*"))
	if len(mounts) != 1 {
		t.Fatalf("mounts: %v", mounts)
	}
	unix.Sync() // so that pages are clean: storing to one is a fault of its mapping
	watchdog := exec.Command("sh", "-c", fmt.Sprintf("sleep %d; fsfreeze --unfreeze %s", int(frozenFor.Seconds()), mounts[0]))
	watchdog.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	must(t, watchdog.Start())
	const fifreeze, fithaw = 0xc0045877, 0xc0045878
	ioctl := func(op uintptr) error {
		f, err := os.Open(mounts[0])
		if err != nil {
			return err
		}
		defer f.Close()
		arg := uint32(0)
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), op, uintptr(unsafe.Pointer(&arg))); errno != 0 && errno != unix.EINVAL {
			return errno
		}
		return nil
	}
	thaw = sync.OnceFunc(func() {
		if err := ioctl(fithaw); err != nil {
			t.Errorf("thaw: %v", err)
		}
	})
	t.Cleanup(func() {
		thaw()
		_ = syscall.Kill(-watchdog.Process.Pid, syscall.SIGKILL)
		_ = watchdog.Wait()
	})
	must(t, ioctl(fifreeze))
	return thaw
}

// within a time that a machine under any load keeps, but that nothing keeps which
// waits for the disk.
const soonEnough = 30 * time.Second

func returns(t *testing.T, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(soonEnough):
		t.Fatalf("%s waits for the disk", what)
	}
}

// TestAFrozenDiskHoldsUpNobodyElse: while a disk does not answer, what has to write
// to it waits; what needs no disk does not, and least of all the process, whose
// garbage collector waits for every thread that is in a page fault.
func TestAFrozenDiskHoldsUpNobodyElse(t *testing.T) {
	path, root, _ := formatted(t)
	p := mustOpenPool(t, path, root)
	defer func() { must(t, p.Close()) }()
	r := created(t, p, 64<<20)
	must(t, r.SetPromise(2, 1, holdfast.Record{}))
	e := Entry{Epoch: 1, Grant: 1}
	for i := range int64(8) {
		e.Seq++
		must(t, r.WriteAt(e, fill(make([]byte, 4096), 1), i<<22, false))
	}
	must(t, r.Flush())
	thaw := freeze(t, root)
	calls := map[string]func() error{
		"write": func() error {
			return r.WriteAt(Entry{Epoch: 1, Grant: 1, Seq: 20, Committed: 5}, fill(make([]byte, 4096), 2), 0, false)
		},
		"write new": func() error {
			return r.WriteAt(Entry{Epoch: 2, Grant: 1, Seq: 21, Committed: 5}, fill(make([]byte, 4096), 2), 40<<20, true)
		},
		"trim":           func() error { return r.Trim(Entry{Epoch: 1, Grant: 1, Seq: 22, Committed: 6}, 4<<20, 4096, false) },
		"flush":          r.Flush,
		"mark":           func() error { return r.Mark(1, []holdfast.Extent{{Offset: 8 << 20, Length: 4096}}) },
		"settle":         func() error { return r.Settle(1, 0) },
		"grow":           func() error { return r.Grow(80 << 20) },
		"progress":       func() error { return r.SetProgress(Progress{Since: 1}) },
		"batch":          func() error { return batch(r) },
		"a new snapshot": func() error { return r.TakeSnapshot("t", "cut") },
	}
	done := map[string]chan error{}
	begin := func(names ...string) {
		for _, name := range names {
			c := make(chan error, 1)
			call := calls[name]
			go func() { c <- call() }()
			done[name] = c
			delete(calls, name)
		}
	}
	returns(t, "a commit", func() { r.Commit(1, 4) })
	begin("write", "write new", "trim", "batch")
	awaitBlocked(t)
	returns(t, "the garbage collector", runtime.GC)
	begin(slices.Collect(maps.Keys(calls))...)
	awaitBlocked(t)
	returns(t, "the garbage collector", runtime.GC)
	// One more that wants the replica for itself, behind those that have it.
	promise := make(chan error, 1)
	go func() { promise <- r.SetPromise(9, 9, holdfast.Record{}) }()
	returns(t, "the state", func() { r.State() })
	returns(t, "the list of snapshots", func() { r.Snapshots() })
	returns(t, "the list of dropped snapshots", func() { r.Dropping() })
	returns(t, "the replica's failure", func() { _ = r.Err() })
	returns(t, "the garbage collector", runtime.GC)
	select {
	case err := <-done["write"]:
		t.Fatalf("a write was answered by a frozen disk: %v", err)
	default:
	}
	thaw()
	done["promise"] = promise
	for name, c := range done {
		returns(t, name, func() {
			if err := <-c; err != nil {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
	wantAll(t, p, r)
}

// wantAll checks what the calls of the test have written.
func wantAll(t *testing.T, p *Pool, r *Replica) {
	t.Helper()
	got := make([]byte, 4096)
	for off, want := range map[int64]uint64{0: 2, 40 << 20: 2, 4 << 20: 0, 8 << 20: 1, 12 << 20: 3} {
		if err := r.ReadAt(got, off); err != nil || !bytes.Equal(got, fill(make([]byte, 4096), want)) {
			t.Errorf("at %d: first byte %d, %v; want %d", off, got[0], err, want)
		}
	}
	changed, err := r.Changed(1)
	must(t, err)
	for _, off := range []int64{0, 40 << 20, 4 << 20, 8 << 20, 12 << 20} {
		if !within(holdfast.Extent{Offset: off, Length: 4096}, changed) {
			t.Errorf("%d is not among what changed: %v", off, changed)
		}
	}
	wantSound(t, p)
}

func batch(r *Replica) error {
	ts := []Transfer{
		{Write: true, Entry: Entry{Epoch: 1, Grant: 1, Seq: 23, Committed: 6}, P: fill(make([]byte, 4096), 3), Off: 12 << 20},
		{Write: true, Entry: Entry{Epoch: 1, Grant: 1, Seq: 24, Committed: 6}, P: fill(make([]byte, 4096), 3), Off: 16 << 20},
	}
	r.TransferAll(ts)
	return errors.Join(ts[0].Err, ts[1].Err)
}

// awaitBlocked waits until a thread of this process waits in the kernel for a
// frozen filesystem.
func awaitBlocked(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(soonEnough); ; <-time.After(5 * time.Millisecond) {
		waiting := 0
		tasks, _ := filepath.Glob("/proc/self/task/*/stat")
		for _, x := range tasks {
			if raw, err := os.ReadFile(x); err == nil && strings.Contains(string(raw), ") D ") {
				waiting++
			}
		}
		if waiting > 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("nobody waits for the frozen disk")
		}
	}
}
