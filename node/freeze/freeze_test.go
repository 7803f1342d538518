package freeze

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
)

// scene is a mounted filesystem on a loop device.
type scene struct {
	*testing.T
	dir, dev, mnt string
	f             *Freezer
}

func newScene(t *testing.T, fsType string) *scene {
	t.Helper()
	dir, err := os.MkdirTemp("", "hf-test-freeze-")
	if err != nil {
		t.Fatal(err)
	}
	s := &scene{T: t, dir: dir, mnt: filepath.Join(dir, "mnt")}
	t.Cleanup(s.clean)
	img := filepath.Join(dir, "img")
	s.ok(os.Mkdir(s.mnt, 0o700), os.WriteFile(img, nil, 0o600), os.Truncate(img, 320<<20))
	s.sh("mkfs."+fsType, "-q", img)
	s.dev = s.sh("losetup", "--find", "--show", img)
	s.sh("mount", "-t", fsType, s.dev, s.mnt)
	s.begin()
	return s
}

func (s *scene) begin(protect ...string) {
	s.Helper()
	f, err := New(Config{Dir: filepath.Join(s.dir, "notes"), Protect: protect, Log: slog.New(slog.DiscardHandler)})
	s.ok(err)
	s.f = f
}

func (s *scene) clean() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_ = s.f.Close(ctx)
	if d, err := os.Open(s.mnt); err == nil {
		_ = thaw(d) // or it could not be unmounted
		_ = d.Close()
	}
	_ = unix.Unmount(s.mnt, unix.MNT_DETACH)
	if s.dev != "" {
		_ = exec.Command("losetup", "-d", s.dev).Run()
	}
	_ = os.RemoveAll(s.dir)
}

func (s *scene) ok(errs ...error) {
	s.Helper()
	if err := errors.Join(errs...); err != nil {
		s.Fatal(err)
	}
}

func (s *scene) sh(name string, args ...string) string {
	s.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		s.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
	return strings.TrimSpace(string(out))
}

func (s *scene) freeze(token string, limit time.Duration) {
	s.Helper()
	frozen, err := s.f.Freeze(s.Context(), Request{Volume: "v", Device: s.dev, Token: token, Limit: limit})
	if err != nil || !frozen {
		s.Fatalf("frozen %v, %v", frozen, err)
	}
}

// write begins to write to the filesystem, and gives what tells that it is done.
func (s *scene) write() chan error {
	done := make(chan error, 1)
	go func() { done <- os.WriteFile(filepath.Join(s.mnt, "x"), []byte("x"), 0o600) }()
	return done
}

// waits fails unless a write waits because the filesystem is frozen.
func (s *scene) waits(done chan error) {
	s.Helper()
	select {
	case err := <-done:
		s.Fatalf("a write to a frozen filesystem is done: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
}

func (s *scene) goesOn(done chan error) {
	s.Helper()
	select {
	case err := <-done:
		s.ok(err)
	case <-time.After(30 * time.Second):
		s.Fatal("a write waits though the filesystem is thawed")
	}
}

func (s *scene) wantNotes(n int) {
	s.Helper()
	got, err := filepath.Glob(filepath.Join(s.dir, "notes", "*"))
	if s.ok(err); len(got) != n {
		s.Fatalf("notes %v, want %d", got, n)
	}
}

func both(t *testing.T, f func(*scene)) {
	for _, fsType := range []string{"xfs", "ext4"} {
		t.Run(fsType, func(t *testing.T) { f(newScene(t, fsType)) })
	}
}

func TestFreezeAndThaw(t *testing.T) {
	both(t, func(s *scene) {
		s.freeze("a", time.Minute)
		s.freeze("a", time.Minute) // again is the same
		s.wantNotes(1)
		w := s.write()
		s.waits(w)
		if _, err := s.f.Freeze(t.Context(), Request{Volume: "v", Device: s.dev, Token: "b"}); !errors.Is(err, holdfast.Busy) {
			s.Errorf("frozen twice: %v", err)
		}
		if err := s.f.Thaw(t.Context(), "v", "b"); !errors.Is(err, holdfast.Unavailable) {
			s.Errorf("thawed with another's token: %v", err)
		}
		s.waits(w)
		s.ok(s.f.Thaw(t.Context(), "v", "a"))
		s.goesOn(w)
		s.wantNotes(0)
		if err := s.f.Thaw(t.Context(), "v", "a"); !errors.Is(err, holdfast.Unavailable) {
			s.Errorf("thawed twice: %v", err)
		}
		s.ok(s.f.Release(t.Context(), "v")) // nothing is frozen
	})
}

// A caller that never comes back.
func TestWatchdog(t *testing.T) {
	both(t, func(s *scene) {
		s.freeze("a", 300*time.Millisecond)
		s.goesOn(s.write())
		if err := s.f.Thaw(t.Context(), "v", "a"); !errors.Is(err, holdfast.Unavailable) {
			s.Errorf("the freeze was held, it says: %v", err)
		}
		s.ok(s.f.Release(t.Context(), "v"))
		s.wantNotes(0)
	})
}

// The daemon is killed while a filesystem is frozen.
func TestNextProcessThaws(t *testing.T) {
	both(t, func(s *scene) {
		s.freeze("a", time.Minute)
		w := s.write()
		s.waits(w)
		s.ok(s.f.Abandon())
		s.waits(w)
		s.wantNotes(1)
		s.begin()
		s.goesOn(w)
		s.ok(s.f.Release(t.Context(), "v"))
		s.wantNotes(0)
		s.freeze("b", time.Minute)
		s.ok(s.f.Thaw(t.Context(), "v", "b"))
	})
}

func TestUnmountedAfterRelease(t *testing.T) {
	s := newScene(t, "xfs")
	s.freeze("a", time.Minute)
	if err := unix.Unmount(s.mnt, 0); !errors.Is(err, unix.EBUSY) {
		t.Fatalf("a frozen filesystem was unmounted: nobody could thaw it: %v", err)
	}
	s.ok(s.f.Release(t.Context(), "v"), unix.Unmount(s.mnt, 0))
	frozen, err := s.f.Freeze(t.Context(), Request{Volume: "v", Device: s.dev, Token: "b"})
	if err != nil || frozen {
		t.Errorf("nothing is mounted: frozen %v, %v", frozen, err)
	}
}

func TestClosedThaws(t *testing.T) {
	s := newScene(t, "ext4")
	s.freeze("a", time.Minute)
	s.ok(s.f.Close(t.Context()))
	s.goesOn(s.write())
	if _, err := s.f.Freeze(t.Context(), Request{Volume: "v", Device: s.dev, Token: "b"}); !errors.Is(err, holdfast.Unavailable) {
		t.Errorf("frozen after the end: %v", err)
	}
}

// What somebody else has frozen is not ours to thaw, and what the daemon lives on
// is never frozen.
func TestNotFrozen(t *testing.T) {
	s := newScene(t, "xfs")
	s.sh("fsfreeze", "--freeze", s.mnt)
	w := s.write()
	if _, err := s.f.Freeze(t.Context(), Request{Volume: "v", Device: s.dev, Token: "a"}); !errors.Is(err, holdfast.Unavailable) {
		t.Errorf("what is frozen was frozen: %v", err)
	}
	s.ok(s.f.Release(t.Context(), "v"))
	s.wantNotes(0)
	s.waits(w)
	s.sh("fsfreeze", "--unfreeze", s.mnt)
	s.goesOn(w)
	s.ok(s.f.Close(t.Context()))
	s.begin(filepath.Join(s.mnt, "not", "there", "yet"))
	if _, err := s.f.Freeze(t.Context(), Request{Volume: "v", Device: s.dev, Token: "a"}); !errors.Is(err, holdfast.Denied) {
		t.Errorf("the daemon's own filesystem was frozen: %v", err)
	}
}

func TestNotesOfNobody(t *testing.T) {
	s := newScene(t, "ext4")
	s.ok(s.f.Close(t.Context()))
	notes := filepath.Join(s.dir, "notes")
	s.ok(os.WriteFile(filepath.Join(notes, "cut.json"), []byte(`{"version":1,"vol`), 0o600),
		os.WriteFile(filepath.Join(notes, "old.json"), []byte(`{"version":1,"volume":"old","boot":"another","device":"7:0"}`), 0o600))
	s.begin()
	s.wantNotes(0)
	// The lock says that the child of a killed process is about to freeze it.
	s.freeze("a", time.Minute)
	held, err := os.Open(filepath.Join(notes, "v.json"))
	s.ok(err)
	defer func() { _ = held.Close() }()
	s.ok(s.f.Abandon(), unix.Flock(int(held.Fd()), unix.LOCK_EX))
	s.begin()
	w := s.write()
	s.waits(w)
	s.ok(held.Close())
	s.goesOn(w)
}

// The device takes nothing: nobody waits for it, and when it does at last, the
// filesystem is not left frozen.
func TestDeviceThatHangs(t *testing.T) {
	below := newScene(t, "xfs")
	img, mnt := filepath.Join(below.mnt, "img"), filepath.Join(below.dir, "above")
	below.ok(os.WriteFile(img, nil, 0o600), os.Truncate(img, 64<<20), os.Mkdir(mnt, 0o700))
	below.sh("mkfs.ext4", "-q", img)
	dev := below.sh("losetup", "--find", "--show", img)
	t.Cleanup(func() {
		_ = below.f.Release(context.Background(), "v")
		_ = unix.Unmount(mnt, unix.MNT_DETACH)
		_ = exec.Command("losetup", "-d", dev).Run()
	})
	below.sh("mount", dev, mnt)
	below.ok(os.WriteFile(filepath.Join(mnt, "dirty"), make([]byte, 1<<20), 0o600))
	below.freeze("below", time.Minute)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := below.f.Freeze(ctx, Request{Volume: "above", Device: dev, Token: "a"}); !errors.Is(err, holdfast.Unavailable) {
		t.Fatalf("frozen though nothing is written: %v", err)
	}
	x, err := below.f.begin(Request{Volume: "above", Device: dev, Token: "b", Limit: 100 * time.Millisecond}, mounted{mnt, ""})
	below.ok(err)
	<-x.end // the watchdog's
	below.ok(below.f.Thaw(t.Context(), "v", "below"))
	below.ok(x.wait(t.Context()))
	below.ok(os.WriteFile(filepath.Join(mnt, "more"), nil, 0o600))
}
