// Package vmtest runs test programs in virtual machines: kernels of Debian (see
// scripts/vm-kernels.sh) emulated by qemu, with a
// root filesystem in memory that holds the test program, busybox and programs
// taken from this machine. It is for what this machine's kernel cannot do, and
// for power cuts.
//
// It promises that a machine ends with its context, with Kill, or with the
// process that started it, whatever hangs inside; that what ran inside is
// reported as ordinary test results; and that a Disk after PowerCut holds what
// was flushed, and of what was not a part chosen by a seed.
//
// It does not promise speed: emulated, everything takes ten to thirty times as
// long, so nothing in a guest may be judged by the clock.
//
// Goroutines: per machine one that reads its output and one that waits for its
// end; per disk one per connection.
package vmtest
