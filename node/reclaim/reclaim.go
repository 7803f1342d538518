// Package reclaim keeps a process that serves block devices able to work when
// memory is short: the kernel then frees memory by writing dirty pages, which may
// go to the very devices that the process serves. A server that waits for memory
// meanwhile waits for itself.
//
// It promises that after Avoid what the process has touched stays in memory, and
// that its own requests for memory do not wait for I/O, each as far as the process
// has the right to it. It does not promise that there is memory: a cgroup that is
// too small for the process still ends it. It owns no goroutine.
package reclaim

import (
	"log/slog"
	"syscall"

	"golang.org/x/sys/unix"
)

// Done says what was reached, and else why not.
type Done struct {
	Locked    error // nil: pages are locked as they are touched
	IOFlusher error // nil: memory is never waited for by doing I/O
}

// Avoid asks the kernel for both, for all threads that there are and those that
// come. Pages are locked when they are touched first (MCL_ONFAULT), so that Go's
// large reservations cost nothing; the runtime gives memory back as before.
//
// The second is the flag PR_SET_IO_FLUSHER (Linux 5.6; prctl(2)), which takes
// CAP_SYS_RESOURCE. It belongs to a thread and is inherited by its threads and
// children, so a daemon has it from its keeper, too. Programs linked with cgo
// cannot set it.
func Avoid() Done {
	var d Done
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil {
		d.Locked = err
	}
	if _, _, errno := syscall.AllThreadsSyscall(unix.SYS_PRCTL, unix.PR_SET_IO_FLUSHER, 1, 0); errno != 0 {
		d.IOFlusher = errno
	}
	return d
}

// Tell logs what was not reached, as of a process called who.
func (d Done) Tell(log *slog.Logger, who string) {
	if d.Locked != nil {
		log.Warn("the "+who+"'s memory cannot be locked (CAP_IPC_LOCK or a higher limit allows it): under memory pressure it may be slow", "err", d.Locked)
	}
	if d.IOFlusher != nil {
		log.Info("the "+who+" is no I/O flusher (CAP_SYS_RESOURCE allows it): give it a memory limit of its own, apart from what uses its volumes", "err", d.IOFlusher)
	}
}
