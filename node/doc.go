// Package node is a whole node's daemon: the agent with its pools, the data
// plane, the block device front end, the gRPC services for other nodes and the
// CSI node service, wired together over a metadata store that the caller gives.
//
// It promises that the node answers nobody before it knows what it stores, and
// that it stops in the order that keeps others safe: devices, data plane, pools,
// lease. It holds no controller: whoever composes a program adds one beside it.
//
// Goroutines: Run owns one per listener and the agent's; all have ended when it
// returns.
package node
