package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/netcluster"
)

func newRNG(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 1)) }

func TestScheduleIsRepeatableAndPossible(t *testing.T) {
	const length = 25 * time.Second
	seen := map[kind]int{}
	for seed := range uint64(300) {
		faults := schedule(newRNG(seed), length, weights(true))
		if again := schedule(newRNG(seed), length, weights(true)); !reflect.DeepEqual(faults, again) {
			t.Fatalf("seed %d gives %v, then %v", seed, faults, again)
		}
		for i, f := range faults {
			seen[f.kind]++
			if f.at > length || i > 0 && f.at < faults[i-1].at {
				t.Errorf("seed %d: %v at %v is out of its round or out of order", seed, f, f.at)
			}
			if f.kind == replace && (i != 0 || f.machine < members) {
				t.Errorf("seed %d: %v is number %d of its round; only nodes without etcd, and only first", seed, f, i)
			}
			if f.kind == quorum && (f.machine >= members || len(f.others) != 1 || f.others[0] >= members || f.others[0] == f.machine) {
				t.Errorf("seed %d: %v are not two members", seed, f)
			}
			if f.kind == lossy && (f.percent < 1 || f.percent > 30) {
				t.Errorf("seed %d: %v loses too little or too much", seed, f)
			}
			for _, o := range f.others {
				if o == f.machine {
					t.Errorf("seed %d: %v names a machine twice", seed, f)
				}
			}
		}
	}
	for k := range weights(true) {
		if seen[k] == 0 {
			t.Errorf("%s never came", k)
		}
	}
}

func TestParseKinds(t *testing.T) {
	ks, err := parseKinds("cut, kill", false)
	if err != nil || len(ks) != 2 {
		t.Fatalf("got %v, %v", ks, err)
	}
	for _, f := range schedule(newRNG(5), time.Second, ks) {
		if f.kind != cut && f.kind != kill {
			t.Errorf("%v was not asked for", f)
		}
	}
	if _, err := parseKinds("cut,flood", true); !errors.Is(err, holdfast.Invalid) {
		t.Errorf("got %v, want Invalid", err)
	}
	if _, err := parseKinds("crash", false); !errors.Is(err, holdfast.Invalid) || !strings.Contains(err.Error(), "-keeper") {
		t.Errorf("got %v, want Invalid with what to do", err)
	}
}

// block is the content of a version of a block.
func block(b int, v uint64) []byte {
	p := make([]byte, blockBytes)
	fillBlock(p, b, v)
	return p
}

func TestModelKnowsWhatABlockMayHold(t *testing.T) {
	m := newModel(4 * blockBytes)
	if err := m.seen(0, block(0, 0)); err != nil {
		t.Fatalf("zeros at first: %v", err)
	}
	v1 := m.beginWrite(2, 1, false)
	m.acknowledged(2, 1, v1)
	if err := m.seen(2, block(2, 0)); !errors.Is(err, holdfast.Corrupt) {
		t.Fatalf("a lost acknowledged write gives %v", err)
	}
	v2 := m.beginWrite(2, 1, false)
	for _, may := range []uint64{v1, v2} {
		m.may[2] = []uint64{v1, v2}
		if err := m.seen(2, block(2, may)); err != nil {
			t.Errorf("version %d is possible while %d is not acknowledged: %v", may, v2, err)
		}
	}
	if err := m.seen(2, block(2, v1)); !errors.Is(err, holdfast.Corrupt) {
		t.Errorf("a block that goes back from what was read gives %v", err)
	}
	if v := m.beginWrite(2, 1, true); v != 0 {
		t.Errorf("a trim has version %d", v)
	}
	m.acknowledged(2, 1, 0)
	if err := m.seen(2, block(2, v2)); !errors.Is(err, holdfast.Corrupt) {
		t.Errorf("data after a trim gives %v", err)
	}
}

// When all power was lost, what was acknowledged and not flushed may be gone; what
// a flush has covered may not.
func TestModelKnowsWhatABlackoutMayTake(t *testing.T) {
	m := newModel(4 * blockBytes)
	v1 := m.beginWrite(0, 2, false)
	m.acknowledged(0, 2, v1)
	m.flushed(m.beginFlush())
	early := m.beginFlush()
	v2 := m.beginWrite(0, 1, false)
	m.acknowledged(0, 1, v2)
	m.flushed(early) // began before: it does not cover v2
	if err := m.seen(0, block(0, v1)); !errors.Is(err, holdfast.Corrupt) {
		t.Fatalf("an old version without a blackout gives %v", err)
	}
	m.blackout()
	for b, bad := range []uint64{0, 0} {
		if err := m.seen(b, block(b, bad)); !errors.Is(err, holdfast.Corrupt) {
			t.Errorf("block %d lost what was flushed: %v", b, err)
		}
	}
	if err := m.seen(0, block(0, v1)); err != nil {
		t.Errorf("what was not flushed may be lost: %v", err)
	}
	if err := m.seen(0, block(0, v2)); !errors.Is(err, holdfast.Corrupt) {
		t.Errorf("a block that changes its mind gives %v", err)
	}
	m.blackout()
	if err := m.seen(0, block(0, v2)); err != nil {
		t.Errorf("what was read and never flushed may change with the next blackout: %v", err)
	}
}

func TestModelNoticesTornAndMisplacedBlocks(t *testing.T) {
	m := newModel(4 * blockBytes)
	v1, v2 := m.beginWrite(1, 1, false), m.beginWrite(1, 1, false)
	torn := append(block(1, v1)[:2048], block(1, v2)[2048:]...)
	if err := m.seen(1, torn); !errors.Is(err, holdfast.Corrupt) {
		t.Errorf("a torn block gives %v", err)
	}
	if err := m.seen(1, block(3, v2)); !errors.Is(err, holdfast.Corrupt) {
		t.Errorf("another block's content gives %v", err)
	}
	odd := block(1, 0)
	odd[100] = 1
	if err := m.seen(1, odd); !errors.Is(err, holdfast.Corrupt) {
		t.Errorf("zeros but for one byte give %v", err)
	}
}

// sparse makes a file of 4 MiB with one block of data.
func sparse(t *testing.T, name string, off int64, content byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(4 << 20); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(bytes.Repeat([]byte{content}, blockBytes), off); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestCompareFiles(t *testing.T) {
	const off = 3<<20 + 2*blockBytes
	a, same := sparse(t, "a", off, 7), sparse(t, "b", off, 7)
	if err := compareFiles([]string{a, same}); err != nil {
		t.Errorf("equal files: %v", err)
	}
	if err := compareFiles([]string{a, same, sparse(t, "zeros", 0, 0)}); !errors.Is(err, holdfast.Corrupt) || !strings.Contains(err.Error(), "[770]") {
		t.Errorf("the third one lacks block 770: %v", err)
	}
	if err := compareFiles([]string{sparse(t, "zeros", 0, 0), a}); !errors.Is(err, holdfast.Corrupt) {
		t.Errorf("the first one lacks a block: %v", err)
	}
	if err := os.Truncate(same, 2<<20); err != nil {
		t.Fatal(err)
	}
	if err := compareFiles([]string{a, same}); !errors.Is(err, holdfast.Corrupt) {
		t.Errorf("different lengths: %v", err)
	}
}

// fio's own words decide whether content is wrong or could not be read.
func TestFioFindsWrongContent(t *testing.T) {
	w := newFioWork(netcluster.Network{}, t.TempDir(), 0)
	at := place{path: t.TempDir()}
	run := func(seed int, more ...string) (string, error) {
		out, err := w.command(at, 0, seed, more...).CombinedOutput()
		return string(out), err
	}
	verify := []string{"--verify_only=1", "--verify_fatal=1"}
	if out, err := run(5, "--do_verify=0", "--end_fsync=1"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if out, err := run(5, verify...); err != nil || badContent().MatchString(out) {
		t.Fatalf("good content: %v\n%s", err, out)
	}
	if out, err := run(6, verify...); err == nil || !badContent().MatchString(out) {
		t.Errorf("another round's content is not noticed: %v\n%s", err, out)
	}
	f, err := os.OpenFile(filepath.Join(at.path, "fio-0"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("wrong"), 5<<20+4000); err != nil {
		t.Fatal(err)
	}
	if out, err := run(5, verify...); err == nil || !badContent().MatchString(out) {
		t.Errorf("changed content is not noticed: %v\n%s", err, out)
	}
	at.path = "/proc/nowhere"
	if out, err := run(5, verify...); err == nil || badContent().MatchString(out) {
		t.Errorf("what cannot be read is taken for wrong: %v\n%s", err, out)
	}
}

// loop makes a loop device.
func loop(t *testing.T, bytes int64) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "hf-test-chaos-device")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, bytes); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--find", "--show", file).CombinedOutput()
	if err != nil {
		t.Fatalf("losetup: %v: %s", err, out)
	}
	dev := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", dev).CombinedOutput(); err != nil {
			t.Errorf("losetup: %v: %s", err, out)
		}
	})
	return dev
}

func TestRawWorkOnADevice(t *testing.T) {
	const size = 4 << 20
	w := newRaw(size, newRNG(1))
	at := place{path: loop(t, size)}
	s := beginRaw(t, w, at)
	waitUntil(t, func() bool { return w.m.progress() > 200 })
	if !s.end(10*time.Second) || s.err() != nil {
		t.Fatalf("it ended with %v", s.err())
	}
	if err := w.verify(t.Context(), at); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(at.path, make([]byte, size), 0); err != nil {
		t.Fatal(err)
	}
	if err := w.verify(t.Context(), at); !errors.Is(err, holdfast.Corrupt) {
		t.Errorf("a device that lost all gives %v", err)
	}
}

// A device that goes on working on a node that was superseded is a writer too
// many.
func TestRawWorkNoticesThatItIsNotFenced(t *testing.T) {
	const size = 4 << 20
	w := newRaw(size, newRNG(2))
	s := beginRaw(t, w, place{path: loop(t, size)})
	waitUntil(t, func() bool { return w.m.progress() > 20 })
	s.superseded()
	select {
	case <-s.done():
	case <-time.After(20 * time.Second):
		t.Fatal("it goes on")
	}
	if !errors.Is(s.err(), holdfast.Corrupt) {
		t.Errorf("it ended with %v, want Corrupt", s.err())
	}
}

func beginRaw(t *testing.T, w *raw, at place) session {
	t.Helper()
	s, err := w.begin(t.Context(), at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.end(10 * time.Second) })
	return s
}

func waitUntil(t *testing.T, f func() bool) {
	t.Helper()
	err := netcluster.Until(t.Context(), 20*time.Second, "wait", func(context.Context) (bool, error) { return f(), fmt.Errorf("not yet") })
	if err != nil {
		t.Fatal(err)
	}
}

// A daemon that fails under its keeper is followed by another one: only its log
// tells. One that chaos has killed is none of these.
func TestDaemonsThatFailUnderAKeeperAreFound(t *testing.T) {
	line := "level=ERROR msg=\"the daemon ended by itself and is started again\" node=n1 status=%d cause=%q\n"
	text := fmt.Sprintf(line, 1, "signal: killed") + "level=INFO msg=else\n" + fmt.Sprintf(line, 2, "exit status 2")
	if killed, errs := restarted(text); killed != 1 || len(errs) != 1 || !strings.Contains(errs[0].Error(), "exit status 2") {
		t.Fatalf("got %d killed and %v, want one and the one that failed", killed, errs)
	}
}

// One warning that comes every few seconds must not bury what was said once.
func TestWhatIsSaidAgainAndAgainIsShownOnce(t *testing.T) {
	var lines []string
	for i := range 500 {
		lines = append(lines, fmt.Sprintf(`time=2026-01-01T00:00:%02dZ level=WARN msg="etcd: slow"`, i%60), fmt.Sprintf(`time=2026-01-01T00:00:%02d.5Z level=WARN msg="tombstone stays" replica=r-%x after=%d.5s`, i%60, i*4099, i))
		if i == 7 {
			lines = append(lines, `time=2026-01-01T00:00:07Z level=ERROR msg="replica lost"`)
		}
	}
	got := compact(lines, 5)
	if len(got) != 2 || !strings.Contains(got[0], "replica lost") || !strings.Contains(got[1], "after=499.5s (500 times)") {
		t.Fatalf("got %q", got)
	}
}
