// Package csisanity replays what the orchestrators really send to a CSI driver:
// exact calls, fields, paths, order and repeats of Mesos (the volume/csi isolator
// and the storage local resource provider), kubelet with its sidecars, and Nomad,
// as read from their sources; together with csi-test it is the conformance suite.
//
// Each suite takes an Env with connections to a driver and fails the test when
// the driver does what would break that client: an error where the client gives
// up, a target that is not there or not gone, a mount that is stacked or left.
//
// The test process must see the driver's mounts: same mount namespace. Suites
// undo what they did, also when they fail. They own no goroutine that outlives a
// call.
package csisanity
