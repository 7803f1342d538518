//go:build race

package main

// daemonMemory limits the service in bytes; the race detector takes several times
// what the program takes.
const daemonMemory = 1 << 30
