package mountpoint

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
)

// tempDir is a folder that goes away whatever is guarded in it.
func tempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "hf-test-mountpoint-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(ReleaseBelow(dir), os.RemoveAll(dir)); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func mount(t *testing.T, fsType, dir string) {
	t.Helper()
	if err := unix.Mount("hf-test", dir, fsType, 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func wantErr(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

func TestAGuardedPathRefusesWritesUntilItIsReleased(t *testing.T) {
	dir := tempDir(t)
	d, f := filepath.Join(dir, "d"), filepath.Join(dir, "f")
	must(t, os.Mkdir(d, 0o755), os.WriteFile(f, nil, 0o600))
	for range 2 { // guarding is idempotent
		must(t, Guard(d), Guard(f))
	}
	wantErr(t, "create in the directory", os.WriteFile(d+"/x", []byte("lost"), 0o600), unix.EPERM)
	wantErr(t, "make a directory in it", os.Mkdir(d+"/x", 0o700), unix.EPERM)
	wantErr(t, "write the file", os.WriteFile(f, []byte("lost"), 0o600), unix.EPERM)
	wantErr(t, "remove the directory", os.Remove(d), unix.EPERM)
	wantErr(t, "remove the file", os.Remove(f), unix.EPERM)
	for range 2 {
		must(t, Release(d), Release(f))
	}
	must(t, os.WriteFile(d+"/x", nil, 0o600), os.WriteFile(f, []byte("kept"), 0o600))
}

func TestWhatIsNoBareMountPointIsLeftAlone(t *testing.T) {
	dir := tempDir(t)
	full, content, link := filepath.Join(dir, "full"), filepath.Join(dir, "content"), filepath.Join(dir, "link")
	bare := filepath.Join(dir, "bare")
	must(t, os.Mkdir(full, 0o755), os.WriteFile(full+"/x", nil, 0o600), os.WriteFile(content, []byte("x"), 0o600),
		os.Mkdir(bare, 0o755), os.Symlink(bare, link))
	wantErr(t, "a directory with files", Guard(full), holdfast.InUse)
	wantErr(t, "a file with content", Guard(content), holdfast.InUse)
	wantErr(t, "a symbolic link", Guard(link), holdfast.Invalid)
	wantErr(t, "a device", Guard("/dev/null"), holdfast.Invalid)
	wantErr(t, "nothing", Guard(filepath.Join(dir, "none")), os.ErrNotExist)
	must(t, Release(link), Release("/dev/null"), Release(filepath.Join(dir, "none")), Release(filepath.Join(content, "below")))
	must(t, os.WriteFile(full+"/y", nil, 0o600), os.WriteFile(content, []byte("y"), 0o600), os.WriteFile(bare+"/x", nil, 0o600))

	// Somebody's own attribute on a directory with files stays.
	f, err := open(full)
	must(t, err, f.set(true), Release(full))
	wantErr(t, "create where somebody forbids it", os.WriteFile(full+"/z", nil, 0o600), unix.EPERM)
	must(t, f.set(false), f.Close())
}

// Neither the root of what is mounted nor, through it, what is below it is touched.
func TestTheRootOfAMountIsLeftAlone(t *testing.T) {
	dir := tempDir(t)
	mp := filepath.Join(dir, "mp")
	must(t, os.Mkdir(mp, 0o755), Guard(mp))
	mount(t, "tmpfs", mp)
	wantErr(t, "guard the root of a mount", Guard(mp), holdfast.InUse)
	wantErr(t, "release the root of a mount", Release(mp), holdfast.InUse)
	must(t, os.Mkdir(mp+"/guarded", 0o755), os.Mkdir(mp+"/taken", 0o755), Guard(mp+"/guarded"), ReleaseBelow(dir))
	wantErr(t, "write what is guarded within the mount", os.Mkdir(mp+"/guarded/x", 0o755), unix.EPERM)
	// A bind of a file, or of a directory of the same filesystem, is a mount as well.
	from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
	must(t, os.WriteFile(from, nil, 0o600), os.WriteFile(to, nil, 0o600), unix.Mount(from, to, "", unix.MS_BIND, ""))
	wantErr(t, "guard a bound file", Guard(to), holdfast.InUse)
	must(t, unix.Unmount(to, 0), unix.Unmount(mp, unix.MNT_DETACH))
	wantErr(t, "write the bare directory", os.Mkdir(mp+"/x", 0o755), unix.EPERM)
}

func TestLeftoversAreReleasedTogether(t *testing.T) {
	dir := tempDir(t)
	d, f := filepath.Join(dir, "a/b/mount"), filepath.Join(dir, "a/block")
	must(t, os.MkdirAll(d, 0o755), os.WriteFile(f, nil, 0o600), Guard(d), Guard(f))
	if err := os.RemoveAll(filepath.Join(dir, "a")); err == nil {
		t.Fatal("the test proves nothing: guarded leftovers were removed")
	}
	must(t, ReleaseBelow(dir), os.RemoveAll(filepath.Join(dir, "a")), ReleaseBelow(filepath.Join(dir, "a")))
}

func TestAFilesystemWithoutAttributes(t *testing.T) {
	dir := tempDir(t)
	mount(t, "ramfs", dir)
	d := filepath.Join(dir, "d")
	must(t, os.Mkdir(d, 0o755))
	wantErr(t, "guard", Guard(d), holdfast.Unsupported)
	must(t, Release(d), ReleaseBelow(dir), os.Remove(d), unix.Unmount(dir, 0))
}
