// Package sim runs whole clusters in one goroutine and virtual time: the real
// Primary and Replica machines over a simulated network, metadata store and
// disks that fail as real ones do. Three to seven machines carry one to three
// volumes, each with its own record, replicas, primary and users; a machine fails
// with all that is on it, and the metadata store for everybody. (Runs with scrubs
// and stories have one volume.) Everything random comes from one seed, so a run
// replays exactly; it is made of numbered choices, so a failing run can be shrunk
// to those that matter.
//
// It checks that every block is a linearizable register whose flushed content
// survives power loss, that nothing is acknowledged before all in-sync replicas
// have it, that one grant writes at a time, that replicas are equal whenever
// nothing is under way, that repairs copy what was changed, and that nothing
// waits for ever once the faults end. It counts which states of the protocol were
// reached. It does not check timing, the wire format or the engine's code. A run
// owns no goroutines; a Campaign owns one for each core while it lasts.
package sim
