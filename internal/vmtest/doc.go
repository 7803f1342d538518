// Package vmtest runs test programs in virtual machines: kernels of Debian (see
// scripts/vm-kernels.sh) emulated by qemu, with a
// root filesystem in memory that holds the test program, busybox and programs
// taken from this machine. It is for what this machine's kernel cannot do.
//
// It promises that a machine ends with its context, with Kill, or with the
// process that started it, whatever hangs inside, and that what ran inside is
// reported as ordinary test results.
//
// It does not promise speed: emulated, everything takes ten to thirty times as
// long, so nothing in a guest may be judged by the clock.
//
// Goroutines: per machine one that reads its output and one that waits for its
// end.
package vmtest
