//go:build race

package fuseloop

// Under the race detector sync.Pool drops things at random.
const poolsDrop = true
