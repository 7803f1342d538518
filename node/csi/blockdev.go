package nodecsi

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
)

// blockDev is a volume's device as it is now.
type blockDev struct {
	path string
	id   string // "major:minor", as mountinfo and the state files write it
	rdev uint64
	size int64 // bytes
}

// openDev looks at the device node at path.
func openDev(path string) (blockDev, error) {
	op := "look at device " + path
	rdev, err := rdevOf(path)
	if err != nil {
		return blockDev{}, holdfast.WrapKind(op, holdfast.Unavailable, err)
	}
	d := blockDev{path: path, rdev: rdev, id: devID(rdev)}
	f, err := os.Open(path)
	if err != nil {
		return blockDev{}, holdfast.WrapKind(op, holdfast.Unavailable, err)
	}
	defer func() { _ = f.Close() }()
	d.size, err = f.Seek(0, 2)
	if err != nil {
		return blockDev{}, holdfast.WrapKind(op, holdfast.Unavailable, err)
	}
	if d.size == 0 {
		return blockDev{}, holdfast.E(op, holdfast.Unavailable, "the device has no size: it is not served any more")
	}
	return d, nil
}

// rdevOf is the device number of the block device node at path.
func rdevOf(path string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return 0, fmt.Errorf("%s is not a block device", path)
	}
	return st.Rdev, nil
}

// devID writes a device number as mountinfo does.
func devID(rdev uint64) string {
	return fmt.Sprintf("%d:%d", unix.Major(rdev), unix.Minor(rdev))
}

// What opens, reads or writes the device is done by processes of their own, for
// the reason that unmount gives; closing it as the last one writes to it as well.

// isReadOnly says whether the kernel refuses writes to the device. It does not
// open it.
func (d blockDev) isReadOnly() (bool, error) {
	rdev, err := rdevOf(d.path)
	if err != nil {
		return false, err
	}
	raw, err := os.ReadFile("/sys/dev/block/" + devID(rdev) + "/ro")
	return strings.TrimSpace(string(raw)) == "1", err
}

// setReadOnly makes the kernel refuse writes to the device, or take them again.
func (d blockDev) setReadOnly(readOnly bool) error {
	how := "--setrw"
	if readOnly {
		how = "--setro"
	}
	return holdfast.WrapKind("set read-only of device "+d.path, holdfast.Unavailable, tool("blockdev", how, d.path))
}

// tool runs a program that says nothing when it succeeds.
func tool(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// read reads n bytes at off.
func (d blockDev) read(off, n int64) ([]byte, error) {
	cmd := exec.Command("dd", "if="+d.path, "iflag=skip_bytes,count_bytes,fullblock", "bs=64K", "status=none",
		fmt.Sprintf("skip=%d", off), fmt.Sprintf("count=%d", n))
	var said strings.Builder
	cmd.Stderr = &said
	p, err := cmd.Output()
	if err == nil && int64(len(p)) != n {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, fmt.Errorf("read %d bytes at %d: %w: %s", n, off, err, strings.TrimSpace(said.String()))
	}
	return p, nil
}

// Emptiness is judged by the signatures that blkid knows and by these many
// bytes at both ends being zero: raw data without any known signature counts as
// somebody's data too.
const (
	emptyHead = 1 << 20
	emptyTail = 128 << 10
)

// proveEmpty reads both ends of the device. An error of kind InUse says that
// there is data; Unavailable, that the device cannot be read, which blkid alone
// would have taken for an empty device.
func (d blockDev) proveEmpty() error {
	op := "look for data on device " + d.path
	check := func(off, n int64) error {
		p, err := d.read(off, n)
		if err != nil {
			return holdfast.WrapKind(op, holdfast.Unavailable, err)
		}
		for i, b := range p {
			if b != 0 {
				return holdfast.E(op, holdfast.InUse, fmt.Sprintf(
					"it has no filesystem, but holds data at byte %d (perhaps it was used as a raw block volume); it is not formatted; "+
						"if the data is worthless, erase it: attach the volume and run blkdiscard -z on its device", off+int64(i)))
			}
		}
		return nil
	}
	if err := check(0, min(emptyHead, d.size)); err != nil {
		return err
	}
	tail := min(emptyTail, d.size)
	return check(d.size-tail, tail)
}

// xfsUnfinished says whether the device holds the beginnings of an XFS whose
// mkfs was interrupted: sb_inprogress, byte 126 of the superblock, is set until
// mkfs has written everything, and no kernel mounts such a filesystem.
func (d blockDev) xfsUnfinished() (bool, error) {
	sb, err := d.read(0, 512)
	if err != nil {
		return false, err
	}
	return string(sb[:4]) == "XFSB" && sb[126] != 0, nil
}

// wipeHead zeroes the first 4 KiB: what is left of an interrupted mkfs.
func (d blockDev) wipeHead() error {
	return tool("dd", "if=/dev/zero", "of="+d.path, "bs=4096", "count=1", "conv=notrunc,fsync", "status=none")
}

// xfsGeometry is the head of the kernel's struct xfs_fsop_geom_v1, 112 bytes.
type xfsGeometry struct {
	BlockSize, RtExtSize, AGBlocks, AGCount, LogBlocks, SectSize, InodeSize, IMaxPct uint32
	DataBlocks                                                                       uint64
	_                                                                                [72]byte
}

// xfsGeometryIoctl is XFS_IOC_FSGEOMETRY_V1, _IOR('X', 100, 112 bytes).
const xfsGeometryIoctl = 0x80705864

// xfsBytes is the size of the XFS mounted at path, in bytes, as the kernel has
// it now (the superblock on disk may lag behind).
func xfsBytes(path string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }()
	var g xfsGeometry
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), xfsGeometryIoctl, uintptr(unsafe.Pointer(&g))); errno != 0 {
		return 0, &os.PathError{Op: "xfs geometry", Path: path, Err: errno}
	}
	return int64(g.DataBlocks) * int64(g.BlockSize), nil
}

// ext4Bytes is the size of the ext4 on the device in bytes, from its superblock
// at byte 1024.
func (d blockDev) ext4Bytes() (int64, error) {
	f, err := os.Open(d.path)
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }()
	sb := make([]byte, 1024)
	if _, err := f.ReadAt(sb, 1024); err != nil {
		return 0, err
	}
	le := func(off int) int64 {
		return int64(sb[off]) | int64(sb[off+1])<<8 | int64(sb[off+2])<<16 | int64(sb[off+3])<<24
	}
	const blocksLo, logBlock, magic, incompat, blocksHi, has64bit = 0x4, 0x18, 0x38, 0x60, 0x150, 0x80
	if sb[magic] != 0x53 || sb[magic+1] != 0xEF {
		return 0, fmt.Errorf("%s holds no ext4", d.path)
	}
	blocks := le(blocksLo)
	if le(incompat)&has64bit != 0 {
		blocks |= le(blocksHi) << 32
	}
	return blocks << (10 + le(logBlock)), nil
}
