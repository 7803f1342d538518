package fuseloop

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/node/device"
)

// Config describes a front end.
type Config struct {
	// Root is a directory of the daemon's own, made if missing, where its FUSE
	// mounts stand: such as /run/holdfast/NODE/devices. It holds the owner mark
	// by which a successor knows its predecessor's devices, and a lock: two
	// daemons cannot share it.
	Root string
	// Log receives what happens off the data path. Nil drops it.
	Log *slog.Logger
}

// ownerFile stands in Root beside the mount points.
const ownerFile = "owner"

// FrontEnd is device.FrontEnd by FUSE and loop devices.
type FrontEnd struct {
	root  string
	owner string // 16 hexadecimal digits, the same as long as Root exists
	log   *slog.Logger
	lock  *os.File

	mu      sync.Mutex
	devices map[holdfast.VolumeID]*Device // nil while being opened
}

var (
	_ device.FrontEnd = (*FrontEnd)(nil)
	_ device.Device   = (*Device)(nil)
)

// New takes the root directory. It fails with InUse while another process that
// lives has it.
func New(c Config) (*FrontEnd, error) {
	const op = "start the fuseloop front end"
	root, err := filepath.Abs(c.Root)
	if err != nil || c.Root == "" {
		return nil, holdfast.E(op, holdfast.Invalid, "a root directory for mounts is needed")
	}
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, holdfast.WrapKind(op, holdfast.Other, err)
	}
	f := &FrontEnd{root: root, log: c.Log, devices: map[holdfast.VolumeID]*Device{}}
	if f.log == nil {
		f.log = slog.New(slog.DiscardHandler)
	}
	if err := f.takeRoot(); err != nil {
		return nil, holdfast.Wrap(op, err)
	}
	return f, nil
}

// dyingWait bounds how long New waits for a killed predecessor to be gone.
const dyingWait = 10 * time.Second

// holder is the content of the file "owner": the mark, and who has the lock.
type holder struct {
	owner string
	pid   int
	pidNS string // the namespace in which pid means something
}

func readHolder(path string) (h holder) {
	raw, err := os.ReadFile(path)
	if err == nil {
		_, _ = fmt.Sscanf(string(raw), "%s %d %s", &h.owner, &h.pid, &h.pidNS)
	}
	return h
}

// takeRoot locks the root and reads or makes the owner mark.
func (f *FrontEnd) takeRoot() error {
	path := filepath.Join(f.root, ownerFile)
	lock, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return holdfast.WrapKind("open "+path, holdfast.Other, err)
	}
	if err := f.waitLock(lock); err != nil {
		lock.Close()
		return err
	}
	h := readHolder(path)
	if f.owner = h.owner; len(f.owner) != 16 {
		var b [8]byte
		_, _ = rand.Read(b[:])
		f.owner = hex.EncodeToString(b[:])
	}
	line := fmt.Sprintf("%s %d %s\n", f.owner, os.Getpid(), pidNamespace())
	if err = lock.Truncate(0); err == nil {
		_, err = lock.WriteAt([]byte(line), 0)
	}
	if err != nil {
		lock.Close()
		return holdfast.WrapKind("write "+path, holdfast.Other, err)
	}
	f.lock = lock
	return nil
}

// waitLock takes the lock; it waits only for a holder that has been killed. Such
// a process cannot end while a thread of it waits in the kernel for an answer
// that only itself could give: ending its connections frees it.
func (f *FrontEnd) waitLock(lock *os.File) error {
	deadline := time.Now().Add(dyingWait)
	for {
		err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return holdfast.WrapKind("lock "+lock.Name(), holdfast.Other, err)
		}
		h := readHolder(lock.Name())
		if h.pidNS != pidNamespace() || !dying(h.pid) || time.Now().After(deadline) {
			return holdfast.E("lock "+lock.Name(), holdfast.InUse, fmt.Sprintf("process %d has it; give each daemon a directory of its own", h.pid))
		}
		f.abortMounts()
		<-time.After(20 * time.Millisecond)
	}
}

func pidNamespace() string {
	ns, _ := os.Readlink("/proc/self/ns/pid")
	return ns
}

// dying says whether the process was killed or has ended, though parts of it may
// still be there.
func dying(pid int) bool {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return errors.Is(err, os.ErrNotExist)
	}
	for line := range strings.Lines(string(raw)) {
		key, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch key {
		case "State":
			if strings.HasPrefix(value, "Z") || strings.HasPrefix(value, "X") {
				return true
			}
		case "SigPnd", "ShdPnd":
			pending, err := strconv.ParseUint(value, 16, 64)
			if err == nil && pending&(1<<(unix.SIGKILL-1)) != 0 {
				return true
			}
		}
	}
	return false
}

// Name is "fuseloop".
func (f *FrontEnd) Name() string { return "fuseloop" }

// Close gives the root directory back. It fails with InUse while devices are
// open.
func (f *FrontEnd) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := len(f.devices); n > 0 {
		return holdfast.E("stop the fuseloop front end", holdfast.InUse, fmt.Sprintf("%d devices are open; close them first", n))
	}
	return f.lock.Close()
}

// dir is where the volume's filesystem is mounted.
func (f *FrontEnd) dir(vol holdfast.VolumeID) string { return filepath.Join(f.root, string(vol)) }

// filePrefix begins the name of the file behind a loop device, which is the mark
// of ownership: holdfast-VOLUME-OWNER.
const filePrefix = "holdfast-"

func (f *FrontEnd) fileName(vol holdfast.VolumeID) string {
	return filePrefix + string(vol) + "-" + f.owner
}

// volumeOf undoes fileName for files of this owner.
func (f *FrontEnd) volumeOf(file string) (holdfast.VolumeID, bool) {
	s, ok := strings.CutPrefix(file, filePrefix)
	if !ok {
		return "", false
	}
	s, ok = strings.CutSuffix(s, "-"+f.owner)
	return holdfast.VolumeID(s), ok
}

// Open makes a device. A volume that is open already is refused with Exists;
// what a killed predecessor left of it is removed first.
func (f *FrontEnd) Open(ctx context.Context, o device.Options, b device.Backend) (device.Device, error) {
	op := "open a device for volume " + string(o.Volume)
	if err := validate(o, b); err != nil {
		return nil, holdfast.Wrap(op, err)
	}
	if err := f.reserve(o.Volume); err != nil {
		return nil, holdfast.Wrap(op, err)
	}
	d, err := f.open(ctx, o, b)
	f.mu.Lock()
	defer f.mu.Unlock()
	if err != nil {
		delete(f.devices, o.Volume)
		return nil, holdfast.Wrap(op, err)
	}
	f.devices[o.Volume] = d
	return d, nil
}

func isVolume(name string) bool {
	raw, err := hex.DecodeString(name)
	return err == nil && len(raw) == 16 && strings.ToLower(name) == name
}

func validate(o device.Options, b device.Backend) error {
	bad := func(format string, a ...any) error {
		return holdfast.E("", holdfast.Invalid, fmt.Sprintf(format, a...))
	}
	if !isVolume(string(o.Volume)) {
		return bad("the volume id %q is not 32 lower-case hexadecimal digits", o.Volume)
	}
	switch {
	case b == nil:
		return bad("a backend is needed")
	case o.LogicalBlk != 512 && o.LogicalBlk != 4096:
		return bad("a logical block of %d bytes is not possible; use 512 or 4096", o.LogicalBlk)
	case o.SizeBytes <= 0 || o.SizeBytes > holdfast.MaxVolumeBytes || o.SizeBytes%int64(o.LogicalBlk) != 0:
		return bad("a size of %d bytes is not possible; use a multiple of %d up to %d", o.SizeBytes, o.LogicalBlk, int64(holdfast.MaxVolumeBytes))
	}
	return nil
}

func (f *FrontEnd) reserve(vol holdfast.VolumeID) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.devices[vol]; ok {
		return holdfast.E("", holdfast.Exists, "it has a device already; close that first")
	}
	f.devices[vol] = nil
	return nil
}

func (f *FrontEnd) forget(vol holdfast.VolumeID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.devices, vol)
}

func (f *FrontEnd) open(ctx context.Context, o device.Options, b device.Backend) (*Device, error) {
	if _, err := f.clean(func(v holdfast.VolumeID) bool { return v == o.Volume }); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, holdfast.WrapKind("", holdfast.Unavailable, err)
	}
	d := &Device{fe: f, opts: o, dir: f.dir(o.Volume), busy: make(chan struct{}, 1), aborted: make(chan struct{})}
	if err := d.start(b); err != nil {
		d.dismantle()
		return nil, err
	}
	return d, nil
}
