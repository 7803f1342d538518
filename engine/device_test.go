package engine

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
)

const (
	testImageBytes = 512 << 20
	refusedBytes   = 32 << 20
)

// image makes a sparse file for a pool; whatever is attached over it, or mounted
// from it, goes with the test.
func image(t testing.TB, bytes int64) (path, root string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "hf-test-engine-")
	if err != nil {
		t.Fatal(err)
	}
	path, root = filepath.Join(dir, "pool.img"), filepath.Join(dir, "mnt")
	t.Cleanup(func() {
		for _, r := range []string{root, memoryRoot(root)} {
			entries, _ := os.ReadDir(r)
			for _, e := range entries {
				_ = unix.Unmount(filepath.Join(r, e.Name()), unix.MNT_DETACH)
			}
		}
		images, _ := filepath.Glob(filepath.Join(dir, "*.img"))
		for _, img := range images {
			out, _ := exec.Command("losetup", "-j", img, "-O", "NAME", "-n").Output()
			for _, loop := range strings.Fields(string(out)) {
				_ = exec.Command("losetup", "-d", loop).Run()
			}
		}
		_ = os.RemoveAll(dir)
	})
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, bytes); err != nil {
		t.Fatal(err)
	}
	return path, root
}

func memoryRoot(mounts string) string { return mounts + "-memory" }

func formatOptions(path, root string) FormatOptions {
	return FormatOptions{Device: path, Cluster: testCluster, Node: "node-a", MountRoot: root}
}

func openOptions(path, root string) OpenOptions {
	return OpenOptions{Device: path, Cluster: testCluster, Node: "node-a", MountRoot: root, MemoryRoot: memoryRoot(root), BootID: "boot-1"}
}

func formatted(t testing.TB) (path, root string, info PoolInfo) {
	t.Helper()
	path, root = image(t, testImageBytes)
	info, err := Format(context.Background(), formatOptions(path, root))
	if err != nil {
		t.Fatal(err)
	}
	return path, root, info
}

func mustOpenPool(t testing.TB, path, root string) *Pool {
	t.Helper()
	p, err := OpenPool(context.Background(), openOptions(path, root))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// attached counts the loop devices over an image.
func attached(t *testing.T, path string) int {
	t.Helper()
	out, err := exec.Command("losetup", "-j", path, "-O", "NAME", "-n").Output()
	if err != nil {
		t.Fatal(err)
	}
	return len(strings.Fields(string(out)))
}

func wantKind(t *testing.T, what string, err error, kind holdfast.Kind) {
	t.Helper()
	if holdfast.KindOf(err) != kind || err == nil {
		t.Fatalf("%s: %v (kind %v), want kind %v", what, err, holdfast.KindOf(err), kind)
	}
}

func wantSound(t testing.TB, p *Pool) {
	t.Helper()
	problems, err := p.Check(context.Background(), nil)
	if err != nil || len(problems) > 0 {
		t.Fatalf("check: %v %v", problems, err)
	}
}

func TestFormatAndAdopt(t *testing.T) {
	ctx := context.Background()
	path, root, info := formatted(t)
	again, err := Format(ctx, formatOptions(path, root))
	if err != nil || again != info {
		t.Fatalf("formatting again gave %+v, %v; want %+v", again, err, info)
	}
	if n := attached(t, path); n != 0 {
		t.Fatalf("%d loop devices are left after Format", n)
	}
	if probed, err := Probe(ctx, path); err != nil || probed != info {
		t.Fatalf("probe: %+v, %v; want %+v", probed, err, info)
	}
	other := formatOptions(path, root)
	other.Cluster = "cluster-b"
	_, err = Format(ctx, other)
	wantKind(t, "format by another cluster", err, holdfast.Denied)
	open := openOptions(path, root)
	open.Cluster = "cluster-b"
	_, err = OpenPool(ctx, open)
	wantKind(t, "open by another cluster", err, holdfast.Denied)
	if n := attached(t, path); n != 0 {
		t.Fatalf("%d loop devices are left after refusals", n)
	}
	// The same disk under another name is the same pool.
	moved := filepath.Join(filepath.Dir(path), "moved.img")
	if err := os.Rename(path, moved); err != nil {
		t.Fatal(err)
	}
	p := mustOpenPool(t, moved, root)
	if got := p.Info(); got.ID != info.Pool || got.Device != moved || got.TotalBytes < 400<<20 || got.State != holdfast.PoolOnline {
		t.Fatalf("opened %+v", got)
	}
	if probed, err := Probe(ctx, moved); err != nil || probed.Identity != info.Identity {
		t.Fatalf("probe of an open pool: %+v, %v", probed, err)
	}
	_, err = OpenPool(ctx, openOptions(moved, root))
	wantKind(t, "open twice", err, holdfast.InUse)
	wantSound(t, p)
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if n := attached(t, moved); n != 0 {
		t.Fatalf("%d loop devices are left after Close", n)
	}
}

// TestFormatRefuses shows that nothing that may hold data becomes a pool, and
// that a refusal changes nothing.
func TestFormatRefuses(t *testing.T) {
	mbr := func(t *testing.T, path string) {
		sector := make([]byte, 512)
		copy(sector[446:], []byte{0, 0, 2, 0, 0x83, 0, 0, 0})
		binary.LittleEndian.PutUint32(sector[454:], 2048)
		binary.LittleEndian.PutUint32(sector[458:], 8192)
		sector[510], sector[511] = 0x55, 0xAA
		writeAt(t, path, sector, 0)
	}
	command := func(name string, args ...string) func(t *testing.T, path string) {
		return func(t *testing.T, path string) {
			if out, err := exec.Command(name, append(args, path)...).CombinedOutput(); err != nil {
				t.Fatalf("%s: %v %s", name, err, out)
			}
		}
	}
	for _, c := range []struct {
		name, says string
		kind       holdfast.Kind
		prepare    func(t *testing.T, path string)
	}{
		{"ext4", "ext4", holdfast.Exists, command("mkfs.ext4", "-q")},
		{"xfs", "xfs", holdfast.Exists, command("mkfs.xfs", "-q", "-L", "home")},
		{"swap", "swap", holdfast.Exists, command("mkswap", "-q")},
		{"partition table", "partition table (dos)", holdfast.Exists, mbr},
		{"md member at the end", "linux_raid_member", holdfast.Exists, mdSuperblock},
		{"unknown data", "beginning", holdfast.Exists, func(t *testing.T, path string) { writeAt(t, path, []byte("precious"), 70000) }},
		{"unknown data at the end", "end", holdfast.Exists, func(t *testing.T, path string) { writeAt(t, path, []byte("precious"), refusedBytes-9000) }},
		{"too small", "300 MiB", holdfast.Invalid, func(t *testing.T, path string) { _ = os.Truncate(path, 20<<20) }},
		{"attached", "attached as", holdfast.InUse, command("losetup", "-f")},
	} {
		t.Run(c.name, func(t *testing.T) {
			bytesWanted := int64(refusedBytes)
			if c.name == "xfs" { // its mkfs wants more
				bytesWanted = 320 << 20
			}
			path, root := image(t, bytesWanted)
			c.prepare(t, path)
			before, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			_, err = Format(context.Background(), formatOptions(path, root))
			wantKind(t, "format", err, c.kind)
			if !strings.Contains(err.Error(), c.says) {
				t.Fatalf("the error %q does not say %q", err, c.says)
			}
			_, err = OpenPool(context.Background(), openOptions(path, root))
			wantKind(t, "open", err, holdfast.NotFound)
			after, err := os.ReadFile(path)
			if err != nil || !bytes.Equal(before, after) {
				t.Fatal("the refused image was changed")
			}
		})
	}
}

// mdSuperblock writes an md superblock of version 0.90, which is at the end.
func mdSuperblock(t *testing.T, path string) {
	sb := make([]byte, 4096)
	binary.LittleEndian.PutUint32(sb, 0xa92b4efc)
	binary.LittleEndian.PutUint32(sb[8:], 90)
	writeAt(t, path, sb, refusedBytes-65536)
}

func writeAt(t *testing.T, path string, p []byte, off int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(p, off); err != nil {
		t.Fatal(err)
	}
}

// TestFormatRefusesUsedDevice: a block device that is mounted is refused even
// when its signature is gone, and so is one whose partition or holder is in use.
func TestFormatRefusesUsedDevice(t *testing.T) {
	path, root := image(t, testImageBytes)
	out, err := exec.Command("losetup", "-f", "--show", path).CombinedOutput()
	if err != nil {
		t.Fatalf("losetup: %v %s", err, out)
	}
	loop := strings.TrimSpace(string(out))
	fd, err := unix.Open(loop, unix.O_RDWR|unix.O_EXCL|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = Format(context.Background(), formatOptions(loop, root))
	wantKind(t, "format of a held device", err, holdfast.InUse)
	if err := unix.Close(fd); err != nil {
		t.Fatal(err)
	}
	// And with a block device that is free it works.
	info, err := Format(context.Background(), formatOptions(loop, root))
	if err != nil {
		t.Fatal(err)
	}
	p := mustOpenPool(t, loop, root)
	if p.Info().ID != info.Pool {
		t.Fatalf("opened %v, formatted %v", p.Info(), info)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestFormatInterrupted: a Format killed after mkfs, or within it, is finished by
// the next one.
func TestFormatInterrupted(t *testing.T) {
	for _, unfinished := range []bool{false, true} {
		path, root := image(t, testImageBytes)
		tg, err := look(context.Background(), path)
		if err != nil {
			t.Fatal(err)
		}
		id := holdfast.NewPoolID()
		if err := tg.makeFilesystem(context.Background(), id, false); err != nil {
			t.Fatal(err)
		}
		tg.close()
		if unfinished {
			writeAt(t, path, []byte{1}, 126) // sb_inprogress
		}
		_, err = Probe(context.Background(), path)
		wantKind(t, "probe of an unfinished pool", err, holdfast.NotFound)
		info, err := Format(context.Background(), formatOptions(path, root))
		if err != nil {
			t.Fatal(err)
		}
		if !unfinished && info.Pool != id {
			t.Fatalf("the finished pool is %s, begun was %s", info.Pool, id)
		}
		if err := mustOpenPool(t, path, root).Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestOtherProcess: a pool that another process has open is refused; when that
// one is killed, the pool is taken over as it was left mounted, with the tail
// that it had, and nothing is suspect.
func TestOtherProcess(t *testing.T) {
	path, root, _ := formatted(t)
	cmd := exec.Command(os.Args[0], "-test.run=^TestHelperHoldsPool$")
	cmd.Env = append(os.Environ(), "HF_TEST_HOLD="+path, "HF_TEST_ROOT="+root)
	runtime.LockOSThread() // whose end would be the other process's, too
	t.Cleanup(runtime.UnlockOSThread)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() && !strings.HasPrefix(lines.Text(), "holding") {
		t.Log(lines.Text())
	}
	_, err = OpenPool(context.Background(), openOptions(path, root))
	wantKind(t, "open what another process has open", err, holdfast.InUse)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()

	p := mustOpenPool(t, path, root)
	r, err := p.Open(testReplica)
	if err != nil {
		t.Fatal(err)
	}
	st := r.State()
	want := []holdfast.Extent{{Offset: 0, Length: 4096}, {Offset: 8192, Length: 8192}}
	if fmt.Sprint(st.Tail) != fmt.Sprint(want) || len(st.Suspects) != 0 || st.Promise != (Promise{3, 2}) {
		t.Fatalf("state after the kill: %+v", st)
	}
	if got, err := r.Changed(0); err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("changed: %v, %v", got, err)
	}
	got := make([]byte, 8192)
	if err := r.ReadAt(got, 8192); err != nil || !bytes.Equal(got, fill(make([]byte, 8192), 7)) {
		t.Fatalf("read: %v", err)
	}
	wantSound(t, p)
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	// Closed cleanly: the mounting goes on, with the tail.
	p = mustOpenPool(t, path, root)
	if r, err = p.Open(testReplica); err != nil {
		t.Fatal(err)
	}
	if again := r.State(); fmt.Sprint(again.Tail) != fmt.Sprint(want) || len(again.Suspects) != 0 || again.Boot != st.Boot {
		t.Fatalf("state after a clean close: %+v, before: %+v", again, st)
	}
	// Unmounted under the process' feet, or the machine gone: all with an intent
	// is suspect when it is mounted again.
	if err := r.WriteAt(Entry{Epoch: 3, Grant: 2, Seq: 3}, got, 8<<20, false); err != nil {
		t.Fatal(err)
	}
	abandon(t, p)
	p = mustOpenPool(t, path, root)
	if r, err = p.Open(testReplica); err != nil {
		t.Fatal(err)
	}
	if st := r.State(); fmt.Sprint(st.Suspects) != "[{0 4194304} {8388608 4194304}]" || len(st.Tail) != 0 {
		t.Fatalf("state after an unclean mount: %+v", st)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
}

// abandon unmounts a pool without closing it first.
func abandon(t *testing.T, p *Pool) {
	t.Helper()
	for _, r := range p.open {
		if err := r.closeFiles(); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(p.lock.Close(), p.release()); err != nil {
		t.Fatal(err)
	}
}

// TestHelperHoldsPool is the other process of TestOtherProcess.
func TestHelperHoldsPool(t *testing.T) {
	path, root := os.Getenv("HF_TEST_HOLD"), os.Getenv("HF_TEST_ROOT")
	if path == "" {
		return
	}
	p := mustOpenPool(t, path, root)
	r := created(t, p, 16<<20)
	if err := r.SetPromise(3, 2, holdfast.Record{}); err != nil {
		t.Fatal(err)
	}
	e := Entry{Epoch: 3, Grant: 2, Seq: 1}
	err := r.WriteAt(e, fill(make([]byte, 4096), 6), 0, false)
	e.Seq++
	if err = errors.Join(err, r.WriteAt(e, fill(make([]byte, 8192), 7), 8192, false)); err != nil {
		t.Fatal(err)
	}
	fmt.Println("holding")
	select {}
}

// TestKeptSpaceComesBack: what XFS keeps for later writes near first ones does
// not count as taken. A write that finds no space finds it when it is tried again.
func TestKeptSpaceComesBack(t *testing.T) {
	path, root, _ := formatted(t)
	p := mustOpenPool(t, path, root)
	defer func() { _ = p.Close() }()
	const bytes, step = 128 << 20, 128 << 10
	if err := p.Create(context.Background(), testVolume, testReplica, bytes); err != nil {
		t.Fatal(err)
	}
	r, err := p.Open(testReplica)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	e := Entry{Epoch: 1, Grant: 1}
	write := func(n, off int64) error {
		e.Seq++
		e.Committed = e.Seq - 1
		return r.WriteAt(e, make([]byte, n), off, false)
	}
	for off := int64(0); off < bytes; off += 1 << 20 {
		if err := write(1<<20, off); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.TakeSnapshot("s", "c"); err != nil {
		t.Fatal(err)
	}
	u, err := p.fs.Usage()
	if err != nil {
		t.Fatal(err)
	}
	p.space.reserve = u.FreeBytes - 32<<20 // the writes need 4 MiB
	p.space.forget()
	refused := 0
	for off := int64(0); off < bytes; off += step {
		err := write(blockSize, off)
		if errors.Is(err, holdfast.NoSpace) {
			refused++
			err = write(blockSize, off)
			p.space.reclaimed = time.Time{} // a second later
		}
		if err != nil {
			t.Fatalf("after %d refused: %v", refused, err)
		}
	}
	if refused == 0 {
		t.Error("nothing was kept back: the test shows nothing")
	}
}
