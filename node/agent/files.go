package agent

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
)

// Of the files that the process may have open, this part is left to what must not
// fail, such as connections and the embedded etcd: a daemon without any left dies.
const (
	filesKeptFromReplicas = 8  // an eighth
	filesKeptFromDevices  = 16 // a sixteenth: to have a volume is worth more
)

// enoughFiles refuses, with kind NoSpace, to have more open when no more than the
// kept part of the process's limit is left.
func enoughFiles(kept uint64) error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return nil // what cannot be opened says so
	}
	// The kernel gives the lowest number that is free.
	fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err == nil {
		_ = unix.Close(fd)
		if uint64(fd) < limit.Cur-limit.Cur/kept {
			return nil
		}
	}
	return holdfast.E("", holdfast.NoSpace, fmt.Sprintf("this node's daemon has nearly all of the %d files open that it may have; raise that limit (LimitNOFILE= of its service) and restart it, or use other nodes", limit.Cur))
}
