package netcluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
)

// Lock makes sure that there is one run at a time. A run that was killed while
// it waited for I/O of its own volumes holds its lock until those are gone: then
// clean is called, and the lock is taken after that. Errors: InUse.
func Lock(path string, clean func() error) (unlock func(), err error) {
	const op = "lock this run"
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, holdfast.Wrap(op, err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) && isDying(f) {
		err = takeFromDying(f, clean)
	}
	if err == nil {
		err = errors.Join(f.Truncate(0), writeAtStart(f, fmt.Sprintln(os.Getpid())))
	}
	if err != nil {
		_ = f.Close()
		return nil, &holdfast.Error{Op: op, Kind: holdfast.InUse, Msg: "another one is running; wait for it or end it", Err: err}
	}
	return func() { _ = f.Close() }, nil
}

// takeFromDying cleans up after a holder that was killed, one at a time, and
// takes the lock when its threads have ended.
func takeFromDying(f *os.File, clean func() error) error {
	one, err := os.OpenFile(f.Name()+".cleaning", os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return holdfast.Wrap("clean up after a killed run", err)
	}
	defer func() { _ = one.Close() }()
	if err := unix.Flock(int(one.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return holdfast.Wrap("clean up after a killed run", err)
	}
	if err := clean(); err != nil {
		return err
	}
	return Until(context.Background(), 10*time.Second, "clean up after a killed run", func(context.Context) (bool, error) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		return err == nil, err
	})
}

func writeAtStart(f *os.File, text string) error {
	_, err := f.WriteAt([]byte(text), 0)
	return err
}

// isDying says whether the holder of the lock has been killed, and only waits
// for threads that hang.
func isDying(f *os.File) bool {
	raw, err := io.ReadAll(io.NewSectionReader(f, 0, 100))
	if err != nil {
		return false
	}
	stat, err := os.ReadFile("/proc/" + strings.TrimSpace(string(raw)) + "/stat")
	if err != nil {
		return errors.Is(err, os.ErrNotExist)
	}
	_, rest, ok := strings.Cut(string(stat), ") ")
	return ok && (strings.HasPrefix(rest, "Z") || strings.HasPrefix(rest, "X"))
}
