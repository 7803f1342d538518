// Package fuseloop makes a volume a block device on every kernel, without
// modules: it serves a filesystem with exactly one file over /dev/fuse, written
// by hand for the dozen operations that a file needs, and binds a loop device
// with direct I/O to that file.
//
// It promises that reads, writes, flushes, discards and write-zeroes reach the
// backend as they are, that a flush is answered only when the backend says that
// it is durable, that the device grows while it is in use, that a device can be
// removed whatever holds it or hangs, and that what a killed predecessor left
// behind is found and removed. Several daemons on one machine do not touch each
// other's devices: each has a root directory and an owner mark of its own.
//
// It does not keep a device alive when its process dies: I/O then fails at once.
// The process that serves never keeps open what it serves (neither the file nor
// the loop device): the kernel could not end a killed process that waits for an
// answer of its own.
//
// Goroutines: per device the readers (one that reads what there is, and one that looks for
// the next request where that pays: package poll), from Open until Close or
// Abort; and one per call of Close, Grow or Abort that waits for the kernel,
// until the kernel answers. Two while there is a helper. None per request: a request is read and submitted
// by a reader and answered by whoever calls its Done.
package fuseloop
