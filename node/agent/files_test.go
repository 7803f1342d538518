package agent

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
)

// TestFilesAreKeptForWhatMustNotFail opens files until no more than a part of the
// limit is left.
func TestFilesAreKeptForWhatMustNotFail(t *testing.T) {
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	now := was
	now.Cur = 800
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &now); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
			t.Error(err)
		}
	}()
	opened := 0
	for {
		if err := enoughFiles(filesKeptFromReplicas); err != nil {
			if holdfast.KindOf(err) != holdfast.NoSpace {
				t.Errorf("refused is with %v", err)
			}
			break
		}
		f, err := os.Open("/dev/null")
		if err != nil {
			t.Fatalf("after %d files: %v", opened, err)
		}
		defer f.Close()
		opened++
	}
	if opened < 500 || opened > 700 {
		t.Errorf("refused after %d files of 800", opened)
	}
	if err := enoughFiles(filesKeptFromDevices); err != nil {
		t.Errorf("a device is refused too: %v", err)
	}
}
