//go:build vm

package testvm

import (
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast/internal/blockrecorder"
)

// cutDisk is a disk of a machine that loses, when the machine is killed, what a
// disk may lose. Killing qemu alone loses nothing: what the guest has written is
// in this machine's page cache, flushed or not, whatever qemu's cache mode is. So
// qemu writes to a file that is served by a recorder, which notes writes and
// flushes in their order; after a cut the disk is made anew of all writes up to
// the last flush and some of those after it.
//
// qemu's mode is cache=none: the guest sees a disk with a volatile cache, which it
// has to flush, and each of its writes and flushes reaches the recorder as it is.
type cutDisk struct {
	t     *testing.T
	dir   string
	rng   *rand.Rand
	ended chan error // of the recorder
}

func newCutDisk(t *testing.T, rng *rand.Rand, size int64) *cutDisk {
	t.Helper()
	d := &cutDisk{t: t, dir: t.TempDir(), rng: rng}
	f, err := os.Create(d.path("base"))
	if err == nil {
		err = f.Truncate(size)
	}
	if err == nil {
		err = f.Close()
	}
	if err == nil {
		err = os.Mkdir(d.path("served"), 0o700)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.unmount)
	return d
}

func (d *cutDisk) path(name string) string { return filepath.Join(d.dir, name) }

// drive begins to record and gives what qemu is told.
func (d *cutDisk) drive() string {
	d.t.Helper()
	if out, err := exec.Command("cp", "--sparse=always", d.path("base"), d.path("live")).CombinedOutput(); err != nil {
		d.t.Fatalf("cp: %v\n%s", err, out)
	}
	if err := os.RemoveAll(d.path("log")); err != nil {
		d.t.Fatal(err)
	}
	d.ended = make(chan error, 1)
	// It may run in this process, which never opens the file: qemu does.
	go func() { d.ended <- blockrecorder.Serve(d.path("served"), d.path("live"), d.path("log")) }()
	served := filepath.Join(d.path("served"), blockrecorder.Name)
	for deadline := time.Now().Add(30 * time.Second); ; <-time.After(10 * time.Millisecond) {
		if _, err := os.Stat(served); err == nil {
			return "format=raw,cache=none,file=" + served
		}
		select {
		case err := <-d.ended:
			d.t.Fatalf("the recorder ended: %v", err)
		default:
		}
		if time.Now().After(deadline) {
			d.t.Fatal("the recorder does not serve")
		}
	}
}

func (d *cutDisk) unmount() {
	if d.ended == nil {
		return
	}
	if err := unix.Unmount(d.path("served"), 0); err != nil {
		d.t.Errorf("unmount the recorder: %v", err)
		_ = unix.Unmount(d.path("served"), unix.MNT_DETACH) // reported
	}
	if err := <-d.ended; err != nil {
		d.t.Errorf("the recorder: %v", err)
	}
	d.ended = nil
}

// cut makes the disk what the cut has left. The machine has ended.
func (d *cutDisk) cut() {
	d.t.Helper()
	d.unmount()
	log, err := os.Open(d.path("log"))
	if err != nil {
		d.t.Fatal(err)
	}
	defer log.Close()
	base, err := os.OpenFile(d.path("base"), os.O_RDWR, 0)
	if err != nil {
		d.t.Fatal(err)
	}
	defer base.Close()
	var pending []blockrecorder.Record
	writes, flushes := 0, 0
	if err := blockrecorder.Read(log, func(r blockrecorder.Record) error {
		if r.Kind == blockrecorder.Write {
			writes++
			pending = append(pending, r)
			return nil
		}
		flushes++
		for _, w := range pending {
			if err := apply(base, w, len(w.Data)); err != nil {
				return err
			}
		}
		pending = pending[:0]
		return nil
	}); err != nil {
		d.t.Fatal(err)
	}
	kept := 0
	for _, w := range pending {
		n := len(w.Data)
		switch d.rng.IntN(4) {
		case 0, 1: // lost
			continue
		case 2: // only its first sectors arrived
			n = d.rng.IntN(n/sector+1) * sector
		}
		kept++
		if err := apply(base, w, n); err != nil {
			d.t.Fatal(err)
		}
	}
	d.t.Logf("%s: %d writes, %d flushes; of %d writes after the last one %d are there, some in part", filepath.Base(d.dir), writes, flushes, len(pending), kept)
}

// sector is what a disk writes as a whole.
const sector = 512

func apply(to io.WriterAt, w blockrecorder.Record, n int) error {
	_, err := to.WriteAt(w.Data[:n], w.Offset)
	return err
}
