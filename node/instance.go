package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
)

// instanceFile, in the state directory, holds "INSTANCE BOOT\n", and is locked by
// the process that is this instance.
const instanceFile = "instance"

// lockPatience bounds waiting for a killed predecessor to be gone.
const lockPatience = 5 * time.Second

// takeInstance gives the name under which this process takes the node's lease.
// It is the predecessor's own if that ran in the same boot: the lock proves that
// it is gone, so its lease may be taken over at once instead of being waited out.
// In another boot, or on another machine to which the directory was copied, the
// name is new, and a lease that lives is respected. Close the file at the end.
func takeInstance(ctx context.Context, dir, boot string) (lock *os.File, instance string, err error) {
	path := filepath.Join(dir, instanceFile)
	op := "take " + path
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, "", holdfast.WrapKind(op, holdfast.Invalid, err)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, "", holdfast.WrapKind(op, holdfast.Invalid, err)
	}
	instance, err = lockInstance(ctx, f, boot)
	if err != nil {
		return nil, "", holdfast.Wrap(op, errors.Join(err, f.Close()))
	}
	return f, instance, nil
}

func lockInstance(ctx context.Context, f *os.File, boot string) (string, error) {
	if err := flock(ctx, f); err != nil {
		return "", err
	}
	raw, err := os.ReadFile(f.Name())
	if err != nil {
		return "", holdfast.WrapKind("read", holdfast.Other, err)
	}
	if have := strings.Fields(string(raw)); len(have) == 2 && have[1] == boot {
		return have[0], nil
	}
	instance := string(holdfast.NewReplicaID())
	line := []byte(fmt.Sprintf("%s %s\n", instance, boot))
	if err = f.Truncate(0); err == nil {
		_, err = f.WriteAt(line, 0)
	}
	return instance, holdfast.WrapKind("write", holdfast.NoSpace, err)
}

func flock(ctx context.Context, f *os.File) error {
	for deadline := time.Now().Add(lockPatience); ; {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, unix.EWOULDBLOCK):
			return holdfast.WrapKind("lock", holdfast.Other, err)
		case time.Now().After(deadline):
			return holdfast.E("lock", holdfast.InUse, "another daemon runs with this state directory; stop it, or give this one another directory and node id")
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return holdfast.WrapKind("lock", holdfast.Unavailable, ctx.Err())
		}
	}
}

// bootID identifies the boot of this host.
func bootID() (string, error) {
	raw, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(raw)), holdfast.WrapKind("read the boot id", holdfast.Unsupported, err)
}
