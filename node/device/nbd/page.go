package nbd

import (
	"crypto/rand"
	"encoding/hex"
	"math/bits"
	"os"
	"runtime"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
)

// tags is how many requests a device of the kernel has in flight at most, each with
// a number below it: nbd's queue_depth, with one queue.
const tags = 128

// ring is how many requests the socket may hold, in flight or answered.
const ring = 8 << 10

// pageMagic begins a page; its last digit is the version of the layout.
const pageMagic = 0x686f6c64666e6231

// page is memory that outlives the server, as a file that the keeper holds. It
// says which of the requests that are in the socket have been answered, exactly,
// whenever the process is killed: what system calls have done is stored by the
// kernel itself, which a kill cannot come before.
//
//	server                          page
//	queues answers                  batch, count            about to be sent
//	sendmmsg                        out.done                bytes, by the kernel
//	                                answered, count = 0     sent
//	takes answered requests out     dropBytes, dropTo       about to be taken out
//	recvmmsg                        in.done                 bytes, by the kernel
//	                                taken = dropTo          taken out
//
// Requests are known by their place: the n-th of the connection. Cookies do not
// tell: with an I/O scheduler the kernel uses the same one again and again.
//
// Fields are those of this machine: no other reads them.
type page struct {
	magic uint64
	id    [16]byte // of the connection; the keeper's note of the socket has it, too

	// order is in which byte order the kernel sends cookies, once it is known.
	order atomic.Uint32
	// lost is 1 when the page does not tell all: the connection cannot be gone on
	// with.
	lost atomic.Uint32
	// count is how many answers of batch are being sent; 0 for none.
	count atomic.Uint32
	// partly is 1 while the rest of a batch is sent of which a part has been.
	partly atomic.Uint32

	taken     atomic.Uint64 // the first request in the socket is this one
	dropTo    atomic.Uint64 // beyond taken: as far as is being taken out
	dropBytes atomic.Uint64

	batch    [tags]pending
	out, in  mmsghdr
	answered [ring]byte // by place modulo ring: 1 for answered and still in the socket
}

// pending is an answer of a batch.
type pending struct {
	place uint64
	bytes uint64
}

// mmsghdr is struct mmsghdr of Linux's 64-bit machines. Its addresses are plain
// numbers: the collector must not look into memory that it does not manage.
type mmsghdr struct {
	name       uintptr
	nameLen    uint64
	iov        uintptr
	iovLen     uint64
	control    uintptr
	controlLen uint64
	flags      uint64
	done       atomic.Uint32 // by the kernel
	_          uint32
}

const pageBytes = 16 << 10

var _ [pageBytes - unsafe.Sizeof(page{})]byte // it fits

// newPage makes an empty page, and its file, which is the caller's to close.
func newPage() (*page, *os.File, error) {
	fd, err := unix.MemfdCreate("holdfast-nbd", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), "answers")
	if err := f.Truncate(pageBytes); err != nil {
		f.Close()
		return nil, nil, err
	}
	p, err := openPage(f)
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	_, _ = rand.Read(p.id[:])
	p.magic = pageMagic
	return p, f, nil
}

// openPage maps a page that there is. Its memory is present from here on.
func openPage(f *os.File) (*page, error) {
	if s, err := f.Stat(); err != nil || s.Size() != pageBytes {
		return nil, holdfast.E("map the page of answers", holdfast.Invalid, "its file has another size")
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, pageBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return nil, os.NewSyscallError("mmap", err)
	}
	return (*page)(unsafe.Pointer(&mem[0])), nil
}

func (p *page) close() {
	_ = unix.Munmap(unsafe.Slice((*byte)(unsafe.Pointer(p)), pageBytes))
}

// The byte orders of cookies.
const (
	orderUnknown = iota
	orderNetwork // Linux 6.4 and later
	orderMachine // before; a little-endian one
)

// tagOf is a request's number among those in flight, of its cookie. False if it
// cannot be told; then the connection is lost with the server.
func (p *page) tagOf(cookie uint64) (int, bool) {
	network, machine := uint32(cookie), uint32(bits.ReverseBytes64(cookie))
	if p.order.Load() == orderUnknown {
		switch {
		case network < tags && machine >= tags:
			p.order.Store(orderNetwork)
		case machine < tags && network >= tags:
			p.order.Store(orderMachine)
		}
	}
	tag := network
	if p.order.Load() == orderMachine {
		tag = machine
	}
	if p.order.Load() == orderUnknown || tag >= tags {
		p.lost.Store(1)
		return 0, false
	}
	return int(tag), true
}

// settle finishes what a server left that was killed while it sent. It says
// whether the connection can be gone on with.
func (p *page) settle(id string) bool {
	if p.magic != pageMagic || p.name() != id || p.lost.Load() != 0 {
		return false
	}
	n, sent := p.count.Load(), uint64(p.out.done.Load())
	if n > tags || n > 0 && p.partly.Load() != 0 {
		return false
	}
	for _, b := range p.batch[:n] {
		if sent == 0 {
			break
		}
		if sent < b.bytes {
			return false // the kernel has a part of an answer
		}
		sent -= b.bytes
		p.answered[b.place%ring] = 1
	}
	p.count.Store(0)
	p.partly.Store(0)
	switch done := uint64(p.in.done.Load()); {
	case p.dropTo.Load() <= p.taken.Load() || done == 0: // nothing was under way
	case done == p.dropBytes.Load():
		p.dropped()
	default:
		return false // the socket begins in the midst of a request
	}
	return true
}

// name is the connection's, for the keeper's note.
func (p *page) name() string { return hex.EncodeToString(p.id[:]) }

// begin notes what is about to be sent: up to tags answers, of the requests at
// places.
func (p *page) begin(places []uint64, vec [][]byte) {
	for i := range vec {
		p.batch[i] = pending{place: places[i], bytes: uint64(len(vec[i]))}
	}
	p.out.done.Store(0)
	p.count.Store(uint32(len(vec)))
}

// send has the kernel send iov, and note in the page how much it took.
func (p *page) send(fd uintptr, iov []unix.Iovec) (int, unix.Errno) {
	return p.out.call(unix.SYS_SENDMMSG, fd, iov, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
}

// end notes that the batch is sent.
func (p *page) end() {
	for _, b := range p.batch[:p.count.Load()] {
		p.answered[b.place%ring] = 1
	}
	p.count.Store(0)
	p.partly.Store(0)
}

// drop has the kernel take the requests before the place to out of the socket, so
// many bytes, and note in the page that it has.
func (p *page) drop(fd uintptr, to, bytes uint64, iov []unix.Iovec) (int, unix.Errno) {
	p.in.done.Store(0)
	p.dropBytes.Store(bytes)
	p.dropTo.Store(to)
	return p.in.call(unix.SYS_RECVMMSG, fd, iov, unix.MSG_DONTWAIT)
}

// dropped notes that they are out.
func (p *page) dropped() {
	to := p.dropTo.Load()
	for at := p.taken.Load(); at < to; at++ {
		p.answered[at%ring] = 0
	}
	p.taken.Store(to)
}

// call is sendmmsg or recvmmsg with one message.
func (m *mmsghdr) call(trap, fd uintptr, iov []unix.Iovec, flags uintptr) (int, unix.Errno) {
	m.done.Store(0)
	m.name, m.nameLen, m.control, m.controlLen, m.flags = 0, 0, 0, 0, 0
	m.iov, m.iovLen = uintptr(unsafe.Pointer(&iov[0])), uint64(len(iov))
	_, _, errno := unix.Syscall6(trap, fd, uintptr(unsafe.Pointer(m)), 1, flags, 0, 0)
	runtime.KeepAlive(iov)
	if errno != 0 {
		return 0, errno
	}
	return int(m.done.Load()), 0
}
