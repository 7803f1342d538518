package engine

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/engine/disk"
	"github.com/holdfast-storage/holdfast/internal/buf"
)

// lateEnv tells this program to be the process that is killed while it writes:
// the directory of a filesystem with the file lateFile.
const (
	lateEnv  = "HF_TEST_LATE"
	lateFile = "late"
	lateSize = 2 << 20
	latePart = 64 << 10 // written at each MiB, with one request to the disk
)

// writeWhenTold writes the file when a line comes on standard input: "batch" is two
// writes at once, "late" and "plain" are one each, of which late may outlive us.
func writeWhenTold(dir string) error {
	d, err := disk.OpenDir(dir)
	if err != nil {
		return err
	}
	f, err := d.Open(lateFile, disk.Direct|disk.Late)
	if err != nil {
		return err
	}
	plain, err := d.Open(lateFile, disk.Direct)
	if err != nil {
		return err
	}
	var ts []disk.Transfer
	for off := int64(0); off < lateSize; off += 1 << 20 {
		ts = append(ts, disk.Transfer{Write: true, P: fill(buf.Get(latePart).B, 9), Off: off})
	}
	fmt.Println("ready")
	how, err := bufio.NewReader(os.Stdin).ReadString('\n')
	switch {
	case err != nil:
		return err
	case how == "batch\n":
		disk.TransferAll(f, ts)
	case how == "late\n":
		_, _ = f.WriteAt(ts[0].P, 0, false)
	default:
		_, _ = plain.WriteAt(ts[0].P, 0, false)
	}
	return io.ErrUnexpectedEOF // it was to be killed
}

// onStoppableDisk is an open file on a disk whose process may be stopped.
func onStoppableDisk(t *testing.T) (*replay, *xfsDisk, disk.File) {
	img, root, _ := formatted(t)
	p := &replay{t: t, log: filepath.Join(t.TempDir(), "log")}
	x := &xfsDisk{t: t, image: p.serve(img), root: root}
	x.mount()
	t.Cleanup(func() {
		must(t, p.recorder.Signal(unix.SIGCONT))
		x.d.closeAll()
		must(t, x.m.release())
	})
	f, err := x.d.Open(lateFile, disk.Create|disk.Direct)
	must(t, err)
	return p, x, f
}

// TestWritesOfAKilledProcessAreWaitedFor: with a real disk, which answers nothing
// for a while, and a real process, killed while it writes. Setting the file's
// size, as a replica's opening does first, returns when the writes have ended.
func TestWritesOfAKilledProcessAreWaitedFor(t *testing.T) {
	p, x, f := onStoppableDisk(t)
	block := buf.Get(1 << 20)
	defer block.Release()
	for off := int64(0); off < lateSize; off += 1 << 20 {
		_, err := f.WriteAt(fill(block.B, 1), off, true)
		must(t, err)
	}
	p.killWhileItWrites(x.m.dir, "batch", 2)()
	done := make(chan error, 1)
	go func() { done <- waitForWrites(f) }()
	select {
	case err := <-done:
		t.Fatalf("it did not wait: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	must(t, p.recorder.Signal(unix.SIGCONT))
	must(t, <-done)
	for off := int64(0); off < lateSize; off += 1 << 20 {
		_, err := f.ReadAt(block.B[:latePart], off)
		must(t, err)
		if !slices.Equal(block.B[:latePart], fill(make([]byte, latePart), 9)) {
			t.Fatalf("what was under way at %d is not there after the wait", off)
		}
	}
}

// TestOtherWritesEndWithTheirProcess: a single write of a file that nobody waits for
// when it is opened has ended when its process has; a late one need not have.
func TestOtherWritesEndWithTheirProcess(t *testing.T) {
	p, x, f := onStoppableDisk(t)
	block := buf.Get(latePart)
	defer block.Release()
	_, err := f.WriteAt(fill(block.B, 1), 0, true)
	must(t, err)
	for how, ends := range map[string]bool{"plain": false, "late": true} {
		gone := make(chan struct{})
		wait := p.killWhileItWrites(x.m.dir, how, 1)
		go func() { wait(); close(gone) }()
		select {
		case <-gone:
			if !ends {
				t.Errorf("%s: the process is gone, and its write is not", how)
			}
		case <-time.After(2 * time.Second):
			if ends {
				t.Errorf("%s: it was not done by a ring: this test shows nothing", how)
			}
		}
		must(t, p.recorder.Signal(unix.SIGCONT))
		<-gone
		must(t, waitForWrites(f))
	}
}

// stop stops the disk, and returns when all of its threads have stopped.
func (p *replay) stop() {
	must(p.t, p.recorder.Signal(unix.SIGSTOP))
	running := func() bool {
		stats, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", p.recorder.Pid))
		must(p.t, err)
		return slices.ContainsFunc(stats, func(path string) bool {
			raw, err := os.ReadFile(path)
			_, state, _ := strings.Cut(string(raw), ") ")
			return err != nil || !strings.HasPrefix(state, "T")
		})
	}
	for deadline := time.Now().Add(30 * time.Second); running(); <-time.After(time.Millisecond) {
		if time.Now().After(deadline) {
			p.t.Fatal("the disk does not stop")
		}
	}
}

// killWhileItWrites leaves the disk stopped, with so many writes of a process that was
// killed under way. The function it gives returns when that is gone.
func (p *replay) killWhileItWrites(dir, how string, writes int) (gone func()) {
	t := p.t
	var st unix.Stat_t
	must(t, unix.Stat(dir, &st))
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), lateEnv+"="+dir)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	_, err = bufio.NewReader(out).ReadString('\n')
	must(t, err)
	p.stop()
	_, err = io.WriteString(in, how+"\n")
	must(t, err)
	inflight := fmt.Sprintf("/sys/dev/block/%d:%d/inflight", unix.Major(st.Dev), unix.Minor(st.Dev))
	for deadline := time.Now().Add(30 * time.Second); ; <-time.After(time.Millisecond) {
		raw, err := os.ReadFile(inflight)
		must(t, err)
		if fs := strings.Fields(string(raw)); len(fs) == 2 && fs[1] == fmt.Sprint(writes) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("nothing is being written")
		}
	}
	must(t, cmd.Process.Kill())
	return func() { _ = cmd.Wait() }
}

// TestOpeningWaitsFirst: before a replica's data is looked at, what a process that
// was killed writes to it has ended.
func TestOpeningWaitsFirst(t *testing.T) {
	eachCrash(t, func(t *testing.T, _ *disk.Mem, rules *disk.Rules, p *Pool, _ func(bool) *Replica) {
		must(t, created(t, p, 1<<20).Close())
		var ops []disk.Op
		rules.Add(disk.Rule{Path: "/" + dataFile, Before: func(c disk.Call) {
			if c.Op != disk.OpOpen && c.Op != disk.OpStat {
				ops = append(ops, c.Op)
			}
		}})
		r, err := p.Open(testReplica)
		must(t, err)
		must(t, r.ReadAt(make([]byte, holdfast.BlockSize), 0))
		if len(ops) < 2 || ops[0] != disk.OpTruncate || slices.Index(ops[1:], disk.OpTruncate) >= 0 {
			t.Fatalf("what is done to the data: %v", ops)
		}
	})
}
