//go:build !race

package fuseloop

const poolsDrop = false
