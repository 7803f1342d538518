package engine

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/holdfast-storage/holdfast"
)

// A disk gives errors, and the process is killed: what it left mounted is shut
// down, and its successor mounts it anew.
func TestAPoolThatWasLeftShutDownIsMountedAnew(t *testing.T) {
	path, root, _ := formatted(t)
	p := mustOpenPool(t, path, root)
	r := created(t, p, 16<<20)
	if err := r.SetPromise(3, 2, holdfast.Record{}); err != nil {
		t.Fatal(err)
	}
	if err := r.WriteAt(Entry{Epoch: 3, Grant: 2, Seq: 1}, fill(make([]byte, 4096), 6), 0, false); err != nil {
		t.Fatal(err)
	}
	shutDown(t, root)
	if p.Info().State != holdfast.PoolFailed {
		t.Error("nobody noticed")
	}
	_, err := OpenPool(context.Background(), openOptions(path, root))
	if err == nil {
		t.Error("it is opened although somebody has it open")
	}
	for _, r := range p.open { // as at the end of a killed process
		_ = r.closeFiles()
	}
	if err := p.lock.Close(); err != nil {
		t.Fatal(err)
	}
	p = mustOpenPool(t, path, root)
	if r, err = p.Open(testReplica); err != nil {
		t.Fatal(err)
	}
	if st := r.State(); fmt.Sprint(st.Suspects) != "[{0 4194304}]" || st.Promise != (Promise{3, 2}) {
		t.Errorf("state: %+v", st)
	}
	wantSound(t, p)
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if n := attached(t, path); n != 0 {
		t.Errorf("%d loop devices are left", n)
	}
}

// shutDown makes a mounted pool answer with errors, as after a disk's failure,
// with all its pages clean, so that the next use of any is a fault.
func shutDown(t *testing.T, root string) {
	t.Helper()
	mounts, _ := filepath.Glob(filepath.Join(root, "*"))
	if len(mounts) != 1 {
		t.Fatalf("mounts: %v", mounts)
	}
	for _, c := range [][]string{{"sync", "--file-system", mounts[0]}, {"xfs_io", "-x", "-c", "shutdown -f", mounts[0]}} {
		if out, err := exec.Command(c[0], c[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", c, err, out)
		}
	}
}

// A disk that fails ends the replica, and not the process, as that serves other
// volumes.
func TestAFailedDiskFailsTheReplicaAndNotTheProcess(t *testing.T) {
	e := Entry{Epoch: 3, Grant: 2, Seq: 2}
	for name, use := range map[string]func(*Replica) error{
		"write": func(r *Replica) error { return r.WriteAt(e, fill(make([]byte, 4096), 7), 12<<20, false) },
		"trim":  func(r *Replica) error { return r.Trim(e, 8<<20, 4096, false) },
		"mark":  func(r *Replica) error { return r.Mark(3, []holdfast.Extent{{Offset: 4 << 20, Length: 4096}}) },
	} {
		t.Run(name, func(t *testing.T) {
			path, root, _ := formatted(t)
			p := mustOpenPool(t, path, root)
			r := created(t, p, 16<<20)
			if err := r.SetPromise(3, 2, holdfast.Record{}); err != nil {
				t.Fatal(err)
			}
			old := Entry{Epoch: 3, Grant: 2, Seq: 1}
			if err := errors.Join(r.WriteAt(old, fill(make([]byte, 4096), 6), 0, false), r.Flush()); err != nil {
				t.Fatal(err)
			}
			shutDown(t, root)
			wantKind(t, name, use(r), holdfast.Corrupt)
			wantKind(t, "the replica", r.Err(), holdfast.Corrupt)
			if err := r.Close(); err != nil {
				t.Logf("close: %v", err)
			}
			_ = p.Close()
			p = mustOpenPool(t, path, root)
			if _, err := p.Open(testReplica); err != nil {
				t.Errorf("open it again: %v", err)
			}
			if err := p.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}
