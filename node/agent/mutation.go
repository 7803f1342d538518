package agent

// Mutation is a deliberate fault in what invariant 8 asks of this package: the
// tests must catch each (make sim-mutations). They exist only in builds with the
// tag "mutations"; otherwise mutant is constantly false.
type Mutation uint8

// The mutations.
const (
	MutateNone         Mutation = iota
	Mutate8InTheRecord          // a tombstone removes a replica that a record names too
	Mutate8Unnamed              // a replica that no record names is removed without a tombstone
	MutationEnd
)
