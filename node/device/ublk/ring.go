package ublk

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The part of io_uring that ublk needs: include/uapi/linux/io_uring.h. Entries
// have 128 bytes, 80 of which are the command's.
const (
	setupSQE128 = 1 << 10

	offSQRing = 0
	offCQRing = 0x8000000
	offSQEs   = 0x10000000

	enterGetEvents = 1

	opPollAdd  = 6
	opUringCmd = 46

	sqeSize = 128
	cqeSize = 16
)

// ringParams is struct io_uring_params.
type ringParams struct {
	sqEntries, cqEntries, flags, sqThreadCPU, sqThreadIdle, features, wqFD uint32
	resv                                                                   [3]uint32
	sq                                                                     sqOffsets
	cq                                                                     cqOffsets
}

type sqOffsets struct {
	head, tail, ringMask, ringEntries, flags, dropped, array, resv1 uint32
	userAddr                                                        uint64
}

type cqOffsets struct {
	head, tail, ringMask, ringEntries, overflow, cqes, flags, resv1 uint32
	userAddr                                                        uint64
}

// sqe is struct io_uring_sqe of 128 bytes as a command uses it.
type sqe struct {
	opcode   uint8
	flags    uint8
	ioprio   uint16
	fd       int32
	cmdOp    uint32
	pad      uint32
	addr     uint64
	length   uint32
	opFlags  uint32 // the poll mask of opPollAdd
	userData uint64
	rest     [8]byte
	cmd      [80]byte
}

// cqe is struct io_uring_cqe.
type cqe struct {
	userData uint64
	res      int32
	flags    uint32
}

// ring is one io_uring, for one thread.
type ring struct {
	fd             int
	sqMem, cqMem   []byte
	sqeMem         []byte
	sqHead, sqTail *uint32
	cqHead, cqTail *uint32
	sqMask, cqMask uint32
	array          unsafe.Pointer // uint32s
	cqes           unsafe.Pointer
	tail           uint32 // behind the last entry filled
}

// newRing makes one for up to entries requests at once.
func newRing(entries uint32) (*ring, error) {
	p := ringParams{flags: setupSQE128}
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, uintptr(entries), uintptr(unsafe.Pointer(&p)), 0)
	if errno != 0 {
		return nil, os.NewSyscallError("io_uring_setup", errno)
	}
	r := &ring{fd: int(fd)}
	unix.CloseOnExec(r.fd)
	if err := r.mapAll(&p); err != nil {
		r.close()
		return nil, err
	}
	return r, nil
}

func (r *ring) mapAll(p *ringParams) (err error) {
	const prot, flags = unix.PROT_READ | unix.PROT_WRITE, unix.MAP_SHARED | unix.MAP_POPULATE
	if r.sqMem, err = unix.Mmap(r.fd, offSQRing, int(p.sq.array+p.sqEntries*4), prot, flags); err != nil {
		return os.NewSyscallError("mmap", err)
	}
	if r.cqMem, err = unix.Mmap(r.fd, offCQRing, int(p.cq.cqes+p.cqEntries*cqeSize), prot, flags); err != nil {
		return os.NewSyscallError("mmap", err)
	}
	if r.sqeMem, err = unix.Mmap(r.fd, offSQEs, int(p.sqEntries*sqeSize), prot, flags); err != nil {
		return os.NewSyscallError("mmap", err)
	}
	at := func(mem []byte, off uint32) unsafe.Pointer { return unsafe.Pointer(&mem[off]) }
	r.sqHead, r.sqTail = (*uint32)(at(r.sqMem, p.sq.head)), (*uint32)(at(r.sqMem, p.sq.tail))
	r.cqHead, r.cqTail = (*uint32)(at(r.cqMem, p.cq.head)), (*uint32)(at(r.cqMem, p.cq.tail))
	r.sqMask, r.cqMask = *(*uint32)(at(r.sqMem, p.sq.ringMask)), *(*uint32)(at(r.cqMem, p.cq.ringMask))
	r.array, r.cqes = at(r.sqMem, p.sq.array), at(r.cqMem, p.cq.cqes)
	return nil
}

func (r *ring) close() {
	for _, mem := range [][]byte{r.sqMem, r.cqMem, r.sqeMem} {
		if mem != nil {
			_ = unix.Munmap(mem) // it was mapped
		}
	}
	unix.Close(r.fd)
}

// next is an empty entry to fill; it is sent by enter. There are never more than
// the ring was made for.
func (r *ring) next() *sqe {
	i := r.tail & r.sqMask
	e := (*sqe)(unsafe.Pointer(&r.sqeMem[i*sqeSize]))
	*e = sqe{}
	*(*uint32)(unsafe.Add(r.array, i*4)) = i
	r.tail++
	return e
}

// enter sends what is queued and waits for at least wait completions, or until a
// signal comes.
func (r *ring) enter(wait uint32) error {
	atomic.StoreUint32(r.sqTail, r.tail)
	var flags uintptr
	if wait > 0 {
		flags = enterGetEvents
	}
	for {
		queued := r.tail - atomic.LoadUint32(r.sqHead)
		_, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), uintptr(queued), uintptr(wait), flags, 0, 0)
		switch errno {
		case 0, unix.EINTR, unix.EAGAIN, unix.EBUSY:
		default:
			return os.NewSyscallError("io_uring_enter", errno)
		}
		if r.tail == atomic.LoadUint32(r.sqHead) || r.ready() {
			return nil
		}
	}
}

func (r *ring) ready() bool { return *r.cqHead != atomic.LoadUint32(r.cqTail) }

// pop takes a completion, if there is one.
func (r *ring) pop() (cqe, bool) {
	head := *r.cqHead
	if head == atomic.LoadUint32(r.cqTail) {
		return cqe{}, false
	}
	c := *(*cqe)(unsafe.Add(r.cqes, (head&r.cqMask)*cqeSize))
	atomic.StoreUint32(r.cqHead, head+1)
	return c, true
}

// Commands of the control device.
const (
	cmdGetInfo       = 0x02
	cmdAdd           = 0x04
	cmdDelete        = 0x05
	cmdStart         = 0x06
	cmdStop          = 0x07
	cmdSetParams     = 0x08
	cmdStartRecovery = 0x10
	cmdEndRecovery   = 0x11
	cmdFeatures      = 0x13
	cmdDeleteAsync   = 0x14
	cmdUpdateSize    = 0x15
	cmdTryStop       = 0x17
)

// controlCmd is struct ublksrv_ctrl_cmd.
type controlCmd struct {
	devID   uint32
	queueID uint16
	length  uint16
	addr    uint64
	data    uint64
	rest    [8]byte
}

const (
	iocRead = 2 << 30
	iocBoth = 3 << 30
)

// ioc encodes a command for an argument of size bytes, as _IOR and _IOWR do.
func ioc(dir, nr uint32, size uintptr) uint32 { return dir | uint32(size)<<16 | 'u'<<8 | nr }

// control runs one command. p is what it reads or fills; nil for nothing. The
// error is a unix.Errno when the driver refused.
func control(nr, devID uint32, data uint64, p []byte) (int32, error) {
	fd, err := unix.Open("/dev/ublk-control", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	r, err := newRing(1)
	if err != nil {
		return 0, err
	}
	defer r.close()
	dir := uint32(iocBoth)
	switch nr {
	case cmdGetInfo, cmdFeatures, cmdDeleteAsync:
		dir = iocRead
	}
	e := r.next()
	e.opcode, e.fd, e.cmdOp = opUringCmd, int32(fd), ioc(dir, nr, unsafe.Sizeof(controlCmd{}))
	c := (*controlCmd)(unsafe.Pointer(&e.cmd))
	*c = controlCmd{devID: devID, queueID: 0xffff, length: uint16(len(p)), data: data}
	if len(p) > 0 {
		c.addr = uint64(uintptr(unsafe.Pointer(&p[0])))
	}
	for {
		if err := r.enter(1); err != nil {
			return 0, err
		}
		if done, ok := r.pop(); ok {
			runtime.KeepAlive(p)
			if done.res < 0 {
				return 0, unix.Errno(-done.res)
			}
			return done.res, nil
		}
	}
}

// missing says whether an error means that the kernel has no ublk or no
// io_uring for us.
func missing(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENODEV)
}

// info is struct ublksrv_ctrl_dev_info.
type info struct {
	queues, depth, state, _ uint16
	maxBytes, devID         uint32
	_                       int32 // the server's process
	_                       uint32
	flags                   uint64
	tag                     uint64    // ublksrv_flags: the driver keeps it for us
	_, _                    uint32    // the owner's user and group
	_                       [2]uint64 // reserved
}

const (
	stateDead     = 0
	stateLive     = 1
	stateQuiesced = 2
)

// What a device and the driver can.
const (
	featRecovery     = 1 << 3
	featReissue      = 1 << 4
	featIoctlEncode  = 1 << 6
	featUserCopy     = 1 << 7
	featUpdateSize   = 1 << 10
	featSafeStop     = 1 << 17
	featNoPartitions = 1 << 18
)

func bytesOf[T any](v *T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(v)), unsafe.Sizeof(*v))
}

func getInfo(devID uint32) (info, error) {
	var i info
	_, err := control(cmdGetInfo, devID, 0, bytesOf(&i))
	return i, err
}

func features() (uint64, error) {
	var f uint64
	_, err := control(cmdFeatures, 0, 0, bytesOf(&f))
	if err != nil {
		return 0, fmt.Errorf("ask for features: %w", err)
	}
	return f, nil
}

// params is struct ublk_params up to the part for discards.
type params struct {
	length, types uint32

	attrs                                           uint32
	logicalShift, physicalShift, optShift, minShift uint8
	maxSectors, _                                   uint32 // then the chunk's sectors
	devSectors, _                                   uint64 // then the virtual boundary

	_, discardGranularity, maxDiscardSectors, maxZeroesSectors uint32 // first the alignment
	maxDiscardSegments, _                                      uint16
}

// paramsSize is what the kernel reads of it: Go adds four bytes at the end.
const paramsSize = 60

const (
	paramBasic   = 1 << 0
	paramDiscard = 1 << 1

	attrReadOnly = 1 << 0
	attrCache    = 1 << 2
	attrFUA      = 1 << 3
)
