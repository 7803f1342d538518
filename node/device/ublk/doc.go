// Package ublk makes a volume a block device by the kernel's ublk driver:
// requests come and are answered through io_uring, their data is copied by
// pread and pwrite of the driver's own device (UBLK_F_USER_COPY), so that no
// memory is held for requests that are not there.
//
// It promises what device.FrontEnd does, and that a device outlives its server:
// when the process dies, requests wait, those in flight too, until a successor
// with the same root directory adopts the device or removes it. Flushes, FUA
// writes, discards and write-zeroes pass through. A device grows where the
// kernel can (UBLK_F_UPDATE_SIZE, Linux 6.16 and later); else Grow is refused
// with Unsupported, see CanGrow.
//
// Before UBLK_F_SAFE_STOP_DEV a Close looks for users of the device first and
// then removes it: who opens it just then gets errors.
//
// Goroutines: per device one, locked to a thread of its own, which the driver
// wants for every answer, from Open until the device is removed; and one per
// call of Close or Grow that waits for the kernel, until the kernel answers.
package ublk
