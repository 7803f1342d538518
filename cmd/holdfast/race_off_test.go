//go:build !race

package main

// daemonMemory limits the service in bytes: twice what it takes with one volume
// and the metadata in it.
const daemonMemory = 96 << 20
