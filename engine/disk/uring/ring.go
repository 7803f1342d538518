// Package uring does many reads and writes of files with one system call, by the
// kernel's io_uring.
//
// It promises that Do returns when all operations it was given are over, so that
// the kernel has no memory of the caller afterwards, and that what the kernel
// does not take by io_uring is reported as such, for the caller to do otherwise.
// A ring serves one caller at a time. It uses no feature newer than Linux 5.6;
// where io_uring is missing or forbidden New fails. It owns no goroutine.
//
// The layout is that of linux/io_uring.h: a ring of submissions and one of
// completions in memory shared with the kernel, each with a head that its reader
// moves and a tail that its writer moves.
package uring

import (
	"runtime"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
)

// Constants of linux/io_uring.h.
const (
	setupCoopTaskrun = 1 << 8 // since 5.19: completions do not interrupt the waiting thread
	featSingleMmap   = 1 << 0
	featNoDrop       = 1 << 1
	featExtArg       = 1 << 8 // since 5.11: waiting may have an end
	enterGetEvents   = 1 << 0
	enterExtArg      = 1 << 3
	offSubmissions   = 0
	offEntries       = 0x10000000
	opRead           = 22
	opWrite          = 23
)

// params is struct io_uring_params.
type params struct {
	sqEntries, cqEntries, flags, sqThreadCPU, sqThreadIdle, features, wqFD uint32
	_                                                                      [3]uint32
	sq                                                                     sqOffsets
	cq                                                                     cqOffsets
}

type sqOffsets struct {
	head, tail, ringMask, ringEntries, flags, dropped, array, _ uint32
	_                                                           uint64
}

type cqOffsets struct {
	head, tail, ringMask, ringEntries, overflow, cqes, flags, _ uint32
	_                                                           uint64
}

// submission is struct io_uring_sqe, completion struct io_uring_cqe.
type submission struct {
	op, flags      uint8
	prio           uint16
	fd             int32
	off, addr      uint64
	length, rwFlag uint32
	user           uint64
	_              [3]uint64
}

type completion struct {
	user  uint64
	res   int32
	flags uint32
}

// getEvents is struct io_uring_getevents_arg.
type getEvents struct {
	mask           uint64
	maskSize, wait uint32
	until          uint64 // address of a struct timespec
}

// Op is one read or write. P must not be empty.
type Op struct {
	FD    int
	Write bool
	P     []byte
	Off   int64
	// N is how many bytes were read or written, Errno why it failed. EAGAIN:
	// the kernel did not do it this way.
	N     int
	Errno unix.Errno
}

// Ring is one io_uring.
type Ring struct {
	fd            int
	shared, memSQ []byte // to unmap
	entries       []submission
	sqHead        *atomic.Uint32
	sqTail        *atomic.Uint32
	sqMask        uint32
	cqHead        *atomic.Uint32
	cqTail        *atomic.Uint32
	cqMask        uint32
	completions   []completion
	bounded       bool          // the kernel knows featExtArg
	until         unix.Timespec // of the wait under way, as the kernel reads it
	events        getEvents
	waits         uint          // with the processor kept
	each          time.Duration // what the thread computed for each operation in the last of these that was measured
}

// New makes a ring for up to entries operations at once, a power of two. The
// error is of kind Unsupported.
func New(entries int) (*Ring, error) {
	const op = "set up io_uring"
	p := params{flags: setupCoopTaskrun}
	fd, errno := setup(entries, &p)
	if errno == unix.EINVAL { // an older kernel
		p = params{}
		fd, errno = setup(entries, &p)
	}
	if errno != 0 {
		return nil, holdfast.WrapKind(op, holdfast.Unsupported, errno)
	}
	r := &Ring{fd: fd}
	if p.features&featSingleMmap == 0 || p.features&featNoDrop == 0 {
		_ = r.Close()
		return nil, holdfast.E(op, holdfast.Unsupported, "the kernel's io_uring is too old")
	}
	r.bounded = p.features&featExtArg != 0
	if err := r.mmap(&p); err != nil {
		_ = r.Close()
		return nil, holdfast.WrapKind(op, holdfast.Unsupported, err)
	}
	return r, nil
}

func setup(entries int, p *params) (int, unix.Errno) {
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, uintptr(entries), uintptr(unsafe.Pointer(p)), 0)
	return int(fd), errno
}

// mmap maps the rings, and points each place of the submission ring at the entry
// of the same number once and for all.
func (r *Ring) mmap(p *params) (err error) {
	size := max(p.sq.array+4*p.sqEntries, p.cq.cqes+p.cqEntries*uint32(unsafe.Sizeof(completion{})))
	const mode, shared = unix.PROT_READ | unix.PROT_WRITE, unix.MAP_SHARED | unix.MAP_POPULATE
	if r.shared, err = unix.Mmap(r.fd, offSubmissions, int(size), mode, shared); err != nil {
		return err
	}
	if r.memSQ, err = unix.Mmap(r.fd, offEntries, int(p.sqEntries)*int(unsafe.Sizeof(submission{})), mode, shared); err != nil {
		return err
	}
	word := func(at uint32) *atomic.Uint32 { return (*atomic.Uint32)(unsafe.Pointer(&r.shared[at])) }
	r.sqHead, r.sqTail, r.sqMask = word(p.sq.head), word(p.sq.tail), word(p.sq.ringMask).Load()
	r.cqHead, r.cqTail, r.cqMask = word(p.cq.head), word(p.cq.tail), word(p.cq.ringMask).Load()
	r.entries = unsafe.Slice((*submission)(unsafe.Pointer(&r.memSQ[0])), p.sqEntries)
	r.completions = unsafe.Slice((*completion)(unsafe.Pointer(&r.shared[p.cq.cqes])), p.cqEntries)
	for i := range p.sqEntries {
		word(p.sq.array + 4*i).Store(i)
	}
	return nil
}

// Close gives the ring back.
func (r *Ring) Close() error {
	for _, m := range [][]byte{r.shared, r.memSQ} {
		if m != nil {
			_ = unix.Munmap(m)
		}
	}
	return unix.Close(r.fd)
}

// Do does all operations, at most as many as the ring has entries, and returns
// when they are over, in whatever order they end. Before it tells Go's scheduler that
// it waits it does so for up to hold, with the processor (P) it runs on: handing
// that to another goroutine and taking it back costs several switches of threads,
// which is more than a fast disk takes. Only one goroutine of the process does so at
// a time; it is interrupted when the scheduler wants the processor. The thread looks
// for the end for up to poll, which is part of that, before it sleeps: see there. Do
// says how long it has waited: where it kept its processor without what the thread
// computed, about.
func (r *Ring) Do(ops []Op, hold, poll time.Duration) (waited time.Duration) {
	tail := r.sqTail.Load()
	for i := range ops {
		o := &ops[i]
		s := submission{op: opRead, fd: int32(o.FD), off: uint64(o.Off), addr: uint64(uintptr(unsafe.Pointer(&o.P[0]))), length: uint32(len(o.P)), user: uint64(i)}
		if o.Write {
			s.op = opWrite
		}
		r.entries[tail&r.sqMask] = s
		tail++
	}
	r.sqTail.Store(tail)
	for left := len(ops); left > 0; {
		waiting := r.sqTail.Load() - r.sqHead.Load() // not yet taken by the kernel
		took, errno := r.enter(waiting, left, hold, poll)
		waited += took
		hold = 0
		left -= r.reap(ops)
		switch {
		case errno == 0 || errno == unix.EINTR || errno == unix.ETIME:
		case waiting > 0:
			// It takes no more: the rest is taken back.
			left -= r.withdraw(ops)
		default:
			// Going back would leave the caller's memory to the kernel. No errno
			// is specified for waiting alone but EINTR.
			panic("uring: waiting for what was submitted: " + errno.Error())
		}
	}
	runtime.KeepAlive(ops) // the kernel had addresses only
	return waited
}

// holding says that a goroutine waits and keeps its processor.
var holding atomic.Bool

// enter gives the kernel what is waiting in the ring and waits until left
// operations are over, or for as long as hold where that is allowed. Errors: EINTR,
// ETIME, and those of io_uring_enter(2).
func (r *Ring) enter(waiting uint32, left int, hold, poll time.Duration) (time.Duration, unix.Errno) {
	began := time.Now()
	if hold <= 0 || !r.bounded || !holding.CompareAndSwap(false, true) {
		_, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), uintptr(waiting), uintptr(left), enterGetEvents, 0, 0)
		return time.Since(began), errno
	}
	r.until = unix.NsecToTimespec(int64(hold))
	r.events = getEvents{until: uint64(uintptr(unsafe.Pointer(&r.until)))} // r is on the heap, where nothing moves
	sampled := r.waits%sampleEvery == 0
	r.waits++
	var computed time.Duration
	if sampled {
		computed = threadTime()
	}
	submitted, over, errno := uint32(0), false, unix.Errno(0)
	if poll > 0 {
		submitted, over, errno = r.poll(waiting, left, began.Add(poll))
	}
	if errno == 0 && !over {
		_, _, errno = unix.RawSyscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), uintptr(waiting-submitted), uintptr(left), enterGetEvents|enterExtArg,
			uintptr(unsafe.Pointer(&r.events)), unsafe.Sizeof(r.events))
	}
	holding.Store(false)
	took := time.Since(began)
	if sampled {
		r.each = (threadTime() - computed) / time.Duration(max(waiting, 1))
	}
	return max(took-r.each*time.Duration(waiting), 0), errno
}

// poll gives the kernel what is waiting in the ring, and looks until then whether left
// operations are over. Between two looks it lets other threads run. A CPU that does so
// is not idle: what the kernel wakes for the operation runs on it, or need not be woken
// at all, and nobody sends it an interrupt, which on a virtual machine takes as long as
// a fast disk.
func (r *Ring) poll(waiting uint32, left int, until time.Time) (submitted uint32, over bool, _ unix.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), uintptr(waiting), 0, enterGetEvents, 0, 0)
	if errno != 0 {
		return 0, false, errno
	}
	for {
		if int(r.cqTail.Load()-r.cqHead.Load()) >= left {
			return uint32(n), true, 0
		}
		if !time.Now().Before(until) {
			return uint32(n), false, 0
		}
		_, _, _ = unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
	}
}

// sampleEvery is how often it is measured what the thread computes in a wait: asking
// costs two system calls, 3 % of a write's time.
const sampleEvery = 16

// threadTime is how long this thread has computed.
func threadTime() time.Duration {
	var t unix.Timespec
	_, _, _ = unix.RawSyscall(unix.SYS_CLOCK_GETTIME, unix.CLOCK_THREAD_CPUTIME_ID, uintptr(unsafe.Pointer(&t)), 0)
	return time.Duration(t.Nano())
}

// reap takes completions, and says how many.
func (r *Ring) reap(ops []Op) (n int) {
	head := r.cqHead.Load()
	for ; head != r.cqTail.Load(); head++ {
		c := r.completions[head&r.cqMask]
		o := &ops[c.user]
		o.N, o.Errno = int(max(c.res, 0)), unix.Errno(max(-c.res, 0))
		n++
	}
	r.cqHead.Store(head)
	return n
}

// withdraw takes back what the kernel has not taken, the last ones, and says how
// many. The kernel looks at the ring during calls of ours only.
func (r *Ring) withdraw(ops []Op) int {
	head, tail := r.sqHead.Load(), r.sqTail.Load()
	n := int(tail - head)
	for i := len(ops) - n; i < len(ops); i++ {
		ops[i].N, ops[i].Errno = 0, unix.EAGAIN
	}
	r.sqTail.Store(head)
	return n
}
