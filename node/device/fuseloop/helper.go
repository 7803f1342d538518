package fuseloop

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/node/device/blockdev"
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

// HelperArg is the argument by which a program is told to call RunHelper with the
// arguments after it.
const HelperArg = "fuseloop-helper"

// task is one operation on a device that may wait for the device's own server.
type task struct {
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
	Loop  loopDevice
	Error string        // empty: done
	Kind  holdfast.Kind // of the error
	Errno unix.Errno    // of the error, 0 if it has none
}

// RunHelper does the one operation that args describe, writes how it went to out
// and returns the exit code.
func RunHelper(args []string, out io.Writer) int {
	var (
		t task
		a answer
	)
	err := fmt.Errorf("one argument is needed, not %d", len(args))
	if len(args) == 1 {
		err = json.Unmarshal([]byte(args[0]), &t)
	}
	if err == nil {
		a.Loop, err = t.run()
	}
	if err != nil {
		a.Error, a.Kind = err.Error(), holdfast.KindOf(err)
		if !errors.As(err, &a.Errno) && errors.Is(err, os.ErrNotExist) {
			a.Errno = unix.ENOENT
		}
	}
	if err := json.NewEncoder(out).Encode(a); err != nil {
		return 1
	}
	return 0
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

// do has t done by a helper, or here if there is none. When ctx ends first the
// helper is left to itself.
func (f *FrontEnd) do(ctx context.Context, t task) (loopDevice, error) {
	if len(f.helper) == 0 {
		return t.run()
	}
	t.Parent = os.Getpid()
	arg, err := json.Marshal(t)
	if err != nil {
		return loopDevice{}, holdfast.WrapKind("describe an operation", holdfast.Other, err)
	}
	var out, stderr bytes.Buffer
	cmd := exec.Command(f.helper[0], append(f.helper[1:len(f.helper):len(f.helper)], string(arg))...)
	cmd.Stdout, cmd.Stderr = &out, &stderr
	// A terminal's signals are meant for the daemon, which then ends its devices
	// in order.
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return loopDevice{}, holdfast.WrapKind("start a helper process", holdfast.Unavailable, err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case err = <-done:
	case <-ctx.Done():
		f.log.Warn("a helper process is left to itself", "do", t.Do, "file", t.File, "device", t.Loop.Path, "pid", cmd.Process.Pid)
		return loopDevice{}, holdfast.WrapKind(t.Do+": the kernel did not finish in time", holdfast.Unavailable, ctx.Err())
	}
	if err == nil {
		var a answer
		if err = json.Unmarshal(out.Bytes(), &a); err == nil {
			return a.Loop, a.err()
		}
	}
	return loopDevice{}, holdfast.WrapKind(t.Do+": the helper process failed: "+strings.TrimSpace(stderr.String()), holdfast.Unavailable, err)
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
	is, err := blockdev.MountedDev(dir, fsType, fmt.Sprintf("%d:%d", st.Dev_major, st.Dev_minor))
	return err != nil || !is
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
