// Package netcluster runs real daemons as if each had a machine of its own: a
// network namespace per node, real pools and mounts, the CSI sockets, and a real
// PostgreSQL that writes numbered rows. The demonstration and the chaos runs are
// made with it.
//
// As all nodes share one kernel, taking a node's power means: its processes are
// killed without warning, and what the dead kernel would have forgotten (mounts
// and devices) is removed by force; its pools stay as they were.
//
// It promises to touch only namespaces, mounts, devices and processes that are
// its own: they carry the network's prefix, are inside its namespaces or below
// the folder that it is given. It does not decide what runs when.
//
// Goroutines: one per started process that waits for its end, and one per writer
// of rows.
package netcluster
