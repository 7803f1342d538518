// Package aio reads and syncs files by the kernel's asynchronous I/O, io_submit(2). The
// goroutine that waits for it waits as for a socket: no thread sits in the kernel, and
// Go's scheduler has nothing to hand over.
//
// It promises that Do returns when the operation is over, so that the kernel has no
// memory of the caller afterwards; and that what the kernel did not take, or could not do
// at once, is reported as refused, for the caller to do otherwise. A context serves one
// caller at a time. It owns no goroutine.
//
// Files to read must be open with O_DIRECT, on a filesystem mounted with noatime: of
// others the kernel reads, or writes the time of access, before io_submit returns, and
// keeps a processor of Go's meanwhile. It does not write: while a filesystem is frozen
// (fsfreeze(8)) io_submit waits with a write, whatever it was told, and the whole
// process with it.
package aio

import (
	"errors"
	"os"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
)

// Constants of linux/aio_abi.h, and the mark of the ring's layout, which QEMU and fio
// read as well: struct aio_ring of the kernel's fs/aio.c.
const (
	cmdRead    = 0
	cmdSync    = 3 // fdatasync; since Linux 4.18
	flagNotify = 1 // IOCB_FLAG_RESFD
	ringMagic  = 0xa10a10a1
)

// control is struct iocb of linux/aio_abi.h, on machines that are little-endian.
type control struct {
	_           uint64 // for the caller
	_, rwFlags  uint32
	command     uint16
	_           int16
	fd          uint32
	mem, length uint64
	off         int64
	_           uint64
	flags       uint32
	notify      uint32
}

// event is struct io_event.
type event struct {
	user, control uint64
	result, _     int64
}

// ring is struct aio_ring: what has ended, from head, which its reader moves, to tail.
type ring struct {
	id, entries      uint32
	head, tail       uint32
	magic            uint32
	compat, incompat uint32
	headerBytes      uint32
}

// Op is one operation: a read, or a sync of the file's content (fdatasync). P must not
// be empty but for a sync, which has no Off either.
type Op struct {
	FD   int
	Sync bool
	P    []byte
	Off  int64

	// N is how many bytes were read; Errno why it failed. Refused says that the kernel
	// did not do it this way, with Errno for why, and that it may do it by ordinary
	// calls.
	N       int
	Errno   unix.Errno
	Refused bool
}

// Context is one AIO context with an eventfd, by which Go's poller learns that
// something has ended.
type Context struct {
	name   uintptr
	done   *os.File // the eventfd, which nobody needs to read
	notify uint32   // its number
	raw    syscall.RawConn
	ring   *ring
	events []event

	// Of the call under way.
	mem     []byte // where the kernel reads to: not on a stack, which may move
	control control
	begun   *control // it, as the kernel is told: a list of one
	result  int64
	over    bool
	try     func(uintptr) bool // take, bound once
}

// New makes a context. Errors are of kind Unsupported where the kernel has no
// asynchronous I/O, and NoSpace when all that it allows is in use
// (/proc/sys/fs/aio-max-nr), or all files that the process may have open.
func New() (*Context, error) {
	const op = "set up asynchronous I/O"
	// First what there may be none left of: a context takes long to destroy.
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		return nil, holdfast.WrapKind(op, holdfast.NoSpace, err)
	}
	c := &Context{done: os.NewFile(uintptr(fd), "aio"), notify: uint32(fd)}
	c.begun, c.try = &c.control, c.take
	if _, _, errno := unix.Syscall(unix.SYS_IO_SETUP, 1, uintptr(unsafe.Pointer(&c.name)), 0); errno != 0 {
		kind := holdfast.Unsupported
		if errno == unix.EAGAIN || errno == unix.ENOMEM {
			kind = holdfast.NoSpace
		}
		_ = c.done.Close()
		return nil, holdfast.WrapKind(op, kind, errno)
	}
	// The context's name is the address at which the kernel has mapped its ring.
	c.ring = *(**ring)(unsafe.Pointer(&c.name))
	if c.ring.magic != ringMagic || c.ring.incompat != 0 {
		_ = c.Close()
		return nil, holdfast.E(op, holdfast.Unsupported, "the kernel's ring of completions has another layout")
	}
	c.events = unsafe.Slice((*event)(unsafe.Add(unsafe.Pointer(c.ring), c.ring.headerBytes)), c.ring.entries)
	if c.raw, err = c.done.SyscallConn(); err != nil {
		return nil, holdfast.Wrap(op, errors.Join(err, c.Close()))
	}
	return c, nil
}

// Close gives the context back.
func (c *Context) Close() error {
	_, _, _ = unix.Syscall(unix.SYS_IO_DESTROY, c.name, 0, 0)
	return c.done.Close()
}

// Do does the operation. To submit it does not wait for any disk, so Go's scheduler is
// not told.
func (c *Context) Do(o *Op) {
	o.N, o.Errno, o.Refused, c.over = 0, 0, false, false
	c.control = control{fd: uint32(o.FD), command: cmdSync, flags: flagNotify, notify: c.notify}
	if !o.Sync {
		c.mem = o.P
		c.control.command, c.control.rwFlags = cmdRead, unix.RWF_NOWAIT
		c.control.mem, c.control.length, c.control.off = uint64(uintptr(unsafe.Pointer(&c.mem[0]))), uint64(len(o.P)), o.Off
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_IO_SUBMIT, c.name, 1, uintptr(unsafe.Pointer(&c.begun))); errno != 0 {
		o.Errno, o.Refused, c.mem = errno, true, nil
		return
	}
	if c.raw.Read(c.try) != nil {
		c.wait()
	}
	c.mem = nil
	if c.result >= 0 {
		o.N = int(c.result)
		return
	}
	o.Errno = unix.Errno(-c.result)
	if o.Sync {
		return // what was lost is reported once: another sync would not tell
	}
	switch o.Errno {
	case unix.EAGAIN, unix.EINTR, unix.EINVAL, unix.EOPNOTSUPP:
		o.Refused = true
	}
}

// take looks whether the operation has ended.
func (c *Context) take(uintptr) bool {
	if head := c.ring.head; head != atomic.LoadUint32(&c.ring.tail) {
		c.ended(&c.events[head])
		atomic.StoreUint32(&c.ring.head, (head+1)%c.ring.entries)
	}
	return c.over
}

func (c *Context) ended(e *event) { c.result, c.over = e.result, true }

// wait has a thread wait: going back would leave the caller's memory to the kernel.
func (c *Context) wait() {
	var e event
	for !c.over {
		n, _, errno := unix.Syscall6(unix.SYS_IO_GETEVENTS, c.name, 1, 1, uintptr(unsafe.Pointer(&e)), 0, 0)
		switch {
		case errno == 0 && n == 1:
			c.ended(&e)
		case errno != 0 && errno != unix.EINTR: // no other is specified for a context that is there
			panic("aio: waiting for what was submitted: " + errno.Error())
		}
	}
}
