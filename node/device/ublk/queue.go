package ublk

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast/internal/buf"
	"github.com/holdfast-storage/holdfast/node/device"
	"github.com/holdfast-storage/holdfast/node/device/blockdev"
	"github.com/holdfast-storage/holdfast/replication"
)

// Requests as include/uapi/linux/ublk_cmd.h has them.
const (
	opRead        = 0
	opWrite       = 1
	opFlush       = 2
	opDiscard     = 3
	opWriteZeroes = 5

	flagFUA = 1 << 13 // in opFlags

	ioFetch  = 0x20
	ioCommit = 0x21

	// Where a request's data is in the driver's device: tag in bits 25 to 40.
	dataOffset = 0x80000000
	tagShift   = 25

	// wakeTag is the completion of the eventfd's poll, beside those of tags.
	wakeTag = 1 << 32
)

// queueDepth is how many requests a device has at most at once.
const queueDepth = 128

// sectorSize is the unit of descriptors.
const sectorSize = 512

// ioDesc is struct ublksrv_io_desc.
type ioDesc struct {
	opFlags uint32
	sectors uint32
	start   uint64
	addr    uint64
}

// ioCmd is struct ublksrv_io_cmd.
type ioCmd struct {
	queue, tag uint16
	result     int32
	addr       uint64
}

// queue serves a device's only queue. All that the driver asks of one thread is
// in run; other goroutines reach it by answer.
type queue struct {
	char     int // /dev/ublkcN
	wake     int // eventfd
	descs    []byte
	ring     *ring
	inflight *blockdev.Inflight
	readOnly bool
	size     atomic.Int64
	log      *slog.Logger
	asleep   atomic.Bool
	leaving  atomic.Bool // the device is left to the next process
	ended    chan struct{}

	mu    sync.Mutex
	ready []blockdev.Answer
	spare []blockdev.Answer // of run: the other one of two
}

// openQueue opens the driver's device. Nobody is served before run.
func openQueue(devID uint32, o device.Options, b device.Backend, log *slog.Logger) (*queue, error) {
	q := &queue{char: -1, wake: -1, readOnly: o.ReadOnly, log: log, ended: make(chan struct{})}
	q.size.Store(o.SizeBytes)
	q.inflight = blockdev.NewInflight(b, q.answer)
	if err := q.setUp(fmt.Sprintf("/dev/ublkc%d", devID)); err != nil {
		q.tearDown()
		return nil, err
	}
	return q, nil
}

func (q *queue) setUp(path string) (err error) {
	if q.char, err = unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	if q.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return os.NewSyscallError("eventfd", err)
	}
	size := (queueDepth*int(unsafe.Sizeof(ioDesc{})) + 4095) &^ 4095
	if q.descs, err = unix.Mmap(q.char, 0, size, unix.PROT_READ, unix.MAP_SHARED|unix.MAP_POPULATE); err != nil {
		return os.NewSyscallError("mmap of the requests", err)
	}
	q.ring, err = newRing(2 * queueDepth)
	return err
}

func (q *queue) tearDown() {
	if q.ring != nil {
		q.ring.close()
	}
	if q.descs != nil {
		_ = unix.Munmap(q.descs) // it was mapped
	}
	for _, fd := range []int{q.wake, q.char} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

// run serves until the driver takes the device away. The thread ends with it:
// the driver knows it as the queue's owner.
func (q *queue) run() {
	runtime.LockOSThread()
	defer close(q.ended)
	defer q.tearDown()
	for tag := range queueDepth {
		q.command(ioFetch, uint16(tag), 0)
	}
	q.watch()
	alive := queueDepth // tags that the driver still has
	for alive > 0 && !q.leaving.Load() {
		q.commit()
		q.asleep.Store(true)
		wait := uint32(1)
		if q.hasReady() || q.leaving.Load() {
			wait = 0
		}
		err := q.ring.enter(wait)
		q.asleep.Store(false)
		if err != nil {
			q.log.Error("the device cannot be served any more", "error", err)
			return
		}
		for c, ok := q.ring.pop(); ok; c, ok = q.ring.pop() {
			switch {
			case c.userData == wakeTag:
				var p [8]byte
				_, _ = unix.Read(q.wake, p[:]) // reset; empty is fine
				q.watch()
			case c.res == 0:
				q.take(uint16(c.userData))
			default: // the tag is gone: the device is being removed
				alive--
			}
		}
	}
}

func (q *queue) command(nr uint32, tag uint16, result int32) {
	e := q.ring.next()
	e.opcode, e.fd, e.cmdOp, e.userData = opUringCmd, int32(q.char), ioc(iocBoth, nr, unsafe.Sizeof(ioCmd{})), uint64(tag)
	*(*ioCmd)(unsafe.Pointer(&e.cmd)) = ioCmd{tag: tag, result: result}
}

// watch has the ring wake up when the eventfd is written to, once.
func (q *queue) watch() {
	e := q.ring.next()
	e.opcode, e.fd, e.opFlags, e.userData = opPollAdd, int32(q.wake), unix.POLLIN, wakeTag
}

func (q *queue) hasReady() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.ready) > 0
}

// operations are those that a device has. Both of the last leave zeros.
var operations = map[uint32]replication.Op{
	opRead: replication.OpRead, opWrite: replication.OpWrite, opFlush: replication.OpFlush,
	opDiscard: replication.OpTrim, opWriteZeroes: replication.OpTrim,
}

// take submits the request that a tag has got.
func (q *queue) take(tag uint16) {
	d := *(*ioDesc)(unsafe.Pointer(&q.descs[int(tag)*int(unsafe.Sizeof(ioDesc{}))]))
	op, known := operations[d.opFlags&0xff]
	if !known {
		q.inflight.Refuse(uint64(tag), unix.EOPNOTSUPP)
		return
	}
	if d.start > math.MaxInt64/sectorSize && op != replication.OpFlush { // in bytes it would be somewhere else
		q.inflight.Refuse(uint64(tag), unix.EINVAL)
		return
	}
	r := replication.Request{Op: op, Offset: int64(d.start) * sectorSize, Length: int64(d.sectors) * sectorSize, FUA: d.opFlags&flagFUA != 0 && op != replication.OpRead}
	if e := (blockdev.Limits{SizeBytes: q.size.Load(), ReadOnly: q.readOnly}).Check(op, r.Offset, r.Length); e != 0 {
		q.inflight.Refuse(uint64(tag), e)
		return
	}
	switch op {
	case replication.OpRead:
		r.Buf = buf.Get(int(r.Length))
	case replication.OpWrite:
		r.Buf = buf.Get(int(r.Length))
		if err := q.copyData(unix.Pread, tag, r.Buf.B); err != nil {
			r.Buf.Release()
			q.log.Error("a write's data cannot be read", "error", err)
			q.inflight.Refuse(uint64(tag), unix.EIO)
			return
		}
	case replication.OpFlush:
		r.Offset, r.Length, r.FUA = 0, 0, false
	}
	q.inflight.Submit(uint64(tag), r)
}

// copyData moves a request's data between the driver and p.
func (q *queue) copyData(move func(int, []byte, int64) (int, error), tag uint16, p []byte) error {
	at := int64(dataOffset) + int64(tag)<<tagShift
	for len(p) > 0 {
		n, err := move(q.char, p, at)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return unix.EIO
		}
		p, at = p[n:], at+int64(n)
	}
	return nil
}

// answer queues an answer: run copies its data and commits it.
func (q *queue) answer(a blockdev.Answer) {
	q.mu.Lock()
	q.ready = append(q.ready, a)
	q.mu.Unlock()
	q.wakeUp()
}

// leave ends the service and leaves the device, with what is not answered, to
// the next process.
func (q *queue) leave() {
	q.leaving.Store(true)
	q.wakeUp()
	<-q.ended
}

// wakeUp has run look again, unless it is awake.
func (q *queue) wakeUp() {
	if q.asleep.CompareAndSwap(true, false) {
		one := [8]byte{1}
		_, _ = unix.Write(q.wake, one[:]) // full is awake as well
	}
}

// commit answers what is ready.
func (q *queue) commit() {
	q.mu.Lock()
	ready := q.ready
	q.ready, q.spare = q.spare[:0], nil
	q.mu.Unlock()
	for i := range ready {
		a := &ready[i]
		result := int32(a.Length)
		if a.Errno != 0 {
			result = -int32(a.Errno)
		}
		if a.Data != nil {
			if err := q.copyData(unix.Pwrite, uint16(a.Cookie), a.Data.B[:a.Length]); err != nil {
				q.log.Error("a read's data cannot be handed over", "error", err)
				result = -int32(unix.EIO)
			}
			a.Data.Release()
		}
		q.command(ioCommit, uint16(a.Cookie), result)
		*a = blockdev.Answer{}
	}
	q.spare = ready
}
