// Package nbd makes a volume a block device by the kernel's network block device
// client: the daemon serves the NBD protocol's transmission phase over a socket
// pair, whose other end it gives to the kernel by generic netlink.
//
// It promises what device.FrontEnd does, and that a device outlives its server:
// when the process dies, requests wait, those in flight too, until a successor
// with the same root directory adopts the device or removes it. With a keeper the
// successor goes on with the same connection, in which the kernel notices nothing,
// and finds there what was in flight (stream.go). Without one it gives the kernel a
// new connection, and what was in flight is sent again up to 2 s after that: the
// kernel looks at it only so often. Flushes, FUA writes, trims and growth pass
// through; write-zeroes where the kernel has it (6.12 and later), else it writes
// zeros.
//
// A volume that hangs does not grow: from about 6.12 on the kernel freezes the device
// to change its size, and a process that is killed meanwhile could not end, nor could
// the device be removed. So what is in flight is waited for before the kernel is
// asked, see docs/design/front-ends.md.
//
// Goroutines: per device a reader and a writer of its socket, from Open until
// Close or Abort; and one per call of Close or Grow that waits for the kernel,
// until the kernel answers.
package nbd
