// Package sim runs whole clusters in one goroutine and virtual time: the real
// Primary and Replica machines over a simulated network, metadata store and
// disks that fail as real ones do. Everything random comes from one seed, so a
// run replays exactly.
//
// It checks that every block is a linearizable register whose flushed content
// survives power loss, that replicas are equal after healing, and that nothing
// waits for ever once the faults end. It does not check timing, the wire format
// or the engine's code. It owns no goroutines.
package sim
