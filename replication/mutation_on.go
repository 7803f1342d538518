//go:build mutations

package replication

// Mutant is the deliberate fault that is switched on.
var Mutant Mutation

// mutant says whether a deliberate fault is switched on.
func mutant(m Mutation) bool { return Mutant == m }
