package engine

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/engine/disk"
)

// xfsLabel marks the filesystems that Holdfast made.
const xfsLabel = "holdfast"

// PoolInfo is what is on a device.
type PoolInfo struct {
	Identity
	Device    string
	SizeBytes int64
}

// FormatOptions says which device becomes a pool, and whose.
type FormatOptions struct {
	Device    string // block device, or image file
	Cluster   holdfast.ClusterID
	Node      holdfast.NodeID
	MountRoot string // where it is mounted meanwhile
}

// OpenOptions says which pool to open.
type OpenOptions struct {
	Device    string // block device, or image file
	Cluster   holdfast.ClusterID
	Node      holdfast.NodeID // this one; a pool that was formatted on another says so in Info
	MountRoot string          // pools are mounted in it, in directories named by their ids
	// MemoryRoot is where the memory of pools is mounted, likewise: what an open
	// replica stores with every write, see the package comment.
	MemoryRoot string
	BootID     string // of the host
	// ReserveBytes is the space kept free for metadata; 0 for the default.
	ReserveBytes int64
	// SnapshotPercent is how much of the pool the snapshots of open replicas may
	// refer to; 0 for no limit but the reserve.
	SnapshotPercent int
}

// target is a device while it is being looked at, locked against others who do
// the same.
type target struct {
	path  string
	f     *os.File
	image bool
	size  int64
	head  []byte // the beginning
}

const headBytes = 1 << 20

// look opens and locks a path that is a block device or a regular file.
func look(ctx context.Context, path string) (*target, error) {
	op := "open device " + path
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		kind := holdfast.Other
		if errors.Is(err, os.ErrNotExist) {
			kind = holdfast.NotFound
		}
		return nil, holdfast.WrapKind(op, kind, err)
	}
	t := &target{path: path, f: f}
	if err := t.inspect(ctx); err != nil {
		return nil, errors.Join(holdfast.Wrap(op, err), f.Close())
	}
	return t, nil
}

func (t *target) inspect(ctx context.Context) error {
	if err := t.lock(ctx); err != nil {
		return err
	}
	info, err := t.f.Stat()
	if err != nil {
		return holdfast.WrapKind("stat", holdfast.Other, err)
	}
	switch mode := info.Mode(); {
	case mode.IsRegular():
		t.image = true
	case mode&os.ModeDevice == 0 || mode&os.ModeCharDevice != 0:
		return errorf("stat", holdfast.Invalid, "it is neither a block device nor a regular file")
	}
	if t.size, err = t.f.Seek(0, io.SeekEnd); err != nil {
		return holdfast.WrapKind("find its size", holdfast.Other, err)
	}
	t.head = make([]byte, min(headBytes, t.size))
	if _, err := t.f.ReadAt(t.head, 0); err != nil {
		return holdfast.WrapKind("read its beginning", holdfast.Corrupt, err)
	}
	return nil
}

// lockPatience is how long a lock may be held by others: udev takes it for a
// moment whenever somebody has written to a block device.
const lockPatience = 5 * time.Second

func (t *target) lock(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, lockPatience)
	defer cancel()
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	for {
		err := unix.Flock(int(t.f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return holdfast.WrapKind("another process is formatting or opening it", holdfast.InUse, err)
		case <-again.C:
		}
	}
}

func (t *target) close() { _ = t.f.Close() }

// pool reads the pool's id from XFS' superblock: Holdfast's filesystems have its
// label, and the pool's id as UUID. unfinished says that mkfs was interrupted.
func (t *target) pool() (id holdfast.PoolID, unfinished, ok bool) {
	h := t.head
	if len(h) < 512 || string(h[:4]) != "XFSB" || string(bytes.TrimRight(h[108:120], "\x00")) != xfsLabel {
		return "", false, false
	}
	return holdfast.PoolID(hex.EncodeToString(h[32:48])), h[126] != 0, true
}

// foreign says what is on the device; "" if it is provably empty: no signature
// of a filesystem, volume manager, RAID or partition table, nothing but zeros at
// its beginning and its end, and nobody using it.
func (t *target) foreign(ctx context.Context) (string, error) {
	out, status, err := run(ctx, []int{2, 8}, "blkid", "--probe", "--output", "export", t.path)
	switch {
	case err != nil:
		return "", err
	case status == 8:
		return "several signatures at once", nil
	case status == 0:
		return describeBlkid(out), nil
	}
	if out, _, err = run(ctx, nil, "wipefs", "--no-act", "--parsable", t.path); err != nil {
		return "", err
	}
	for line := range strings.Lines(out) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			return "a signature (" + line + ")", nil
		}
	}
	tail := make([]byte, min(headBytes, t.size))
	if _, err := t.f.ReadAt(tail, t.size-int64(len(tail))); err != nil {
		return "", holdfast.WrapKind("read the end of "+t.path, holdfast.Corrupt, err)
	}
	switch {
	case len(bytes.Trim(t.head, "\x00")) > 0:
		return "data without a known signature at its beginning", nil
	case len(bytes.Trim(tail, "\x00")) > 0:
		return "data without a known signature at its end", nil
	}
	return "", nil
}

func describeBlkid(out string) string {
	tags := map[string]string{}
	for line := range strings.Lines(out) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			tags[k] = v
		}
	}
	switch {
	case tags["PTTYPE"] != "":
		return "a partition table (" + tags["PTTYPE"] + ")"
	case tags["LABEL"] != "":
		return fmt.Sprintf("%s, labelled %q", tags["TYPE"], tags["LABEL"])
	case tags["TYPE"] != "":
		return tags["TYPE"]
	}
	return "a signature (" + strings.Join(strings.Fields(out), " ") + ")"
}

// unused says whether nobody has mounted or holds the device: kind InUse if
// somebody does.
func (t *target) unused(ctx context.Context) error {
	if t.image {
		out, _, err := run(ctx, nil, "losetup", "--associated", t.path, "--output", "NAME", "--noheadings")
		if loop := strings.TrimSpace(out); err == nil && loop != "" {
			return errorf("use "+t.path, holdfast.InUse, "it is attached as %s; detach that first", loop)
		}
		return err
	}
	fd, err := unix.Open(t.path, unix.O_RDWR|unix.O_EXCL|unix.O_CLOEXEC, 0)
	if err != nil {
		return holdfast.WrapKind("use "+t.path+": it, or a part of it, is mounted or held by another program", holdfast.InUse, err)
	}
	return holdfast.Wrap("close "+t.path, unix.Close(fd))
}

// Probe says which pool a device or image file is, without changing it. Kind
// NotFound when it is none.
func Probe(ctx context.Context, device string) (PoolInfo, error) {
	t, err := look(ctx, device)
	if err != nil {
		return PoolInfo{}, err
	}
	defer t.close()
	if _, unfinished, ok := t.pool(); !ok || unfinished {
		return PoolInfo{}, errorf("probe "+device, holdfast.NotFound, "it is no pool of Holdfast's")
	}
	dev, err := attach(ctx, device, t.image)
	if err != nil {
		return PoolInfo{}, holdfast.Wrap("probe "+device, err)
	}
	id, err := peek(dev)
	if dev.opened {
		err = errors.Join(err, dev.detach())
	}
	return PoolInfo{Identity: id, Device: device, SizeBytes: t.size}, holdfast.Wrap("probe "+device, err)
}

// peek reads the identity where the device is mounted, or mounts it for that
// moment, without replaying its log.
func peek(dev blockDevice) (Identity, error) {
	dir, err := mountOf(dev.path)
	if err != nil {
		return Identity{}, err
	}
	if dir == "" {
		if dir, err = os.MkdirTemp("", "holdfast-probe-"); err != nil {
			return Identity{}, holdfast.WrapKind("make mount point", holdfast.Other, err)
		}
		defer os.Remove(dir)
		if err := unix.Mount(dev.path, dir, "xfs", mountFlags|unix.MS_RDONLY, "norecovery,nouuid"); err != nil {
			return Identity{}, holdfast.WrapKind("mount to read the identity", mountKind(err), err)
		}
		defer func() { _ = unix.Unmount(dir, 0) }()
	}
	data, err := os.ReadFile(dir + "/" + identityFile)
	if err != nil {
		return Identity{}, holdfast.WrapKind("read the pool's identity", holdfast.NotFound, err)
	}
	return decodeIdentity(data)
}

// Format makes a device or image file a pool: only one that is provably empty. A
// pool of the same cluster is left as it is, and its identity returned; a Format
// that was interrupted is finished. Kinds: Exists when something else is on the
// device; Denied for another cluster's pool; InUse; Invalid. Durable on return.
func Format(ctx context.Context, o FormatOptions) (PoolInfo, error) {
	op := "format " + o.Device
	id := Identity{Cluster: o.Cluster, Node: o.Node, Pool: holdfast.NewPoolID()}
	if err := id.validate(); err != nil {
		return PoolInfo{}, holdfast.Wrap(op, err)
	}
	t, err := look(ctx, o.Device)
	if err != nil {
		return PoolInfo{}, holdfast.Wrap(op, err)
	}
	defer t.close()
	old, unfinished, ours := t.pool()
	if ours && !unfinished {
		id.Pool = old
	} else if err := t.makeFilesystem(ctx, id.Pool, ours); err != nil {
		return PoolInfo{}, holdfast.Wrap(op, err)
	}
	dev, err := attach(ctx, o.Device, t.image)
	if err != nil {
		return PoolInfo{}, holdfast.Wrap(op, err)
	}
	id, err = identify(dev, o.MountRoot, id)
	return PoolInfo{Identity: id, Device: o.Device, SizeBytes: t.size}, holdfast.Wrap(op, err)
}

// identify mounts the filesystem, and writes the identity unless it is there.
func identify(dev blockDevice, root string, id Identity) (Identity, error) {
	m, err := mountPool(dev, root, id.Pool)
	if err != nil {
		if dev.opened {
			err = errors.Join(err, dev.detach())
		}
		return Identity{}, err
	}
	fs, err := disk.OpenDir(m.dir)
	if err == nil {
		id, err = FormatFS(fs, id)
	}
	return id, errors.Join(err, m.undo())
}

// makeFilesystem runs mkfs on what is empty, or what an earlier one left half
// done.
func (t *target) makeFilesystem(ctx context.Context, id holdfast.PoolID, again bool) error {
	if err := t.unused(ctx); err != nil {
		return err
	}
	uuid := string(id[:8] + "-" + id[8:12] + "-" + id[12:16] + "-" + id[16:20] + "-" + id[20:])
	// Sectors of 4096 bytes: direct I/O of the loop device over an image, and
	// disks that pretend to have 512, both want it.
	args := []string{"-q", "-s", "size=4096", "-m", "reflink=1,uuid=" + uuid, "-L", xfsLabel}
	if again {
		args = append(args, "-f")
	} else if what, err := t.foreign(ctx); err != nil {
		return err
	} else if what != "" {
		return errorf("check that it is empty", holdfast.Exists, "it holds %s; only an empty device can become a pool. "+
			"If what it holds is not needed any more: wipefs --all %s, then dd if=/dev/zero of=%s bs=1M count=1 conv=notrunc (the same for its last MiB)", what, t.path, t.path)
	}
	const minBytes = 300 << 20
	if t.size < minBytes {
		return errorf("check its size", holdfast.Invalid, "it has %d bytes; a pool needs at least %d (300 MiB)", t.size, minBytes)
	}
	_, _, err := run(ctx, nil, "mkfs.xfs", append(args, t.path)...)
	if err != nil {
		return err
	}
	return holdfast.WrapKind("sync", holdfast.Corrupt, t.f.Sync())
}

// OpenPool opens the pool on a device or image file, wherever it was before: it
// is known by its identity. It is mounted, unless a killed process left it
// mounted. Kinds: NotFound when the device is no pool; Denied for another
// cluster's; InUse when another process has it open; Corrupt.
func OpenPool(ctx context.Context, o OpenOptions) (*Pool, error) {
	op := "open pool on " + o.Device
	t, err := look(ctx, o.Device)
	if err != nil {
		return nil, holdfast.Wrap(op, err)
	}
	defer t.close()
	id, unfinished, ok := t.pool()
	if !ok || unfinished {
		return nil, errorf(op, holdfast.NotFound, "it is no pool of Holdfast's; format it first")
	}
	dev, err := attach(ctx, o.Device, t.image)
	if err != nil {
		return nil, holdfast.Wrap(op, err)
	}
	p, err := dev.openPool(o, id)
	return p, holdfast.Wrap(op, err)
}

// openPool mounts and opens the pool on a device. What a killed process left
// mounted may have shut down since, or before it was killed, as a disk gave
// errors: such a filesystem answers nothing but EIO for ever, so it is mounted
// anew, unless somebody uses it.
func (b blockDevice) openPool(o OpenOptions, id holdfast.PoolID) (*Pool, error) {
	m, err := mountPool(b, o.MountRoot, id)
	if err != nil {
		if b.opened {
			err = errors.Join(err, b.detach())
		}
		return nil, err
	}
	p, err := m.open(o, id)
	if !m.fresh && errors.Is(err, unix.EIO) && unix.Unmount(m.dir, 0) == nil {
		if m, err = mountPool(b, o.MountRoot, id); err != nil {
			return nil, err
		}
		p, err = m.open(o, id)
	}
	if err != nil {
		return nil, errors.Join(err, m.undo())
	}
	return p, nil
}

// open opens the pool that is mounted, and makes it responsible for the mount.
func (m *mounted) open(o OpenOptions, id holdfast.PoolID) (*Pool, error) {
	fs, err := disk.OpenDir(m.dir)
	if err != nil {
		return nil, err
	}
	if err := m.mountMemory(o.MemoryRoot, id); err != nil {
		return nil, err
	}
	memory, err := disk.OpenDir(m.memory)
	if err != nil {
		return nil, err
	}
	p, err := OpenFS(FSOptions{FS: fs, Memory: memory, Cluster: o.Cluster, Node: o.Node, BootID: o.BootID, ReserveBytes: o.ReserveBytes, SnapshotPercent: o.SnapshotPercent, Device: o.Device})
	if err != nil {
		return nil, err
	}
	// Only now that the lock is held: the mounting of a pool that somebody else
	// has open must not change.
	if p.mounting, err = beginMounting(fs, m.fresh); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	p.instance = p.mounting
	p.release = m.release
	return p, nil
}
