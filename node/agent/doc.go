// Package agent does a node's duties towards the cluster: it keeps the node's
// registration and lease, opens its pools and adopts the replicas found there,
// creates replicas and removes those that a tombstone names, attaches and
// detaches volumes as block devices, and runs maintenance primaries for volumes
// that need work while nobody has them attached.
//
// It promises that every mutating call is idempotent, that a call which outlives
// its caller goes on and is joined by the repeated one, and that nothing is
// deleted on absence (invariant 8). It decides nothing about where replicas
// belong and moves no data itself: the data plane does, behind Plane.
//
// Goroutines: Run owns the loops (lease, registration, tombstones, records,
// maintenance, attaching again what the predecessor had), one per attached
// volume that waits for its end and its growth, one per maintenance primary, and
// one per operation under way. All have ended when Run and Close have returned.
package agent
