package fuseloop

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
)

// Opening and configuring what this process serves waits for answers of its own:
// LOOP_CONFIGURE flushes the file, setting a size or the state of the loop device
// waits for I/O in flight. A thread that waits for an answer which the server has
// begun and not given cannot be killed, and shares the process's descriptors:
// killed then, the process would keep /dev/fuse open, so the connection would
// never end, and neither would the process. Hence a process of its own does such
// things. It has none of this process's descriptors (all are close-on-exec), so
// with this process its connections end, and then it ends by itself.
//
// What such a helper does late, after its daemon has died, is harmless:
//   - bind: see boundLate. Either the successor's cleaning finds the loop device,
//     or the helper finds the mount gone and clears it.
//   - grow: the successor's server accepts only the size that it has itself.
//   - clear, keep: not begun any more when the daemon is gone, which is looked at
//     when the loop device is open: from then on it cannot become another's.

// One helper does all such operations, each in a thread of its own, and is started
// when there is something to do: to start this program takes longer than what it
// then does. See helpers.

// HelperArg is the argument by which a program is told to call RunHelper.
const HelperArg = "fuseloop-helper"

// task is one operation on a device that may wait for the device's own server.
type task struct {
	ID        uint64 // tells the answers apart
	Do        string // one of the operations below
	Parent    int    // process for which it is done; 0: this one
	File      string // path of the volume's file
	ReadOnly  bool
	Blk       int
	SizeBytes int64
	Loop      loopDevice
	Flags     int // of the open
}

// The operations.
const (
	taskBind  = "bind"
	taskGrow  = "grow"
	taskClear = "clear"
	taskKeep  = "keep"
)

// answer is what a helper says.
type answer struct {
	ID    uint64 // of the task
	Loop  loopDevice
	Error string        // empty: done
	Kind  holdfast.Kind // of the error
	Errno unix.Errno    // of the error, 0 if it has none
}

// RunHelper does the operations that come in, each as soon as it comes and beside
// the others, writes how they went to out, and returns the exit code. It ends with
// in, which ends with the daemon, and when all that was begun is done.
func RunHelper(in io.Reader, out io.Writer) int {
	var (
		under sync.WaitGroup
		mu    sync.Mutex // guards the rest
		lost  bool
	)
	answers := json.NewEncoder(out)
	tasks := json.NewDecoder(in)
	for {
		var t task
		if err := tasks.Decode(&t); err != nil {
			under.Wait()
			if lost || !errors.Is(err, io.EOF) {
				return 1
			}
			return 0
		}
		under.Go(func() {
			a := t.answer()
			mu.Lock()
			defer mu.Unlock()
			lost = answers.Encode(a) != nil || lost
		})
	}
}

// answer does the operation and says how it went.
func (t task) answer() answer {
	a := answer{ID: t.ID}
	var err error
	if a.Loop, err = t.run(); err != nil {
		a.Error, a.Kind = err.Error(), holdfast.KindOf(err)
		if !errors.As(err, &a.Errno) && errors.Is(err, os.ErrNotExist) {
			a.Errno = unix.ENOENT
		}
	}
	return a
}

// errnoError is an error of a helper that callers branch on.
type errnoError struct {
	text  string
	errno unix.Errno
}

func (e *errnoError) Error() string { return e.text }
func (e *errnoError) Unwrap() error { return e.errno }

func (a answer) err() error {
	if a.Error == "" {
		return nil
	}
	err := errors.New(a.Error)
	if a.Errno != 0 {
		err = &errnoError{text: a.Error, errno: a.Errno}
	}
	if a.Kind != holdfast.Other {
		err = holdfast.WrapKind("", a.Kind, err)
	}
	return err
}

// run does the operation in this process.
func (t task) run() (loopDevice, error) {
	switch t.Do {
	case taskBind:
		return t.bind()
	case taskGrow:
		return t.Loop, t.grow()
	case taskClear:
		return t.Loop, t.Loop.clear(t.Flags, t.wanted)
	case taskKeep:
		return t.Loop, t.Loop.keep(t.wanted)
	}
	return t.Loop, holdfast.E("help", holdfast.Invalid, fmt.Sprintf("there is no operation %q", t.Do))
}

// wanted says whether the process for which this is done still lives.
func (t task) wanted() bool { return t.Parent == 0 || t.Parent == os.Getppid() }

// bind opens the file and gives it to a loop device. It does not keep the file
// open: see the package comment.
func (t task) bind() (loopDevice, error) {
	flags := unix.O_RDWR
	if t.ReadOnly {
		flags = unix.O_RDONLY
	}
	// Not by os.OpenFile: that has the runtime's epoll instance ask the file
	// whether it can be polled, which holds up the reader that would answer.
	fd, err := unix.Open(t.File, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return loopDevice{}, holdfast.WrapKind("open the volume's file", holdfast.Unavailable, err)
	}
	defer unix.Close(fd)
	// Asked by poll(2), which holds up nobody, the server answers ENOSYS: the
	// kernel then never asks again, whoever opens the file in whatever way.
	if err := pollOnce(fd); err != nil {
		return loopDevice{}, holdfast.WrapKind("poll the volume's file", holdfast.Unavailable, err)
	}
	// The kernel flushes the file while it binds, and meanwhile nobody else on this
	// machine gets a loop device: a backend that does not answer is met before.
	if err := unix.Fsync(fd); err != nil {
		return loopDevice{}, holdfast.WrapKind("flush the volume's file", holdfast.Unavailable, err)
	}
	l, err := attachLoop(fd, t.File, t.Blk)
	if err != nil {
		return loopDevice{}, err
	}
	err = l.tune(t.Blk, t.ReadOnly)
	if err == nil && boundLate(fd, filepath.Dir(t.File)) {
		err = holdfast.E("bind "+l.Path, holdfast.Unavailable, "the filesystem of the volume's file is gone")
	}
	if err != nil {
		return loopDevice{}, errors.Join(err, l.clear(0, t.always))
	}
	return l, nil
}

// always is for what is to be undone whoever lives.
func (task) always() bool { return true }

// boundLate says whether a file that was bound just now is of a filesystem that
// is not the one mounted at dir any more. Whoever cleans up takes first the mount
// away and then looks for loop devices (clean): so either the mount is seen gone
// here, or the binding is seen there. The number of the filesystem cannot become
// another's while the file is open.
func boundLate(fd int, dir string) bool {
	var st unix.Statx_t // asks for nothing that the server would have to be asked
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, 0, &st); err != nil {
		return true
	}
	var at unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, dir, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT|unix.AT_STATX_DONT_SYNC, 0, &at)
	return err != nil || at.Dev_major != st.Dev_major || at.Dev_minor != st.Dev_minor
}

// grow tells the kernel the file's new size, and the loop device. Asking for the
// attributes again would not do: the kernel drops the answer when a write ends
// meanwhile.
func (t task) grow() error {
	if err := unix.Truncate(t.File, t.SizeBytes); err != nil {
		return holdfast.WrapKind("resize the volume's file", holdfast.Unavailable, err)
	}
	return holdfast.WrapKind("resize "+t.Loop.Path, holdfast.Unavailable, t.Loop.resize())
}
