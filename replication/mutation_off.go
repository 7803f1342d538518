//go:build !mutations

package replication

// mutant says whether a deliberate fault is switched on: never in this build.
func mutant(Mutation) bool { return false }
