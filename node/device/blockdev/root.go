package blockdev

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
)

// ownerFile stands in a root.
const ownerFile = "owner"

// Root is a front end's directory, locked: two daemons cannot share it. It keeps
// the owner mark by which a successor knows its predecessor's devices.
type Root struct {
	dir   string
	owner string // 16 hexadecimal digits, the same as long as the directory exists
	lock  *os.File
	dying func()
}

// OpenRoot takes the directory, made if missing. It fails with InUse while
// another process that lives has it. For a holder that was killed it waits a
// while; dying is called meanwhile, again and again, to free it from what it
// waits for in the kernel. Nil does nothing.
func OpenRoot(dir string, dying func(root string)) (*Root, error) {
	abs, err := filepath.Abs(dir)
	if err != nil || dir == "" {
		return nil, holdfast.E("", holdfast.Invalid, "a root directory is needed")
	}
	if err := os.MkdirAll(abs, 0o700); err != nil {
		return nil, holdfast.WrapKind("", holdfast.Other, err)
	}
	r := &Root{dir: abs, dying: func() {}}
	if dying != nil {
		r.dying = func() { dying(abs) }
	}
	return r, r.take()
}

// Dir is the directory, as an absolute path.
func (r *Root) Dir() string { return r.dir }

// Owner is the mark of this root.
func (r *Root) Owner() string { return r.owner }

// Close gives the directory back.
func (r *Root) Close() error { return r.lock.Close() }

// MarkPrefix begins every mark.
const MarkPrefix = "holdfast-"

// Mark is the name by which the kernel shows whose device of which volume it is:
// holdfast-VOLUME-OWNER.
func (r *Root) Mark(vol holdfast.VolumeID) string { return MarkPrefix + string(vol) + "-" + r.owner }

// VolumeOf undoes Mark for marks of this owner.
func (r *Root) VolumeOf(mark string) (holdfast.VolumeID, bool) {
	s, ok := strings.CutPrefix(mark, MarkPrefix)
	if !ok {
		return "", false
	}
	s, ok = strings.CutSuffix(s, "-"+r.owner)
	return holdfast.VolumeID(s), ok
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

// take locks the root and reads or makes the owner mark.
func (r *Root) take() error {
	path := filepath.Join(r.dir, ownerFile)
	lock, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return holdfast.WrapKind("open "+path, holdfast.Other, err)
	}
	if err := r.waitLock(lock); err != nil {
		lock.Close()
		return err
	}
	h := readHolder(path)
	if r.owner = h.owner; len(r.owner) != 16 {
		var b [8]byte
		_, _ = rand.Read(b[:])
		r.owner = hex.EncodeToString(b[:])
	}
	line := fmt.Sprintf("%s %d %s\n", r.owner, os.Getpid(), pidNamespace())
	if err = lock.Truncate(0); err == nil {
		_, err = lock.WriteAt([]byte(line), 0)
	}
	if err != nil {
		lock.Close()
		return holdfast.WrapKind("write "+path, holdfast.Other, err)
	}
	r.lock = lock
	return nil
}

// waitLock takes the lock; it waits only for a holder that has been killed. Such
// a process cannot end while a thread of it waits in the kernel for an answer
// that only itself could give: ending its connections frees it.
func (r *Root) waitLock(lock *os.File) error {
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
		if h.pidNS != pidNamespace() || !Dying(h.pid) || time.Now().After(deadline) {
			return holdfast.E("lock "+lock.Name(), holdfast.InUse, fmt.Sprintf("process %d has it; give each daemon a directory of its own", h.pid))
		}
		r.dying()
		<-time.After(20 * time.Millisecond)
	}
}

func pidNamespace() string {
	ns, _ := os.Readlink("/proc/self/ns/pid")
	return ns
}

// Dying says whether the process was killed or has ended, though parts of it may
// still be there.
func Dying(pid int) bool {
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
