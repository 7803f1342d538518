// Package testvm tests what needs another kernel than this machine's: the
// contract of the device front ends on kernels of Debian, with the modules that
// they need, and power cuts under a running cluster. `make test-vm` runs it; its
// tests stand behind the build tag vm, as they take many minutes of emulation.
//
// It promises that what failed inside a machine fails here under the same name.
// It judges nothing by the clock. It owns no goroutine.
package testvm
