package disk

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"syscall"
	"testing"

	"github.com/holdfast-storage/holdfast"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantKind(t *testing.T, what string, err error, kind holdfast.Kind) {
	t.Helper()
	if err == nil || holdfast.KindOf(err) != kind {
		t.Fatalf("%s: %v (kind %v), want kind %v", what, err, holdfast.KindOf(err), kind)
	}
}

func open(t *testing.T, fs FS, name string, flags Flag) File {
	t.Helper()
	f, err := fs.Open(name, flags)
	must(t, err)
	return f
}

func pageOf(v byte) []byte { return bytes.Repeat([]byte{v}, PageSize) }

// each runs a test on every implementation.
func each(t *testing.T, test func(t *testing.T, fs FS)) {
	t.Run("mem", func(t *testing.T) { test(t, NewMem(64<<20)) })
	t.Run("faulty", func(t *testing.T) { test(t, NewFaulty(NewMem(64<<20), func(*Call) error { return nil })) })
	t.Run("dir", func(t *testing.T) {
		root, err := os.MkdirTemp("", "hf-test-disk-")
		must(t, err)
		t.Cleanup(func() { _ = os.RemoveAll(root) })
		d, err := OpenDir(root)
		must(t, err)
		test(t, d)
	})
}

func TestNames(t *testing.T) {
	each(t, func(t *testing.T, fs FS) {
		_, err := fs.Open("a", 0)
		wantKind(t, "open what is not there", err, holdfast.NotFound)
		must(t, open(t, fs, "a", Create|Exclusive).Close())
		_, err = fs.Open("a", Create|Exclusive)
		wantKind(t, "create what is there", err, holdfast.Exists)
		must(t, open(t, fs, "a", Create).Close())
		must(t, fs.Mkdir("d"))
		wantKind(t, "make a directory again", fs.Mkdir("d"), holdfast.Exists)
		must(t, MkdirIfMissing(fs, "d"))
		_, err = fs.Open("d", 0)
		wantKind(t, "open a directory", err, holdfast.Invalid)
		_, err = fs.Open("x/y", Create)
		wantKind(t, "create without a parent", err, holdfast.NotFound)
		must(t, ReplaceFile(fs, "d/b", []byte("one")))
		must(t, ReplaceFile(fs, "d/b", []byte("zwei")))
		got, err := ReadFile(fs, "d/b", 10)
		if err != nil || string(got) != "zwei" {
			t.Fatalf("read %q, %v", got, err)
		}
		_, err = ReadFile(fs, "d/b", 3)
		wantKind(t, "read a file that is too long", err, holdfast.Corrupt)
		wantKind(t, "remove a directory with a file", fs.Remove("d"), holdfast.Exists)
		must(t, fs.Rename("a", "c"))
		wantKind(t, "rename what is not there", fs.Rename("a", "c"), holdfast.NotFound)
		must(t, fs.Mkdir("e"))
		must(t, errors.Join(fs.Rename("e", "f"), fs.SyncDir(".")))
		entries, err := fs.List(".")
		if err != nil || fmt.Sprint(entries) != "[{c false} {d true} {f true}]" {
			t.Fatalf("list: %v, %v", entries, err)
		}
		wantKind(t, "replace a directory that is not empty", fs.Rename("f", "d"), holdfast.Exists)
		must(t, errors.Join(RemoveAll(fs, "d"), RemoveAll(fs, "d"), fs.Remove("c"), fs.Remove("f")))
		wantKind(t, "remove what is not there", fs.Remove("c"), holdfast.NotFound)
		_, err = fs.List("d")
		wantKind(t, "list what is not there", err, holdfast.NotFound)
		u, err := fs.Usage()
		if err != nil || u.FreeBytes <= 0 || u.FreeBytes > u.TotalBytes {
			t.Fatalf("usage: %+v, %v", u, err)
		}
	})
}

func TestLock(t *testing.T) {
	each(t, func(t *testing.T, fs FS) {
		f := open(t, fs, "lock", Create|Lock)
		_, err := fs.Open("lock", Lock)
		wantKind(t, "lock twice", err, holdfast.InUse)
		must(t, open(t, fs, "lock", 0).Close())
		must(t, f.Close())
		must(t, open(t, fs, "lock", Lock).Close())
	})
}

func TestData(t *testing.T) {
	each(t, func(t *testing.T, fs FS) {
		for _, direct := range []Flag{0, Direct} {
			f := open(t, fs, fmt.Sprint("data", direct), Create|direct)
			must(t, f.Truncate(64*PageSize))
			for _, i := range []int64{3, 4, 9, 63} {
				// Not aligned in memory: direct I/O must work all the same.
				p := append([]byte{0}, pageOf(byte(i))...)[1:]
				if n, err := f.WriteAt(p, i*PageSize, i == 9); n != PageSize || err != nil {
					t.Fatalf("write %d: %d, %v", i, n, err)
				}
			}
			must(t, errors.Join(f.Punch(4*PageSize, 2*PageSize), f.Sync()))
			for i, v := range map[int64]byte{3: 3, 4: 0, 9: 9, 10: 0, 63: 63} {
				p := make([]byte, PageSize+1)[1:]
				if n, err := f.ReadAt(p, i*PageSize); n != PageSize || err != nil || !bytes.Equal(p, pageOf(v)) {
					t.Fatalf("read %d: %d, %v, %d", i, n, err, p[0])
				}
			}
			if n, err := f.ReadAt(make([]byte, 2*PageSize), 63*PageSize); n != PageSize || !errors.Is(err, io.EOF) {
				t.Fatalf("read over the end: %d, %v", n, err)
			}
			want := fmt.Sprint([]holdfast.Extent{{Offset: 3 * PageSize, Length: PageSize}, {Offset: 9 * PageSize, Length: PageSize},
				{Offset: 63 * PageSize, Length: PageSize}})
			if xs, err := f.Extents(0, 64*PageSize); err != nil || fmt.Sprint(xs) != want {
				t.Fatalf("extents: %v, %v; want %s", xs, err, want)
			}
			if xs, err := f.Extents(4*PageSize, 5*PageSize); err != nil || len(xs) != 0 {
				t.Fatalf("extents of holes: %v, %v", xs, err)
			}
			if info, err := f.Stat(); err != nil || info.SizeBytes != 64*PageSize || info.AllocatedBytes != 3*PageSize {
				t.Fatalf("stat: %+v, %v", info, err)
			}
			must(t, errors.Join(f.Truncate(9*PageSize+100), f.Truncate(12*PageSize)))
			if direct == 0 {
				p := make([]byte, PageSize)
				if _, err := f.ReadAt(p, 9*PageSize); err != nil || p[99] != 9 || p[100] != 0 {
					t.Fatalf("after shrinking and growing: %v, %d %d", err, p[99], p[100])
				}
			}
			must(t, f.Close())
		}
	})
}

func TestMapping(t *testing.T) {
	each(t, func(t *testing.T, fs FS) {
		f := open(t, fs, "map", Create)
		must(t, errors.Join(f.Truncate(8*PageSize), f.Allocate(2*PageSize, PageSize)))
		if _, err := f.WriteAt([]byte("before"), 0, false); err != nil {
			t.Fatal(err)
		}
		m, err := f.Map(8 * PageSize)
		must(t, err)
		mem := m.Bytes()
		copy(mem[2*PageSize:], "stored")
		if string(mem[:6]) != "before" || len(mem) != 8*PageSize {
			t.Fatalf("mapped %q, %d bytes", mem[:6], len(mem))
		}
		p := make([]byte, 6)
		if _, err := f.ReadAt(p, 2*PageSize); err != nil || string(p) != "stored" {
			t.Fatalf("read %q, %v", p, err)
		}
		if _, err := f.WriteAt([]byte("written"), 2*PageSize, false); err != nil || string(mem[2*PageSize:][:7]) != "written" {
			t.Fatalf("mapped %q, %v", mem[2*PageSize:][:7], err)
		}
		must(t, errors.Join(m.Sync(), m.Close(), f.Truncate(16*PageSize)))
		m, err = f.Map(16 * PageSize)
		must(t, err)
		if string(m.Bytes()[2*PageSize:][:7]) != "written" {
			t.Fatal("lost by mapping again")
		}
		must(t, errors.Join(m.Close(), f.Close()))
	})
}

// TestMemCrash: of what was not synced each page may be there or not, of what was
// synced all is.
func TestMemCrash(t *testing.T) {
	seen := map[string]int{}
	for seed := range uint64(200) {
		m := NewMem(1 << 20)
		must(t, m.Mkdir("d"))
		f := open(t, m, "d/f", Create)
		g := open(t, m, "d/map", Create)
		must(t, errors.Join(f.Truncate(4*PageSize), g.Truncate(2*PageSize), g.Allocate(0, 2*PageSize)))
		for i := range int64(4) {
			_, err := f.WriteAt(pageOf(1), i*PageSize, false)
			must(t, err)
		}
		must(t, errors.Join(f.Sync(), g.Sync(), m.SyncDir("d"), m.SyncDir(".")))
		mp, err := g.Map(2 * PageSize)
		must(t, err)
		_, err = f.WriteAt(append(pageOf(2), pageOf(2)...), 0, false)
		must(t, err)
		_, err = f.WriteAt(pageOf(3), 2*PageSize, true)
		must(t, err)
		must(t, f.Punch(3*PageSize, PageSize))
		copy(mp.Bytes(), pageOf(4))
		must(t, errors.Join(m.Rename("d/f", "d/g"), m.Mkdir("d/new")))
		m.Crash(rand.New(rand.NewPCG(seed, 0)))

		_, err = f.WriteAt(pageOf(9), 0, false)
		wantKind(t, "write by a handle of before", err, holdfast.Other)
		entries, err := m.List("d")
		must(t, err)
		name := "d/f"
		if len(entries) > 1 && entries[0].Name == "g" {
			name = "d/g"
		}
		f = open(t, m, name, 0)
		p, q := make([]byte, 4*PageSize), make([]byte, PageSize)
		_, err = f.ReadAt(p, 0)
		must(t, err)
		_, err = open(t, m, "d/map", 0).ReadAt(q, 0)
		must(t, err)
		if p[2*PageSize] != 3 {
			t.Fatalf("seed %d: a page written synchronously is lost", seed)
		}
		for i := range 4 {
			if !bytes.Equal(p[i*PageSize:][:PageSize], pageOf(p[i*PageSize])) {
				t.Fatalf("seed %d: page %d is torn", seed, i)
			}
		}
		seen[fmt.Sprint(p[0], p[PageSize], p[3*PageSize], q[0], entries)]++
		u, err := m.Usage()
		must(t, err)
		info, err := f.Stat()
		must(t, err)
		if used := u.TotalBytes - u.FreeBytes; used != info.AllocatedBytes+2*PageSize {
			t.Fatalf("seed %d: %d bytes used, %d allocated", seed, used, info.AllocatedBytes)
		}
	}
	// Two pages, a hole, a mapped page, and three lengths of the journal.
	if len(seen) < 30 || len(seen) > 48 {
		t.Fatalf("%d different outcomes, want nearly all of 48", len(seen))
	}
}

// TestMemKill: a killed process loses nothing, and stores nothing any more.
func TestMemKill(t *testing.T) {
	m := NewMem(1 << 20)
	f := open(t, m, "f", Create|Lock)
	must(t, errors.Join(f.Truncate(PageSize), f.Allocate(0, PageSize)))
	mp, err := f.Map(PageSize)
	must(t, err)
	copy(mp.Bytes(), "kept")
	m.Kill()
	copy(mp.Bytes(), "gone")
	f = open(t, m, "f", Lock)
	p := make([]byte, 4)
	if _, err := f.ReadAt(p, 0); err != nil || string(p) != "kept" {
		t.Fatalf("read %q, %v", p, err)
	}
}

// TestMemDeterministic: the same seed gives the same disk.
func TestMemDeterministic(t *testing.T) {
	run := func() string {
		rng := rand.New(rand.NewPCG(4, 2))
		m := NewMem(8 << 20)
		for i := range 300 {
			name := fmt.Sprint("f", rng.IntN(20))
			f := open(t, m, name, Create)
			_, err := f.WriteAt(pageOf(byte(i)), rng.Int64N(16)*PageSize, false)
			must(t, err)
			switch rng.IntN(10) {
			case 0:
				must(t, f.Sync())
			case 1:
				must(t, m.SyncDir("."))
			case 2:
				must(t, m.Remove(name))
			case 3:
				m.Crash(rng)
			}
		}
		out := ""
		entries, err := m.List(".")
		must(t, err)
		for _, e := range entries {
			p, err := ReadFile(m, e.Name, 1<<20)
			must(t, err)
			out += fmt.Sprintf("%s %x\n", e.Name, p)
		}
		return out
	}
	if a, b := run(), run(); a != b || a == "" {
		t.Fatal("two runs with one seed differ")
	}
}

func TestMemFull(t *testing.T) {
	m := NewMem(4 * PageSize)
	f := open(t, m, "f", Create)
	n, err := f.WriteAt(make([]byte, 6*PageSize), 0, false)
	wantKind(t, "write of more than there is", err, holdfast.NoSpace)
	if n != 4*PageSize {
		t.Fatalf("%d bytes applied", n)
	}
	must(t, f.Punch(0, PageSize))
	if _, err := f.WriteAt(pageOf(1), 5*PageSize, false); err != nil {
		t.Fatal(err)
	}
	must(t, f.Close())
	must(t, m.Remove("f"))
	if u, err := m.Usage(); err != nil || u.FreeBytes != 4*PageSize {
		t.Fatalf("usage: %+v, %v", u, err)
	}
}

// TestMemStoredOutside: the disk panics where a full one would kill the process.
func TestMemStoredOutside(t *testing.T) {
	m := NewMem(1 << 20)
	f := open(t, m, "f", Create)
	must(t, f.Truncate(2*PageSize))
	mp, err := f.Map(2 * PageSize)
	must(t, err)
	mp.Bytes()[PageSize] = 1
	defer func() {
		if recover() == nil {
			t.Fatal("a store into a hole went unnoticed")
		}
	}()
	_ = mp.Sync()
}

func TestRules(t *testing.T) {
	var rules Rules
	fs := NewFaulty(NewMem(1<<20), rules.Hook)
	f := open(t, fs, "dir-file", Create)
	must(t, f.Truncate(4*PageSize))
	slow := 0
	rules.Add(Rule{Op: OpWrite, Path: "file", Skip: 1, Count: 1, Errno: syscall.EIO, Applied: PageSize,
		Before: func(c Call) { slow += int(c.Length) }})
	for i, fails := range []bool{false, true, false} {
		n, err := f.WriteAt(append(pageOf(byte(i+1)), pageOf(byte(i+1))...), int64(i)*PageSize, false)
		if fails != (err != nil) || fails && (n != PageSize || !errors.Is(err, syscall.EIO)) {
			t.Fatalf("write %d: %d, %v", i, n, err)
		}
	}
	p := make([]byte, 4*PageSize)
	if _, err := f.ReadAt(p, 0); err != nil || p[0] != 1 || p[PageSize] != 2 || p[2*PageSize] != 3 || slow != 6*PageSize {
		t.Fatalf("read %d %d %d, %v; slow %d", p[0], p[PageSize], p[2*PageSize], err, slow)
	}
	rules.Add(Rule{Op: OpSyncDir, Errno: syscall.EIO})
	wantKind(t, "sync a directory", fs.SyncDir("."), holdfast.Other)
	rules.Clear()
	must(t, fs.SyncDir("."))
}
