// Package blockdev is what all front ends need of their host: the directory
// whose owner mark tells their devices from other people's, device nodes and
// their files in /sys, who uses a device, taking mounts off it, and the errors
// that the kernel is told.
//
// It promises to look at nothing that could hang: no mounted filesystem, no
// device. It owns no goroutine.
package blockdev
