package disk

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// XFS_IOC_FD_TO_HANDLE and XFS_IOC_OPEN_BY_HANDLE of xfs/xfs_fs.h; open_by_handle(3).
const (
	xfsIocFDToHandle   = 0xc038586a
	xfsIocOpenByHandle = 0xc038586b
	xfsHandleMost      = 64
)

// xfsHandleRequest is struct xfs_fsop_handlereq.
type xfsHandleRequest struct {
	fd        uint32
	path      unsafe.Pointer
	flags     uint32
	in        unsafe.Pointer
	inLength  uint32
	out       unsafe.Pointer
	outLength unsafe.Pointer
}

// untimed opens fd's file once more in a way that writes do not change its times,
// where the filesystem is XFS; otherwise, or without CAP_SYS_ADMIN, it gives fd back.
//
// With times, the first write after each tick of the kernel's clock (4 ms) begins a
// transaction, which waits for the log when that is full. io_uring does not wait: it
// leaves this write, and those that come meanwhile, to threads of its own. That was
// a quarter of all writes at depth 32, and one in twelve at depth 1.
func (d *Dir) untimed(fd, mode int) int {
	var handle [xfsHandleMost]byte
	var length uint32
	ask := xfsHandleRequest{fd: uint32(fd), out: unsafe.Pointer(&handle), outLength: unsafe.Pointer(&length)}
	if ioctl(fd, xfsIocFDToHandle, unsafe.Pointer(&ask)) != nil {
		return fd
	}
	dir, err := unix.Open(d.root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fd
	}
	defer func() { _ = unix.Close(dir) }()
	ask = xfsHandleRequest{flags: uint32(mode), in: unsafe.Pointer(&handle), inLength: length}
	syscall.ForkLock.RLock() // the new descriptor is without O_CLOEXEC at first
	got, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(dir), xfsIocOpenByHandle, uintptr(unsafe.Pointer(&ask)))
	if errno == 0 {
		unix.CloseOnExec(int(got))
	}
	syscall.ForkLock.RUnlock()
	if errno != 0 {
		return fd
	}
	_ = unix.Close(fd)
	return int(got)
}
