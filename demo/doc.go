// Package demo runs a whole Holdfast cluster on one machine and shows it doing
// its job: a database on a replicated volume that outlives its node.
//
// Nothing in it is simulated but the power: four real daemons in network
// namespaces of their own, real pools, the real CSI sockets, a real PostgreSQL.
// As all nodes share one kernel, cutting a node's power means: its processes are
// killed without warning, its link is taken away, and what the dead kernel would
// have forgotten (mounts and devices) is removed by force; its pools stay as
// they were.
//
// It promises to verify every row whose commit was acknowledged, to return an
// error unless everything held, and to remove whatever it made: at its end, on
// an error, when interrupted, and what a killed earlier run left behind. It
// touches only namespaces, mounts, devices and processes that are its own: they
// carry its prefix, or are found below its folder or inside its namespaces. Only
// one run is possible at a time.
//
// Goroutines: one per writer of rows, one that redraws the progress line, and
// one per started process that waits for its end; all end before Run returns.
package demo
